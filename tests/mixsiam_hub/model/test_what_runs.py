"""What was hashed is what runs, whatever happens to the folder or to the process after it was opened."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from manifests import edit_manifest
from needs import FORK, NAMED_PIPES
from numpy.typing import NDArray

from mixsiam_hub import ImageEncoder
from mixsiam_hub.errors import ModelError
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model.checks import check_fingerprint
from mixsiam_hub.model.files import CONFIG_FILE, MANIFEST_FILE, ONNX_FILE, WEIGHTS_FILE
from mixsiam_hub.model.folder import ModelFolder

PICTURES = list(draw_samples(4).values())


def _weights(folder: Path, name: str, value: float) -> bytes:
    """The folder's weights with one value changed where it is, since the graph reads them by their place."""
    data = bytearray((folder / WEIGHTS_FILE).read_bytes())
    header = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + header])[name]
    changed = np.array(value, {"F16": "<f2", "F32": "<f4"}[entry["dtype"]]).tobytes()
    start = 8 + header + entry["data_offsets"][0]
    data[start : start + len(changed)] = changed
    return bytes(data)


# Replaced after it was opened


def test_weights_replaced_after_opening_change_no_vector(folder: Path, backend: str) -> None:
    encoder = ImageEncoder.from_pretrained(folder, backend=backend)
    expected = ImageEncoder.from_pretrained(backend=backend).embed(PICTURES)
    (folder / WEIGHTS_FILE).write_bytes(_weights(folder, "bn1.bias", 50.0))
    np.testing.assert_array_equal(encoder.embed(PICTURES), expected)
    with pytest.raises(ModelError, match=f"{WEIGHTS_FILE} was changed"):
        pickle.loads(pickle.dumps(encoder))
    with pytest.raises(ModelError, match=f"{WEIGHTS_FILE} was changed"):
        ImageEncoder.from_pretrained(folder, backend=backend)


def _in_child(encoder: ImageEncoder, queue: Any) -> None:
    try:
        queue.put(encoder.embed(PICTURES))
    except ModelError as error:
        queue.put(str(error))
    queue.close()
    queue.join_thread()


@FORK
def test_forked_child_never_runs_weights_replaced_meanwhile(folder: Path) -> None:
    encoder = ImageEncoder.from_pretrained(folder, backend="onnx")  # torch has its weights in memory, which forks copy.
    expected = encoder.embed(PICTURES)
    (folder / WEIGHTS_FILE).write_bytes(_weights(folder, "bn1.bias", 50.0))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(encoder, queue))
    child.start()
    got: NDArray[np.float32] | str = queue.get(timeout=60)
    child.join(60)
    if isinstance(got, str):
        assert f"{WEIGHTS_FILE} was changed" in got
    else:
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_relative_folder_is_that_of_its_opening(
    folder: Path, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    encoder = ImageEncoder.from_pretrained("model", backend=backend)
    data = pickle.dumps(encoder)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    vectors = encoder.embed(PICTURES)
    np.testing.assert_array_equal(pickle.loads(data).embed(PICTURES), vectors)
    if backend == "torch":
        assert encoder.to_torch().dim == 512


def test_graph_that_reads_weights_which_were_not_hashed_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compact graph under the name of a whole one looks for its weights beside itself or where the process is."""
    (folder / ONNX_FILE).parent.mkdir()
    shutil.copyfile(folder / "model.onnx", folder / ONNX_FILE)
    shutil.copyfile(folder / WEIGHTS_FILE, folder / "onnx" / WEIGHTS_FILE)
    edit_manifest(folder, ONNX_FILE, edit=lambda raw: raw.update(weights="fp32"))
    monkeypatch.chdir(folder)
    with pytest.raises(ModelError, match=r"onnx/model\.onnx cannot be read as a graph"):
        ImageEncoder.from_pretrained(folder, backend="onnx")


# Files of another kind


@NAMED_PIPES
@pytest.mark.parametrize("name", [CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, "model.onnx"])
def test_named_pipe_in_a_folder_is_refused_and_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ModelError, match=rf"{name} is a pipe"):
        ImageEncoder.from_pretrained(folder, backend="onnx")


@NAMED_PIPES
@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_named_pipe_in_a_folder_of_timm_is_refused_too(folder: Path, name: str) -> None:
    (folder / MANIFEST_FILE).unlink()
    config = (folder / CONFIG_FILE).read_text().replace('"model_type"', '"other"')
    (folder / CONFIG_FILE).write_text(config)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ModelError, match=rf"{name} is a pipe"):
        ImageEncoder.from_pretrained(folder)


# Weights that are no numbers


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_with_nan_give_an_error_and_no_vectors(folder: Path, backend: str, value: float) -> None:
    (folder / WEIGHTS_FILE).write_bytes(_weights(folder, "layer1.0.conv1.weight", value))
    edit_manifest(folder, WEIGHTS_FILE)
    with pytest.raises(ModelError, match=r"NaN or infinite"):
        ImageEncoder.from_pretrained(folder, backend=backend).embed(PICTURES, on_error="skip")
    with pytest.raises(ModelError, match=r"NaN or infinite"):
        ImageEncoder.from_pretrained(folder, backend=backend).features(PICTURES)
    with pytest.raises(ModelError, match=r"tensor layer1\.0\.conv1\.weight has NaN or infinite"):
        check_fingerprint(ModelFolder.open(folder))
