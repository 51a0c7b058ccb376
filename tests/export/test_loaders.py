"""One folder, the same vectors: what each Python loader gives, the torch-free sample, the page of what was measured.

An embedding is compared with ImageEncoder's, pooled features with its pooled features.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra export")
pytest.importorskip("skimage", reason="needs the extra dev")

import in_python
from in_python import BARS, POOLED, SAMPLE, Vectors
from needs import need
from odd_pictures import odd_pictures, readings

from mixsiam_hub import BUILTIN, ImageEncoder
from mixsiam_hub.model.config import ModelConfig, Preprocessing
from mixsiam_hub.model.processors import fastembed_json, preprocessor_json

ROOT = Path(__file__).parents[2]
LIGHT = [name for name, package in in_python.PACKAGES.items() if package in ("torch", "timm", "onnxruntime")]
LIGHT += ["transformers_head", "transformers_auto", "transformers_pipeline"]


def vectors_of(loader: str, folder: Path, files: list[Path]) -> Vectors:
    """Runs a loader; where it is missing, skips, and in CI fails."""
    need(in_python.missing(loader))
    return getattr(in_python, loader)(folder, files)


def expected_of(loader: str, folder: Path, files: list[Path]) -> Vectors:
    """What ImageEncoder gives where a loader, a key of BARS, gives the same."""
    return ImageEncoder.from_pretrained(folder, backend="onnx").embed(files, pooled=loader in POOLED)


def cosines(got: Vectors, expected: Vectors) -> Vectors:
    assert got.shape == expected.shape
    return (got / np.linalg.norm(got, axis=1, keepdims=True) * expected).sum(1)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return odd_pictures(tmp_path_factory.mktemp("odd"))


@pytest.mark.parametrize("pooled", [False, True])
def test_the_pictures_can_tell_encoders_and_vectors_apart(
    pooled: bool, headed_folder: Path, pictures: list[Path]
) -> None:
    vectors = ImageEncoder.from_pretrained(headed_folder).embed(pictures, pooled=pooled)
    assert vectors.shape == (16, 512)
    between = vectors @ vectors.T - 2 * np.eye(len(vectors))
    assert between.max() < 0.999


@pytest.mark.parametrize("loader", LIGHT)
def test_a_light_loader(loader: str, headed_folder: Path, pictures: list[Path]) -> None:
    expected = expected_of(loader, headed_folder, pictures)
    assert cosines(vectors_of(loader, headed_folder, pictures), expected).min() >= BARS[loader]


@pytest.mark.parametrize("loader", ["timm", "transformers_auto", "onnxruntime_graphs"])
def test_a_folder_without_a_head(loader: str, model_folder: Path, pictures: list[Path]) -> None:
    expected = expected_of(loader, model_folder, pictures)
    assert expected.shape == (16, 512)
    assert cosines(vectors_of(loader, model_folder, pictures), expected).min() >= BARS[loader]


@pytest.mark.slow
@pytest.mark.parametrize("loader", BARS)
def test_every_loader_on_the_builtin_encoder(loader: str, loader_folder: Path, pictures: list[Path]) -> None:
    expected = expected_of(loader, loader_folder, pictures)
    assert cosines(vectors_of(loader, loader_folder, pictures), expected).min() >= BARS[loader]


@pytest.mark.parametrize(
    "loader",
    ["timm", "transformers_head", "transformers_auto", pytest.param("sentence_transformers", marks=pytest.mark.slow)],
)
def test_the_compact_form(loader: str, pictures: list[Path]) -> None:
    expected = expected_of(loader, BUILTIN, pictures)
    assert cosines(vectors_of(loader, BUILTIN, pictures), expected).min() > 0.9999


@pytest.mark.slow
def test_sentence_transformers_gives_vectors_of_length_1(pictures: list[Path]) -> None:
    vectors = vectors_of("sentence_transformers", BUILTIN, pictures)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


def test_transformers_gives_the_feature_map_too(headed_folder: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra dev")
    model = transformers.AutoModel.from_pretrained(headed_folder).eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 32, 32)).last_hidden_state.shape == (1, 512, 2, 2)


def test_the_sample_imports_numpy_pillow_and_onnxruntime_alone() -> None:
    nodes = list(ast.walk(ast.parse(SAMPLE.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} - sys.stdlib_module_names == {"numpy", "PIL", "onnxruntime"}


def test_the_sample_needs_neither_torch_nor_this_package(
    headed_folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    for name in ("torch", "mixsiam_hub"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('tripped')")

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)

    assert "tripped" in run("-c", "import mixsiam_hub").stderr
    assert "tripped" in run("-c", "import torch").stderr
    lines = [json.loads(line) for line in run(SAMPLE, headed_folder, *pictures).stdout.splitlines()]
    assert [line["file"] for line in lines] == [str(path) for path in pictures]
    expected = expected_of("onnxruntime_graphs", headed_folder, pictures)
    assert cosines(np.array([line["vector"] for line in lines]), expected).min() > 0.9999


def test_the_sample_reads_odd_pictures_as_the_encoder_does(headed_folder: Path, odd: dict[str, Path]) -> None:
    files = list(odd.values())
    expected = expected_of("onnxruntime_graphs", headed_folder, files)
    assert cosines(in_python.onnxruntime_graphs(headed_folder, files), expected).min() > 0.9999


@pytest.mark.parametrize("vector", ["embedding", "pooled"])
def test_the_encoder_reads_an_odd_picture_in_the_first_way_and_the_others_can_be_told_from_it(
    vector: str, odd: dict[str, Path], benchmarks: None
) -> None:
    from loaders import SAME_READING

    embed = partial(ImageEncoder.from_pretrained().embed, pooled=vector == "pooled")
    assert odd.keys() == readings().keys()
    for kind, ways in readings().items():
        same, *others = (embed(list(ways.values())) @ embed(odd[kind])[0]).tolist()
        assert same > 0.9999, kind
        assert all(other < SAME_READING[vector] for other in others), kind


def test_fastembed_gets_its_own_file_only_where_that_can_say_the_size() -> None:
    whole = ModelConfig("resnet18", Preprocessing(64))
    assert fastembed_json(whole)["size"] == 64
    cropped = replace(whole, preprocessing=replace(whole.preprocessing, crop_pct=0.875))
    assert fastembed_json(cropped) == preprocessor_json(cropped)


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a test import the files of benchmarks/."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_page_and_readme_are_what_the_record_says(benchmarks: None) -> None:
    from loaders_page import render, render_readme

    record = json.loads((ROOT / "export" / "loaders.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "loaders.md").read_text(encoding="utf-8") == render(record)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == render_readme(readme, record)
    assert [row["loader"] for row in record["rows"] if row["min"] < row["bar"]] == []


def test_the_record_has_both_vectors_and_the_bars_of_these_tests(benchmarks: None) -> None:
    from loaders import loaders

    record = json.loads((ROOT / "export" / "loaders.json").read_text(encoding="utf-8"))
    measured = [(row["loader"], row["vector"], row["bar"]) for row in record["rows"]]
    assert measured == [(loader.name, loader.vector, loader.bar) for loader in loaders()]
    assert {vector for _, vector, _ in measured} == {"embedding", "pooled"}
