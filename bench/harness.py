"""The one owner of measuring: cases, inputs, the check before every number, and the rows that come out."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import timing
import torch
from checking import compare
from rows import fill_ratios, row_of

from mbq_kernels import backends, use_backend
from mbq_train.quantize.bits import code_range

FORWARD, BOTH = "forward", "forward+backward"
RIVALS = "all"  # --mbq-rivals: quick leaves out what must be compiled first, none all but ours and the copy
BACKEND = ""  # --mbq-backend: ours on this one alone
DIRTY = False  # --mbq-dirty: CUDA events are taken with dirty lines in the L2 cache as well
GRAPH_LIMIT = 2**20  # tensors of up to this many elements (mean) are also timed inside a CUDA graph


@dataclass(frozen=True)
class Case:
    """One piece of work: `op` on tensors of `shapes`, together one call. `what` is FORWARD or BOTH.

    ours(case, inputs) is Candidate.build of the op, rivals(case) gives the Candidates of everybody else; single names
    the op at one bit-width, in mbq_kernels and in its eager form. one_scale: all bit-widths share the highest one's;
    zero_point: one is learned; zeros: half of x is 0, as behind a ReLU.
    """
    op: str
    shape: str  # its name in tables
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype = torch.float32
    what: str = BOTH
    bits: tuple[int, ...] = (4,)
    axis: int | None = None
    device: str = "cpu"
    ours: Callable = None
    rivals: Callable = None
    single: str = "fake_quantize"
    one_scale: bool = False
    zero_point: bool = False
    zeros: bool = False

    @property
    def numel(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def bytes(self) -> int:
        """What must move for N elements and K bit-widths, in elements of the dtype; scales are not counted.

        forward: read x, write K x_hat: (1 + K) N. backward: read x and K upstream gradients, write grad x: (2 + K) N.
        """
        k = len(self.bits)
        return (1 + k + (2 + k if self.what == BOTH else 0)) * self.numel * self.dtype.itemsize

    @property
    def name(self) -> str:
        granularity = "tensor" if self.axis is None else f"axis{self.axis}"
        return "-".join([self.op, granularity, self.shape, str(self.dtype).removeprefix("torch."), self.what])

    def inputs(self):
        return Inputs(self)

    def step(self, inputs, i: int) -> torch.Tensor:
        """Return the step between two codes of output i."""
        k = i % len(self.bits)
        scale = inputs.scales[i // len(self.bits)][k].detach()
        return scale * 2 ** (self.bits[0] - self.bits[k]) if self.one_scale else scale

    def grad_factor(self, count: int, hi: int) -> float:
        """Return what the gradient of a scale of `count` elements is multiplied by."""
        return 1.0 if self.zero_point else (count * hi) ** -0.5


class Inputs:
    """x, scales, zero points (affine) and upstream gradients: the same tensors for every candidate of a case."""

    def __init__(self, case: Case):
        generator = torch.Generator(case.device).manual_seed(0)
        make = lambda shape: torch.randn(shape, generator=generator, device=case.device, dtype=case.dtype)  # noqa: E731
        self.xs = [(make(shape).relu_() if case.zeros else make(shape)).requires_grad_() for shape in case.shapes]
        self.scales = [self._row(case, shape) for shape in case.shapes]
        self.zero_points = [torch.zeros_like(row[0]).requires_grad_(case.zero_point) for row in self.scales]
        self.upstream = [make(shape) for shape in case.shapes for _ in case.bits] if case.what == BOTH else []

    def _row(self, case, shape):
        """A scale per bit-width; where they share one, that of the highest in every place."""
        if case.one_scale:
            return [self._scale(case, shape, case.bits[0])] * len(case.bits)
        return [self._scale(case, shape, b) for b in case.bits]

    @staticmethod
    def _scale(case, shape, bits):
        """LSQ's first scale for x of unit variance, 2 mean|x| / sqrt(hi), a little different in every channel."""
        count = 1 if case.axis is None else shape[case.axis]
        spread = torch.linspace(0.9, 1.1, count, device=case.device) if count > 1 else torch.ones(1, device=case.device)
        return (spread * 2 * 0.8 / math.sqrt(code_range(bits, signed=True)[1])).requires_grad_()

    def parameters(self, case: Case) -> list[torch.Tensor]:
        zero_points = self.zero_points if case.zero_point else []
        return [*self.xs, *(scale for row in self.scales for scale in dict.fromkeys(row)), *zero_points]


@dataclass(frozen=True)
class Candidate:
    """`build(case, inputs)` gives (call, parameters): call() returns one x_hat per tensor and bit-width."""
    name: str
    build: Callable
    differs: str = ""  # what is not our arithmetic; then only x_hat is compared, to within one step
    exact: bool = False  # x_hat and grad x must have the reference's bits
    compiles: bool = False  # its first call is slow for good reason
    context: Callable = field(default=contextlib.nullcontext)


def wanted(name: str) -> bool:
    """Whether a candidate is measured in this session."""
    if RIVALS == "all":
        return True
    return "torch.compile" not in name and (RIVALS == "quick" or name.startswith(("mbq", "copy")))


def our_contexts(case) -> dict[str, Callable]:
    """Return {"mbq backend": context} of all that can run here, or of BACKEND and the definition, "mbq reference"; the
    backend in use by default first."""
    names = backends(case.op, case.device)
    if BACKEND and BACKEND not in names:
        raise ValueError(f"{case.op}: backend must be one of {', '.join(names)} on {case.device}, got {BACKEND}")
    return {f"mbq {name}": contextlib.nullcontext if name == names[0] else lambda name=name: use_backend(name)
            for name in names if not BACKEND or name in (BACKEND, "reference")}


def our_candidates(case: Case) -> list[Candidate]:
    """One per backend."""
    return [Candidate(name, case.ours, exact=True, context=context) for name, context in our_contexts(case).items()]


def copy_candidate(case: Case) -> Candidate:
    """The roofline: a copy of x, `clone()` on the CPU and a copy into existing memory on CUDA; 2 N elements move."""
    def build(case, inputs):
        xs = [x.detach() for x in inputs.xs]
        if case.device == "cpu":
            return lambda: [x.clone() for x in xs], []
        to = [torch.empty_like(x) for x in xs]
        return lambda: [y.copy_(x) for x, y in zip(xs, to, strict=True)], []
    return Candidate("copy", build)


def step_of(case: Case, inputs: Inputs, candidate: Candidate) -> Callable:
    """One timed call: upstream gradients given, gradients returned and never added to .grad, for every candidate."""
    call, parameters = candidate.build(case, inputs)
    if case.what == FORWARD or candidate.name == "copy":
        return lambda: (_no_grad(call), [])

    def both():
        outputs = call()
        return outputs, torch.autograd.grad(outputs, parameters, inputs.upstream, allow_unused=True)
    return both


@torch.no_grad()
def _no_grad(call):
    return call()


def checked_call(step, candidate: Candidate, case: Case):
    """The result that is checked: of a call after the one that compiles."""
    with candidate.context():
        if candidate.compiles:
            step()
        result = step()
    if case.device == "cuda":
        torch.cuda.synchronize()
    return result


def time_all(case, steps: dict, contexts: dict, tensors: int = 1) -> dict[str, dict[str, list[float]]]:
    """Samples by timer and candidate. Small CUDA work is timed twice: as called, and replayed from a CUDA graph."""
    if case.device == "cpu":
        return {"wall clock": timing.wall_clock(steps, contexts)}
    timers = {"CUDA events": timing.cuda_events(steps, contexts)}
    if DIRTY:
        timers["CUDA events, dirty cache"] = timing.cuda_events(steps, contexts, dirty=True)
    if case.numel <= GRAPH_LIMIT * tensors:
        graphs = {}
        for name, step in steps.items():
            with contextlib.suppress(RuntimeError):  # a step that synchronises cannot be captured: no graph row
                graphs[name] = timing.cuda_graph(step, contexts[name])
        samples = timing.cuda_events({name: graph.replay for name, graph in graphs.items()},
                                     dict.fromkeys(graphs, contextlib.nullcontext))
        timers["CUDA graph"] = {name: [s / timing.GRAPH_CALLS for s in values] for name, values in samples.items()}
    return timers


def measure(case: Case) -> tuple[list[dict], Callable]:
    """Rows of every candidate, measured or with the reason why not, and our own step. Checks before it times."""
    torch._dynamo.reset()
    timing.release_memory()
    inputs, own = case.inputs(), our_candidates(case)
    by_name = {c.name: c for c in [copy_candidate(case), *own, *case.rivals(case)] if wanted(c.name)}
    definition = by_name["mbq reference"]
    want = checked_call(reference_step := step_of(case, inputs, definition), definition, case)
    rows, steps, verdicts, result = [], {}, {}, None
    for name, candidate in by_name.items():
        try:
            if candidate is definition:
                if RIVALS != "none":
                    steps[name], verdicts[name] = reference_step, "the definition"
                continue
            step = step_of(case, inputs, candidate)
            result = checked_call(step, candidate, case)
            verdicts[name] = "" if name == "copy" else compare(case, inputs, candidate, result, want)
            steps[name] = step
        except Exception as error:  # a rival that is missing, fails or is wrong becomes a row that says so
            rows.append(row_of(case, name, error=f"{type(error).__name__}: {str(error).strip()}"[:300]))
    del want, result
    contexts = {name: by_name[name].context for name in steps}
    for timer, samples in time_all(case, steps, contexts, len(case.shapes)).items():
        rows += [row_of(case, name, timer=timer, check=verdicts[name], differs=by_name[name].differs,
                        **timing.summary(values)) for name, values in samples.items()]
    fill_ratios(case, rows, own[0].name)
    return rows, steps.get(own[0].name)


def our_calls(case, call: Callable) -> dict:
    """{name: (call, context)}, one per backend with kernels."""
    return {name: (call, context) for name, context in our_contexts(case).items() if name != "mbq reference"}


def measure_calls(case, calls: dict, check: Callable, differs: dict) -> tuple[list[dict], Callable]:
    """Rows of {name: (call, context)}, ours first, and our call. check(results by name) gives a line for each."""
    results = {}
    for name, (call, context) in calls.items():
        with context():
            results[name] = call()
    results.pop("copy")
    verdicts = {**check(results), "copy": ""}
    del results
    steps, contexts = ({name: pair[i] for name, pair in calls.items()} for i in (0, 1))
    rows = [row_of(case, name, timer=timer, check=verdicts[name], differs=differs.get(name, ""),
                   **timing.summary(values))
            for timer, samples in time_all(case, steps, contexts).items() for name, values in samples.items()]
    fill_ratios(case, rows, next(iter(calls)))
    return rows, next(iter(steps.values()))
