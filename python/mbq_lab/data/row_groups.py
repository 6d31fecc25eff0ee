"""Row groups of parquet files: the least that can be read at once, so they are kept, and epochs go through windows."""

from typing import NamedTuple

import torch

from .errors import DataError

WINDOW_BYTES = 256 << 20  # of encoded images that an epoch mixes; a worker keeps two windows, for batches across both


class RowGroup(NamedTuple):
    """Row group `number` of a file; first_row: its first row in the file; size: bytes of its images."""

    path: str
    number: int
    first_row: int
    rows: int
    size: int


class RowGroups:
    """Reads the images of row groups and keeps the last ones, two windows of them."""

    def __init__(self, groups: list[RowGroup], column: str):
        self._groups, self._column = groups, column
        self._kept = {}

    def __getitem__(self, number: int) -> RowGroup:
        return self._groups[number]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": {}}  # a spawned worker reads its own

    def read(self, number: int):
        """Return the encoded images of one group, a pyarrow ChunkedArray. Raises DataError when it is broken."""
        if number in self._kept:
            self._kept[number] = self._kept.pop(number)  # now the last to go
            return self._kept[number]
        size = self[number].size
        while self._kept and sum(self[kept].size for kept in self._kept) + size > 2 * WINDOW_BYTES:
            del self._kept[next(iter(self._kept))]
        self._kept[number] = self._load(self[number])
        return self._kept[number]

    def windows(self, generator: torch.Generator) -> torch.Tensor:
        """Return (groups,) number of each group's window, of about WINDOW_BYTES, with the groups dealt out at random.
        """
        order = torch.randperm(len(self._groups), generator=generator)
        sizes = torch.tensor([group.size for group in self._groups], dtype=torch.int64)
        windows = torch.empty_like(order)
        windows[order] = sizes[order].cumsum(0) // WINDOW_BYTES
        return windows

    def check_sizes(self, memory_limit: int) -> None:
        """Raise DataError for a group larger than memory_limit, and a window: a worker would have to hold all of it."""
        limit = max(memory_limit, WINDOW_BYTES)
        for group in self._groups:
            if group.size > limit:
                raise DataError(f"load_data: row groups must have at most {limit} bytes of images to be streamed, got "
                                f"{group.size} in row group {group.number} of {group.path} (memory_limit admits more)")

    def _load(self, group: RowGroup):
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile

        try:
            with ParquetFile(group.path) as file:  # opened here: an open file does not survive a fork
                field = file.schema_arrow.field(self._column)
                name = f"{self._column}.bytes" if pa.types.is_struct(field.type) else self._column
                return file.read_row_group(group.number, columns=[name], use_threads=False).column(0)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"read: row group must be readable, got row group {group.number} of {group.path} "
                            f"({error})") from error
