"""What accelerate found in a model, and what became of it."""

from dataclasses import dataclass

from .._tables import aligned

COLUMNS = ("module", "type", "library", "action", "why")


@dataclass(frozen=True)
class Entry:
    """What became of one module.

    action: 'replaced' or 'left'; why: of a replaced module how its results may differ from the original's (empty: bit
    for bit the same); of one that was left the reason.
    """

    name: str
    type: str
    library: str
    action: str
    why: str


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
        rows = [(entry.name or "(model)", entry.type, entry.library, entry.action, entry.why) for entry in self.entries]
        lines = aligned([COLUMNS, *rows], "<<<<<") if rows else []
        return "\n".join([*lines, f"{len(self.replaced)} modules replaced, {len(self.left)} left", ""])
