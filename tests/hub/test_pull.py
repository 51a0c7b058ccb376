"""Pulls from the local Hub: what is asked for, from where, how often; and each error in our words, with its fix."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import ALICE, BOB, Fault, LocalHub, cut, fail, first, slow
from hub_server.round_trip import REPO, asked_files, contents, push
from manifests import signed

from mixsiam_hub import ImageEncoder
from mixsiam_hub.errors import HubError, ModelError
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model.files import INT8_ONNX_FILE, ONNX_FILE, WEIGHTS_FILE
from mixsiam_hub.model.hub import resolve

pytestmark = pytest.mark.hub

CONTENT_ROUTES = {"xet": "xet-get-xorb", "lfs": "get-object"}


@pytest.fixture
def files(compact_folder: Path) -> dict[str, bytes]:
    """The files of a model folder, half the size of the full form."""
    return contents(str(compact_folder))


def cached() -> set[bytes]:
    """What the files in the client's cache hold, whole ones and begun ones."""
    paths = Path(os.environ["HF_HOME"]).glob("hub/*/blobs/*")
    return {path.read_bytes() for path in paths if path.stat().st_size}


# What is fetched


def test_an_onnx_user_downloads_no_safetensors(hub: LocalHub, model_folder: Path) -> None:
    repo = hub.add_repo(REPO, contents(str(model_folder)))
    encoder = ImageEncoder.from_pretrained(REPO, backend="onnx")
    images = list(draw_samples(2).values())
    expected = ImageEncoder.from_pretrained(model_folder, backend="onnx").embed(images)
    np.testing.assert_array_equal(encoder.embed(images), expected)
    assert asked_files(hub) == ["config.json", "mixsiam.json", "onnx/model.onnx"]
    assert encoder.revision == repo.branches["main"]


def test_an_int8_user_downloads_that_graph_alone(hub: LocalHub, model_folder: Path) -> None:
    files = contents(str(model_folder))
    manifest = json.loads(files["mixsiam.json"])
    files[INT8_ONNX_FILE] = files[ONNX_FILE]
    manifest["files"][INT8_ONNX_FILE] = manifest["files"][ONNX_FILE]
    hub.add_repo(REPO, {**files, "mixsiam.json": signed(manifest)})
    encoder = ImageEncoder.from_pretrained(REPO, precision="int8")
    assert asked_files(hub) == ["config.json", "mixsiam.json", INT8_ONNX_FILE]
    assert (encoder.backend, encoder.variant) == ("onnx", "int8-exact")


def test_a_torch_user_downloads_no_graph(hub: LocalHub, files: dict[str, bytes]) -> None:
    pytest.importorskip("torch", reason="needs the extra torch")
    hub.add_repo(REPO, files)
    ImageEncoder.from_pretrained(REPO, backend="torch")
    assert asked_files(hub) == ["config.json", "mixsiam.json", WEIGHTS_FILE]


def test_all_files_are_of_one_commit_whatever_is_pushed_meanwhile(hub: LocalHub, files: dict[str, bytes]) -> None:
    repo = hub.add_repo(REPO, files)
    repo.tags["v1"] = commit = repo.branches["main"]
    folder = resolve(f"{REPO}@v1")
    repo.tags["v1"] = hub.add_commit(REPO, {"known_answers/vectors.json": b"{}"}).oid
    assert folder.revision == commit
    assert folder.file("known_answers/vectors.json").read_bytes() == files["known_answers/vectors.json"]


@pytest.mark.parametrize("fault", [cut(1_000), slow(1.0)], ids=["cut", "slow"])
def test_a_pull_that_stumbles_goes_on(
    hub: LocalHub, files: dict[str, bytes], request: pytest.FixtureRequest, fault: Fault
) -> None:
    push(files)
    hub.fault(CONTENT_ROUTES[request.node.callspec.params["hub"]], fault)
    folder = resolve(REPO)
    assert folder.file(WEIGHTS_FILE).read_bytes() == files[WEIGHTS_FILE]
    assert hub.faults_waiting == {}


REFUSALS = [
    ("lfs", "get-object", fail(403), "token"),
    ("lfs", "get-object", fail(503), "try again later"),
    ("xet", "xet-read-token", fail(403), "token"),
    ("xet", "xet-reconstruction", fail(403), "token"),
]


@pytest.mark.parametrize(("hub", "route", "fault", "reason"), REFUSALS, indirect=["hub"])
def test_a_pull_that_was_refused_leaves_no_file_and_succeeds_when_repeated(
    hub: LocalHub, files: dict[str, bytes], route: str, fault: Fault, reason: str
) -> None:
    push(files)
    folder = resolve(REPO)
    hub.fault(route, fault)
    with pytest.raises(HubError, match=rf"{WEIGHTS_FILE} could not be fetched: .*{reason}"):
        folder.file(WEIGHTS_FILE)
    assert cached() == {files["config.json"], files["mixsiam.json"]}
    assert folder.file(WEIGHTS_FILE).read_bytes() == files[WEIGHTS_FILE]


@pytest.mark.parametrize(("hub", "route"), [("lfs", "resolve-head"), ("xet", "xet-read-token")], indirect=["hub"])
def test_a_token_revoked_in_the_middle_of_a_pull(hub: LocalHub, files: dict[str, bytes], route: str) -> None:
    push(files)
    folder = resolve(REPO)
    alice = hub.state.tokens[ALICE]
    hub.fault(route, first(lambda: hub.revoke(ALICE)))
    with pytest.raises(HubError, match=rf"{WEIGHTS_FILE} could not be fetched: .*revoked"):
        folder.file(WEIGHTS_FILE)
    assert cached() == {files["config.json"], files["mixsiam.json"]}
    hub.state.tokens[ALICE] = alice
    assert folder.file(WEIGHTS_FILE).read_bytes() == files[WEIGHTS_FILE]


def test_a_file_that_is_not_what_was_pushed_is_refused(hub: LocalHub, files: dict[str, bytes]) -> None:
    hub.add_repo(REPO, {**files, "model.onnx": b"\0other"})
    with pytest.raises(ModelError, match=r"model\.onnx was changed"):
        ImageEncoder.from_pretrained(REPO, backend="onnx")


# A new process: the environment, and a cache that is all there is

PULL = """
import json, os, sys

def forbid(event, arguments):
    if not forbidden:
        return
    path = str(arguments[0]) if arguments else ""
    if event.startswith("socket.") and "socket" in forbidden:
        raise RuntimeError(f"{event} in spite of the cache")
    writes = event in ("os.mkdir", "os.rename", "os.remove", "os.symlink", "os.link", "os.chmod", "os.truncate")
    if event == "open" and (set(str(arguments[1])) & set("wax+") or arguments[2] & (os.O_WRONLY | os.O_RDWR)):
        writes = True
    if writes and "write" in forbidden and path.startswith(os.environ["HF_HOME"]):
        raise PermissionError(13, "read-only", path)

forbidden = set()
sys.addaudithook(forbid)
from mixsiam_hub import ImageEncoder
from mixsiam_hub.images.samples import draw_samples

images = list(draw_samples(2).values())
found = []
for what, options in json.loads(sys.argv[1]):
    forbidden = set(what)
    encoder = ImageEncoder.from_pretrained("lab/encoder", backend="onnx", threads=1, **options)
    found.append([encoder.revision, encoder.embed(images).tolist()])
print(json.dumps(found))
"""


def in_a_new_process(runs: list[tuple[list[str], dict[str, Any]]], **environment: str) -> list[Any]:
    """Embeds once for each (what the process may not do, options of from_pretrained)."""
    command = [sys.executable, "-c", PULL, json.dumps(runs)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_environment_and_cache_are_honoured(hub: LocalHub, compact_folder: Path, files: dict[str, bytes]) -> None:
    """HF_ENDPOINT, HF_HOME and HF_TOKEN, of a private repository; then its cache without a write; then no network."""
    push(files)
    hub.state.repos[REPO].private = True
    first, read_only = in_a_new_process([([], {}), (["write"], {})])
    assert hub.requests("resolve-head")
    hub.log.clear()
    [local] = in_a_new_process([(["socket", "write"], {"local_files_only": True})])
    [offline] = in_a_new_process([(["socket", "write"], {})], HF_HUB_OFFLINE="1")
    assert hub.log == []
    assert first == read_only == local == offline
    revision, vectors = first
    assert revision == hub.history(REPO)[0].oid
    expected = ImageEncoder.from_pretrained(compact_folder, backend="onnx").embed(list(draw_samples(2).values()))
    np.testing.assert_allclose(np.array(vectors), expected, atol=1e-6)


# Errors


def missing_repository(hub: LocalHub) -> None:
    hub.state.repos.clear()


def private_without_token(hub: LocalHub) -> None:
    hub.state.repos[REPO].private = True
    os.environ.pop("HF_TOKEN")  # which the fixture puts back


def private_of_others(hub: LocalHub) -> None:
    hub.state.repos[REPO].private = True
    os.environ["HF_TOKEN"] = BOB


def gated(hub: LocalHub) -> None:
    hub.state.repos[REPO].gated = True
    os.environ["HF_TOKEN"] = BOB


def bad_token(hub: LocalHub) -> None:
    os.environ["HF_TOKEN"] = "hf_nobody"


def no_card_no_config(hub: LocalHub) -> None:
    hub.add_repo(REPO, {"weights.txt": b"nothing here"})


def busy(hub: LocalHub) -> None:
    hub.fault("resolve-head", fail(503), times=20)


def gone(hub: LocalHub) -> None:
    hub.close()


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (missing_repository, r"config\.json .*missing or private: check the name"),
        (private_without_token, r"missing or private: .*run `hf auth login`"),
        (private_of_others, r"missing or private: .*give token="),
        (gated, r"is gated: ask for access"),
        (bad_token, r"the token is wrong, revoked or expired"),
        (no_card_no_config, r"config\.json could not be fetched: the repository has none.*mixsiam export"),
        (busy, r"busy or down: try again later"),
        (gone, r"the Hub was not reached.*check the connection"),
    ],
)
def test_errors_say_what_to_do(
    hub: LocalHub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, trouble: Any, message: str
) -> None:
    hub.add_repo(REPO, {name: data for name, data in files.items() if name.endswith(".json")})
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    trouble(hub)
    with pytest.raises(HubError, match=f"^{REPO}.*{message}"):
        resolve(REPO)


def test_a_revision_that_is_missing(hub: LocalHub, files: dict[str, bytes]) -> None:
    hub.add_repo(REPO, files)
    with pytest.raises(HubError, match=f"{REPO}@v9: .*no such revision: give a branch"):
        resolve(f"{REPO}@v9")


def test_offline_without_a_cache(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match=r"not in the cache.*go online"):
        resolve(REPO, local_files_only=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="unset it"):
        resolve(REPO)
    assert hub.log == []


@pytest.mark.parametrize(
    ("number", "message"), [(errno.ENOSPC, "disk is full: free some space"), (errno.EROFS, "cache cannot be written")]
)
def test_a_disk_that_takes_nothing(
    hub: LocalHub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    hub.add_repo(REPO, files)

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    folder = resolve(REPO)
    monkeypatch.setattr("huggingface_hub.file_download._download_to_tmp_and_move", refuse)
    with pytest.raises(HubError, match=f"{WEIGHTS_FILE} could not be fetched: the {message}.*HF_HOME"):
        folder.file(WEIGHTS_FILE)
    monkeypatch.undo()


def test_a_hub_that_is_down_leaves_the_cache_and_its_commit(hub: LocalHub, files: dict[str, bytes]) -> None:
    commit = hub.add_repo(REPO, files).branches["main"]
    assert resolve(REPO).revision == commit
    hub.add_commit(REPO, {"README.md": b"newer"})
    hub.fault("resolve-head", fail(503))
    assert resolve(REPO).revision == commit
    assert hub.faults_waiting == {}
