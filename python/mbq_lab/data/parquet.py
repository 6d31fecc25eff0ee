"""Parquet files: train*.parquet, and test*.parquet or validation*.parquet, with encoded images and integer labels."""

import json
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mbq_train._packages import required

from .errors import DataError
from .row_groups import RowGroup, RowGroups
from .splits import Source, Split, check_source

IMAGE_NAMES, LABEL_NAMES = ("img", "image"), ("label", "fine_label", "labels")
TEST_NAMES = ("test", "validation")  # the first there is


class Columns(NamedTuple):
    """The two columns of a file, and the names of the classes in the metadata that Hugging Face's datasets write."""

    image: str
    label: str
    class_names: tuple[str, ...] | None


class ParquetSplit(Split):
    """Images in the row groups of parquet files; for every row, the number of its group and its place in there."""

    def __init__(self, groups: RowGroups, group_of: torch.Tensor, offset: torch.Tensor, labels: torch.Tensor):
        self.groups, self.group_of, self.offset, self.labels = groups, group_of, offset, labels

    def read(self, row):
        value = self.groups.read(int(self.group_of[row]))[int(self.offset[row])].as_py()
        value = value["bytes"] if isinstance(value, dict) else value
        if value is None:
            raise DataError(f"read: image must not be null, got {self.where(row)}")
        return value

    def where(self, row):
        group = self.groups[int(self.group_of[row])]
        return f"row {group.first_row + int(self.offset[row])} of {group.path}"

    def select(self, rows):
        return ParquetSplit(self.groups, self.group_of[rows], self.offset[rows], self.labels[rows])

    def windows(self, generator):
        return self.groups.windows(generator)[self.group_of]

    def check_streamable(self, memory_limit):
        self.groups.check_sizes(memory_limit)


def is_parquet(folder: Path) -> bool:
    """Return whether a parquet file of a training or a test set lies in `folder`."""
    return any(_shards(folder, part) for part in ("train", *TEST_NAMES))


def read_parquet(folder: Path) -> Source:
    """Return the columns img or image (binary, or a struct with bytes) and label, fine_label or labels, else the only
    such.

    Raises DataError, naming the file and where possible the row, for what is missing, broken or inconsistent.
    """
    required("load_data", "pyarrow")
    test_part = next((part for part in TEST_NAMES if _shards(folder, part)), "test")
    columns, splits = None, []
    for part in ("train", test_part):
        files = _shards(folder, part)
        if not files:
            raise DataError(f"read_parquet: folder must hold {part}*.parquet, got none in {folder}")
        for path in files:
            found = _columns(path)
            columns = columns or found
            if found != columns:
                raise DataError(f"read_parquet: columns and classes must be the same in all files, got {found} in "
                                f"{path} after {columns}")
        splits.append(_read_split(files, columns))
    train, test = splits
    classes = len(columns.class_names) if columns.class_names else max(int(train.labels.max()) + 1, 1)
    return check_source(Source(folder.name, train, test, classes, columns.class_names))


def _shards(folder: Path, part: str) -> list[Path]:
    return sorted(folder.glob(f"{part}*.parquet"))


def _read_split(files: list[Path], columns: Columns) -> ParquetSplit:
    groups, labels = [], []
    for path in files:
        groups += _row_groups(path, columns.image)
        labels.append(_labels(path, columns.label))
    sizes = torch.tensor([group.rows for group in groups], dtype=torch.int64)
    if not sizes.sum():
        raise DataError(f"read_parquet: files must hold at least one image, got none in {files[0]}")
    group_of = torch.arange(len(groups)).repeat_interleave(sizes)
    offset = torch.arange(len(group_of)) - (sizes.cumsum(0) - sizes)[group_of]
    return ParquetSplit(RowGroups(groups, columns.image), group_of, offset, torch.cat(labels))


@contextmanager
def _opened(path: Path):
    """Yield the ParquetFile, with its errors made DataErrors that name it."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"read_parquet: file must be a whole parquet file, got {path} ({error})") from error


def _columns(path: Path) -> Columns:
    import pyarrow as pa

    with _opened(path) as file:
        schema = file.schema_arrow
    label = _pick(path, schema, LABEL_NAMES, "integer", pa.types.is_integer)
    return Columns(_pick(path, schema, IMAGE_NAMES, "binary", _holds_bytes), label, _class_names(path, schema, label))


def _pick(path: Path, schema, names: tuple[str, ...], kind: str, fits) -> str:
    """Return the column with one of `names`, else the only one whose type fits."""
    for name in names:
        if name in schema.names:
            if not fits(schema.field(name).type):
                raise DataError(f"read_parquet: column {name} must be {kind}, got {schema.field(name).type} in {path}")
            return name
    others = [field.name for field in schema if fits(field.type)]
    if len(others) != 1:
        raise DataError(f"read_parquet: file must have a column {' or '.join(names)} of type {kind}, or one such of "
                        f"another name, got {', '.join(others) or 'none'} in {path} with {', '.join(schema.names)}")
    return others[0]


def _holds_bytes(kind) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _class_names(path: Path, schema, label: str) -> tuple[str, ...] | None:
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        names = json.loads(text)["info"]["features"][label].get("names")
        return None if names is None else tuple(map(str, names))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"read_parquet: metadata huggingface must describe column {label}, got {error!r} in "
                        f"{path}") from error


def _row_groups(path: Path, column: str) -> list[RowGroup]:
    groups, first_row = [], 0
    with _opened(path) as file:
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            chunks = [group.column(index) for index in range(group.num_columns)]
            size = sum(chunk.total_uncompressed_size for chunk in chunks
                       if chunk.path_in_schema in (column, f"{column}.bytes"))
            groups.append(RowGroup(str(path), number, first_row, group.num_rows, size))
            first_row += group.num_rows
    return groups


def _labels(path: Path, column: str) -> torch.Tensor:
    import pyarrow as pa

    with _opened(path) as file:
        labels = file.read([column]).column(0)
        if labels.null_count:
            row = int(np.flatnonzero(labels.is_null().to_numpy())[0])
            raise DataError(f"read_parquet: label must not be null, got null in row {row} of {path}")
        return torch.tensor(labels.cast(pa.int64()).to_numpy())
