"""The local Hub's faults, met by the real client: after each, the whole commit is visible or none of it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hub_server import ALICE, Fault, LocalHub, cut, fail, first, lose_answer, slow
from hub_server.round_trip import FILES, LARGE, REPO, pull, push
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub import errors as hf

pytestmark = pytest.mark.hub

by_xet = pytest.mark.parametrize("hub", ["xet"], indirect=True)


def test_a_second_writer_is_not_overwritten(hub: LocalHub) -> None:
    parent = push()
    hub.fault("commit", first(lambda: hub.add_commit(REPO, {"config.json": b"theirs"})))
    with pytest.raises(hf.HfHubHTTPError, match="412"):
        push({**FILES, "config.json": b"ours"}, parent_commit=parent)
    assert hub.read(REPO) == {**FILES, "config.json": b"theirs"}
    push({**FILES, "config.json": b"ours"}, parent_commit=hub.history(REPO)[0].oid)
    assert hub.read(REPO) == {**FILES, "config.json": b"ours"}


UPLOAD_ROUTES = {"xet": "xet-put-xorb", "lfs": "put-object"}


@pytest.mark.parametrize("hub", ["xet", "lfs"], indirect=True)
@pytest.mark.parametrize("fault", [fail(503), cut(1_000)], ids=["refused", "cut"])
def test_an_upload_that_stumbles_is_repeated_by_the_client(
    hub: LocalHub, fault: Fault, request: pytest.FixtureRequest
) -> None:
    hub.fault(UPLOAD_ROUTES[request.node.callspec.params["hub"]], fault)
    push()
    assert hub.faults_waiting == {}
    assert hub.read(REPO) == FILES


@pytest.mark.parametrize("route", ["preupload", "commit", "lfs-batch", "put-object", "lfs-verify"])
@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_a_refused_push_leaves_nothing(hub: LocalHub, route: str) -> None:
    hub.fault(route, fail(403))
    with pytest.raises((hf.HfHubHTTPError, RuntimeError)):
        push()
    assert hub.faults_waiting == {}
    assert hub.read(REPO) == {}
    push()
    assert hub.read(REPO) == FILES


@by_xet
@pytest.mark.parametrize("route", ["xet-write-token", "xet-put-xorb", "xet-put-shard"])
def test_a_push_refused_by_xet_leaves_nothing(hub: LocalHub, route: str) -> None:
    hub.fault(route, fail(403))
    with pytest.raises(Exception, match=r"(?i)403|forbidden|authentication"):
        push()
    assert hub.faults_waiting == {}
    assert hub.read(REPO) == {}
    push()
    assert hub.read(REPO) == FILES


@pytest.mark.parametrize(("fault", "landed"), [(cut(100), False), (fail(500), False), (lose_answer(), True)])
def test_a_commit_without_an_answer_is_there_whole_or_not_at_all(hub: LocalHub, fault: Fault, landed: bool) -> None:
    hub.fault("commit", fault)
    with pytest.raises(Exception, match=r"(?i)500|disconnected|reset|pipe|closed"):
        push()
    assert hub.faults_waiting == {}
    assert hub.read(REPO) == (FILES if landed else {})
    push()
    assert hub.read(REPO) == FILES
    assert len(hub.history(REPO)) == 2


def test_a_token_revoked_in_the_middle_of_a_push(hub: LocalHub) -> None:
    hub.fault("commit", first(lambda: hub.revoke(ALICE)))
    with pytest.raises(hf.HfHubHTTPError, match="401"):
        push()
    assert hub.read(REPO) == {}


@by_xet
def test_a_xet_token_that_expires_too_early_ends_the_push(hub: LocalHub) -> None:
    hub.fault("xet-put-shard", first(hub.state.xet_tokens.clear))
    with pytest.raises(ConnectionError, match="401"):
        push()
    assert hub.read(REPO) == {}
    push()
    assert hub.read(REPO) == FILES


@by_xet
def test_xet_tokens_that_do_not_last_are_renewed(hub: LocalHub) -> None:
    hub.state.xet_token_seconds = 5
    push()
    assert pull() == FILES
    assert len(hub.requests("xet-write-token")) > 1
    assert len(hub.requests("xet-read-token")) >= len(LARGE)


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_a_download_that_is_cut_goes_on_where_it_was(hub: LocalHub) -> None:
    content = np.random.default_rng(3).bytes(12_000_000)  # the client keeps what has come in steps of 10 MiB
    hub.add_repo(REPO, {"model.safetensors": content})
    hub.fault("get-object", cut(11_000_000))
    assert Path(hf_hub_download(REPO, "model.safetensors")).read_bytes() == content
    assert [line.status for line in hub.requests("get-object")] == [200, 206]


@by_xet
def test_a_reconstruction_that_is_cut_is_repeated(hub: LocalHub) -> None:
    push()
    hub.fault("xet-get-xorb", cut(1_000))
    assert pull() == FILES
    assert hub.faults_waiting == {}


def test_a_refused_download_leaves_no_file(hub: LocalHub) -> None:
    hub.add_repo(REPO, FILES)
    hub.fault("resolve", fail(403))
    with pytest.raises(hf.HfHubHTTPError, match="403"):
        hf_hub_download(REPO, "config.json")
    cache = Path(os.environ["HF_HOME"]) / "hub"
    assert not [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size and "blobs" in path.parts]
    assert Path(hf_hub_download(REPO, "config.json")).read_bytes() == FILES["config.json"]


def test_rate_limits_are_waited_for(hub: LocalHub) -> None:
    hub.fault("preupload", fail(429, Retry_After="0"))
    push()
    assert [line.status for line in hub.requests("preupload")] == [429, 200]


def test_a_slow_first_byte_is_a_timeout(hub: LocalHub) -> None:
    hub.add_repo(REPO, FILES)
    before = hf_hub_download(REPO, "config.json")
    hub.add_commit(REPO, {"config.json": b"newer"})
    hub.fault("resolve-head", slow(1.0))
    assert hf_hub_download(REPO, "config.json", etag_timeout=0.2) == before
    assert Path(hf_hub_download(REPO, "config.json")).read_bytes() == b"newer"


def test_a_hub_that_is_gone(hub: LocalHub) -> None:
    hub.close()
    with pytest.raises(Exception, match="refused"):
        HfApi().model_info(REPO)


def test_a_fault_on_a_route_that_is_not_there_is_an_error(hub: LocalHub) -> None:
    with pytest.raises(ValueError, match="preupload"):
        hub.fault("nonsense", fail(500))
