"""The commands that look at vectors: search by index, duplicates, map."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from commands import assert_one_error_line, run
from PIL import Image

pytest.importorskip("pyarrow", reason="needs the extra bulk")


@pytest.fixture(scope="module")
def copies(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn images, a byte-for-byte copy of one of them and a brighter one of another."""
    folder = tmp_path_factory.mktemp("copies")
    for file in images.iterdir():
        shutil.copy(file, folder)
    shutil.copy(folder / "ring_00.png", folder / "same.png")
    with Image.open(folder / "disc_00.png") as disc:
        disc.convert("RGB").point(lambda level: min(255, level + 2)).save(folder / "brighter.png")
    return folder


@pytest.fixture(scope="module")
def vectors(copies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vectors") / "v"
    assert run("embed", copies, "--out", out).exit_code == 0
    return out


def test_duplicates_are_listed_drawn_and_kept(copies: Path, vectors: Path, tmp_path: Path) -> None:
    before = sorted(copies.iterdir())
    report, sheet = tmp_path / "r.json", tmp_path / "s.png"
    result = run("duplicates", vectors, "--threshold", 0.99, "--out", report, "--sheet", sheet)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["exact", str(copies / "ring_00.png"), str(copies / "same.png")]
    assert "exact copies: 1 in 1 groups; near duplicates: 1 in 1 groups, from a cosine of 0.99" in result.stdout
    found = json.loads(report.read_text())
    assert found["exact"] == [[str(copies / "ring_00.png"), str(copies / "same.png")]]
    assert [set(group["images"]) for group in found["near"]] == [
        {str(copies / f"{n}.png") for n in ("disc_00", "brighter")}
    ]
    with Image.open(sheet) as drawn:
        assert drawn.width > 2 * 128
    assert sorted(copies.iterdir()) == before


def test_leaks_into_another_set(images: Path, copies: Path, vectors: Path, tmp_path: Path) -> None:
    test_set, report = tmp_path / "test.npz", tmp_path / "r.json"
    assert run("embed", copies / "same.png", copies / "brighter.png", "--out", test_set).exit_code == 0
    result = run("duplicates", test_set, "--against", vectors, "--threshold", 0.9999, "--out", report)
    assert result.exit_code == 0
    assert "2 of 2 images stand among the 18 others, too" in result.stdout
    leaks = json.loads(report.read_text())["leaks"]
    assert [leak["image"] for leak in leaks] == [str(copies / "same.png"), str(copies / "brighter.png")]
    assert not any(leak["exact"] for leak in leaks)  # A file of vectors holds no sha256.


def test_duplicates_refuses(vectors: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "r.json")
    assert_one_error_line(run("duplicates", vectors, "--threshold", 2, *out), "threshold is 2.0; a cosine above 0")
    assert_one_error_line(run("duplicates", tmp_path / "none.npz", *out), "no such file")
    assert_one_error_line(run("duplicates", vectors, "--out", tmp_path / "no/r.json"), "cannot be written")
    assert list(tmp_path.iterdir()) == []


def test_what_is_read_is_never_replaced(copies: Path, tmp_path: Path) -> None:
    stored, others = tmp_path / "v.parquet", tmp_path / "w.parquet"
    for out in (stored, others):
        assert run("embed", copies, "--out", out).exit_code == 0
    before = stored.read_bytes(), others.read_bytes()
    refused = "is one of the inputs, which it would replace; give the output another name"
    query = copies / "ring_01.png"
    pixels = query.read_bytes()
    assert_one_error_line(run("map", stored, "--out", stored), refused)
    assert_one_error_line(run("duplicates", stored, "--out", stored), refused)
    assert_one_error_line(run("duplicates", stored, "--against", others, "--out", others), refused)
    assert_one_error_line(run("duplicates", stored, "--out", tmp_path / "r.json", "--sheet", stored), refused)
    assert_one_error_line(run("search", stored, query, "--sheet", query), refused)
    assert_one_error_line(run("search", stored, query, "--sheet", stored), refused)
    assert (stored.read_bytes(), others.read_bytes()) == before
    assert query.read_bytes() == pixels


def test_search_by_index_finds_the_query_and_says_its_recall(copies: Path, vectors: Path) -> None:
    pytest.importorskip("usearch", reason="needs the extra index")
    for _ in range(2):  # Built, then opened.
        result = run("search", vectors, copies / "ring_01.png", "-k", 2, "--index")
        assert result.exit_code == 0
        said = re.fullmatch(r"index: ([\d.]+)% of the 10 exact neighbours are found\n", result.stderr)
        assert said
        assert float(said[1]) > 90  # Not all: of the two equal images one may be missing.
        assert result.stdout.splitlines()[1].split() == ["1.000", str(copies / "ring_01.png")]
        built = (vectors / "_index.usearch").stat().st_mtime_ns
    assert (vectors / "_index.usearch").stat().st_mtime_ns == built


def test_search_by_index_refuses_files_and_other_encoders(copies: Path, vectors: Path, tmp_path: Path) -> None:
    query, file = copies / "ring_01.png", tmp_path / "v.npz"
    assert run("embed", copies, "--out", file).exit_code == 0
    assert_one_error_line(run("search", file, query, "--index"), "is a file, which is searched exactly")
    other = shutil.copytree(vectors, tmp_path / "v", ignore=shutil.ignore_patterns("_index*"))
    assert_one_error_line(run("search", other, query, "--index", "--dim", 64), "of variant fp32-exact,")
    assert not (other / "_index.usearch").exists()


def test_map_writes_a_table_and_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("umap", reason="needs the extra map")
    import numpy as np

    from mixsiam_hub.vectors.table import VectorFile, write_vectors

    matrix = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    write_vectors(tmp_path / "v.npz", VectorFile(matrix, [f"{i}.png" for i in range(40)], "ab" * 32, "fp32-exact", "m"))
    result = run("map", tmp_path / "v.npz", "--out", tmp_path / "m.parquet")
    assert result.exit_code == 0
    assert "--x x --y y --neighbors neighbors" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.parquet", "m.png", "v.npz"]
    assert_one_error_line(run("map", tmp_path / "v.npz", "--out", tmp_path / "m.csv"), "must end in .parquet")
