"""The local Hub against its one client, the real huggingface_hub: what push and pull may rely on in their tests."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hub_server import ALICE, ALICE_READ_ONLY, BOB, LocalHub, fail
from hub_server.round_trip import FILES, LARGE, REPO, contents, fetch, pull, push
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub import errors as hf

pytestmark = pytest.mark.hub

by_xet = pytest.mark.parametrize("hub", ["xet"], indirect=True)


# One commit, and back


def test_one_commit_holds_every_file(hub: LocalHub) -> None:
    commit = push()
    assert hub.read(REPO) == FILES
    assert [made.title for made in hub.history(REPO)] == ["push", "initial commit"]
    assert hub.history(REPO)[0].oid == commit
    assert pull(commit) == FILES


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_lfs_sends_no_token_to_storage(hub: LocalHub) -> None:
    push()
    pull()
    stored = hub.requests("put-object", "get-object")
    assert len(stored) == 2 * len(LARGE)
    assert {line.token for line in stored} == {None}


@by_xet
def test_xet_sends_no_hub_token_to_storage(hub: LocalHub) -> None:
    push()
    pull()
    stored = hub.requests("xet-put-xorb", "xet-put-shard", "xet-reconstruction", "xet-get-xorb")
    assert {line.route for line in stored} == {"xet-put-xorb", "xet-put-shard", "xet-reconstruction", "xet-get-xorb"}
    assert not [line for line in stored if line.token and line.token.startswith("hf_")]
    assert not hub.requests("put-object", "get-object")


def test_what_came_by_xet_leaves_by_plain_http(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    push()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    assert pull() == FILES
    assert hub.requests("get-object")


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_what_came_by_lfs_reaches_a_client_with_xet(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    push()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    assert pull() == FILES


def test_a_file_of_many_chunks(hub: LocalHub) -> None:
    half = np.random.default_rng(2).bytes(6_000_000)
    push({"model.safetensors": half + bytes(3_000_000) + half})
    assert pull() == hub.read(REPO)
    assert hub.read(REPO)["model.safetensors"][-6_000_000:] == half


def test_unchanged_files_make_no_commit(hub: LocalHub) -> None:
    assert push() == push()
    assert len(hub.history(REPO)) == 2
    push({**FILES, "config.json": b"{}"})
    assert len(hub.history(REPO)) == 3


def test_deleted_files_are_gone(hub: LocalHub) -> None:
    push()
    deletions = [CommitOperationDelete("config.json"), CommitOperationDelete("onnx/")]
    HfApi().create_commit(REPO, deletions, commit_message="without")
    assert set(hub.read(REPO)) == set(FILES) - {"config.json", "onnx/model.onnx"}
    with pytest.raises(hf.RemoteEntryNotFoundError):
        hf_hub_download(REPO, "config.json")


def test_a_card_with_broken_metadata_is_refused_before_the_commit(hub: LocalHub) -> None:
    with pytest.raises(ValueError, match="Invalid metadata"):
        push({"README.md": b"---\n[\n---\n"})
    assert not hub.requests("preupload", "commit")


def test_repo_info_and_tree(hub: LocalHub) -> None:
    commit = push()
    info = HfApi().model_info(REPO, files_metadata=True)
    assert (info.sha, info.library_name, info.tags) == (commit, "timm", ["test"])
    assert {s.rfilename for s in info.siblings if s.lfs} == LARGE
    assert set(HfApi().list_repo_files(REPO)) == {".gitattributes", *FILES}
    assert [entry.path for entry in HfApi().list_repo_tree(REPO, "onnx")] == ["onnx/model.onnx"]


def test_a_cached_commit_is_not_asked_for_again(hub: LocalHub) -> None:
    commit = push()
    pull(commit)
    hub.log.clear()
    assert pull(commit) == FILES
    assert hub.log == []


@by_xet
def test_looking_from_inside_leaves_no_trace(hub: LocalHub) -> None:
    push()
    hub.log.clear()
    hub.fault("xet-get-xorb", fail(503))
    assert hub.read(REPO) == FILES
    assert hub.log == []
    assert pull() == FILES
    assert [line.status for line in hub.requests("xet-get-xorb")][:1] == [503]


# Refs


def test_branch_tag_and_pull_request(hub: LocalHub) -> None:
    main = push()
    HfApi().create_branch(REPO, branch="feat/x")
    changed = {**FILES, "model.safetensors": b"\0new", "config.json": b"{}"}
    branch = push(changed, revision="feat/x")
    HfApi().create_tag(REPO, tag="v1", revision="feat/x")
    request = HfApi().create_commit(REPO, [CommitOperationAdd("a.bin", b"\0")], commit_message="a", create_pr=True)
    assert request.pr_revision == "refs/pr/1"
    assert pull() == pull(main) == FILES
    assert pull("feat/x") == pull("v1") == pull(branch) == changed
    assert pull("refs/pr/1") == {**FILES, "a.bin": b"\0"}
    refs = HfApi().list_repo_refs(REPO, include_pull_requests=True)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": main, "feat/x": branch}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": branch}
    assert [ref.ref for ref in refs.pull_requests] == ["refs/pr/1"]


def test_a_stranger_may_open_a_pull_request_and_no_more(hub: LocalHub) -> None:
    push()
    bob = HfApi(token=BOB)
    addition = CommitOperationAdd("a.bin", b"\0a")
    with pytest.raises(hf.HfHubHTTPError, match="403"):
        bob.create_commit(REPO, [addition], commit_message="a")
    assert bob.create_commit(REPO, [CommitOperationAdd("a.bin", b"\0a")], commit_message="a", create_pr=True).pr_num
    assert hub.read(REPO) == FILES


def test_refs_that_exist_or_do_not(hub: LocalHub) -> None:
    push()
    with pytest.raises(hf.HfHubHTTPError, match="409"):
        HfApi().create_branch(REPO, branch="main")
    HfApi().create_branch(REPO, branch="main", exist_ok=True)
    HfApi().create_tag(REPO, tag="v1")
    with pytest.raises(hf.HfHubHTTPError, match="409"):
        HfApi().create_tag(REPO, tag="v1")
    for action in (snapshot_download, HfApi().model_info):
        with pytest.raises(hf.RevisionNotFoundError):
            action(REPO, revision="nowhere")
    with pytest.raises(hf.RevisionNotFoundError):
        push(revision="nowhere")


# Who may do what


def test_private_repository(hub: LocalHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    HfApi().create_repo(REPO, private=True)
    push()
    assert HfApi().model_info(REPO).private
    assert pull() == FILES
    with pytest.raises(hf.RepositoryNotFoundError, match="404"):
        fetch(tmp_path, BOB)
    monkeypatch.delenv("HF_TOKEN")
    for action in (lambda: HfApi().model_info(REPO), lambda: fetch(tmp_path)):
        with pytest.raises(hf.RepositoryNotFoundError, match="401"):
            action()


def test_gated_repository(hub: LocalHub, tmp_path: Path) -> None:
    repo = hub.add_repo(REPO, FILES, gated=True)
    assert pull() == FILES
    for token, status in ((BOB, "403"), (False, "401")):
        assert HfApi(token=token).model_info(REPO).gated == "auto"
        with pytest.raises(hf.GatedRepoError, match=status):
            fetch(tmp_path, token)
    repo.granted.add("bob")
    assert fetch(tmp_path, BOB) == FILES["config.json"]


def test_missing_repository(hub: LocalHub) -> None:
    for token, status in ((ALICE, "404"), (False, "401")):
        with pytest.raises(hf.RepositoryNotFoundError, match=status):
            hf_hub_download("lab/nothing", "config.json", token=token)


def test_bad_and_revoked_tokens(hub: LocalHub) -> None:
    push()
    assert HfApi().whoami()["name"] == "alice"
    hub.revoke(ALICE)
    for token in (ALICE, "hf_nobody"):
        for action in (HfApi(token=token).whoami, lambda token=token: HfApi(token=token).model_info(REPO)):
            with pytest.raises(hf.HfHubHTTPError, match="Invalid") as caught:
                action()
            assert not isinstance(caught.value, hf.RepositoryNotFoundError)
            assert caught.value.response.status_code == 401


def test_a_token_that_may_only_read(hub: LocalHub) -> None:
    push()
    read_only = HfApi(token=ALICE_READ_ONLY)
    for action in (
        lambda: read_only.create_repo("lab/other"),
        lambda: read_only.create_tag(REPO, tag="v1"),
        lambda: read_only.create_commit(REPO, [CommitOperationAdd("a", b"a")], commit_message="a"),
    ):
        with pytest.raises(hf.HfHubHTTPError, match="403"):
            action()
    assert hub.read(REPO) == FILES


def test_repository_that_exists(hub: LocalHub) -> None:
    assert HfApi().create_repo(REPO).repo_id == REPO
    with pytest.raises(hf.HfHubHTTPError, match="409"):
        HfApi().create_repo(REPO)
    assert HfApi().create_repo(REPO, exist_ok=True).repo_id == REPO
    with pytest.raises(hf.HfHubHTTPError, match="403"):
        HfApi(token=BOB).create_repo("lab/bobs")


# The hf command: another process, by the environment alone


HF = Path(sysconfig.get_path("scripts")) / "hf"


def run_hf(*arguments: str) -> str:
    command = [HF, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_hf_command(hub: LocalHub, tmp_path: Path) -> None:
    run_hf("repos", "create", REPO, "--private")
    for path, content in FILES.items():
        (tmp_path / "up" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / path).write_bytes(content)
    run_hf("upload", REPO, str(tmp_path / "up"))
    assert hub.read(REPO) == FILES
    run_hf("download", REPO, "--local-dir", str(tmp_path / "down"))
    down = contents(str(tmp_path / "down"))
    assert {path: down[path] for path in FILES} == FILES
    assert hub.state.repos[REPO].private
