"""Define what an entry of the manifest holds, and the kinds of inputs that the matrices of tests feed an op."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

MULTIPLES_OF_16 = ("cols", "inner", "count", "plane_bytes", "positions", "width")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way a Triton kernel is compiled ahead of time, and what must then be found in it.

    types: by argument, a pointer, an integer or a tuple of these; what is in neither types nor constants is constexpr.
    constants: by argument, or by (argument, place in its tuple); divisible: the integers that are multiples of 16,
    named likewise; pointers always are. reads, writes: bytes that a thread moves in accesses of 16, exactly or at
    least; all_wide: it loads nothing in shorter ones. contracts: fused multiply-adds are allowed, because no code
    comes out. tensor_cores: the type of the products.
    """
    name: str
    kernel: object
    types: dict
    constants: dict
    options: dict
    divisible: tuple = MULTIPLES_OF_16
    reads: int = 0
    writes: int = 0
    at_least: bool = False
    all_wide: bool = False
    no_loads: tuple[str, ...] = ()  # endings of instructions
    contracts: bool = False
    tensor_cores: str | None = None


@dataclass(frozen=True, kw_only=True)
class Path:
    """A call on CUDA whose machine code is counted, of tensors that fill whole tiles, and what must be found in it.

    arguments: of the raw operator by name, without elements; what is not named is absent or False. reads, writes: bytes
    an element that must move, in accesses of 16 but where `narrow` names them; again: bytes read of what others have
    read, so that a cache has them; numel: elements of the call; levels: bit-widths that a loop may go over; longest:
    the longest of loops, and of ways round one, is meant, because what shorter ones leave out is done. Wanted:
    instructions per element of a round at most `share` of those in tests/machine_code_before.json, at least `occupancy`
    of the threads that a multiprocessor can hold, `in_flight` bytes asked for there before the first of them is needed,
    at most `launches`.
    """
    operator: str
    what: str  # the rest of its name
    arguments: dict
    reads: float
    writes: float
    narrow: tuple[str, ...] = ()
    again: float = 0
    numel: int = 4096 * 4096
    levels: int = 1
    longest: bool = False
    share: float = 1.02  # compilers differ
    occupancy: float = 0.6
    in_flight: int = 48 * 1024
    launches: int = 1

    @property
    def name(self) -> str:
        return f"{self.operator} {self.what}"

    @property
    def wide(self) -> dict[str, float]:
        """Return the bytes an element that must be in accesses of 16, of reads and of writes, where there are any."""
        every = {"reads": self.again + self.reads * ("reads" not in self.narrow), "writes": self.writes}
        return {name: size for name, size in every.items() if size and (name == "reads" or name not in self.narrow)}


@dataclass(frozen=True, kw_only=True)
class Data:
    """Inputs of calls: make(device, size) gives those of one call, batch(device) three calls' and their dimensions for
    vmap, laid_out(device, layout) those of raw operators in a memory layout of LAYOUTS."""
    make: Callable
    batch: Callable
    laid_out: Callable


LAYOUTS = ("contiguous", "channels_last", "sliced", "empty")


@dataclass(frozen=True, kw_only=True)
class Op:
    """All that tests and benches must know of an op to run it in their matrices; test_manifest.py says what is missing.

    call(*inputs, bits=4) calls the op as a user does, on inputs of `data`; raw has the arguments of every raw operator,
    by name, from inputs of `data`; malformed has, by what is wrong, a raw operator and the arguments that replace good
    ones. aot gives the Variants of its Triton kernels, or names the op whose kernels it launches. on_host names the
    test that runs its CUDA loop on the host, or says after "no: " why none does. paths: its calls whose machine code is
    counted. sanitize(device, some) runs it at awkward sizes, at a few of them with some=True.
    """
    name: str
    call: Callable = None
    data: Data = None
    raw: dict[str, Callable] = field(default_factory=dict)
    malformed: dict[str, tuple[str, dict]] = field(default_factory=dict)
    aot: Callable | str = None
    on_host: str = ""
    paths: Sequence[Path] = ()
    sanitize: Callable = None
    also: tuple[str, ...] = ()  # public functions beside the one of its name
    bits: range = range(1, 9)  # that call takes
    differentiable: bool = False
    cuda: bool = True  # False: its GPU kernel is Triton's alone, because no measurement says that CUDA would do better

    def variants(self) -> list[Variant]:
        """Return the Variants of its own Triton kernels: none where it launches another op's."""
        return [] if isinstance(self.aot, str) else list(self.aot())


def row(scale, *results):
    """Put all results side by side, so that no sum but the op's own is in their gradients; scale gets 0."""
    return torch.cat([scale * 0, *(result.flatten() for result in results)])


def _float_batch(device):
    return (torch.randn(3, 4, 17, device=device), torch.rand(4, device=device) + 0.1), (0, None)


def _float_layout(device, layout):
    x = {"contiguous": torch.randn(4, 33), "sliced": torch.randn(4, 66)[:, ::2], "empty": torch.randn(4, 0),
         "channels_last": torch.randn(4, 3, 5, 2).to(memory_format=torch.channels_last)}[layout].to(device)
    return x, torch.rand(4, device=device) + 0.1


# x with a gradient and a scale for each of its rows
FLOATS = Data(make=lambda device, size=33: (torch.randn(4, size, device=device).requires_grad_(),
                                            (torch.rand(4, device=device) * 0.3 + 0.1).requires_grad_()),
              batch=_float_batch, laid_out=_float_layout)


def _codes(device, *shape):
    return (torch.randint(-128, 128, shape, dtype=torch.int8, device=device),
            torch.rand(4, device=device) + 0.1)


def _code_layout(device, layout):
    shape = {"contiguous": (4, 33), "sliced": (4, 66), "empty": (4, 0), "channels_last": (4, 3, 5, 2)}[layout]
    codes, scale = _codes(device, *shape)
    codes = codes[:, ::2] if layout == "sliced" else codes
    return codes.to(memory_format=torch.channels_last) if layout == "channels_last" else codes, scale


# int8 codes and a scale for each of their rows
CODES = Data(make=lambda device, size=33: _codes(device, 4, size), laid_out=_code_layout,
             batch=lambda device: (_codes(device, 3, 4, 33), (0, None)))


def _samples(device, positions=33, samples=4):
    return torch.randn(samples, 3, positions, device=device), torch.randn(samples, 5, positions, device=device)


def _sample_layout(device, layout):
    a, g = _samples(device, {"sliced": 66, "empty": 0}.get(layout, 33))
    if layout == "sliced":
        return a[..., ::2], g[..., ::2]
    return (a.mT.contiguous().mT, g.mT.contiguous().mT) if layout == "channels_last" else (a, g)


def _sample_batch(device):
    return tuple(t.unflatten(0, (3, 2)) for t in _samples(device, samples=6)), (0, 0)


# activations and gradients of 4 samples, channels first
SAMPLES = Data(make=_samples, batch=_sample_batch, laid_out=_sample_layout)
