from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from mixsiam_hub import __version__
from mixsiam_hub.cli.group import EXIT_SKIPPED, main
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model import hub
from mixsiam_hub.vectors.table import read_vectors


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def _assert_one_error_line(result: Result, *words: str) -> None:
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert all(word in lines[-1] for word in words)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name, image in draw_samples(16).items():
        image.save(folder / name)
    return folder


@pytest.fixture(scope="module")
def stored(images: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vector file of the images."""
    out = tmp_path_factory.mktemp("stored") / "v.npz"
    assert _run("embed", images, "--model", model_folder, "--out", out).exit_code == 0
    return out


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_embed_writes_a_unit_vector_for_each_image(
    images: Path, model_folder: Path, tmp_path: Path, suffix: str
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="needs the extra bulk")
    out = tmp_path / f"v{suffix}"
    result = _run("embed", images, "--model", model_folder, "--out", out, "--batch-size", 5, "--backend", "onnx")
    assert result.exit_code == 0, result.output
    vectors = read_vectors(out)
    assert vectors.ids == sorted(str(path) for path in images.iterdir())
    np.testing.assert_allclose(np.linalg.norm(vectors.vectors, axis=1), 1, atol=1e-5)
    assert vectors.model == str(model_folder)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_embed_skips_counts_and_lists_bad_files(images: Path, model_folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    out = tmp_path / "v.npz"
    result = _run("embed", bad, images, "--model", model_folder, "--out", out)
    assert result.exit_code == EXIT_SKIPPED
    assert "1 of 17 files skipped" in result.stderr
    lines = [json.loads(line) for line in (tmp_path / "errors.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == [str(bad)]
    assert lines[0]["reason"]
    assert len(read_vectors(out).ids) == 16
    assert _run("embed", images, "--model", model_folder, "--out", out).exit_code == 0
    assert not (tmp_path / "errors.jsonl").exists()  # It would tell of files that this run never saw.


def test_strict_stops_at_the_first_bad_file_and_writes_nothing(
    images: Path, model_folder: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    result = _run("embed", images, bad, "--model", model_folder, "--out", tmp_path / "v.npz", "--strict")
    _assert_one_error_line(result, str(bad))
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jpg"]


@pytest.mark.parametrize("out", ["v.csv", "absent/v.npz"])
def test_place_that_cannot_be_written_is_said_first(images: Path, tmp_path: Path, out: str) -> None:
    _assert_one_error_line(_run("embed", images, "--model", "absent", "--out", tmp_path / out), out)


def test_search_finds_the_query_first(images: Path, stored: Path, model_folder: Path, tmp_path: Path) -> None:
    query = images / "ring_00.png"
    sheet = tmp_path / "sheet.png"
    result = _run("search", stored, query, "-k", 3, "--model", model_folder, "--sheet", sheet)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == str(query)
    assert lines[1].split() == ["1.000", str(query)]
    assert len(lines) == 5  # The query, three neighbours, the sheet.
    with Image.open(sheet) as image:
        assert image.format == "PNG"


def test_search_refuses_vectors_of_another_encoder(images: Path, stored: Path, compact_folder: Path) -> None:
    result = _run("search", stored, images / "ring_00.png", "--model", compact_folder)
    _assert_one_error_line(result, "fingerprint")


def test_info_prints_the_contract(model_folder: Path) -> None:
    result = _run("info", model_folder)
    assert result.exit_code == 0
    facts = dict(line.split(None, 1) for line in result.stdout.splitlines())
    assert facts["architecture"].strip() == "resnet18"
    assert facts["preprocessing.input_px"].strip() == "32"
    assert facts["license"].strip() == "Apache-2.0"


def test_info_prints_a_figure_a_line() -> None:
    split = (line.partition("  ") for line in _run("info").stdout.splitlines())
    facts = {name: value.strip() for name, _, value in split}
    assert 0.5 < float(facts["quality.evaluations.0.rows.mixsiam.knn20"]) < 0.6
    assert facts["parity.batch_sizes"] == "[1, 2, 3, 17]"


def test_verify_prints_a_line_for_every_graph(model_folder: Path) -> None:
    result = _run("verify", model_folder)
    assert result.exit_code == 0, result.output
    files = ["onnx/model.onnx", "onnx/model_fp16.onnx", "model.safetensors", "onnx/preprocess.onnx"]
    assert [line.partition(" by ")[0] for line in result.stdout.splitlines()[1:]] == files
    assert "cosine 1.000000 on average" in result.stdout
    assert "0 grey levels from Pillow" in result.stdout


def test_verify_fails_on_something_else(tmp_path: Path) -> None:
    _assert_one_error_line(_run("verify", tmp_path), "mixsiam.json")


def test_demo_draws_embeds_and_shows_neighbours(
    compact_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "BUILTIN", compact_folder)
    result = _run("demo", "--out", tmp_path / "demo")
    assert result.exit_code == 0, result.output
    vectors = read_vectors(tmp_path / "demo/vectors.npz")
    assert len(vectors.ids) == 64
    neighbours = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("  ")]
    assert len(neighbours) == 5
    assert vectors.ids[0] not in neighbours
    with Image.open(tmp_path / "demo/neighbours.png") as sheet:
        assert sheet.width > 5 * 128


def test_demo_takes_a_folder_of_images(images: Path, model_folder: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "s.png"
    result = _run("demo", images, "--model", model_folder, "--out", tmp_path / "demo", "--sheet", sheet)
    assert result.exit_code == 0, result.output
    assert sheet.exists()
    assert not (tmp_path / "demo/samples").exists()


def test_version() -> None:
    assert __version__ in _run("--version").stdout
