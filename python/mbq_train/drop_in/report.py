"""What accelerate found in a model, and what became of it."""

from dataclasses import dataclass

from .._tables import aligned
from .measurement import Timing

COLUMNS = ("module", "type", "library", "action")
TIMES = ("original", "fused", "gain")


@dataclass(frozen=True)
class Entry:
    """What became of one module.

    action: 'replaced' or 'left'; why: of a replaced module how its results may differ from the original's (empty: bit
    for bit the same); of one that was left the reason. timing: what the example showed; None where it was not asked, or
    did not reach the module.
    """

    name: str
    type: str
    library: str
    action: str
    why: str
    timing: Timing | None = None


@dataclass(frozen=True)
class Report:
    """What accelerate did; str() is a table."""

    entries: tuple[Entry, ...]

    @property
    def replaced(self) -> tuple[Entry, ...]:
        """Return the modules whose forward is ours now."""
        return tuple(entry for entry in self.entries if entry.action == "replaced")

    @property
    def left(self) -> tuple[Entry, ...]:
        """Return the modules that are as they were."""
        return tuple(entry for entry in self.entries if entry.action == "left")

    def __str__(self):
        timed = [entry for entry in self.entries if entry.timing is not None]
        rows = [_row(entry, bool(timed)) for entry in self.entries]
        columns = (*COLUMNS, *TIMES, "why") if timed else (*COLUMNS, "why")
        lines = aligned([columns, *rows], "<<<<>>><" if timed else "<<<<<") if rows else []
        lines.append(f"{len(self.replaced)} modules replaced, {len(self.left)} left")
        if timed:
            before = sum(entry.timing.original for entry in timed)
            after = sum(entry.timing.fused if entry.action == "replaced" else entry.timing.original for entry in timed)
            lines.append(f"forward and backward of those timed: {_duration(before)} before, {_duration(after)} now")
        return "\n".join([*lines, ""])


def _row(entry: Entry, timed: bool) -> tuple[str, ...]:
    times = () if not timed else ("", "", "") if entry.timing is None else (
        _duration(entry.timing.original), _duration(entry.timing.fused), f"{entry.timing.gain:.2f} x")
    return entry.name or "(model)", entry.type, entry.library, entry.action, *times, entry.why


def _duration(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-2 else f"{seconds * 1e3:.1f} ms"
