"""The map: like images lie together, neighbours are exact, and the picture shows what lies where."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra bulk")

from mixsiam_hub.backends import openvino
from mixsiam_hub.errors import DataError, MissingExtraError
from mixsiam_hub.vectors.map import MIN_IMAGES, NEIGHBOURS, Map, make_map, write_map, write_picture
from mixsiam_hub.vectors.nearest import nearest
from mixsiam_hub.vectors.table import VectorFile

WITH_OPENVINO = """
import numpy as np
from mixsiam_hub import ImageEncoder
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.vectors.map import make_map
from mixsiam_hub.vectors.table import VectorFile

vectors = ImageEncoder.from_pretrained(backend="openvino").embed(list(draw_samples(40).values()))
make_map(VectorFile(vectors, [str(row) for row in range(40)], "ab" * 32, "fp32-exact", "m"))
print(open("/proc/self/maps").read())
"""


def table(vectors: np.ndarray) -> VectorFile:
    return VectorFile(vectors, [f"i{row}" for row in range(len(vectors))], "ab" * 32, "fp32-exact", "m")


@pytest.fixture(scope="module")
def clusters() -> np.ndarray:
    """Three bundles of directions, 20 vectors each."""
    random = np.random.default_rng(0)
    return np.concatenate([np.eye(8)[i] * 5 + random.standard_normal((20, 8)) for i in range(3)]).astype(np.float32)


@pytest.fixture(scope="module")
def found(clusters: np.ndarray) -> Map:
    pytest.importorskip("umap", reason="needs the extra map")
    return make_map(table(clusters))


def test_like_images_lie_together(found: Map, clusters: np.ndarray) -> None:
    assert found.places.shape == (60, 2)
    assert found.places.dtype == np.float32
    bundle = np.repeat([0, 1, 2], 20)
    between = np.linalg.norm(found.places[:, None] - found.places[None], axis=2)
    np.fill_diagonal(between, np.inf)
    assert (bundle[between.argmin(axis=1)] == bundle).mean() > 0.95
    rows, cosines = nearest(clusters, clusters, NEIGHBOURS)
    np.testing.assert_array_equal(found.neighbours, rows)
    np.testing.assert_allclose(found.distances, 1 - cosines, atol=1e-6)


def test_the_same_vectors_give_the_same_map(found: Map, clusters: np.ndarray) -> None:
    np.testing.assert_array_equal(make_map(table(clusters)).places, found.places)


def test_the_file_has_the_columns_that_embedding_atlas_takes(found: Map, tmp_path: Path) -> None:
    with open(tmp_path / "m.parquet", "wb") as file:
        write_map(file, found)
    rows = pq.read_table(tmp_path / "m.parquet")
    assert rows.column_names == ["path", "x", "y", "neighbors"]
    assert rows["path"].to_pylist() == found.names
    np.testing.assert_array_equal(rows["y"].to_numpy(), found.places[:, 1])
    first = rows["neighbors"][0].as_py()
    assert first["ids"] == found.neighbours[0].tolist()
    np.testing.assert_allclose(first["distances"], found.distances[0])


def test_the_picture_shows_images_where_they_lie(tmp_path: Path) -> None:
    for name, colour in [("low", "red"), ("high", "blue")]:
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    names = [str(tmp_path / "low.png"), str(tmp_path / "high.png"), str(tmp_path / "gone.png")]
    places = np.array([[0, 0], [4, 9], [4, 0]], np.float32)
    nothing = np.zeros((3, 1))
    write_picture(tmp_path / "m.png", Map(names, places, nothing.astype(np.int64), nothing.astype(np.float32)))
    with Image.open(tmp_path / "m.png") as picture:
        width, height = picture.size
        assert picture.getpixel((50, height - 50)) == (255, 0, 0)
        assert picture.getpixel((width - 50, 50)) == (0, 0, 255)
        assert picture.getpixel((width - 50, height - 50)) == (255, 255, 255)
        assert picture.getpixel((width - 2, height - 2)) != (255, 255, 255)  # The dot of the image that is gone.


def test_numba_leaves_the_tbb_of_openvino_alone() -> None:
    pytest.importorskip("umap", reason="needs the extra map")
    if not openvino.runs_here():
        pytest.skip("needs the extra openvino, and an Intel CPU")
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs Linux's /proc")
    # numba looks for a TBB in the process and, where it has one, waits at the end for threads that OpenVINO may hold.
    done = subprocess.run(
        [sys.executable, "-c", WITH_OPENVINO], capture_output=True, text=True, timeout=120, check=True
    )
    assert "libtbb" in done.stdout
    assert "tbbpool" not in done.stdout


def test_too_few_images(clusters: np.ndarray) -> None:
    pytest.importorskip("umap", reason="needs the extra map")
    with pytest.raises(DataError, match=f"there are 29 vectors; a map needs {MIN_IMAGES} at least"):
        make_map(table(clusters[:29]))


def test_without_its_package(clusters: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mixsiam-hub\[map\]'"):
        make_map(table(clusters))
