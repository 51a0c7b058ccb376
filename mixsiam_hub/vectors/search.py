"""Exact nearest neighbours by cosine: among vectors, and of query images among those that were embedded."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.errors import DataError, MixsiamError
from mixsiam_hub.images.finding import PARQUET_SUFFIX
from mixsiam_hub.images.sheet import Tile, contact_sheet, write_png
from mixsiam_hub.images.sources import Item, open_source
from mixsiam_hub.untrusted import one_line
from mixsiam_hub.vectors.embed import embed_files
from mixsiam_hub.vectors.table import BUILTIN_LABEL, VectorFile

if TYPE_CHECKING:
    from mixsiam_hub.encoder import ImageEncoder
    from mixsiam_hub.images.kinds import ImageSource

_SCORES_AT_ONCE = 1 << 24
"""Cosines held in memory at a time: 64 MB."""


@dataclass(frozen=True)
class Neighbours:
    """A query and what was found near it.

    Attributes:
        query: Key of the query image.
        found: (key, cosine), best first.
    """

    query: str
    found: list[tuple[str, float]]


def nearest(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Finds the k vectors of largest cosine for each query; neither side need be normalised.

    Args:
        queries: (Q, D), finite.
        vectors: (N, D). Rows that hold NaN (skipped images) never match; a zero vector has cosine 0 with everything.
        k: Neighbours a query, at least 1; clipped to the number of rows without NaN.

    Returns:
        Indices into `vectors`, (Q, k) int64, and cosines, (Q, k) float32 in [-1, 1], best first; of equal cosines the
        lower index first.

    Raises:
        DataError: Shapes that do not fit, a query that holds NaN, or k below 1.
    """
    if queries.ndim != 2 or vectors.ndim != 2 or queries.shape[1] != vectors.shape[1]:
        raise DataError(
            f"queries are {queries.shape}, vectors {vectors.shape}; they must be (Q, D) and (N, D), D the same"
        )
    if k < 1:
        raise DataError(f"k is {k}; it must be at least 1")
    if not np.isfinite(queries).all():
        raise DataError("a query holds NaN: leave out the images that could not be read")
    norms = _norms(vectors)
    skipped = ~np.isfinite(norms)
    k = min(k, len(vectors) - int(skipped.sum()))
    indices = np.empty((len(queries), k), np.int64)
    cosines = np.empty((len(queries), k), np.float32)
    units = queries / _norms(queries)[:, None]
    step = max(1, _SCORES_AT_ONCE // max(1, len(vectors)))
    for start in range(0, len(queries) if k else 0, step):
        scores = np.clip(units[start : start + step] @ vectors.T / norms, -1, 1)
        scores[:, skipped] = -np.inf
        for row, values in enumerate(scores, start):
            indices[row] = _top(values, k)
            cosines[row] = values[indices[row]]
    return indices, cosines


def nearest_others(
    vectors: NDArray[np.float32], rows: Sequence[int], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Finds the k nearest other vectors of some of the vectors, as `nearest` does.

    Args:
        vectors: (N, D), the chosen rows finite.
        rows: Which of them to look from, Q in all.
        k: Neighbours of each, at least 1; clipped to what there is.

    Returns:
        Indices into `vectors`, (Q, k) int64, and cosines, (Q, k) float32, best first.

    Raises:
        DataError: As `nearest`.
    """
    indices, cosines = nearest(vectors[list(rows)], vectors, k + 1)
    is_itself = indices == np.array(rows, np.int64).reshape(-1, 1)
    # Among many equal vectors a row need not find itself: then its last neighbour goes.
    is_itself[~is_itself.any(axis=1), -1:] = True
    others = indices[~is_itself].reshape(len(indices), -1), cosines[~is_itself].reshape(len(indices), -1)
    return others


def search(
    encoder: ImageEncoder, vectors: VectorFile, queries: Iterable[Item | ImageSource], k: int
) -> list[Neighbours]:
    """Finds the k nearest of the embedded images for each query image.

    Args:
        encoder: The one that made the vectors, in the same variant.
        vectors: What is searched.
        queries: Images, as `embed_files` takes them.
        k: How many, at least 1.

    Raises:
        DataError: The vectors are of another encoder or variant.
        ImageError: A query cannot be read.
    """
    check_encoder(encoder, vectors)
    asked, _ = embed_files(encoder, queries, strict=True)
    indices, cosines = nearest(asked.vectors, vectors.vectors, k)
    return [
        Neighbours(query, [(vectors.ids[i], float(c)) for i, c in zip(row, row_cosines, strict=True)])
        for query, row, row_cosines in zip(asked.ids, indices, cosines, strict=True)
    ]


def check_encoder(encoder: ImageEncoder, vectors: VectorFile) -> None:
    """Checks that the encoder's vectors may be compared with stored ones.

    Raises:
        DataError: The stored ones are of another encoder or variant; it says how to open that one.
    """
    again = "or embed the images again"
    if vectors.fingerprint != encoder.fingerprint:
        advice = "leave --model out" if vectors.model == BUILTIN_LABEL else f"give --model {_argument(vectors.model)}"
        raise DataError(
            f"the vectors are of fingerprint {one_line(vectors.fingerprint[:12])} (model {one_line(vectors.model)}), "
            f"the encoder of {encoder.fingerprint[:12]}; {advice}, {again}"
        )
    if vectors.variant != encoder.variant:
        precision, decode, dim = [*vectors.variant.split("-", 2), "", ""][:3]
        options = f"--precision {_argument(precision)}"
        if decode == "fast" or encoder.variant.split("-")[1] == "fast":
            options += f" --decode {_argument(decode)}"
        if dim:
            options += f" --dim {_argument(dim)}"
        elif encoder.variant.count("-") > 1:
            options += " and no --dim"
        raise DataError(
            f"the vectors are of variant {one_line(vectors.variant)}, the encoder of {encoder.variant}; "
            f"give {options}, {again}"
        )


def neighbours_within(vectors: VectorFile, query: int, k: int) -> Neighbours:
    """Finds the k nearest of one of the embedded images, itself left out.

    Args:
        vectors: At least one.
        query: Its row.
        k: How many, at least 1.
    """
    indices, cosines = nearest_others(vectors.vectors, [query], k)
    found = zip(indices[0].tolist(), cosines[0].tolist(), strict=True)
    return Neighbours(vectors.ids[query], [(vectors.ids[index], cosine) for index, cosine in found])


def write_sheet(path: Path, rows: Sequence[Neighbours]) -> None:
    """Draws each query with its neighbours and their cosines, and writes it as a PNG.

    Args:
        path: The PNG.
        rows: Their keys are paths, rows of Parquet files whose images are in `image`, or names in tars.

    Raises:
        OutputError: The place cannot be written.
    """
    opened = functools.cache(open_source)

    def tile(key: str, cosine: float | None = None) -> Tile:
        shard = re.match(r"(.+?(\.parquet|\.tar))#(.+)", key, re.DOTALL)
        if shard is None:
            return Tile(key, Path(key).name, cosine)
        file, suffix, inner = shard.groups()
        try:
            images = opened(file)
            place = int(inner) if suffix == PARQUET_SUFFIX else [item.key for item in images].index(key)
            return Tile(images[place].source, Path(key).name, cosine)
        except (MixsiamError, IndexError, ValueError):  # Gone since: the tile says that it is unreadable.
            return Tile(b"", Path(key).name, cosine)

    tiles = [[tile(row.query), *(tile(key, cosine) for key, cosine in row.found)] for row in rows]
    write_png(path, contact_sheet(tiles))


def _argument(value: str) -> str:
    """Returns what a file says as an argument to copy into a shell."""
    return shlex.quote(one_line(value))


def _norms(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lengths of the rows; 1 for a zero row, so that dividing by it gives 0."""
    norms: NDArray[np.float32] = np.linalg.norm(vectors, axis=1).astype(np.float32)
    norms[norms == 0] = 1
    return norms


def _top(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Indices of the k largest, best first; `argpartition` alone would pick any of the values that tie for place k."""
    kth = np.partition(scores, -k)[-k]
    best: NDArray[np.int64] = np.flatnonzero(scores >= kth)
    return best[np.argsort(-scores[best], kind="stable")[:k]]
