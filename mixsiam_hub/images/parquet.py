"""Images in Parquet files, as the Hub's data sets hold them: a column of encoded images, perhaps one of classes."""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, BinaryIO

from mixsiam_hub.errors import DataError, missing_extra
from mixsiam_hub.images.sources import Item
from mixsiam_hub.untrusted import one_line, open_regular, parsing

if TYPE_CHECKING:
    import pyarrow as pa


class ParquetStore:
    """The rows of Parquet files, held in memory compressed.

    `image` is a struct of bytes and path, or bytes. `label` holds classes where every row has one: text, or numbers
    from 0 on (-1 stands for an unknown one), which go by the names that the data set gives them, if it gives any.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        """Opens the files.

        Args:
            paths: At least one.

        Raises:
            DataError: A file that is no Parquet, or has no column of images; or files that do not fit together.
            MissingExtraError: pyarrow is not installed.
        """
        self._paths = list(paths)
        parts = [_read(path) for path in self._paths]
        self._table = _joined([part.table for part in parts], self._paths)
        self._images = _images(self._table, self._paths[0])
        self._footers = [part.footer for part in parts]
        self._ends = list(accumulate(len(part.table) for part in parts))

    def __reduce__(self) -> tuple[Any, ...]:
        return ParquetStore, (self._paths,)  # Another process reads the files itself.

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Item:
        file = bisect_right(self._ends, index)
        row = index - (self._ends[file - 1] if file else 0)
        key = f"{self._paths[file]}#{row}"
        return Item(key, self._images[index].as_py() or b"", self.label(index) if self.has_labels else None)

    @property
    def has_labels(self) -> bool:
        """Whether every row has a class."""
        return self._labels is not None

    def label(self, index: int) -> str | None:
        """Returns a row's class."""
        return None if self._labels is None else self._labels[index]

    def identity(self) -> bytes:
        """Digest of the files' names and footers: each footer says where every page lies and what range it has."""
        digest = hashlib.sha256()
        for path, footer in zip(self._paths, self._footers, strict=True):
            digest.update(os.path.basename(path).encode("utf-8", "surrogateescape"))
            digest.update(footer)
        return digest.digest()

    @cached_property
    def _labels(self) -> list[str] | None:
        import pyarrow as pa

        if "label" not in self._table.column_names:
            return None
        column = self._table.column("label")
        if pa.types.is_dictionary(column.type):  # As pandas stores categories.
            column = column.cast(column.type.value_type)
        if column.null_count:
            return None
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            return [str(value) for value in column.to_pylist()]
        if not pa.types.is_integer(column.type):
            return None
        numbers = column.to_numpy()
        names = _class_names(self._table.schema)
        if (numbers < 0).any() or (names and (numbers >= len(names)).any()):
            return None
        return [names[number] if names else str(number) for number in numbers.tolist()]


@dataclass(frozen=True)
class _Part:
    """One file: its columns of images and classes, and its footer."""

    table: pa.Table
    footer: bytes


def _read(path: str) -> _Part:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        missing_extra("pyarrow", "bulk")
    with open_regular(path, DataError) as file, parsing(path, DataError, "Parquet"):
        parquet = pq.ParquetFile(file)
        names = parquet.schema_arrow.names
        table = parquet.read([column for column in ("image", "label") if column in names])
        footer = _footer(file)
    if "image" not in names:
        raise DataError(f"{path}: no column 'image'; it has {', '.join(names)}")
    return _Part(table, footer)


def _footer(file: BinaryIO) -> bytes:
    """Returns what the end of a Parquet file says of it; its length stands before the last four bytes."""
    file.seek(-8, os.SEEK_END)
    length = int.from_bytes(file.read(4), "little")
    file.seek(-8 - length, os.SEEK_END)
    return file.read(length)


def _joined(tables: Sequence[pa.Table], paths: Sequence[str]) -> pa.Table:
    import pyarrow as pa

    try:
        return pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise DataError(f"{paths[0]} and {len(paths) - 1} more do not fit together: {one_line(error)}") from None


def _images(table: pa.Table, path: str) -> pa.ChunkedArray:
    """Returns the column of encoded images."""
    import pyarrow as pa

    column = table.column("image")
    if pa.types.is_struct(column.type):
        if column.type.get_field_index("bytes") < 0:
            raise DataError(f"{path}: column 'image' has no field 'bytes'; it is {column.type}")
        column = pa.chunked_array([chunk.field("bytes") for chunk in column.chunks], column.type.field("bytes").type)
    if not pa.types.is_binary(column.type) and not pa.types.is_large_binary(column.type):
        raise DataError(f"{path}: column 'image' holds {column.type}; it must hold encoded images as bytes")
    return column


def _class_names(schema: pa.Schema) -> list[str]:
    """Returns the names that the `datasets` library keeps for the numbers of `label`; none where it keeps none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features["label"]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []
