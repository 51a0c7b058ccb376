"""onnxruntime: which device it takes, and which graphs it refuses."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from graphs import foreign_network, with_file

from mixsiam_hub import ImageEncoder
from mixsiam_hub.backends import onnx as onnx_backend
from mixsiam_hub.backends.choose import Choice, choose
from mixsiam_hub.backends.onnx import OnnxBackend
from mixsiam_hub.errors import BackendError, ModelError
from mixsiam_hub.model.files import ONNX_FILE
from mixsiam_hub.model.hub import resolve

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
IMAGES = np.zeros((3, 40, 40, 3), np.uint8)


@pytest.fixture
def built_for_cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str] | Exception], None]:
    """Stands in for onnxruntime-gpu: its build has CUDA, and a session gets these providers, or fails."""

    def build(outcome: list[str] | Exception) -> None:
        class Session:
            def __init__(self, *arguments: Any, **options: Any) -> None:
                if isinstance(outcome, Exception):
                    raise outcome

            def get_providers(self) -> list[str]:
                assert isinstance(outcome, list)
                return outcome

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)

    return build


def test_the_graph_that_asks_for_a_device_runs() -> None:
    session = onnxruntime.InferenceSession(onnx_backend._IDENTITY, providers=[CPU])
    assert session.run(None, {"x": np.array([2.5], np.float32)})[0].tolist() == [2.5]


@pytest.mark.parametrize("outcome", [[CPU], RuntimeError("CUDA failure 100: no CUDA-capable device\nstack")])
def test_a_build_for_cuda_on_a_machine_without_it_is_the_cpu(
    outcome: Any, built_for_cuda: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    built_for_cuda(outcome)
    with caplog.at_level(logging.INFO, logger="mixsiam_hub"):
        assert choose("onnx", "auto", "fp32") == Choice("onnx", "cpu", "fp32")
    assert "device auto is cpu; onnxruntime cannot use CUDA device 0" in caplog.text
    with pytest.raises(BackendError, match=r"'cuda:1' and onnxruntime cannot use CUDA device 1.*nvidia-smi.*'cpu'"):
        choose("onnx", "cuda:1", "fp32")


def test_why_cuda_fails_is_said_on_one_line(built_for_cuda: Callable[[Any], None]) -> None:
    built_for_cuda(RuntimeError("CUDA failure 100: no CUDA-capable device\nstack"))
    with pytest.raises(BackendError, match="failure 100: no CUDA-capable device") as refused:
        choose("onnx", "cuda", "fp32")
    assert "\n" not in str(refused.value)


def test_cuda_device_is_numbered_and_auto_takes_it(
    built_for_cuda: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    built_for_cuda([CUDA, CPU])
    assert choose("onnx", "cuda", "fp32").device == "cuda:0"
    assert choose("onnx", "cuda:2", "fp32").device == "cuda:2"
    assert choose("onnx", "cpu", "fp32").device == "cpu"
    with caplog.at_level(logging.INFO, logger="mixsiam_hub"):
        assert choose("auto", "auto", "fp32") == Choice("onnx", "cuda:0", "fp32")
    assert "device auto is cuda; onnxruntime can use CUDA" in caplog.text


def test_cuda_without_its_provider_is_refused_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    with pytest.raises(BackendError, match="onnxruntime-gpu"):
        choose("onnx", "cuda", "fp32")
    assert choose("onnx", "auto", "fp32").device == "cpu"


def test_session_that_fell_back_to_the_cpu_is_refused(built_for_cuda: Callable[[Any], None]) -> None:
    built_for_cuda([CPU])
    with pytest.raises(BackendError, match="cuda:0"):
        OnnxBackend(resolve(), "cuda:0", "fp32", 1)


def test_another_network_of_the_same_signature_runs(model_folder: Path, tmp_path: Path) -> None:
    folder = with_file(model_folder, ONNX_FILE, foreign_network(), tmp_path / "model")
    encoder = ImageEncoder.from_pretrained(folder, backend="onnx", device="cpu")
    assert encoder.embed(IMAGES).shape == (3, 512)
    assert encoder.features(IMAGES).shape == (3, 512, 2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"px": 64}, r"takes pixel_values of shape \(batch, 3, 64, 64\); it must be \(batch, 3, 32, 32\)"),
        ({"batch": 3}, r"takes pixel_values of shape \(3, 3, 32, 32\); it must be \(batch, 3, 32, 32\)"),
        ({"dim": 256}, r"gives pooler_output of shape \(batch, 256\); it must be \(batch, 512\)"),
        ({"cells": 1}, r"gives last_hidden_state of shape .*1, 1\); it must be \(batch, 512, 2, 2\)"),
        ({"image": "input"}, "takes input; it must be pixel_values"),
        ({"outputs": ("output", "last_hidden_state")}, "gives output, last_hidden_state; it must be pooler_output, "),
        (
            {"one_row": True},
            r"gives pooler_output of shape \(1, 512\).*; it must be \(3, 512\)",
        ),
    ],
)
def test_graph_of_another_signature_is_refused_by_its_name(
    change: dict[str, Any], message: str, model_folder: Path, tmp_path: Path
) -> None:
    folder = with_file(model_folder, ONNX_FILE, foreign_network(**change), tmp_path / "model")
    with pytest.raises(ModelError, match=rf"model\.onnx {message}"):
        ImageEncoder.from_pretrained(folder, backend="onnx", device="cpu").embed(IMAGES)


@pytest.mark.parametrize("place", ["beside the graph", "in the working directory", "by its full path"])
def test_graph_that_takes_its_weights_from_another_file_is_refused(
    place: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the extra export")
    graph = onnx.load_from_string(foreign_network())
    (tensor,) = (tensor for tensor in graph.graph.initializer if tensor.name == "w")
    weights, location = tmp_path / "weights.bin", "weights.bin"
    weights.write_bytes(tensor.raw_data)
    onnx.external_data_helper.set_external_data(tensor, str(weights) if place == "by its full path" else location)
    tensor.ClearField("raw_data")
    folder = with_file(model_folder, ONNX_FILE, graph.SerializeToString(), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    if place == "beside the graph":
        weights.rename(folder / "onnx" / location)
    with pytest.raises(ModelError, match=r"model\.onnx cannot be read as a graph"):
        ImageEncoder.from_pretrained(folder, backend="onnx", device="cpu")


def test_what_is_no_graph_is_refused_on_one_line(model_folder: Path, tmp_path: Path) -> None:
    folder = with_file(model_folder, ONNX_FILE, b"not\na graph", tmp_path / "model")
    with pytest.raises(ModelError, match=r"model\.onnx cannot be read as a graph") as refused:
        ImageEncoder.from_pretrained(folder, backend="onnx", device="cpu").embed(IMAGES)
    assert "\n" not in str(refused.value)
