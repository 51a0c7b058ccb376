"""Images in Parquet files and tars are embedded, found and drawn as files are."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from commands import run
from PIL import Image

from mixsiam_hub.vectors.table import read_vectors


def test_embed_reads_the_images_of_parquet_files(images: Path, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs the extra bulk")
    pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra bulk")
    files = sorted(images.iterdir())[:3]
    data, out, sheet = tmp_path / "data.parquet", tmp_path / "v.npz", tmp_path / "sheet.png"
    pq.write_table(pa.table({"image": [file.read_bytes() for file in files]}), data)
    assert run("embed", data, "--out", out).exit_code == 0
    vectors = read_vectors(out)
    assert vectors.ids == [f"{data}#{row}" for row in range(3)]
    assert run("embed", *files, "--out", tmp_path / "files.npz").exit_code == 0
    np.testing.assert_array_equal(vectors.vectors, read_vectors(tmp_path / "files.npz").vectors)
    result = run("search", out, files[1], "-k", 1, "--sheet", sheet)
    assert result.stdout.splitlines()[1].split() == ["1.000", f"{data}#1"]
    assert_drawn_alike(sheet)


def test_sheet_shows_the_images_of_tars(images: Path, tmp_path: Path) -> None:
    files = sorted(images.iterdir())[:3]
    data, out, sheet = tmp_path / "data.tar", tmp_path / "v.npz", tmp_path / "sheet.png"
    with tarfile.open(data, "w") as tar:
        for number, file in enumerate(files):
            tar.add(file, f"a#{number}{file.suffix}")
    assert run("embed", data, "--out", out).exit_code == 0
    result = run("search", out, files[1], "-k", 1, "--sheet", sheet)
    assert result.stdout.splitlines()[1].split() == ["1.000", f"{data}#a#1{files[1].suffix}"]
    assert_drawn_alike(sheet)


def assert_drawn_alike(sheet: Path) -> None:
    """The query and its first neighbour are the same picture, and it is one."""
    with Image.open(sheet) as drawn:
        query, found = (np.asarray(drawn.crop((left + 4, 16, left + 120, 132))) for left in (12, 152))
    np.testing.assert_array_equal(query, found)
    assert query.std() > 10
