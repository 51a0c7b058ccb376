"""Every graph of a folder is replayed: one that is sound, listed and something else is found and named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from graphs import foreign_network, foreign_preprocess, with_file
from manifests import edit_manifest

from mixsiam_hub.backends.choose import present_backends
from mixsiam_hub.backends.onnx_preprocess import PreprocessGraph
from mixsiam_hub.cli import main
from mixsiam_hub.errors import ModelError
from mixsiam_hub.model.bars import Bar, PixelCheck, VectorCheck
from mixsiam_hub.model.checks import check_graphs
from mixsiam_hub.model.files import FP16_ONNX_FILE, INT8_ONNX_FILE, ONNX_FILE, PREPROCESS_FILE, WEIGHTS_FILE
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.model.known_answers import verify_folder


def others(graph: str) -> list[tuple[str, str, str]]:
    """What else replays a folder here, beside onnxruntime's own kernels."""
    runs = [(graph, "openvino", "fp32"), (WEIGHTS_FILE, "torch", "fp32")]
    return [run for run in runs if run[1] in present_backends()]


def record(precision: str, **figures: Any) -> Callable[[dict[str, Any]], None]:
    """Has mixsiam.json record a smaller graph, as that of fp16 and with these figures besides."""

    def edit(raw: dict[str, Any]) -> None:
        variants = raw["parity"]["variants"]
        variants[precision] = variants["fp16"] | figures

    return edit


@pytest.fixture
def copy(model_folder: Path, tmp_path: Path) -> Path:
    """The full folder, made of links: replace its files, do not write into them."""
    return Path(shutil.copytree(model_folder, tmp_path / "copy", copy_function=os.link))


def test_every_graph_is_listed_with_what_it_measured_and_its_bar(model_folder: Path, tmp_path: Path) -> None:
    graph = (model_folder / FP16_ONNX_FILE).read_bytes()
    folder = with_file(model_folder, INT8_ONNX_FILE, graph, tmp_path / "model")
    edit_manifest(folder, edit=record("int8"))
    verified = verify_folder(folder)
    listed = [(check.file, check.backend, check.precision) for check in verified.vectors]
    graphs = [(ONNX_FILE, "onnx", "fp32"), (FP16_ONNX_FILE, "onnx", "fp16"), (INT8_ONNX_FILE, "onnx", "int8")]
    assert listed == graphs + others(ONNX_FILE)
    bars = {check.precision: check.bar for check in verified.vectors}
    assert bars == {"fp32": Bar(0.9999, 0.9999), "fp16": Bar(0.995, 0.97), "int8": Bar(0.995, 0.97)}
    for check in verified.vectors:
        assert 0.9999 < check.min_cosine <= check.mean_cosine <= 1 + 1e-9
    assert verified.pixels == PixelCheck(PREPROCESS_FILE, 0, 1)


def test_compact_folder_has_one_graph(compact_folder: Path) -> None:
    verified = verify_folder(compact_folder)
    assert [(check.file, check.backend, check.precision) for check in verified.vectors] == [
        ("model.onnx", "onnx", "fp32"),
        *others("model.onnx"),
    ]
    assert verified.pixels is None


@pytest.mark.parametrize("name", [ONNX_FILE, FP16_ONNX_FILE])
def test_another_sound_network_is_found_and_named(name: str, model_folder: Path, tmp_path: Path) -> None:
    folder = with_file(model_folder, name, foreign_network(), tmp_path / "model")
    with pytest.raises(ModelError, match=rf"{name} by onnx: cosine -?0\.\d+ on average"):
        verify_folder(folder)


def test_another_int8_network_is_found_and_named(model_folder: Path, tmp_path: Path) -> None:
    folder = with_file(model_folder, INT8_ONNX_FILE, foreign_network(), tmp_path / "model")
    edit_manifest(folder, edit=record("int8"))
    with pytest.raises(ModelError, match=rf"{INT8_ONNX_FILE} by onnx: cosine") as refused:
        verify_folder(folder)
    assert ONNX_FILE not in str(refused.value)


@pytest.mark.parametrize("weight", [np.nan, np.inf])
def test_network_that_gives_no_numbers_fails(weight: float, model_folder: Path, tmp_path: Path) -> None:
    folder = with_file(model_folder, FP16_ONNX_FILE, foreign_network(weight=weight), tmp_path / "model")
    with pytest.raises(ModelError, match=rf"{FP16_ONNX_FILE} by onnx: cosine nan on average and nan at worst"):
        verify_folder(folder)


def test_another_preprocessing_is_found_and_named(model_folder: Path, tmp_path: Path) -> None:
    folder = with_file(model_folder, PREPROCESS_FILE, foreign_preprocess(), tmp_path / "model")
    with pytest.raises(ModelError, match=rf"{PREPROCESS_FILE} by onnx: \d+ grey levels from Pillow at most; 1 is"):
        verify_folder(folder)


def test_preprocessing_that_takes_something_else_is_refused(model_folder: Path, tmp_path: Path) -> None:
    folder = with_file(model_folder, PREPROCESS_FILE, foreign_network(), tmp_path / "model")
    with pytest.raises(ModelError, match=rf"{PREPROCESS_FILE} takes pixel_values; it must be image"):
        verify_folder(folder)


def test_preprocessing_of_another_size_is_refused(model_folder: Path, tmp_path: Path) -> None:
    folder = with_file(model_folder, PREPROCESS_FILE, foreign_preprocess(33), tmp_path / "model")
    with pytest.raises(ModelError, match=r"gives pixel_values of shape \(1, 3, 33, 33\); it must be \(1, 3, 32, 32\)"):
        verify_folder(folder)


def test_pixels_that_are_no_numbers_are_far_off(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = PreprocessGraph(ModelFolder.open(model_folder), threads=1)
    assert graph.levels_off() == (0, 0.0)
    monkeypatch.setattr(graph, "run", lambda image: np.full((1, 3, 32, 32), np.nan, np.float32))
    assert graph.levels_off() == (255, 1.0)


def test_forced_graph_passes_only_where_it_is_accepted_and_says_so(model_folder: Path, tmp_path: Path) -> None:
    folder = with_file(model_folder, FP16_ONNX_FILE, foreign_network(), tmp_path / "model")
    with pytest.raises(ModelError, match=FP16_ONNX_FILE):
        verify_folder(folder, accept_forced=True)  # Nothing says that it was forced.

    edit_manifest(folder, edit=record("fp16", forced=True))
    with pytest.raises(ModelError, match=rf"{FP16_ONNX_FILE} by .* forced at export"):
        verify_folder(folder)
    checks = {check.precision: check for check in verify_folder(folder, accept_forced=True).vectors}
    assert (checks["fp16"].holds, checks["fp16"].forced) == (False, True)
    assert "forced at export" in str(checks["fp16"])

    runner = CliRunner()
    assert runner.invoke(main, ["verify", str(folder)]).exit_code == 1
    told = runner.invoke(main, ["verify", str(folder), "--accept-forced"])
    assert told.exit_code == 0
    assert "forced at export" in told.stdout


def test_the_fp32_graph_is_never_forced(model_folder: Path, tmp_path: Path) -> None:
    folder = with_file(model_folder, ONNX_FILE, foreign_network(), tmp_path / "model")
    edit_manifest(folder, edit=record("fp32", forced=True))
    with pytest.raises(ModelError, match=ONNX_FILE):
        verify_folder(folder, accept_forced=True)


@pytest.mark.parametrize(
    ("mean", "least", "holds"),
    [(0.995, 0.97, True), (0.9949, 0.99, False), (0.999, 0.9699, False), (float("nan"), float("nan"), False)],
)
def test_both_sides_of_a_bar_count(mean: float, least: float, holds: bool) -> None:
    check = VectorCheck(INT8_ONNX_FILE, "onnx", "int8", mean, least, "a.png", Bar(0.995, 0.97), forced=False)
    assert check.holds is holds


@pytest.mark.parametrize("name", [PREPROCESS_FILE, FP16_ONNX_FILE, ONNX_FILE])
def test_missing_graph_is_named(name: str, copy: Path) -> None:
    (copy / name).unlink()
    edit_manifest(copy, edit=lambda raw: raw["files"].pop(name))
    with pytest.raises(ModelError, match=rf"lacks {name}"):
        check_graphs(ModelFolder.open(copy))


def test_graph_that_was_left_out_is_not_missing(copy: Path) -> None:
    (copy / FP16_ONNX_FILE).unlink()
    edit_manifest(copy, edit=lambda raw: [raw["files"].pop(FP16_ONNX_FILE), record("fp16", left_out=True)(raw)])
    assert FP16_ONNX_FILE not in {check.file for check in verify_folder(copy).vectors}


@pytest.mark.parametrize(("name", "is_listed"), [(INT8_ONNX_FILE, True), ("onnx/other.ONNX", True), ("a.onnx", False)])
def test_extra_graph_is_named(name: str, is_listed: bool, copy: Path) -> None:
    (copy / name).write_bytes((copy / ONNX_FILE).read_bytes())
    if is_listed:
        edit_manifest(copy, name)
    with pytest.raises(ModelError, match=rf"has {name}, of which mixsiam\.json records nothing"):
        verify_folder(copy)
