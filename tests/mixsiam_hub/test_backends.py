from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixsiam_hub import ImageEncoder, onnx_backend
from mixsiam_hub import backend as backends
from mixsiam_hub.backend import Choice, choose
from mixsiam_hub.errors import BackendError, MissingExtraError
from mixsiam_hub.samples import draw_samples

PICTURES = list(draw_samples(16).values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tensorrt", "auto", "fp32"), "onnx, torch, openvino"),
        (("openvino", "auto", "fp32"), "not yet available"),
        (("onnx", "gpu", "fp32"), "cuda:N"),
        (("onnx", "cpu", "int8"), "allows fp32"),
        (("onnx", "mps", "fp32"), "torch"),
        (("auto", "cpu", "int4"), "onnx allows|onnx backend allows"),
    ],
)
def test_what_cannot_be_had_is_refused_with_what_can(arguments: tuple[str, str, str], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        choose(*arguments)


def test_cuda_without_its_provider_is_refused_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match="onnxruntime-gpu"):
        choose("onnx", "cuda", "fp32")


def test_session_that_fell_back_to_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import onnxruntime

    class FallenBack:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            pass

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", FallenBack)
    with pytest.raises(BackendError, match="cuda:0"):
        onnx_backend._open_session(tmp_path / "model.onnx", None, 512, "cuda:0", 1)


def test_cuda_device_is_numbered_and_auto_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert choose("onnx", "cuda", "fp32").device == "cuda:0"
    assert choose("auto", "auto", "fp32") == Choice("onnx", "cuda:0", "fp32")
    assert choose("onnx", "cpu", "fp32").device == "cpu"


def test_auto_prefers_onnx_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mixsiam_hub"):
        assert choose("auto", "cpu", "fp32") == Choice("onnx", "cpu", "fp32")
    assert "onnx on cpu, fp32" in caplog.text


def test_auto_takes_torch_where_only_torch_can() -> None:
    pytest.importorskip("torch")
    assert choose("auto", "cpu", "bf16") == Choice("torch", "cpu", "bf16")


def test_missing_torch_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import mixsiam_hub

    monkeypatch.setitem(sys.modules, "mixsiam_hub.torch_backend", None)
    monkeypatch.delattr(mixsiam_hub, "torch_backend", raising=False)
    with pytest.raises(MissingExtraError, match=r"mixsiam-hub\[torch\]"):
        choose("torch", "cpu", "fp32")


def test_half_precision_needs_a_gpu() -> None:
    pytest.importorskip("torch")
    with pytest.raises(BackendError, match="torch on cpu allows fp32, bf16"):
        choose("torch", "cpu", "fp16")


def test_present_backends_are_those_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else object())
    assert backends.present_backends() == ("onnx",)


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
