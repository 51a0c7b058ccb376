"""OpenVINO gives onnxruntime's vectors from the same bytes, in processes of any kind."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from needs import FORK

pytest.importorskip("onnxruntime_ep_openvino", reason="needs the extra openvino")

from mixsiam_hub import ImageEncoder
from mixsiam_hub.backends import openvino
from mixsiam_hub.errors import BackendError, ModelError
from mixsiam_hub.images.samples import draw_samples

if not openvino.runs_here():
    pytest.skip("OpenVINO's plugin of onnxruntime takes Intel's CPUs alone", allow_module_level=True)

PICTURES = list(draw_samples(12).values())


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return ImageEncoder.from_pretrained(backend="onnx").embed(PICTURES)


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.999999), ("bf16", 0.995)])
@pytest.mark.parametrize("batch_size", [5, 12])
def test_vectors_are_those_of_onnxruntime(precision: str, least: float, batch_size: int, expected: np.ndarray) -> None:
    encoder = ImageEncoder.from_pretrained(backend="openvino", precision=precision)
    assert (encoder.backend, encoder.device, encoder.variant) == ("openvino", "cpu", f"{precision}-exact")
    vectors = encoder.embed(PICTURES, batch_size=batch_size)
    assert (vectors * expected).sum(axis=1).min() > least


def test_precision_is_what_was_asked_for(expected: np.ndarray) -> None:
    vectors = ImageEncoder.from_pretrained(backend="openvino").embed(PICTURES)
    np.testing.assert_allclose(vectors, expected, atol=1e-4)  # Its own default would be bf16 on some CPUs.


@pytest.mark.slow
def test_int8_graphs_run(loader_folder: Path) -> None:
    ours = ImageEncoder.from_pretrained(loader_folder, backend="openvino", precision="int8").embed(PICTURES)
    exact = ImageEncoder.from_pretrained(loader_folder, backend="onnx").embed(PICTURES)
    assert (ours * exact).sum(axis=1).mean() > 0.98


def _embed_elsewhere(encoder: ImageEncoder, results: multiprocessing.SimpleQueue) -> None:
    try:
        results.put(encoder.embed(PICTURES[:2]))
    except BackendError as error:
        results.put(str(error))


def embed_in_process(method: str) -> np.ndarray | str:
    encoder = ImageEncoder.from_pretrained(backend="openvino", threads=1)
    encoder.embed(PICTURES[:1])
    context = multiprocessing.get_context(method)
    results = context.SimpleQueue()
    child = context.Process(target=_embed_elsewhere, args=(encoder, results), daemon=True)
    child.start()
    child.join(60)
    assert child.exitcode == 0
    found: np.ndarray | str = results.get()
    return found


@pytest.mark.parametrize("method", sorted({"spawn", "forkserver"} & {*multiprocessing.get_all_start_methods()}))
def test_other_processes_open_their_own_session(method: str, expected: np.ndarray) -> None:
    np.testing.assert_allclose(embed_in_process(method), expected[:2], atol=1e-4)


@FORK
def test_a_fork_is_an_error_and_no_hang() -> None:
    assert str(embed_in_process("fork")).startswith("OpenVINO's threads do not survive a fork")


def test_threads_share_an_encoder(expected: np.ndarray) -> None:
    encoder = pickle.loads(pickle.dumps(ImageEncoder.from_pretrained(backend="openvino")))
    with ThreadPoolExecutor(4) as pool:
        for vectors in pool.map(lambda _: encoder.embed(PICTURES), range(8)):
            np.testing.assert_allclose(vectors, expected, atol=1e-4)


def test_a_changed_graph_is_refused(compact_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(compact_folder, folder)
    (folder / "model.safetensors").write_bytes(b"x" + (folder / "model.safetensors").read_bytes()[1:])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        ImageEncoder.from_pretrained(folder, backend="openvino")


def test_a_runtime_that_cannot_load_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    def fail(*_: object) -> None:
        raise RuntimeError("wrong version")

    openvino._devices.cache_clear()
    monkeypatch.setattr(onnxruntime, "get_ep_devices", fail)
    with pytest.raises(BackendError, match="cannot load OpenVINO: wrong version"):
        openvino.find_device("cpu")
