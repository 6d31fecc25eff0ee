"""metrics.jsonl: one JSON object a line, added as they come."""

import json
from pathlib import Path

from mbq_train.files import atomic_path

from .observer import Observer


class Metrics:
    """Keeps every record, appends it to a file and shows it to an observer; without a path only in memory.

    The checkpoint holds the records too, so that the file can be made again as it was then.
    """

    def __init__(self, path: Path | None, observer: Observer):
        self.path, self.observer, self.records = path, observer, []

    def add(self, record: dict) -> None:
        line = json.dumps(record)
        self.records.append(json.loads(line))  # as after a resumption: with text for keys
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        self.observer.record(record)

    def reset(self, records: list[dict]) -> None:
        """Hold `records` and no other, in the file too."""
        self.records = list(records)
        if self.path is not None:
            with atomic_path(self.path) as temporary:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
