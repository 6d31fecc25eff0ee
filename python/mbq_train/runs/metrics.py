"""metrics.jsonl: one JSON object a line, added as they come."""

import json
from pathlib import Path


class Metrics:
    """Appends records to a file and shows them to a callback; without a path only the latter."""

    def __init__(self, path: Path | None, on_record=None):
        self.path, self.on_record = path, on_record

    def add(self, record: dict) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        if self.on_record is not None:
            self.on_record(record)

    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size if self.path is not None and self.path.exists() else 0

    def cut(self, size: int) -> None:
        """Take away what was written after the file had `size` bytes."""
        if self.path is None:
            return
        if self.size() < size:
            raise ValueError(f"metrics: {self.path} must have at least the {size} bytes it had at the checkpoint, got "
                             f"{self.size()}")
        if self.size() > size:
            with self.path.open("r+b") as file:
                file.truncate(size)

    def read(self) -> list[dict]:
        """Every record."""
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
