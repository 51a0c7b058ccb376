"""Repositories as timm writes them, without mixsiam.json, pulled from the local Hub and run by torch."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import LocalHub, fail
from hub_server.round_trip import REPO, asked_files, contents, push

torch = pytest.importorskip("torch", reason="needs the extra train")
timm = pytest.importorskip("timm", reason="needs the extra dev")

from huggingface_hub import hf_hub_download

from mixsiam_hub import ImageEncoder
from mixsiam_hub.errors import BackendError, HubError, ModelError
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model.hub import HubRepo, resolve
from mixsiam_hub.model.known_answers import verify_folder
from mixsiam_hub.training.checkpoint import TrainedEncoder

pytestmark = pytest.mark.hub

PICTURES = list(draw_samples(4).values())
ASKED = ["config.json", "mixsiam.json", "model.safetensors"]


@pytest.fixture(scope="module")
def folder(trained_encoder: TrainedEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What timm saves of the trained encoder with a classifier: the same weights as safetensors and as a pickle."""
    folder = tmp_path_factory.mktemp("timm") / "plain"
    net = timm.create_model("resnet18", output_stride=16, num_classes=7)
    net.load_state_dict(net.state_dict() | trained_encoder.backbone.state_dict())
    preprocessing = {"input_size": (3, 64, 64), "interpolation": "bicubic", "crop_pct": 0.95}
    timm.models.save_for_hf(net, str(folder), safe_serialization="both", data_config=preprocessing)
    return folder


@pytest.fixture
def files(folder: Path) -> dict[str, bytes]:
    return contents(str(folder))


def test_a_plain_repository_is_pulled_and_run_by_torch(hub: LocalHub, files: dict[str, bytes], folder: Path) -> None:
    commit = push(files)
    encoder = ImageEncoder.from_pretrained(REPO)
    assert asked_files(hub) == ASKED  # config.json first, and never the pickle.
    assert (encoder.backend, encoder.revision) == ("torch", commit)
    local = ImageEncoder.from_pretrained(folder)
    assert encoder.fingerprint == local.fingerprint
    np.testing.assert_array_equal(encoder.embed(PICTURES), local.embed(PICTURES))


def test_a_repository_that_timm_itself_pushed(hub: LocalHub) -> None:
    net = timm.create_model("resnet34", num_classes=3)
    timm.models.push_to_hf_hub(net, REPO)
    encoder = ImageEncoder.from_pretrained(f"{REPO}@main")
    assert encoder.embed(PICTURES[:1]).shape == (1, 512)
    assert "resnet34" in repr(encoder)


def test_a_commit_that_brings_a_graph_is_seen(hub: LocalHub, files: dict[str, bytes], compact_folder: Path) -> None:
    """The cache remembers of each commit what it has not, and not of the branch."""
    hub.add_repo(REPO, files)
    assert ImageEncoder.from_pretrained(REPO).backend == "torch"
    hub.add_commit(REPO, contents(str(compact_folder)))
    assert ImageEncoder.from_pretrained(REPO).backend == "onnx"


def test_what_it_has_not_is_said(hub: LocalHub, files: dict[str, bytes]) -> None:
    hub.add_repo(REPO, files)
    with pytest.raises(BackendError, match=r"no graph.*backend='torch'.*mixsiam import"):
        ImageEncoder.from_pretrained(REPO, backend="onnx")
    with pytest.raises(ModelError, match="no known answers"):
        verify_folder(REPO)


# Without network

EMBED = """
import json, os, sys

def forbid(event, arguments):
    if event.startswith("socket."):
        raise RuntimeError(f"{event} in spite of the cache")
    writes = event in ("os.mkdir", "os.rename", "os.remove", "os.symlink", "os.link", "os.chmod", "os.truncate")
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        writes = True
    if writes and str(arguments[0]).startswith(os.environ["HF_HOME"]):
        raise PermissionError(13, "read-only", str(arguments[0]))

from mixsiam_hub import ImageEncoder
from mixsiam_hub.images.samples import draw_samples
import torch  # Its own start is not what is watched.

sys.addaudithook(forbid)
encoder = ImageEncoder.from_pretrained("lab/encoder", threads=1, **json.loads(sys.argv[1]))
print(json.dumps([encoder.revision, encoder.embed(list(draw_samples(4).values())).tolist()]))
"""


def in_a_new_process(options: dict[str, Any], **environment: str) -> Any:
    """Embeds in a process that may open no socket and write nothing into the cache."""
    command = [sys.executable, "-c", EMBED, json.dumps(options)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_cache_is_enough(hub: LocalHub, files: dict[str, bytes]) -> None:
    push(files)
    pulled = ImageEncoder.from_pretrained(REPO, threads=1)
    hub.log.clear()
    local = in_a_new_process({"local_files_only": True})
    offline = in_a_new_process({}, HF_HUB_OFFLINE="1")
    assert hub.log == []
    assert local == offline
    assert local[0] == pulled.revision
    np.testing.assert_allclose(np.array(local[1]), pulled.embed(PICTURES), atol=1e-6)


def test_a_hub_that_is_down_is_not_missed(
    hub: LocalHub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add_repo(REPO, files).branches["main"]
    resolve(REPO)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.close()
    assert ImageEncoder.from_pretrained(REPO).revision == commit


def test_a_cache_that_others_filled_does_not_say_what_is_missing(hub: LocalHub, files: dict[str, bytes]) -> None:
    hub.add_repo(REPO, files)
    for name in ("config.json", "model.safetensors"):
        hf_hub_download(REPO, name)
    with pytest.raises(HubError, match=r"mixsiam\.json could not be fetched: it is not in the cache.*go online"):
        resolve(REPO, local_files_only=True)


def test_a_hub_that_is_busy_has_not_said_that_there_is_none(
    hub: LocalHub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add_repo(REPO, files).branches["main"]
    hf_hub_download(REPO, "config.json")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.fault("resolve-head", fail(503), times=20)
    with pytest.raises(HubError, match=r"mixsiam\.json could not be fetched: .*busy or down"):
        HubRepo(REPO, commit).open()


# What is no encoder


def test_another_kind_of_model_says_so_before_its_weights_are_fetched(hub: LocalHub, files: dict[str, bytes]) -> None:
    hub.add_repo(REPO, {**files, "config.json": b'{"model_type": "bert"}'})
    with pytest.raises(ModelError, match=r"mixsiam\.json is missing.*model_type is 'bert'.*mixsiam export"):
        resolve(REPO)
    assert asked_files(hub) == ASKED[:2]


def test_pickled_weights_alone_are_refused_and_never_asked_for(hub: LocalHub, files: dict[str, bytes]) -> None:
    pickled = {"config.json": files["config.json"], "pytorch_model.bin": pickle.dumps(Path)}
    hub.add_repo(REPO, pickled)
    with pytest.raises(HubError, match=r"model\.safetensors could not be fetched: .*safe_serialization=True.*never"):
        resolve(REPO)
    assert asked_files(hub) == ASKED
