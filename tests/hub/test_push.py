"""Pushes to the local Hub: the plan, the card, the place, one commit, and the check of what comes back."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hub_server import LocalHub, fail, first
from hub_server.round_trip import REPO
from manifests import edit_manifest

pytest.importorskip("torch", reason="needs the extra export")

from hub_server.model_push import expected, noise, pushed, rewrite

from mixsiam_hub import ImageEncoder
from mixsiam_hub.cli import main
from mixsiam_hub.errors import ArgumentError, HubError, ModelError
from mixsiam_hub.export.card import render_card
from mixsiam_hub.export.push import Pushed, plan_push, push
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model import known_answers
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.model.known_answers import Verified
from mixsiam_hub.untrusted import sha256_file

pytestmark = pytest.mark.hub


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def become_another_encoder(folder: Path, fingerprint: str) -> None:
    """Makes a small folder what the export of another encoder is: fingerprint, weights and card."""
    rewrite(folder, {"model.safetensors": fingerprint.encode()})
    edit_manifest(folder, edit=lambda raw: raw.update(fingerprint=fingerprint))
    opened = ModelFolder.open(folder)
    (folder / "README.md").write_text(render_card("small", opened.config, opened.manifest))


# The whole way, with a real encoder


def test_what_is_pushed_gives_the_same_vectors(hub: LocalHub, compact_folder: Path, tmp_path: Path) -> None:
    result = run("push", compact_folder, REPO, "--message", "first")
    assert result.exit_code == 0, result.output
    assert hub.read(REPO) == expected(compact_folder)
    commit, first_commit = hub.history(REPO)
    assert (commit.title, first_commit.title) == ("first", "initial commit")
    assert f"commit {commit.oid}: pulled back, its known answers replayed" in result.stdout
    assert f'from_pretrained("{REPO}", revision="{commit.oid}")' in result.stdout

    pulled = ImageEncoder.from_pretrained(REPO, cache_dir=tmp_path / "cache", backend="onnx")
    images = list(draw_samples(4).values())
    assert pulled.revision == commit.oid
    np.testing.assert_array_equal(
        pulled.embed(images), ImageEncoder.from_pretrained(compact_folder, backend="onnx").embed(images)
    )

    hub.log.clear()
    again = run("push", compact_folder, REPO)
    assert "nothing has changed: no commit" in again.stdout
    assert re.search(r"same .*README\.md", again.stdout)
    assert len(hub.history(REPO)) == 2
    assert hub.requests("preupload", "commit", "put-object", "xet-put-xorb") == []


def test_a_changed_folder_is_refused_before_the_first_request(
    hub: LocalHub, compact_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(compact_folder, tmp_path / "changed")
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    with pytest.raises(ModelError, match=r"model\.safetensors was changed"):
        plan_push(folder, REPO)
    assert hub.log == []


def test_a_push_imports_no_torch(hub: LocalHub, compact_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise RuntimeError('torch was imported')")
    code = "from mixsiam_hub.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "push", compact_folder, REPO],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "pulled back, its known answers replayed" in done.stdout
    assert hub.read(REPO) == expected(compact_folder)


def test_a_folder_that_does_not_give_its_known_answers_is_not_pushed(
    hub: LocalHub, small_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: ModelFolder, *_: object, **__: object) -> Verified:
        raise ModelError(f"{folder.path}: known answers below a cosine of 0.9999")

    monkeypatch.setattr(known_answers, "verify", refuse)
    with pytest.raises(ModelError, match="known answers below"):
        push(plan_push(small_folder, REPO))
    assert hub.state.repos == {}


# The plan


def test_a_dry_run_shows_the_plan_and_changes_nothing(hub: LocalHub, small_folder: Path) -> None:
    (small_folder / "notes.txt").write_text("mine")
    result = run("push", small_folder, REPO, "--dry-run", "--private", "--tag", "v1")
    assert result.exit_code == 0, result.output
    assert hub.state.repos == {}
    lines = result.stdout.splitlines()
    assert lines[0] == f"{REPO} is not there yet: it will be made, private"
    assert "new            200,000  model.onnx" in result.stdout
    assert "left out                notes.txt (not listed in mixsiam.json)" in result.stdout
    assert re.fullmatch(r"one commit: \d files of 0\.4 MB, 0 removed; then the tag v1", lines[-1])


def test_what_is_not_listed_stays_here(hub: LocalHub, small_folder: Path) -> None:
    (small_folder / "notes.txt").write_text("mine")
    pushed(small_folder)
    assert hub.read(REPO) == expected(small_folder)


def test_files_of_an_older_model_go_and_others_stay(hub: LocalHub, small_folder: Path) -> None:
    pushed(small_folder)
    hub.add_commit(REPO, {"examples/cat.txt": b"theirs"})
    rewrite(small_folder, {"model.safetensors": noise(2)})
    (small_folder / "model.onnx").unlink()
    plan = plan_push(small_folder, REPO)
    assert {file.name for file in plan.changed} == {"model.safetensors", "mixsiam.json"}
    assert "remove                  model.onnx" in plan.describe()
    push(plan)
    kept = {"README.md": expected(small_folder)["README.md"], "examples/cat.txt": b"theirs"}
    assert hub.read(REPO) == {**expected(small_folder), **kept}
    assert len(hub.history(REPO)) == 4


@pytest.mark.parametrize("name", ["encoder", "a/b/c", "lab/"])
def test_names_of_no_repository_are_refused(hub: LocalHub, small_folder: Path, name: str) -> None:
    with pytest.raises(ArgumentError, match="org/name"):
        plan_push(small_folder, name)
    assert hub.log == []


# The card


def test_a_card_on_the_hub_stays_unless_it_is_to_be_replaced(hub: LocalHub, small_folder: Path) -> None:
    hub.add_repo(REPO, {"README.md": b"# Written by hand\n"})
    plan = plan_push(small_folder, REPO)
    assert "keep                    README.md" in plan.describe()
    push(plan)
    assert hub.read(REPO) == {**expected(small_folder), "README.md": b"# Written by hand\n"}
    pushed(small_folder, overwrite_card=True)
    assert hub.read(REPO) == expected(small_folder)


def test_the_card_of_an_older_encoder_gives_way_unless_it_was_edited(hub: LocalHub, small_folder: Path) -> None:
    pushed(small_folder)
    become_another_encoder(small_folder, "ab" * 32)
    pushed(small_folder)
    card = hub.read(REPO)["README.md"]
    assert card == expected(small_folder)["README.md"]
    assert b"ab" * 32 in card
    hub.add_commit(REPO, {"README.md": card + b"My words.\n"})
    become_another_encoder(small_folder, "cd" * 32)
    pushed(small_folder)
    assert hub.read(REPO)["README.md"] == card + b"My words.\n"


@pytest.mark.parametrize("manifest", [b"{}", b"no JSON"])
def test_a_card_beside_what_is_no_encoder_stays(hub: LocalHub, small_folder: Path, manifest: bytes) -> None:
    for files in ({}, {"config.json": b"{}"}):
        hub.add_repo(REPO, {"README.md": b"# Theirs\n", "mixsiam.json": manifest, **files})
        assert plan_push(small_folder, REPO).keeps_card


def test_a_card_edited_in_the_folder_goes_up_as_it_is(hub: LocalHub, small_folder: Path) -> None:
    with (small_folder / "README.md").open("a") as card:
        card.write("\nTrained on photos of my garden.\n")
    pushed(small_folder)
    assert hub.read(REPO)["README.md"] == (small_folder / "README.md").read_bytes()


def test_a_card_as_an_older_version_rendered_it_is_rendered_anew(hub: LocalHub, small_folder: Path) -> None:
    card = (small_folder / "README.md").read_text() + "\nOf an older template.\n"
    (small_folder / "README.md").write_text(card)
    edit_manifest(small_folder, edit=lambda raw: raw.update(card_sha256=hashlib.sha256(card.encode()).hexdigest()))
    pushed(small_folder)
    text = hub.read(REPO)["README.md"].decode()
    assert "older template" not in text
    assert f"# {REPO}" in text


@pytest.mark.parametrize("card", ["---\n[\n---\n# Bad\n", "---\nmodel-index: 3\n---\n# Bad\n"])
def test_a_card_that_the_hub_would_refuse_stops_the_push(hub: LocalHub, small_folder: Path, card: str) -> None:
    (small_folder / "README.md").write_text(card)
    with pytest.raises(HubError, match=r"(?s)README\.md.*metadata.*mend"):
        pushed(small_folder)
    assert hub.state.repos == {}


def test_the_hubs_own_check_of_the_card_counts(hub: LocalHub, small_folder: Path) -> None:
    hub.fault("validate-yaml", fail(400))
    with pytest.raises(HubError, match=r"README\.md: the Hub refuses its metadata"):
        pushed(small_folder)
    assert hub.state.repos == {}
    pushed(small_folder)


# Where it goes


def test_the_command_takes_a_branch_and_replaces_its_card(hub: LocalHub, small_folder: Path) -> None:
    hub.add_repo(REPO, {"README.md": b"# Written by hand\n"})
    result = run("push", small_folder, REPO, "--revision", "next", "--overwrite-card")
    assert result.exit_code == 0, result.output
    assert hub.read(REPO, "next") == expected(small_folder)
    assert hub.read(REPO) == {"README.md": b"# Written by hand\n"}


def test_the_same_pull_request_is_opened_once(hub: LocalHub, small_folder: Path) -> None:
    hub.add_repo(REPO, {})
    first_time, second_time = pushed(small_folder, create_pr=True), pushed(small_folder, create_pr=True)
    assert (second_time.commit, second_time.pull_request) == (first_time.commit, "refs/pr/1")
    assert (first_time.is_new, second_time.is_new) == (True, False)


def test_a_pull_request_that_was_closed_is_opened_anew(hub: LocalHub, small_folder: Path) -> None:
    hub.add_repo(REPO, {})
    pushed(small_folder, create_pr=True)
    hub.state.repos[REPO].closed.add("refs/pr/1")
    done = pushed(small_folder, create_pr=True)
    assert (done.is_new, done.pull_request) == (True, "refs/pr/2")


def test_a_private_repository(hub: LocalHub, small_folder: Path) -> None:
    pushed(small_folder, private=True)
    assert hub.state.repos[REPO].private
    assert not pushed(small_folder).is_new


def test_what_was_to_be_private_is_not_pushed_into_the_open(hub: LocalHub, small_folder: Path) -> None:
    hub.add_repo(REPO, {})
    with pytest.raises(HubError, match="is public"):
        pushed(small_folder, private=True)
    assert hub.read(REPO) == {}


def test_a_branch_is_made_where_it_is_missing(hub: LocalHub, small_folder: Path) -> None:
    pushed(small_folder)
    main_files = hub.read(REPO)
    rewrite(small_folder, {"model.safetensors": noise(2), "model.onnx": noise(3)})
    done = pushed(small_folder, revision="next", overwrite_card=True)
    assert hub.history(REPO, "next")[0].oid == done.commit
    assert hub.read(REPO, "next") == expected(small_folder)
    assert hub.read(REPO) == main_files
    assert pushed(small_folder, revision="next") == Pushed(done.commit, is_new=False)


def test_a_pull_request_leaves_main_alone(hub: LocalHub, small_folder: Path) -> None:
    hub.add_repo(REPO, {"data.txt": b"theirs"})
    result = run("push", small_folder, REPO, "--create-pr")
    assert "pull request refs/pr/1" in result.stdout
    assert hub.read(REPO) == {"data.txt": b"theirs"}
    assert hub.read(REPO, "refs/pr/1") == {**expected(small_folder), "data.txt": b"theirs"}
    rewrite(small_folder, {"model.safetensors": noise(2)})
    pushed(small_folder, revision="refs/pr/1", overwrite_card=True)
    assert hub.read(REPO, "refs/pr/1") == {**expected(small_folder), "data.txt": b"theirs"}


@pytest.mark.parametrize("options", [{"revision": "v1"}, {"revision": "next", "create_pr": True}, {"tag": "v1"}])
def test_places_that_cannot_be_are_refused(hub: LocalHub, small_folder: Path, options: dict[str, Any]) -> None:
    repo = hub.add_repo(REPO, {"data.txt": b"theirs"})
    repo.tags["v1"] = repo.branches["main"]
    with pytest.raises(HubError, match=r"lab/encoder.*(v1|next)"):
        pushed(small_folder, **options)
    assert hub.read(REPO) == {"data.txt": b"theirs"}


def test_a_tag_is_for_the_commit_that_was_checked(hub: LocalHub, small_folder: Path) -> None:
    done = pushed(small_folder, tag="v1")
    assert hub.state.repos[REPO].tags == {"v1": done.commit}
    assert pushed(small_folder, tag="v1") == Pushed(done.commit, is_new=False)
    assert pushed(small_folder, tag="v1.0") == Pushed(done.commit, is_new=False)
    assert hub.state.repos[REPO].tags == {"v1": done.commit, "v1.0": done.commit}
    with pytest.raises(ArgumentError, match="merged"):
        pushed(small_folder, tag="v2", create_pr=True)


# Pulled back


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_what_comes_back_otherwise_is_said_and_can_be_undone(hub: LocalHub, small_folder: Path, tmp_path: Path) -> None:
    pushed(small_folder)
    before = hub.read(REPO)
    rewrite(small_folder, {"model.safetensors": noise(2), "tokens.onnx": noise(3)})
    plan = plan_push(small_folder, REPO, tag="v1")
    sha256 = sha256_file(small_folder / "model.safetensors")
    hub.fault("resolve-head", first(lambda: hub.state.objects.update({sha256: noise(4)})))
    with pytest.raises(HubError, match=r"does not come back as it was pushed: model\.safetensors differs") as caught:
        push(plan)
    assert hub.state.repos[REPO].tags == {}

    download, upload = re.findall(r"hf (?:download|upload) .*?(?=, then|;)", str(caught.value))
    for command in (download, upload):
        program, *arguments = shlex.split(command)
        executable = Path(sysconfig.get_path("scripts")) / program
        subprocess.run([executable, *arguments], check=True, cwd=tmp_path, capture_output=True)
    assert hub.read(REPO) == before


def test_known_answers_that_do_not_come_back_fail_the_command(
    hub: LocalHub, small_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify_only_here(folder: ModelFolder, *_: object, **__: object) -> Verified:
        if folder.revision:
            raise ModelError("known answers below a cosine of 0.9999")
        return Verified(folder, 0, (), None)

    monkeypatch.setattr(known_answers, "verify", verify_only_here)
    result = run("push", small_folder, REPO)
    assert result.exit_code == 1
    assert "does not come back as it was pushed: known answers below" in result.stderr
    assert "To go back: hf download" in result.stderr
    again = run("push", small_folder, REPO, "--tag", "v1")
    assert again.exit_code == 1
    assert "it was there: go back to one before it" in again.stderr
    assert hub.state.repos[REPO].tags == {}


def test_pulling_back_gets_past_a_stumble(hub: LocalHub, small_folder: Path) -> None:
    hub.add_repo(REPO, {})
    plan = plan_push(small_folder, REPO)
    for route in ("repo-info", "resolve"):
        hub.fault(route, fail(500))
    assert push(plan).is_new
    assert hub.faults_waiting == {}


def test_a_commit_that_could_not_be_pulled_back_is_told_from_a_bad_one(hub: LocalHub, small_folder: Path) -> None:
    plan = plan_push(small_folder, REPO)
    hub.fault("resolve", fail(403))
    with pytest.raises(HubError, match=r"was pushed, but could not be pulled back.*mixsiam verify lab/encoder@"):
        push(plan)
    assert hub.read(REPO) == expected(small_folder)
    assert not pushed(small_folder).is_new
