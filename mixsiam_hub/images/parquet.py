"""Images in Parquet files, as the Hub's data sets hold them: a column of encoded images, perhaps one of classes."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from numpy.typing import NDArray

from mixsiam_hub.errors import DataError, missing_extra
from mixsiam_hub.images.kinds import Unreadable
from mixsiam_hub.images.sources import Item
from mixsiam_hub.per_process import PerProcess
from mixsiam_hub.untrusted import open_regular, parsing, quote

if TYPE_CHECKING:
    import pyarrow as pa

COLUMN = "image"
"""Of encoded images, where nothing else is said."""
LABEL = "label"

CACHE_BYTES = 2**30
"""Encoded images that a process keeps in memory; those read first are given up first."""
PIECE_BYTES = 2**26
"""A row group longer than this, uncompressed, is read in pieces of about this length."""

_BUFFER_BYTES = 2**20
_Piece = tuple[int, int]
"""A row group's place in the store, and a piece's in it."""


class ParquetStore:
    """The rows of Parquet files, read by row group.

    The column of images is a struct of bytes and path, or bytes. `label` holds classes where every row has one: text,
    or numbers from 0 on (-1 stands for an unknown one), which go by the names that the data set gives them, if any.

    A process keeps CACHE_BYTES of images and at most one piece more; from its parent it inherits, without copying, what
    that one kept. Larger sets are read well in their order, and slowly in any other: a piece for an image.
    """

    def __init__(self, paths: Iterable[str], column: str | None = None) -> None:
        """Reads what the ends of the files say.

        Args:
            paths: At least one.
            column: Of encoded images; None for `image`.

        Raises:
            DataError: A file that is no Parquet, or has no such column of images; or files that do not fit together.
            MissingExtraError: pyarrow is not installed.
        """
        self._column = column
        self._paths: list[str] = []
        self._class_names: list[list[str]] = []  # Of each file: what its labels' numbers stand for.
        self._groups: list[_Group] = []
        self._length = 0
        digest = hashlib.sha256()
        for path in paths:
            part = _read_part(path, column or COLUMN)
            self._class_names.append(_class_names(part.schema))
            if not self._paths:
                self._schema = part.schema
            elif not part.schema.equals(self._schema):
                raise DataError(
                    f"{path} and {self._paths[0]} do not fit together: "
                    f"the one has {_columns(part.schema)}, the other {_columns(self._schema)}"
                )
            digest.update(os.path.basename(path).encode("utf-8", "surrogateescape"))
            digest.update(part.footer)
            file_start = self._length
            for number, (rows, size_bytes) in enumerate(part.groups):
                self._groups.append(_Group(len(self._paths), number, file_start, self._length, rows, size_bytes))
                self._length += rows
            self._paths.append(path)
        self._identity = digest.digest()
        self._ends = [group.start + group.rows for group in self._groups]
        self._kept: dict[_Piece, pa.Array] = {}
        self._kept_bytes = 0
        self._reading = PerProcess(_Reading)

    def __reduce__(self) -> tuple[Any, ...]:
        return ParquetStore, (self._paths, self._column)  # Another process reads the files itself.

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Item:
        place = bisect_right(self._ends, index)
        group = self._groups[place]
        key = f"{self._paths[group.file]}#{index - group.file_start}"
        label = self.label(index)
        piece, row = divmod(index - group.start, group.piece_rows)
        try:
            return Item(key, self._piece((place, piece))[row].as_py() or b"", label)
        except DataError as error:
            return Item(key, Unreadable(str(error)), label)

    @property
    def has_labels(self) -> bool:
        """Whether every row has a class."""
        return self._classes is not None

    def label(self, index: int) -> str | None:
        """Returns a row's class."""
        return None if self._classes is None else self._classes.name(index)

    def identity(self) -> bytes:
        """Digest of the files' names and footers: each footer says where every page lies and what range it has."""
        return self._identity

    def preload(self) -> None:
        """Reads all images now, if they fit CACHE_BYTES: processes that are forked later then share them.

        Raises:
            DataError: A file is damaged.
        """
        if sum(group.size_bytes for group in self._groups) <= CACHE_BYTES:
            for place, group in enumerate(self._groups):
                for piece in range(group.pieces):
                    self._piece((place, piece))

    def _piece(self, piece: _Piece) -> pa.Array:
        """Returns the encoded images of a piece.

        Raises:
            DataError: The file is damaged, or another one by now.
        """
        if (found := self._kept.get(piece)) is not None:
            return found
        reading = self._reading.get()
        with reading.lock:
            if (found := self._kept.get(piece)) is None:
                if not reading.is_before(piece):
                    reading.begin(piece[0], self._read_group(self._groups[piece[0]]))
                while reading.is_before(piece):
                    found = reading.next()
                    self._keep(reading.last, found)
        return found

    def _read_group(self, group: _Group) -> Iterator[pa.Array]:
        """Yields the pieces of a row group."""
        import pyarrow.parquet as pq

        path, column = self._paths[group.file], self._column or COLUMN
        with open_regular(path, DataError) as file, parsing(path, DataError, "Parquet"):
            # Buffered, a column is not read into memory whole; Arrow's own threads would not survive a fork.
            parquet = pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
            leaf = _leaf(self._schema, column)
            batches = parquet.iter_batches(group.piece_rows, [group.number], [leaf], use_threads=False)
            for piece, batch in enumerate(batches):
                images = batch.column(0)
                if len(images) != min(group.piece_rows, group.rows - piece * group.piece_rows):
                    raise DataError(f"{path}: row group {group.number} has other rows than when the file was opened")
                yield images.field("bytes") if leaf != column else images
        raise DataError(f"{path}: row group {group.number} has fewer rows than the end of the file says")

    def _keep(self, piece: _Piece, images: pa.Array) -> None:
        self._give_up(piece)  # It may have been kept before: a group is always read from its start.
        self._kept[piece] = images
        self._kept_bytes += images.get_total_buffer_size()
        while self._kept_bytes > CACHE_BYTES and len(self._kept) > 1:
            self._give_up(next(iter(self._kept)))

    def _give_up(self, piece: _Piece) -> None:
        if (images := self._kept.pop(piece, None)) is not None:
            self._kept_bytes -= images.get_total_buffer_size()

    @cached_property
    def _classes(self) -> _Classes | None:
        if LABEL not in self._schema.names:
            return None
        import pyarrow as pa

        names = self._class_names[0]
        columns = [_read_labels(path) for path in self._paths]
        if any(others != names for others in self._class_names):
            columns = [_as_text(column, own) for column, own in zip(columns, self._class_names, strict=True)]
        column = pa.chunked_array([chunk for column in columns for chunk in column.chunks], columns[0].type)
        classes = _named_classes(column, names)
        if classes is not None and len(classes.numbers) != self._length:
            raise DataError(f"{self._paths[0]}: {len(classes.numbers)} labels for {self._length} rows; it has changed")
        return classes


class _Group(NamedTuple):
    """A row group.

    Attributes:
        file: The place of its file.
        number: Its own place in the file.
        file_start: Which row of the store is the file's first.
        start: Which is the group's first.
        rows: How many it has.
        size_bytes: The length of their images, uncompressed.
    """

    file: int
    number: int
    file_start: int
    start: int
    rows: int
    size_bytes: int

    @property
    def piece_rows(self) -> int:
        return max(1, self.rows * PIECE_BYTES // max(PIECE_BYTES, self.size_bytes))

    @property
    def pieces(self) -> int:
        return -(-self.rows // self.piece_rows)


class _Reading:
    """The row group that a process is reading on in."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.last: _Piece = (-1, -1)
        self._pieces: Iterator[pa.Array] = iter(())

    def is_before(self, piece: _Piece) -> bool:
        """Whether reading on comes to a piece."""
        return self.last[0] == piece[0] and self.last[1] < piece[1]

    def begin(self, group: int, pieces: Iterator[pa.Array]) -> None:
        """Takes another group, to be read from its start."""
        self.last, self._pieces = (group, -1), pieces

    def next(self) -> pa.Array:
        """Reads the next piece, which is then `last`."""
        group, number = self.last
        self.last = (-1, -1)  # Where this fails nothing can be read on.
        images = next(self._pieces)
        self.last = (group, number + 1)
        return images


class _Classes(NamedTuple):
    """The class of each row, (n,) of any integer type, and what each number is called; no names: by the number."""

    numbers: NDArray[Any]
    names: list[str]

    def name(self, index: int) -> str:
        number = int(self.numbers[index])
        return self.names[number] if self.names else str(number)


class _Part(NamedTuple):
    """What the end of one file says: the columns of images and classes, (rows, bytes of images) of each row group."""

    schema: pa.Schema
    groups: list[tuple[int, int]]
    footer: bytes


def _read_part(path: str, column: str) -> _Part:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        missing_extra("pyarrow", "bulk")
    with open_regular(path, DataError) as file, parsing(path, DataError, "Parquet"):
        parquet = pq.ParquetFile(file)
        schema, metadata = parquet.schema_arrow, parquet.metadata
        if column not in schema.names:
            names = ", ".join(schema.names)
            raise DataError(f"{path}: no column {column!r}; it has {names}; embed takes another one by --column")
        wanted = [schema.field(name) for name in dict.fromkeys((column, LABEL)) if name in schema.names]
        schema = pa.schema(wanted, schema.metadata)
        leaf = _leaf(schema, column, path)
        leaves = [parquet.schema.column(place).path for place in range(len(parquet.schema))]
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        sizes = [(group.num_rows, group.column(leaves.index(leaf)).total_uncompressed_size) for group in groups]
        end = file.seek(0, os.SEEK_END)
        if min(map(min, sizes), default=0) < 0 or sum(rows for rows, _ in sizes) > end:
            raise DataError(f"{path} is damaged: it says that it has more rows than bytes, or fewer than none")
        return _Part(schema, sizes, _footer(file))


def _leaf(schema: pa.Schema, column: str, path: str = "") -> str:
    """Returns the name under which Parquet keeps the encoded images themselves."""
    import pyarrow as pa

    kind, leaf = schema.field(column).type, column
    if pa.types.is_struct(kind):
        if kind.get_field_index("bytes") < 0:
            raise DataError(f"{path}: column {column!r} has no field 'bytes'; it is {kind}")
        kind, leaf = kind.field("bytes").type, f"{column}.bytes"
    if not pa.types.is_binary(kind) and not pa.types.is_large_binary(kind):
        raise DataError(f"{path}: column {column!r} holds {quote(str(kind))}; it must hold encoded images as bytes")
    return leaf


def _footer(file: BinaryIO) -> bytes:
    """Returns what the end of a Parquet file says of it; its length stands before the last four bytes."""
    file.seek(-8, os.SEEK_END)
    length = int.from_bytes(file.read(4), "little")
    file.seek(-8 - length, os.SEEK_END)
    return file.read(length)


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def _read_labels(path: str) -> pa.ChunkedArray:
    import pyarrow.parquet as pq

    with open_regular(path, DataError) as file, parsing(path, DataError, "Parquet"):
        return pq.ParquetFile(file, pre_buffer=False).read([LABEL], use_threads=False).column(0)


def _as_text(column: pa.ChunkedArray, names: list[str]) -> pa.ChunkedArray:
    """Returns labels by name: null where a number has none."""
    import pyarrow as pa

    numbers = column.to_pylist()
    texts = [n if isinstance(n, str) else names[n] if n is not None and 0 <= n < len(names) else None for n in numbers]
    return pa.chunked_array([pa.array(texts, pa.string())])


def _named_classes(column: pa.ChunkedArray, names: list[str]) -> _Classes | None:
    """Returns the class of each row, or None where a row has none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):  # As pandas stores categories.
        column = column.cast(column.type.value_type)
    if column.null_count:
        return None
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        values = column.unique()
        return _Classes(pc.index_in(column, value_set=values).to_numpy(), values.to_pylist())
    if not pa.types.is_integer(column.type):
        return None
    numbers = column.to_numpy()
    if (numbers < 0).any() or (names and (numbers >= len(names)).any()):
        return None
    return _Classes(numbers, names)


def _class_names(schema: pa.Schema) -> list[str]:
    """Returns the names that the `datasets` library keeps for the numbers of `label`; none where it keeps none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features["label"]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []
