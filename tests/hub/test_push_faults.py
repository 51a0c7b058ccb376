"""Pushes that meet a fault.

After each: the whole commit is there or none of it, the folder is untouched (`pushed` sees to that), the error says
what to do, and the same push again succeeds.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hub_server import ALICE, ALICE_READ_ONLY, Fault, LocalHub, cut, fail, first, lose_answer, slow
from hub_server.round_trip import REPO
from huggingface_hub.utils import _xet

pytest.importorskip("torch", reason="needs the extra export")

from hub_server.model_push import expected, noise, pushed, rewrite

from mixsiam_hub.errors import HubError
from mixsiam_hub.export.push import Pushed, plan_push, push

pytestmark = pytest.mark.hub


# Refused


REFUSALS = [
    *(("lfs", route) for route in ("lfs-batch", "put-object", "lfs-verify", "preupload", "commit")),
    *(("xet", route) for route in ("xet-write-token", "xet-put-xorb", "xet-put-shard", "preupload", "commit")),
    *(("xet", route) for route in ("whoami", "repo-info", "refs")),
]


@pytest.mark.parametrize(("hub", "route"), REFUSALS, indirect=["hub"])
def test_a_refusal_leaves_nothing_behind(hub: LocalHub, small_folder: Path, route: str) -> None:
    hub.add_repo(REPO, {"data.txt": b"theirs"})
    hub.fault(route, fail(403), times=3)
    with pytest.raises(HubError, match=r"lab/encoder: (nothing was pushed|the push could not be planned): .*right"):
        pushed(small_folder)
    assert hub.read(REPO) == {"data.txt": b"theirs"}
    hub.end_faults()
    pushed(small_folder)
    assert hub.read(REPO) == {**expected(small_folder), "data.txt": b"theirs"}
    assert len(hub.history(REPO)) == 3


@pytest.mark.parametrize(("route", "made"), [("create-repo", False), ("create-branch", True)])
def test_a_place_that_may_not_be_made(hub: LocalHub, small_folder: Path, route: str, made: bool) -> None:
    hub.fault(route, fail(403), times=3)
    with pytest.raises(HubError, match=r"lab/encoder: nothing was pushed: .*right"):
        pushed(small_folder, revision="next")
    assert [list(repo.branches) for repo in hub.state.repos.values()] == ([["main"]] if made else [])
    hub.end_faults()
    pushed(small_folder, revision="next")
    assert (hub.read(REPO), hub.read(REPO, "next")) == ({}, expected(small_folder))


def test_a_tag_that_may_not_be_made(hub: LocalHub, small_folder: Path) -> None:
    hub.fault("create-tag", fail(403), times=3)
    with pytest.raises(HubError, match=r"was pushed and checked, but not tagged v1: .*right"):
        pushed(small_folder, tag="v1")
    assert (hub.read(REPO), hub.state.repos[REPO].tags) == (expected(small_folder), {})
    hub.end_faults()
    done = pushed(small_folder, tag="v1")
    assert (done.is_new, hub.state.repos[REPO].tags) == (False, {"v1": done.commit})


def test_a_token_that_may_not_write(hub: LocalHub, small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", ALICE_READ_ONLY)
    with pytest.raises(HubError, match=r"nothing was pushed: .*the token may not"):
        pushed(small_folder)
    assert hub.state.repos == {}
    monkeypatch.setenv("HF_TOKEN", ALICE)
    assert pushed(small_folder).is_new


@pytest.mark.parametrize(("token", "message"), [("hf_nobody", "revoked or expired"), (None, "there is no token")])
def test_a_token_that_is_none(
    hub: LocalHub, small_folder: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, message: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=f"{message}.*hf auth login"):
        plan_push(small_folder, REPO)
    monkeypatch.setenv("HF_TOKEN", ALICE)
    assert pushed(small_folder).is_new


def test_a_token_revoked_in_the_middle(hub: LocalHub, small_folder: Path) -> None:
    alice = hub.state.tokens[ALICE]
    hub.fault("commit", first(lambda: hub.revoke(ALICE)))
    with pytest.raises(HubError, match=r"nothing was pushed: .*revoked"):
        pushed(small_folder)
    assert hub.read(REPO) == {}
    hub.state.tokens[ALICE] = alice
    assert pushed(small_folder).is_new
    assert hub.read(REPO) == expected(small_folder)


@pytest.mark.parametrize("hub", ["xet"], indirect=True)
def test_a_xet_token_that_expires_too_early_is_replaced(hub: LocalHub, small_folder: Path) -> None:
    hub.fault("xet-put-shard", first(hub.state.xet_tokens.clear))
    pushed(small_folder)
    assert hub.read(REPO) == expected(small_folder)
    assert len(hub.history(REPO)) == 2


def test_a_second_writer_is_not_overwritten(hub: LocalHub, small_folder: Path) -> None:
    pushed(small_folder)
    rewrite(small_folder, {"model.safetensors": noise(2), "model.onnx": noise(1)})
    hub.fault("commit", first(lambda: hub.add_commit(REPO, {"model.safetensors": b"theirs\0"})))
    with pytest.raises(HubError, match=r"nothing was pushed: somebody else committed meanwhile.*push again"):
        pushed(small_folder, overwrite_card=True)
    assert hub.read(REPO)["model.safetensors"] == b"theirs\0"
    pushed(small_folder, overwrite_card=True)
    assert hub.read(REPO) == expected(small_folder)


# Lost on the way


@pytest.fixture
def impatient_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that soon gives up what does not arrive; its own patience is of minutes."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    # xet reads them at the start of a session.
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_BASE_DELAY", "10ms")
    monkeypatch.setattr(_xet, "_GLOBAL_XET_HOLDER", _xet.XetSessionHolder())


UPLOADS = [("lfs", "lfs-batch"), ("lfs", "put-object"), ("xet", "xet-put-xorb"), ("xet", "xet-put-shard")]


@pytest.mark.parametrize("fault", [cut(1_000), fail(503), slow(1.0)], ids=["cut", "failed", "slow"])
@pytest.mark.parametrize(("hub", "route"), UPLOADS, indirect=["hub"])
def test_an_upload_that_stumbles_goes_on(hub: LocalHub, small_folder: Path, route: str, fault: Fault) -> None:
    hub.fault(route, fault)
    pushed(small_folder)
    assert hub.faults_waiting == {}
    assert hub.read(REPO) == expected(small_folder)
    assert len(hub.history(REPO)) == 2


@pytest.mark.parametrize(("hub", "route"), [("lfs", "put-object"), ("xet", "xet-put-shard")], indirect=["hub"])
def test_an_upload_that_is_cut_every_time(
    impatient_client: None, hub: LocalHub, small_folder: Path, route: str
) -> None:
    hub.fault(route, cut(1_000), times=200)
    with pytest.raises(HubError, match=r"nothing was pushed: the Hub was not reached.*check the connection"):
        pushed(small_folder)
    assert hub.read(REPO) == {}
    hub.end_faults()
    pushed(small_folder)
    assert hub.read(REPO) == expected(small_folder)
    assert len(hub.history(REPO)) == 2


@pytest.mark.parametrize("fault", [cut(100), fail(500), lose_answer()], ids=["cut", "failed", "unanswered"])
@pytest.mark.parametrize("create_pr", [False, True], ids=["commit", "pull request"])
def test_a_commit_that_was_lost_is_made_once(hub: LocalHub, small_folder: Path, fault: Fault, create_pr: bool) -> None:
    repo = hub.add_repo(REPO, {})
    hub.fault("commit", fault)
    done = pushed(small_folder, create_pr=create_pr)
    assert hub.faults_waiting == {}
    assert done == Pushed(hub.history(REPO, "refs/pr/1" if create_pr else "main")[0].oid, True, done.pull_request)
    assert repo.pull_requests == ({"refs/pr/1": done.commit} if create_pr else {})
    assert len(repo.commits) == 3  # the empty repository's two, and the push


@pytest.mark.parametrize("fault", [fail(503), lose_answer()], ids=["failed", "unanswered"])
def test_what_goes_before_and_after_the_commit_is_tried_again(hub: LocalHub, small_folder: Path, fault: Fault) -> None:
    for route in ("create-repo", "create-branch", "create-tag", "refs"):
        hub.fault(route, fault)
    done = pushed(small_folder, revision="next", tag="v1", private=True)
    assert hub.faults_waiting == {}
    assert hub.state.repos[REPO].private
    assert hub.state.repos[REPO].tags == {"v1": done.commit}
    assert [commit.title for commit in hub.history(REPO, "next")][1:] == ["initial commit"]


@pytest.mark.parametrize("fault", [fail(503), lose_answer()], ids=["failed", "unanswered"])
@pytest.mark.parametrize("hub", ["xet"], indirect=True)
def test_what_xet_gives_up_on_the_way_back_is_tried_again(
    impatient_client: None, hub: LocalHub, small_folder: Path, fault: Fault
) -> None:
    attempts_of_xet = 2
    hub.fault("xet-reconstruction", fault, times=attempts_of_xet)
    assert pushed(small_folder).is_new
    assert hub.faults_waiting == {}


def test_a_commit_that_cannot_be_seen_is_not_sent_twice(hub: LocalHub, small_folder: Path) -> None:
    hub.add_repo(REPO, {})
    plan = plan_push(small_folder, REPO, create_pr=True)
    hub.fault("commit", lose_answer())
    hub.fault("refs", fail(503), times=3)
    with pytest.raises(HubError, match=r"whether the commit arrived cannot be seen: .*push again"):
        push(plan)
    assert len(hub.requests("commit")) == 1
    assert not pushed(small_folder, create_pr=True).is_new
    assert len(hub.requests("commit")) == 1


def test_a_hub_that_is_gone(hub: LocalHub, small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.close()
    with pytest.raises(HubError, match=r"could not be planned: the Hub was not reached.*check the connection"):
        plan_push(small_folder, REPO)


def test_offline_mode_is_said(hub: LocalHub, small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        plan_push(small_folder, REPO)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert pushed(small_folder).is_new
