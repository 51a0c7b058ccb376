"""A model folder to the Hub: planned in full, replayed, sent as one commit, pulled back and replayed again.

To plan computes no vector, and to push computes them by onnxruntime alone, so neither imports torch.
A push is safe to repeat: the commit names its parent, so it lands once or not at all, and what is there already makes
no second one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo
from huggingface_hub import errors as client_errors

from mixsiam_hub import __version__
from mixsiam_hub.errors import ArgumentError, HubError, ModelError
from mixsiam_hub.export.plan import LocalFile, PushPlan, Remote, model_files, other_files
from mixsiam_hub.export.push_card import card_for, check_card, is_as_rendered
from mixsiam_hub.model.checks import check_files
from mixsiam_hub.model.files import CARD_FILE, CONFIG_FILE, MANIFEST_FILE
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.model.hub import HUB_ID, HubRepo, connection_was_lost, hub_error, unless_secret
from mixsiam_hub.model.manifest import Manifest
from mixsiam_hub.untrusted import read_json, sha256_file

MAIN = "main"
_PULL_REQUESTS = "refs/pr/"
_BACKENDS = ("onnx",)
WAITS_S = (1.0, 5.0)
"""Pauses before the second and the third try after a lost connection."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Pushed:
    """What a push came to.

    Attributes:
        commit: That holds the folder now, 40 hex digits.
        is_new: False where the Hub held the same content already, and no commit was made.
        pull_request: Its ref, as in `refs/pr/1`, where one was opened.
    """

    commit: str
    is_new: bool
    pull_request: str | None = None


def plan_push(
    folder: Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    tag: str | None = None,
    overwrite_card: bool = False,
) -> PushPlan:
    """Checks a folder's files and its card, and compares them with the Hub; changes nothing anywhere.

    Args:
        folder: The model folder.
        repo: `org/name`; it need not exist.
        private: Make the repository a private one; an existing one must be private already.
        revision: Branch to commit to, made from main where it does not exist, or an open pull request (`refs/pr/1`).
            None is main.
        create_pr: Open a pull request instead.
        tag: Name of a tag for the commit.
        overwrite_card: Replace a README.md that somebody edited or an older version wrote; one as a push would write it
            of what is there is replaced anyway.

    Raises:
        ArgumentError: The repository's name or the options do not fit.
        ModelError: The folder does not hold what it says.
        HubError: The card or what is on the Hub does not fit, or the Hub cannot be reached or read.
    """
    if not HUB_ID.fullmatch(repo):
        raise ArgumentError(f"repo is {repo!r}; give org/name, or your own name in front of the slash")
    if tag and create_pr:
        raise ArgumentError(f"tag is {tag!r} and create_pr is set; tag the commit once the pull request is merged")
    checked = ModelFolder.open(folder)
    check_files(checked)
    with _explained(f"{repo}: the push could not be planned"):
        _persistently(HfApi().whoami)
        remote = _persistently(lambda: _look(repo, revision or MAIN))
        text = card_for(checked, repo)
        card = LocalFile.of(CARD_FILE, text.encode())
        is_new_card = not card.is_in(remote.files)
        keeps_card = is_new_card and not overwrite_card and _persistently(lambda: _has_other_card(repo, remote))
        if is_new_card and not keeps_card:
            _persistently(lambda: check_card(checked.path / CARD_FILE, text))
        files = [LocalFile.of(name, checked.path / name) for name in model_files(checked)]
        files += [] if keeps_card else [card]
    left_out = other_files(checked, [CARD_FILE, *(file.name for file in files)])
    plan = PushPlan(
        checked, repo, revision or MAIN, private, create_pr, tag, tuple(files), left_out, keeps_card, remote
    )
    _check_place(plan)
    return plan


def push(plan: PushPlan, message: str | None = None) -> Pushed:
    """Carries a plan out: replays the known answers, makes one commit, pulls it back and replays them again, tags it.

    What is there already is pulled back and replayed too: an earlier push may have found it wrong, or not seen it.

    Args:
        plan: From `plan_push`.
        message: The commit's; None names the encoder's fingerprint.

    Raises:
        ModelError: The folder does not give its known answers; nothing was pushed.
        HubError: The push failed; the message says whether the commit is there, why, and what to do.
    """
    _replay(plan.folder)
    with _explained(f"{plan.repo}: nothing was pushed"):
        plan = _prepared(plan)
        done = _persistently(lambda: _commit(plan, message or _message(plan)))
    _check_pulled_back(plan, done)
    if plan.tag and plan.remote.tags.get(plan.tag) != done.commit:
        with _explained(f"{plan.repo}@{done.commit} was pushed and checked, but not tagged {plan.tag}"):
            _tag(plan.repo, plan.tag, done.commit)
    return done


def _replay(folder: ModelFolder) -> None:
    """Checks a folder by its known answers.

    Raises:
        ModelError: It does not give them.
    """
    from mixsiam_hub.model.known_answers import verify  # A plan, which should be there at once, needs none of it.

    verify(folder, _BACKENDS, accept_forced=True)


# Before


def _look(repo: str, branch: str) -> Remote:
    """Returns what the Hub holds on a branch, or on main where the branch is yet to be made."""
    api = HfApi()
    try:
        refs = api.list_repo_refs(repo, include_pull_requests=True)
    except client_errors.GatedRepoError:
        raise
    except client_errors.RepositoryNotFoundError:
        return Remote()
    heads = {ref.name: ref.target_commit for ref in refs.branches}
    heads |= {ref.ref: ref.target_commit for ref in refs.pull_requests or []}
    commit = heads.get(branch) or heads.get(MAIN)
    info = api.model_info(repo, revision=commit, files_metadata=True)
    files = _hashes(info)
    tags = {ref.name: ref.target_commit for ref in refs.tags}
    return Remote(info.sha, bool(info.private), files, _listed(repo, info.sha, files), heads, tags)


def _hashes(info: ModelInfo) -> dict[str, str]:
    """Returns path -> hash of a commit's files: the sha256 of large ones, git's of the others."""
    return {file.rfilename: file.lfs.sha256 if file.lfs else str(file.blob_id) for file in info.siblings or []}


def _listed(repo: str, commit: str | None, files: Mapping[str, str]) -> frozenset[str]:
    """Returns what a commit's mixsiam.json lists; nothing where there is none, or one of another project."""
    if MANIFEST_FILE not in files:
        return frozenset()
    with TemporaryDirectory() as cache:
        path = HubRepo(repo, commit, cache_dir=cache).fetch(MANIFEST_FILE)
        try:
            return frozenset(Manifest.from_json(read_json(path)).files)
        except ModelError:
            return frozenset()


def _has_other_card(repo: str, remote: Remote) -> bool:
    """Tells whether the README.md on the Hub is not the one that a push of what is there would write today."""
    if not {CARD_FILE, CONFIG_FILE, MANIFEST_FILE} <= remote.files.keys():
        return CARD_FILE in remote.files
    with TemporaryDirectory() as cache:
        there = HubRepo(repo, remote.commit, cache_dir=cache)
        try:
            return not is_as_rendered(there.fetch(CARD_FILE).read_text("utf-8"), there.open())
        except (ModelError, UnicodeDecodeError):
            return True


def _check_place(plan: PushPlan) -> None:
    """Checks that the repository, branch and tag that were asked for can be had.

    Raises:
        HubError: The repository is public and --private is set, the branch is a tag or cannot be made, or the tag
            stands at another commit.
    """
    remote = plan.remote
    if plan.private and remote.commit and not remote.is_private:
        raise HubError(f"{plan.repo} is public; make it private in its settings first, or push without --private")
    if plan.branch in remote.tags:
        raise HubError(f"{plan.repo}: {plan.branch} is a tag; give a branch as --revision")
    is_new_branch = plan.branch != MAIN and plan.branch not in remote.heads
    if is_new_branch and (plan.create_pr or plan.branch.startswith("refs/")):
        raise HubError(f"{plan.repo} has no {plan.branch}; it has {', '.join(remote.heads) or 'no branches yet'}")
    tagged = remote.tags.get(plan.tag) if plan.tag else None
    if tagged and (plan.changes_something or tagged != remote.commit):
        raise HubError(f"{plan.repo} has the tag {plan.tag} at {tagged}; tags stay where they are, choose another")


# The commit


def _prepared(plan: PushPlan) -> PushPlan:
    """Makes the repository and the branch where they are missing; returns the plan with the commit to build on."""
    api, repo = HfApi(), plan.repo
    if plan.remote.commit is None:
        _persistently(lambda: api.create_repo(repo, private=plan.private or None, exist_ok=True))
        made = _persistently(lambda: _look(repo, MAIN))
        if made.files.keys() - {".gitattributes"}:
            raise HubError(f"{repo} was made by somebody else since the plan; nothing was pushed, look at it first")
        plan = replace(plan, remote=made)
        _check_place(plan)
    if plan.branch not in plan.remote.heads:
        start = plan.remote.commit
        _persistently(lambda: api.create_branch(repo, branch=plan.branch, revision=start, exist_ok=True))
    return plan


def _commit(plan: PushPlan, message: str) -> Pushed:
    """Sends the one commit. Safe to run twice: after a lost answer it looks whether the commit arrived."""
    if not plan.changes_something:
        return Pushed(str(plan.remote.commit), is_new=False)
    if plan.create_pr and (ref := _open_pull_request(plan)):
        return Pushed(plan.remote.heads[ref], False, ref)
    additions = [CommitOperationAdd(file.name, _payload(file)) for file in plan.changed]
    deletions = [CommitOperationDelete(name, is_folder=False) for name in plan.obsolete]
    try:
        made = HfApi().create_commit(
            plan.repo,
            [*additions, *deletions],
            commit_message=message,
            revision=plan.branch,
            create_pr=plan.create_pr,
            parent_commit=plan.remote.commit,
        )
    except Exception as error:  # The client's transport errors have no root of their own.
        # Where only the answer was lost, the client's next try fails by 412: the branch has moved, by this very commit.
        is_outdated = isinstance(error, client_errors.HfHubHTTPError) and error.response.status_code == 412
        arrived = _arrived(plan) if is_outdated or connection_was_lost(error) else None
        if arrived is None:
            raise
        return arrived
    return Pushed(made.oid, True, made.pr_revision)


def _payload(file: LocalFile) -> str | bytes:
    return file.source if isinstance(file.source, bytes) else str(file.source)


def _arrived(plan: PushPlan) -> Pushed | None:
    """Finds the commit of a push whose answer was lost, by its content; None where the Hub did not get it.

    Raises:
        HubError: The Hub cannot be asked.
    """
    try:
        now = _persistently(lambda: _look(plan.repo, plan.branch))
        if plan.create_pr:
            news = [ref for ref in now.heads if ref.startswith(_PULL_REQUESTS) and ref not in plan.remote.heads]
        else:
            news = [plan.branch] if now.commit != plan.remote.commit else []
        if ref := next(_holders(plan, news), None):
            return Pushed(now.heads[ref], True, ref if plan.create_pr else None)
    except Exception as error:
        failed = f"{plan.repo}: the connection was lost, and whether the commit arrived cannot be seen"
        advice = "then push again: what is there already makes no second commit"
        # `from None`: with its cause it would pass for a lost connection, and the commit would be tried again.
        raise HubError(f"{hub_error(error, failed)}; {advice}") from None
    return None


def _open_pull_request(plan: PushPlan) -> str | None:
    """Returns the ref of a pull request that holds what was planned, and was neither closed nor merged."""
    for ref in _holders(plan, [ref for ref in plan.remote.heads if ref.startswith(_PULL_REQUESTS)]):
        number = int(ref.removeprefix(_PULL_REQUESTS))
        if _persistently(partial(HfApi().get_discussion_details, plan.repo, number)).status not in ("closed", "merged"):
            return ref
    return None


def _holders(plan: PushPlan, refs: Iterable[str]) -> Iterator[str]:
    """Yields those of the refs whose commit holds what was planned."""
    return (ref for ref in refs if plan.is_in(_persistently(partial(_look, plan.repo, ref)).files))


def _message(plan: PushPlan) -> str:
    return f"Push encoder {plan.folder.manifest.fingerprint[:12]} with mixsiam-hub {__version__}"


# After


def _check_pulled_back(plan: PushPlan, done: Pushed) -> None:
    """Pulls a commit into a fresh cache and replays its known answers.

    Raises:
        HubError: It is not what was pushed, or cannot be checked; the message says how to go back.
    """
    at = f"{plan.repo}@{done.commit}"
    try:
        with TemporaryDirectory() as cache:
            repo = HubRepo(plan.repo, done.commit, cache_dir=cache)
            _persistently(lambda: _compare(plan, repo))
    except ModelError as error:
        raise HubError(f"{at} does not come back as it was pushed: {error}. {_way_back(plan, done)}") from error
    except Exception as error:
        failed = f"{at} was pushed, but could not be pulled back to check it"
        raise HubError(f"{hub_error(error, failed)}; then check it with: mixsiam verify {at}") from unless_secret(error)


def _compare(plan: PushPlan, repo: HubRepo) -> None:
    """Checks that a commit holds a plan's files and gives its known answers.

    Raises:
        ModelError: It does not.
        HubError: It cannot be fetched.
    """
    if not plan.is_in(_hashes(HfApi().model_info(repo.name, revision=repo.revision, files_metadata=True))):
        raise ModelError("its list of files differs; does a .gitignore there leave some out?")
    for file in plan.files:
        if sha256_file(repo.fetch(file.name)) != file.sha256:
            raise ModelError(f"{file.name} differs")
    _replay(repo.open())


def _way_back(plan: PushPlan, done: Pushed) -> str:
    """Says how to undo a commit."""
    if not done.is_new:
        return "This push made no commit, it was there: go back to one before it, or repair the folder and push again."
    if done.pull_request:
        return f"Nobody sees it yet: close the pull request {done.pull_request} and push again."
    revision = "" if plan.branch == MAIN else f" --revision {plan.branch}"
    return (
        f"To go back: hf download {plan.repo} --revision {plan.remote.commit} --local-dir OLD, then "
        f'hf upload {plan.repo} OLD .{revision} --delete "*"; until then, name the commit before it: '
        f"{plan.repo}@{plan.remote.commit}"
    )


def _tag(repo: str, tag: str, commit: str) -> None:
    _persistently(lambda: HfApi().create_tag(repo, tag=tag, revision=commit, exist_ok=True))
    refs = _persistently(lambda: HfApi().list_repo_refs(repo))
    if {ref.name: ref.target_commit for ref in refs.tags}.get(tag) != commit:
        raise HubError(f"{repo}: somebody else made the tag {tag} for another commit; choose another")


def _persistently(action: Callable[[], _Result]) -> _Result:
    """Does what is safe to do twice, and does it again where the connection is lost."""
    for wait_s in WAITS_S:
        try:
            return action()
        except Exception as error:
            if not connection_was_lost(error):
                raise
        time.sleep(wait_s)
    return action()


@contextmanager
def _explained(failed: str) -> Iterator[None]:
    """Turns the client's errors into HubError: `failed` and why."""
    try:
        yield
    except (HubError, ModelError):
        raise
    except Exception as error:
        raise hub_error(error, failed) from unless_secret(error)
