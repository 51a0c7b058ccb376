from __future__ import annotations

import pickle
import shutil
import traceback
from pathlib import Path
from typing import Any

import pytest

from mixsiam_hub import ImageEncoder
from mixsiam_hub.errors import ArgumentError, HubError, ModelError
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model import hub
from mixsiam_hub.model.files import CONFIG_FILE, MANIFEST_FILE, ONNX_FILE, WEIGHTS_FILE
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.model.hub import BUILTIN, HubRepo, resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def asked(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Stands in for the Hub's client: what was asked for, (file, revision), copied from a folder into a snapshot."""
    import huggingface_hub

    log: list[tuple[str, str | None]] = []

    def download(repo: str, name: str, *, revision: str | None, **options: Any) -> str:
        log.append((name, revision))
        target = tmp_path / "snapshots" / COMMIT / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return str(shutil.copy(model_folder / name, target))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return log


def test_missing_built_in_encoder_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "BUILTIN", tmp_path / "absent")
    with pytest.raises(ModelError, match="no built-in encoder"):
        resolve(None)


def test_built_in_encoder_is_a_folder_of_the_package(monkeypatch: pytest.MonkeyPatch, compact_folder: Path) -> None:
    monkeypatch.setattr(hub, "BUILTIN", compact_folder)
    assert ImageEncoder.from_pretrained().embed(list(draw_samples(2).values())).shape == (2, 512)


def test_the_built_in_encoder_has_a_name_where_no_folder_has_it(
    monkeypatch: pytest.MonkeyPatch, compact_folder: Path, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("builtin").path == BUILTIN
    with pytest.raises(ModelError, match="only a Hub id has revisions"):
        resolve("builtin", revision="main")
    shutil.copytree(compact_folder, "builtin")
    assert resolve("builtin").manifest == ModelFolder.open(compact_folder).manifest


@pytest.mark.parametrize("name", ["no-folder", "a/b/c", "/absent/folder", "../x/y"])
def test_name_of_no_kind_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="neither a folder nor a Hub id"):
        resolve(name)


@pytest.mark.parametrize("name", [None, ".", "org/name@v1"])
def test_revision_that_says_nothing_or_twice_is_refused(name: str | None) -> None:
    with pytest.raises(ModelError, match="v2"):
        resolve(name, revision="v2")


def test_files_come_one_by_one_from_one_commit_and_onnx_needs_no_safetensors(asked: list[tuple[str, str]]) -> None:
    encoder = ImageEncoder.from_pretrained("org/name@v1", backend="onnx")
    encoder.embed(list(draw_samples(2).values()))
    assert encoder.revision == COMMIT
    assert asked[0] == (CONFIG_FILE, "v1")
    assert {name for name, _ in asked} == {CONFIG_FILE, MANIFEST_FILE, ONNX_FILE}
    assert {revision for _, revision in asked[1:]} == {COMMIT}


def test_torch_fetches_the_weights(asked: list[tuple[str, str]]) -> None:
    pytest.importorskip("torch")
    ImageEncoder.from_pretrained("org/name", backend="torch")
    assert WEIGHTS_FILE in {name for name, _ in asked}
    assert ONNX_FILE not in {name for name, _ in asked}


def test_token_stays_out_of_pickles_and_messages(asked: list[tuple[str, str]]) -> None:
    repo = HubRepo("org/name", token="secret")
    assert "secret" not in repr(repo)
    assert pickle.loads(pickle.dumps(repo)) == HubRepo("org/name")
    encoder = ImageEncoder.from_pretrained("org/name", backend="onnx", token="secret")
    data = pickle.dumps(encoder)
    assert b"secret" not in data
    assert pickle.loads(data).revision == COMMIT


def test_file_that_is_not_in_the_cache_is_a_hub_error(tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"org/name: config\.json could not be fetched: it is not in the cache"):
        resolve("org/name", local_files_only=True, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("GatedRepoError", "ask for access"),
        ("RepositoryNotFoundError", "check the name"),
        ("RevisionNotFoundError", "no such revision"),
        ("LocalEntryNotFoundError", "go online"),
        ("OfflineModeIsEnabled", "HF_HUB_OFFLINE"),
        ("EntryNotFoundError", "mixsiam export"),
    ],
)
def test_errors_of_the_client_become_ours_with_the_fix(
    kind: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    error_class = getattr(errors, kind)

    def fail(*arguments: Any, **options: Any) -> str:
        raise error_class.__new__(error_class)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(HubError, match=message):
        resolve("org/name@main")


def test_other_errors_of_the_client_are_passed_on_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*arguments: Any, **options: Any) -> str:
        raise RuntimeError("connection reset")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(HubError, match=r"config\.json could not be fetched: connection reset"):
        resolve("org/name")


# Tokens


TOKEN = "hf_abcdefGHIJKLMN"


@pytest.mark.parametrize("given", [f"{TOKEN}\n", f" {TOKEN}\r\n", TOKEN])
def test_white_space_around_a_token_is_dropped(
    given: str, monkeypatch: pytest.MonkeyPatch, asked: list[tuple[str, str]]
) -> None:
    import huggingface_hub

    download, tokens = huggingface_hub.hf_hub_download, set()

    def watch(*arguments: Any, token: str | None, **options: Any) -> str:
        tokens.add(token)
        return str(download(*arguments, **options))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", watch)
    resolve("org/name", token=given)
    assert tokens == {TOKEN}
    assert asked


@pytest.mark.parametrize("given", [f"{TOKEN}\nX", f"{TOKEN} X", f"{TOKEN}é", f"\x1b{TOKEN}"])
def test_what_cannot_be_a_token_is_refused_and_not_shown(given: str) -> None:
    with pytest.raises(ArgumentError, match=r"^token has white space") as caught:
        resolve("org/name", token=given)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("token", [TOKEN, "opaque-1234567"])
@pytest.mark.parametrize("say", ["Illegal header value b'Bearer {}'", "authorization: {}", "{{'Authorization': '{}'}}"])
def test_no_error_of_the_client_is_passed_on_with_a_token(
    say: str, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def fail(*arguments: Any, **options: Any) -> str:
        try:
            raise ValueError(say.format(token))
        except ValueError as error:
            raise ConnectionError(f"sending failed: {error}") from error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(HubError, match=r"sending failed.*\[token\]") as caught:
        resolve("org/name", token=token)
    assert token not in "".join(traceback.format_exception(caught.value))


def test_words_of_the_client_stay_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*arguments: Any, **options: Any) -> str:
        raise RuntimeError("\x1b[2Jserver says:\n" + "x" * 10_000)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(HubError, match="server says") as caught:
        resolve("org/name")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_relative_cache_is_that_of_the_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[HubRepo] = []
    monkeypatch.setattr(HubRepo, "open", lambda repo: made.append(repo) or ModelFolder.open(BUILTIN))
    resolve("org/name", cache_dir="cache")
    assert made[0].cache_dir == str(Path.cwd() / "cache")
