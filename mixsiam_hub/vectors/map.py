"""A map of embedded images: each gets a place in the plane near to what it is like, and its nearest neighbours."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mixsiam_hub.errors import DataError, ImageError, missing_extra
from mixsiam_hub.images.keyed import KeyedImages
from mixsiam_hub.images.load import load_image
from mixsiam_hub.images.sheet import fit, write_png
from mixsiam_hub.vectors.nearest import nearest
from mixsiam_hub.vectors.parquet_file import pyarrow
from mixsiam_hub.vectors.table import Vectors

NEIGHBOURS = 15
"""Of each image, itself included: what the map is drawn by."""
MIN_IMAGES = 2 * NEIGHBOURS

_EXACT_ROWS = 50_000
"""Up to these neighbours are found by all cosines, which takes a minute; of more by pynndescent, approximately."""
_EDGE_PX = 1536
_CELLS = range(4, 25)
"""Of the picture, on each side: fewer and larger ones where images are few."""
_DOT_PX = 3
_PAPER, _DOT = "#ffffff", "#9aa3ad"


@dataclass(frozen=True, eq=False)
class Map:
    """Where images lie.

    Attributes:
        names: N.
        places: (N, 2) float32: x and y, in no unit.
        neighbours: (N, NEIGHBOURS) int64: rows of the nearest, best first.
        distances: (N, NEIGHBOURS) float32: 1 - cosine to each, in [0, 2].
    """

    names: list[str]
    places: NDArray[np.float32]
    neighbours: NDArray[np.int64]
    distances: NDArray[np.float32]


def make_map(vectors: Vectors) -> Map:
    """Lays images out by UMAP (McInnes et al., arXiv 1802.03426) on the cosines; the same vectors give the same map.

    All vectors are held in memory. Of more than 50,000 some neighbours are not the nearest, since nobody compares all.

    Raises:
        DataError: Fewer than MIN_IMAGES vectors, or a damaged shard.
        MissingExtraError: umap-learn is not installed.
    """
    umap = _umap()
    if len(vectors) < MIN_IMAGES:
        raise DataError(f"there are {len(vectors)} vectors; a map needs {MIN_IMAGES} at least")
    matrix = np.concatenate(list(vectors.blocks()))
    if len(matrix) <= _EXACT_ROWS:
        neighbours, cosines = nearest(matrix, matrix, NEIGHBOURS)
        distances = np.maximum(1 - cosines, 0)
    else:
        random = np.random.RandomState(0)
        neighbours, distances, _ = umap.umap_.nearest_neighbors(matrix, NEIGHBOURS, "cosine", {}, False, random)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # No new images can be placed, and none are.
        known = (neighbours.astype(np.int32), distances, None)
        plane = umap.UMAP(NEIGHBOURS, metric="cosine", random_state=0, n_jobs=1, precomputed_knn=known)
        places = plane.fit_transform(matrix)
    return Map(vectors.names(range(len(matrix))), places.astype(np.float32), neighbours.astype(np.int64), distances)


def write_map(file: BinaryIO, found: Map) -> None:
    """Writes a map as Parquet: `path`, `x`, `y`, and `neighbors`, a struct of `ids` and `distances`.

    So `embedding-atlas FILE --x x --y y --neighbors neighbors` opens it: its ids are numbers of rows.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    pa, pq = pyarrow()
    lists = [pa.array(list(found.neighbours)), pa.array(list(found.distances))]
    neighbours = pa.StructArray.from_arrays(lists, ["ids", "distances"])
    names = [name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in found.names]
    columns = {"path": names, "x": found.places[:, 0], "y": found.places[:, 1], "neighbors": neighbours}
    pq.write_table(pa.table(columns), file)


def write_picture(path: Path, found: Map) -> None:
    """Draws a map as a PNG: a dot for each image, and in each cell of a grid the image nearest to its middle.

    Raises:
        OutputError: It cannot be written.
    """
    low, high = found.places.min(axis=0), found.places.max(axis=0)
    places_px = (found.places - low) / np.maximum(high - low, 1e-9) * (_EDGE_PX - 1)
    places_px[:, 1] = _EDGE_PX - 1 - places_px[:, 1]  # y goes up, as in a plot.
    picture = Image.new("RGB", (_EDGE_PX, _EDGE_PX), _PAPER)
    draw = ImageDraw.Draw(picture)
    for x, y in places_px.tolist():
        draw.ellipse((x - _DOT_PX, y - _DOT_PX, x + _DOT_PX, y + _DOT_PX), _DOT)
    cell_px = _EDGE_PX // min(max(round(1.5 * math.sqrt(len(places_px))), _CELLS[0]), _CELLS[-1])
    images = KeyedImages()
    for (column, row), image in _middle_images(places_px, cell_px).items():
        try:
            tile = fit(load_image(images.source(found.names[image])), cell_px - 2)
        except ImageError:
            continue  # It is gone since: its dot stays.
        picture.paste(tile, (column * cell_px + 1, row * cell_px + 1))
    write_png(path, picture)


def _middle_images(places_px: NDArray[np.float32], cell_px: int) -> dict[tuple[int, int], int]:
    """Returns for each cell that has images, by column and row, the one nearest to its middle."""
    cells = (places_px // cell_px).astype(int)
    off_px = np.linalg.norm(places_px - (cells + 0.5) * cell_px, axis=1)
    nearest_last = np.argsort(-off_px, kind="stable").tolist()
    return {(int(cells[image, 0]), int(cells[image, 1])): image for image in nearest_last}


def _umap() -> Any:
    try:
        import numba
        import umap
        import umap.umap_
    except ImportError:
        missing_extra("umap-learn", "map")
    config: Any = numba.config
    if config.THREADING_LAYER == "default":
        # Else numba takes TBB wherever OpenVINO has loaded its own, and the process may wait at its end for ever.
        config.THREADING_LAYER = "workqueue"
    return umap
