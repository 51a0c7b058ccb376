"""Finds the embedded images that are nearest to query images, and draws them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.errors import DataError
from mixsiam_hub.images.keyed import KeyedImages
from mixsiam_hub.images.sheet import Tile, contact_sheet, write_png
from mixsiam_hub.untrusted import one_line
from mixsiam_hub.vectors.embed import embed_files
from mixsiam_hub.vectors.nearest import nearest_in_blocks, nearest_others
from mixsiam_hub.vectors.table import BUILTIN_LABEL, VectorFile, Vectors

if TYPE_CHECKING:
    from mixsiam_hub.encoder import ImageEncoder
    from mixsiam_hub.images.kinds import ImageSource
    from mixsiam_hub.images.sources import Item
    from mixsiam_hub.vectors.index import VectorIndex


@dataclass(frozen=True)
class Neighbours:
    """A query and what was found near it.

    Attributes:
        query: Key of the query image.
        found: (key, cosine), best first.
    """

    query: str
    found: list[tuple[str, float]]


def search(
    encoder: ImageEncoder,
    vectors: Vectors,
    queries: Iterable[Item | ImageSource],
    k: int,
    index: VectorIndex | None = None,
) -> list[Neighbours]:
    """Finds the k nearest of the embedded images for each query image.

    Args:
        encoder: The one that made the vectors, in the same variant.
        vectors: What is searched, in one pass.
        queries: Images, as `embed_files` takes them.
        k: How many, at least 1.
        index: Of the same vectors, to look them up by in place of an exact search.

    Raises:
        DataError: The vectors are of another encoder or variant.
        ImageError: A query cannot be read.
    """
    check_encoder(encoder, vectors)
    asked, _ = embed_files(encoder, queries, strict=True)
    found = index.nearest(asked.vectors, k) if index else nearest_in_blocks(asked.vectors, vectors.blocks(), k)
    return neighbours_of(asked.ids, vectors, *found)


def neighbours_of(
    queries: Sequence[str], vectors: Vectors, indices: NDArray[np.int64], cosines: NDArray[np.float32]
) -> list[Neighbours]:
    """Names what was found by its row: (Q, k) rows of `vectors` and their cosines, for Q queries."""
    names = iter(vectors.names(indices.ravel().tolist()))
    return [
        Neighbours(query, [(next(names), cosine) for cosine in row.tolist()])
        for query, row in zip(queries, cosines, strict=True)
    ]


def check_encoder(encoder: ImageEncoder, vectors: Vectors) -> None:
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
    return neighbours_of([vectors.ids[query]], vectors, *nearest_others(vectors.vectors, [query], k))[0]


def write_sheet(path: Path, rows: Sequence[Neighbours]) -> None:
    """Draws each query with its neighbours and their cosines, and writes it as a PNG.

    Args:
        path: The PNG.
        rows: Their keys are paths, rows of Parquet files whose images are in `image`, or names in tars.

    Raises:
        OutputError: The place cannot be written.
    """
    images = KeyedImages()

    def tile(key: str, cosine: float | None = None) -> Tile:
        return Tile(images.source(key), Path(key).name, cosine)

    tiles = [[tile(row.query), *(tile(key, cosine) for key, cosine in row.found)] for row in rows]
    write_png(path, contact_sheet(tiles))


def _argument(value: str) -> str:
    """Returns what a file says as an argument to copy into a shell."""
    return shlex.quote(one_line(value))
