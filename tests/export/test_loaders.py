"""One folder, one vector: what each Python loader gives, the torch-free sample, and the page of what was measured."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra export")
pytest.importorskip("skimage", reason="needs the extra dev")

import in_python
from in_python import BARS, SAMPLE, Vectors
from needs import need
from odd_pictures import odd_pictures, readings

from mixsiam_hub import ImageEncoder
from mixsiam_hub.model.config import ModelConfig, Preprocessing
from mixsiam_hub.model.processors import fastembed_json, preprocessor_json

ROOT = Path(__file__).parents[2]
LIGHT = ("timm", "transformers_auto", "transformers_pipeline", "onnxruntime_graphs")


def vectors_of(loader: str, folder: Path, files: list[Path]) -> Vectors:
    """Runs a loader; where it is missing, skips, and in CI fails."""
    need(in_python.missing(loader))
    return getattr(in_python, loader)(folder, files)


def cosines(got: Vectors, expected: Vectors) -> Vectors:
    assert got.shape == expected.shape
    return (got / np.linalg.norm(got, axis=1, keepdims=True) * expected).sum(1)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return odd_pictures(tmp_path_factory.mktemp("odd"))


@pytest.fixture(scope="module")
def expected(model_folder: Path, pictures: list[Path]) -> Vectors:
    return ImageEncoder.from_pretrained(model_folder).embed(pictures)


def test_the_pictures_can_tell_encoders_apart(expected: Vectors) -> None:
    assert len(expected) == 16
    between = expected @ expected.T - 2 * np.eye(len(expected))
    assert between.max() < 0.999


def test_the_torch_backend(model_folder: Path, pictures: list[Path], expected: Vectors) -> None:
    vectors = ImageEncoder.from_pretrained(model_folder, backend="torch").embed(pictures, normalize=False)
    assert cosines(vectors, expected).min() > 0.9999


@pytest.mark.parametrize("loader", LIGHT)
def test_a_light_loader(loader: str, model_folder: Path, pictures: list[Path], expected: Vectors) -> None:
    assert cosines(vectors_of(loader, model_folder, pictures), expected).min() >= BARS[loader]


@pytest.mark.slow
@pytest.mark.parametrize("loader", BARS)
def test_every_loader_on_the_builtin_encoder(loader: str, loader_folder: Path, pictures: list[Path]) -> None:
    expected = ImageEncoder.from_pretrained(loader_folder).embed(pictures)
    assert cosines(vectors_of(loader, loader_folder, pictures), expected).min() >= BARS[loader]


@pytest.mark.parametrize(
    "loader", ["timm", "transformers_auto", pytest.param("sentence_transformers", marks=pytest.mark.slow)]
)
def test_the_compact_folder(loader: str, compact_folder: Path, pictures: list[Path]) -> None:
    expected = ImageEncoder.from_pretrained(compact_folder).embed(pictures)
    assert cosines(vectors_of(loader, compact_folder, pictures), expected).min() > 0.9999


@pytest.mark.slow
def test_sentence_transformers_gives_vectors_of_length_1(compact_folder: Path, pictures: list[Path]) -> None:
    vectors = vectors_of("sentence_transformers", compact_folder, pictures)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


def test_transformers_gives_the_feature_map_too(model_folder: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra dev")
    model = transformers.AutoModel.from_pretrained(model_folder).eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 32, 32)).last_hidden_state.shape == (1, 512, 2, 2)


def test_the_sample_imports_numpy_pillow_and_onnxruntime_alone() -> None:
    nodes = list(ast.walk(ast.parse(SAMPLE.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} - sys.stdlib_module_names == {"numpy", "PIL", "onnxruntime"}


def test_the_sample_needs_neither_torch_nor_this_package(
    model_folder: Path, pictures: list[Path], expected: Vectors, tmp_path: Path
) -> None:
    for name in ("torch", "mixsiam_hub"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('tripped')")

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)

    assert "tripped" in run("-c", "import mixsiam_hub").stderr
    assert "tripped" in run("-c", "import torch").stderr
    lines = [json.loads(line) for line in run(SAMPLE, model_folder, *pictures).stdout.splitlines()]
    assert [line["file"] for line in lines] == [str(path) for path in pictures]
    assert cosines(np.array([line["vector"] for line in lines]), expected).min() > 0.9999


def test_the_sample_reads_odd_pictures_as_the_encoder_does(model_folder: Path, odd: dict[str, Path]) -> None:
    files = list(odd.values())
    expected = ImageEncoder.from_pretrained(model_folder).embed(files)
    assert cosines(in_python.onnxruntime_graphs(model_folder, files), expected).min() > 0.9999


def test_the_encoder_reads_an_odd_picture_in_the_first_way_and_the_others_can_be_told_from_it(
    odd: dict[str, Path],
) -> None:
    encoder = ImageEncoder.from_pretrained()
    assert odd.keys() == readings().keys()
    for kind, ways in readings().items():
        same, *others = (encoder.embed(list(ways.values())) @ encoder.embed(odd[kind])[0]).tolist()
        assert same > 0.9999, kind
        assert all(other < 0.995 for other in others), kind


def test_fastembed_gets_its_own_file_only_where_that_can_say_the_size() -> None:
    whole = ModelConfig("resnet18", Preprocessing(64))
    assert fastembed_json(whole)["size"] == 64
    cropped = replace(whole, preprocessing=replace(whole.preprocessing, crop_pct=0.875))
    assert fastembed_json(cropped) == preprocessor_json(cropped)


def test_page_and_readme_are_what_the_record_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from loaders_page import render, render_readme

    record = json.loads((ROOT / "export" / "loaders.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "loaders.md").read_text(encoding="utf-8") == render(record)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == render_readme(readme, record)
    assert record["rows"]
    assert [row["loader"] for row in record["rows"] if row["min"] < row["bar"]] == []
