"""Vectors as .npz: numpy arrays in an uncompressed zip archive, whose CRC-32 covers each of them."""

from __future__ import annotations

import math
import zipfile
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.errors import DataError

if TYPE_CHECKING:
    from mixsiam_hub.vectors.table import VectorFile

_LABELS = ("fingerprint", "variant", "model")


def write(file: BinaryIO, data: VectorFile) -> None:
    """Writes a vector file."""
    labels: dict[str, Any] = {name: np.array(getattr(data, name)) for name in _LABELS}
    np.savez(file, vectors=data.vectors, ids=np.array(data.ids, dtype=str), **labels)


def read(file: BinaryIO, size: int) -> tuple[NDArray[np.float32], list[str], dict[str, str]]:
    """Reads one back.

    Args:
        file: The file.
        size: Its length in bytes, which no array may exceed.

    Returns:
        Vectors, (N, D) float32; ids, N; and the labels by name.

    Raises:
        DataError: It holds other arrays.
        Exception: It is damaged: whatever zipfile and numpy raise.
    """
    with zipfile.ZipFile(file) as archive:
        labels = {name: str(_array(archive, name, "U", 0, size)) for name in _LABELS}
        vectors = _array(archive, "vectors", "f", 2, size)
        return vectors, _array(archive, "ids", "U", 1, size).tolist(), labels


def _array(archive: zipfile.ZipFile, name: str, kind: str, ndim: int, size: int) -> NDArray[Any]:
    """Reads an array, once its header is known to name the right kind and as many bytes as there are."""
    if f"{name}.npy" not in archive.namelist():
        raise DataError(f"it has no array {name}; `mixsiam embed` writes one")
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_STORED or member.file_size > size:
        raise DataError(f"{name} is compressed; it must be stored as it is, as numpy.savez does")
    with archive.open(member) as stream:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise DataError(f"{name} has an .npy header of another version than 1.0")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        length = member.file_size - stream.tell()
    if dtype.kind != kind or len(shape) != ndim:
        raise DataError(f"{name} has shape {shape} and dtype {dtype}; it must have {ndim} dimensions of kind {kind}")
    if not dtype.itemsize or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != length:
        raise DataError(f"{name} has shape {shape} and dtype {dtype}, but {length} bytes")
    with archive.open(member) as stream:  # Anew: seeking back would switch the check of the CRC-32 off.
        array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return array
