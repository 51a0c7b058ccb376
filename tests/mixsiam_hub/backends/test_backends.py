from __future__ import annotations

import importlib.util
import logging
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from graphs import with_file
from manifests import edit_manifest

from mixsiam_hub import ImageEncoder
from mixsiam_hub.backends import choose as backends
from mixsiam_hub.backends import openvino
from mixsiam_hub.backends.choose import Choice, choose
from mixsiam_hub.errors import BackendError, MissingExtraError, ModelError
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model.files import FP16_ONNX_FILE, INT8_ONNX_FILE, ONNX_FILE, VARIANT_FILES

PICTURES = list(draw_samples(16).values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tensorrt", "auto", "fp32"), "allowed are auto, onnx, openvino, torch"),
        (("auto", "auto", "auto"), "allowed are fp32, bf16, fp16, int8"),
        (("auto", "cuda:x", "fp32"), "allowed are auto, cpu, cuda, cuda:N, mps"),
        (("onnx", "gpu", "fp32"), "cuda:N"),
        (("onnx", "cpu", "bf16"), "onnx backend allows fp32, fp16, int8"),
        (("torch", "cpu", "int8"), "torch backend allows fp32, bf16, fp16"),
        (("openvino", "cpu", "fp16"), "openvino backend allows fp32, bf16, int8"),
        (("openvino", "cuda", "fp32"), "device 'cuda' is not for openvino here"),
        (("onnx", "mps", "fp32"), "torch"),
        (("auto", "mps", "int8"), "onnx: .*torch: "),
    ],
)
def test_what_cannot_be_had_is_refused_with_what_can(arguments: tuple[str, str, str], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        choose(*arguments)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_auto_prefers_onnx(precision: str) -> None:
    assert choose("auto", "cpu", precision) == Choice("onnx", "cpu", precision)


def test_what_runs_is_said(model_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mixsiam_hub"):
        ImageEncoder.from_pretrained(model_folder, device="cpu")
    assert "onnx on cpu, fp32" in caplog.text


def test_auto_takes_torch_where_only_torch_can(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", None)
    monkeypatch.setattr(openvino, "_devices", openvino._devices.__wrapped__)  # It keeps what it found.
    assert choose("auto", "cpu", "bf16") == Choice("torch", "cpu", "bf16")
    with pytest.raises(MissingExtraError, match=r"mixsiam-hub\[openvino\]"):
        choose("openvino", "cpu", "bf16")


def test_missing_torch_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import mixsiam_hub.backends

    monkeypatch.setitem(sys.modules, "mixsiam_hub.backends.torch", None)
    monkeypatch.delattr(mixsiam_hub.backends, "torch", raising=False)
    with pytest.raises(MissingExtraError, match=r"mixsiam-hub\[torch\]"):
        choose("torch", "cpu", "fp32")


def test_half_precision_needs_a_gpu() -> None:
    pytest.importorskip("torch")
    with pytest.raises(BackendError, match="torch on cpu allows fp32, bf16"):
        choose("torch", "cpu", "fp16")


def test_present_backends_are_those_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else object())
    monkeypatch.setattr(openvino, "_devices", lambda: (0, ["the CPU"]))
    assert backends.present_backends() == ("onnx", "openvino")


def test_a_cpu_that_openvino_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else object())
    monkeypatch.setattr(openvino, "_devices", lambda: (0, []))
    assert backends.present_backends() == ("onnx",)
    assert choose("auto", "cpu", "fp32").backend == "onnx"
    with pytest.raises(BackendError, match="takes Intel's CPUs alone"):
        choose("openvino", "cpu", "fp32")


def _half(folder: Path, *, keep_io_types: bool = True) -> bytes:
    """The fp32 graph of a folder in float16."""
    onnx = pytest.importorskip("onnx", reason="needs the extra export")
    from onnxruntime.transformers.float16 import convert_float_to_float16

    graph = convert_float_to_float16(onnx.load(folder / ONNX_FILE), keep_io_types=keep_io_types)
    return bytes(graph.SerializeToString())


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_precision_takes_the_graph_that_has_it(precision: str, model_folder: Path, tmp_path: Path) -> None:
    folder = with_file(model_folder, VARIANT_FILES[precision], _half(model_folder), tmp_path / "model")
    exact = ImageEncoder.from_pretrained(folder, device="cpu")
    small = pickle.loads(pickle.dumps(ImageEncoder.from_pretrained(folder, device="cpu", precision=precision)))
    assert (small.backend, small.precision, small.variant) == ("onnx", precision, f"{precision}-exact")
    assert small.fingerprint == exact.fingerprint
    ours, theirs = small.embed(PICTURES), exact.embed(PICTURES)
    assert ours.dtype == np.float32
    assert (ours * theirs).sum(1).min() > 0.999
    assert np.abs(ours - theirs).max() > 1e-5  # Else it would be the fp32 graph.
    assert small.features(PICTURES[:1]).dtype == np.float32


@pytest.mark.parametrize("kind", ["bare_folder", "compact_folder"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_precision_that_the_folder_lacks_is_named_with_the_fix(
    kind: str, precision: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    with pytest.raises(ModelError, match=rf"no {VARIANT_FILES[precision]}.*mixsiam export .*--calibration DATA"):
        ImageEncoder.from_pretrained(folder, precision=precision)


@pytest.fixture
def bare_folder(model_folder: Path, tmp_path: Path) -> Path:
    """A full folder that lists no graph but the fp32 one."""
    folder = Path(shutil.copytree(model_folder, tmp_path / "bare", copy_function=os.link))
    edit_manifest(folder, edit=lambda raw: [raw["files"].pop(name, None) for name in VARIANT_FILES.values()])
    return folder


def test_changed_graph_of_another_precision_is_refused(model_folder: Path, tmp_path: Path) -> None:
    folder = with_file(model_folder, INT8_ONNX_FILE, b"graph", tmp_path / "model")
    (folder / INT8_ONNX_FILE).write_bytes(b"another")
    with pytest.raises(ModelError, match=r"model_quantized\.onnx was changed"):
        ImageEncoder.from_pretrained(folder, precision="int8")


def test_graph_that_takes_half_precision_is_refused(model_folder: Path, tmp_path: Path) -> None:
    graph = _half(model_folder, keep_io_types=False)
    folder = with_file(model_folder, FP16_ONNX_FILE, graph, tmp_path / "model")
    with pytest.raises(ModelError, match=r"model_fp16\.onnx .*float16.*must be tensor\(float\)"):
        ImageEncoder.from_pretrained(folder, precision="fp16", device="cpu")


@pytest.mark.parametrize("kind", ["model_folder", "compact_folder"])
def test_backends_agree(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    onnx, torch = (ImageEncoder.from_pretrained(folder, backend=name, device="cpu") for name in ("onnx", "torch"))
    assert onnx.fingerprint == torch.fingerprint
    expected = torch.embed(PICTURES, normalize=False)
    error = np.abs(onnx.embed(PICTURES, normalize=False) - expected).max()
    assert error < 1e-4 * np.abs(expected).mean()


def test_compact_folder_gives_nearly_the_vectors_of_the_full_one(model_folder: Path, compact_folder: Path) -> None:
    full, compact = (
        ImageEncoder.from_pretrained(f, backend="onnx").embed(PICTURES) for f in (model_folder, compact_folder)
    )
    assert (full * compact).sum(1).min() > 0.9999


def test_bf16_is_another_variant_near_the_exact_one(model_folder: Path) -> None:
    pytest.importorskip("torch")
    exact = ImageEncoder.from_pretrained(model_folder, backend="torch", device="cpu")
    fast = ImageEncoder.from_pretrained(model_folder, backend="torch", device="cpu", precision="bf16")
    assert (exact.variant, fast.variant) == ("fp32-exact", "bf16-exact")
    vectors = fast.embed(PICTURES)
    assert vectors.dtype == np.float32
    assert (vectors * exact.embed(PICTURES)).sum(1).min() > 0.999
