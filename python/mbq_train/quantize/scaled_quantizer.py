"""Quantizers with learned scales: parameters per bit-width and their first values."""

import math

import torch
from torch import nn

from .. import distributed
from .bits import FLOAT, BitState, code_range
from .data_parallel import averaged
from .flags import captured, one_of_all
from .quantizer import Quantizer, autocast_dtype
from .units import STEPS_OF_FIRST, Rows, least_scale


class ScaledQuantizer(Quantizer):
    """Quantize with scales per bit-width: hold them, give them their first values, call the kernel.

    The scales are Parameters from construction, so that an optimizer built at any time sees them; they are NaN until
    the first training batch at their bit-width, of all processes where there are several, gives them their values in
    place. A scale is `scales[b] * scale_units[b]`, at least `scale_floors[b]`: see `units`.
    """

    _watched = {**Quantizer._watched, "initialised": "_read"}
    _obsolete = ()

    def __init__(self, bit_state: BitState, shape, *, signed: bool | None, layer_name: str, like: torch.Tensor,
                 own_bits: int | None = None):
        super().__init__(bit_state, signed=signed, layer_name=layer_name, own_bits=own_bits)
        self._options = {"device": like.device, "dtype": torch.promote_types(like.dtype, torch.float32)}
        self.scales = self._parameter_per_bits(shape)
        self.offsets = None
        names = list(map(str, self.kept()))
        self.scale_units = Rows(names, torch.ones(shape, **self._options))
        self.scale_floors = Rows(names, torch.full(shape, math.nan, **self._options))
        # Floating point, because averages of models average their buffers too.
        self.register_buffer("initialised", torch.zeros(len(self.kept()), device=like.device))
        self.register_buffer("is_signed", torch.tensor(float(bool(signed)), **self._options))
        self._missing, self._spoiled = set(self.kept()), set()
        self.register_load_state_dict_pre_hook(_add_units)

    def _parameter_per_bits(self, shape) -> nn.ParameterDict:
        return nn.ParameterDict({str(b): nn.Parameter(torch.full(shape, math.nan, **self._options))
                                 for b in self.kept()})

    def extra_repr(self) -> str:
        return super().extra_repr() + ", offset" * (self.offsets is not None)

    @property
    def missing(self) -> set[int]:
        """Return the bit-widths whose scales have no first values yet."""
        self.look()
        return self._missing

    def kept(self) -> list[int]:
        """Return the bit-widths that have parameters, from high to low."""
        return list(dict.fromkeys(map(self.kept_at, self.bit_state.trained)))

    def _apply(self, fn, recurse=True):
        """Do what .to(), .half() and the like ask for: scales and offsets stay in float32 at least."""
        def keep(tensor):
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in (torch.float16, torch.bfloat16) else moved
        return super()._apply(keep, recurse)

    def learned(self) -> list[nn.ParameterDict]:
        """Return the scales and, where there are any, the offsets: Parameters by bit-width."""
        return [self.scales] if self.offsets is None else [self.scales, self.offsets]

    def add(self, bit_widths) -> list[int]:
        """Make parameters for more bit-widths, which the caller must fill; return the bit-widths that have got some."""
        if self.fixed_bits:
            return []
        for parameters in self.learned():
            for b in bit_widths:
                parameters[str(b)] = nn.Parameter(torch.empty_like(next(iter(parameters.values()))))
        for rows in (self.scale_units, self.scale_floors):
            rows.add(map(str, bit_widths))
        done = 0.0 if self.missing else 1.0
        self.initialised = self.initialised.new_full((len(self.initialised) + len(bit_widths),), done)
        return list(bit_widths)

    def _quantize(self, x):
        if self.bit_state.bits == FLOAT:
            return x
        self.look()
        if self._missing or self._spoiled:
            self._initialise(x.detach())
        return self.kernel(x, *self.current(), **self.options(), grad_factor=self._grad_factor(x),
                           out_dtype=autocast_dtype(x))

    def options(self) -> dict:
        """Return the keyword arguments of the kernel that say what is computed."""
        return {"bits": self.bits, "signed": self.signed, "axis": self.axis, **self.unit_and_floor()}

    def unit_and_floor(self) -> dict:
        """Return the kernel's arguments for the unit of the scale at the bit-width in use, and for its floor."""
        return {"scale_unit": self._pick(self.scale_units), "scale_floor": self._pick(self.scale_floors)}

    def current(self) -> tuple[torch.Tensor | None, ...]:
        """Return (scale in units, offset) of the bit-width in use; offset is None where none is learned.

        In a compiled graph, which serves all bit-widths, they are picked at run time: the others then get gradients of
        zeros, which `drop_idle_gradients` takes away.
        """
        return averaged(self._pick(self.scales)), None if self.offsets is None else averaged(self._pick(self.offsets))

    def scale(self, bits: int) -> torch.Tensor:
        """Return the scale that serves `bits`, as the kernel uses it, without gradient: exports and stores take it."""
        key = str(self.kept_at(bits))
        return torch.maximum(self.scales[key].detach() * self.scale_units[key], self.scale_floors[key])

    def _pick(self, tensors) -> torch.Tensor:
        if torch.compiler.is_compiling() and len(self.scales) > 1:
            rows = tensors.rows if isinstance(tensors, Rows) else torch.stack(
                [tensors[str(b)] for b in self.bit_state.trained])
            return rows[self.index]
        return tensors[str(self.kept_at(self.bits))]

    def _grad_factor(self, x) -> float | None:
        return None  # the kernel's own: 1 / sqrt(N hi)

    def check_initialised(self, bit_widths) -> None:
        """Raise RuntimeError unless the scales of all `bit_widths` have their first values."""
        kept = set(map(self.kept_at, bit_widths))
        if missing := self.missing & kept:
            raise RuntimeError(f"{self.layer_name}: {type(self).__name__} must have seen a training batch at "
                               f"{max(missing)} bits before it is used, got none: convert(..., example=batch) or "
                               "initialise(model, batch) takes its first values from one")
        if spoiled := self._spoiled & kept:
            raise RuntimeError(f"{self.layer_name}: scales of {type(self).__name__} must be numbers, got NaN at "
                               f"{max(spoiled)} bits: of a training that diverged, or of an average that began before "
                               "the first values, which convert(..., example=batch) takes in time")

    @torch.compiler.disable
    @torch.no_grad()
    def _read(self) -> None:
        """Read the values that Python keeps of the buffers."""
        kept = self.kept()
        if not kept:
            return
        numbers = torch.stack([scale.isfinite().all() for scale in map(self.scales.__getitem__, map(str, kept))])
        flags = torch.cat([numbers.to(self.initialised), self.initialised, self.is_signed.reshape(1)])
        flags = one_of_all(self.layer_name, flags)
        finite, done, signed = flags[:len(kept)], flags[len(kept):-1], flags[-1]
        self._missing = {b for b, flag in zip(kept, done, strict=True) if flag == 0}
        self._spoiled = {b for b, flag, number in zip(kept, done, finite, strict=True) if flag and not number}
        if any(done):
            self._signed = bool(signed)

    @torch.compiler.disable
    @torch.no_grad()
    def _initialise(self, x) -> None:
        bits = self.kept_at(self.bits)
        if bits not in self._missing | self._spoiled:
            return
        if not captured(x):
            self._read()  # what was written to scales alone counts too
        if not self.training or bits not in self._missing:
            self.check_initialised([bits])
            return
        if getattr(self, "_is_replica", False) or captured(x):
            raise RuntimeError(f"{self.layer_name}: first values must be there before nn.DataParallel or a CUDA graph, "
                               f"got none at {bits} bits: call convert(..., example=batch)")
        x = x.to(self._options["dtype"])
        if not torch.isfinite(x).all() or not x.numel():
            raise RuntimeError(f"{self.layer_name}: the first training batch must be finite and not empty, "
                               f"got NaN, infinity or nothing at {bits} bits")
        if self._signed is None:
            self._signed = bool(distributed.minimum(x.min()) < 0)
            self.is_signed.fill_(self._signed)
        scale, offset = self._first_values(x, code_range(bits, self._signed)[1])
        self.start(bits, scale, offset)
        self.initialised[self.kept().index(bits)] = 1
        self._missing.discard(bits)
        self.saw("initialised")

    @torch.no_grad()
    def start(self, bits: int, scale: torch.Tensor, offset: torch.Tensor | None = None) -> None:
        """Make `scale` and `offset` the first values of those kept at `bits` bits."""
        key = str(bits)
        self.scale_units.fill(key, scale * STEPS_OF_FIRST)
        self.scale_floors.fill(key, least_scale(scale))
        self.scales[key].fill_(1 / STEPS_OF_FIRST)
        if self.offsets is not None:
            self.offsets[key].copy_(offset)


def _add_units(quantizer, state_dict, prefix, *others) -> None:
    """Complete, in the copy that load_state_dict makes, a checkpoint written before there were units and floors.

    Refuses scales without any buffer, because nothing tells what they count in.
    """
    keys = [f"{prefix}scales.{b}" for b in quantizer.kept()]
    if not keys or f"{prefix}scale_units.rows" in state_dict or any(key not in state_dict for key in keys):
        return
    if f"{prefix}initialised" not in state_dict:
        *_, errors = others
        errors.append(f"{quantizer.layer_name}: a state with scales must hold their units, scale_units, got Parameters "
                      "without buffers")
    else:
        scales = torch.stack([state_dict[key] for key in keys])
        state_dict[f"{prefix}scale_units.rows"] = torch.ones_like(scales)
        state_dict[f"{prefix}scale_floors.rows"] = least_scale(scales)
