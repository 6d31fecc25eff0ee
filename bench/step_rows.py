"""Training steps against each other: each is built and takes steps, whose losses are checked, then is timed."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import timing
import torch

FIRST = 2  # steps whose losses are checked: the second one's says that the gradients agree


@dataclass(frozen=True)
class Way:
    """`build()` gives a step that returns its losses; `differs` is what is not the computation of ours."""
    build: Callable
    context: Callable = contextlib.nullcontext
    differs: str = ""


def measure_steps(case: str, op: str, ways: dict[str, Way], check: Callable, ours: str, device: str) -> list[dict]:
    """Return a row for every way, measured or with the reason why not. check(name, losses by name) gives a line on the
    first steps, or raises."""
    torch._dynamo.reset()
    steps, losses, checks, rows = {}, {}, {}, []
    for name, way in ways.items():
        facts = {"case": case, "op": op, "candidate": name}
        try:
            with way.context():
                steps[name] = way.build()
                losses[name] = torch.stack([steps[name]() for _ in range(FIRST)])
            checks[name] = check(name, losses)
        except Exception as error:  # a rival that is missing, fails or is wrong becomes a row that says so
            steps.pop(name, None)
            rows.append({**facts, "error": f"{type(error).__name__}: {str(error).strip()}"[:300]})
    timer = timing.wall_clock if device == "cpu" else timing.cuda_events
    samples = timer(steps, {name: ways[name].context for name in steps})
    measured = [{"case": case, "op": op, "candidate": name, "check": checks[name], "differs": ways[name].differs,
                 "timer": "wall clock" if device == "cpu" else "CUDA events", **timing.summary(values)}
                for name, values in samples.items()]
    times = {row["candidate"]: row["ms_p50"] for row in measured}
    for row in measured if ours in times else ():
        row["ratio_to_ours"] = row["ms_p50"] / times[ours]
    return rows + measured
