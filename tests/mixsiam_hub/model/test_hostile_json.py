"""The JSON files of a model folder, damaged or made to harm: only our errors come out, in one line that prints."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from manifests import edit_manifest, signed

from mixsiam_hub import BUILTIN
from mixsiam_hub.errors import MixsiamError, ModelError
from mixsiam_hub.model import checks, known_answers
from mixsiam_hub.model.facts import facts_of
from mixsiam_hub.model.files import ANSWERS_FILE, CONFIG_FILE, MANIFEST_FILE, PREPROCESSOR_FILE, PROCESSOR_FILE
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.model.hub import resolve
from mixsiam_hub.model.manifest import Manifest
from mixsiam_hub.untrusted import parse_json, read_json

SOUND = (BUILTIN / MANIFEST_FILE).read_bytes()
HOSTILE = "\x1b[2J\n\u202e"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The built-in encoder by links, so its files must be replaced and not written into."""
    return Path(shutil.copytree(BUILTIN, tmp_path / "model", copy_function=os.link))


def _replace(folder: Path, name: str, data: bytes) -> None:
    """Puts other bytes in place of a file, and makes mixsiam.json agree with them."""
    (folder / name).unlink()
    (folder / name).write_bytes(data)
    if name not in (CONFIG_FILE, MANIFEST_FILE):
        edit_manifest(folder, name)


def _edit(folder: Path, name: str, change: Callable[[Any], object]) -> None:
    raw = read_json(folder / name)
    change(raw)
    _replace(folder, name, signed(raw) if name == MANIFEST_FILE else json.dumps(raw).encode())


def _read_all(folder: Path) -> ModelFolder:
    """Everything that reads one of the JSON files."""
    opened = ModelFolder.open(folder)
    checks.check_preprocessing(opened)
    known_answers._read_vectors(opened)
    return opened


def _damaged(data: bytes, count: int) -> Iterator[bytes]:
    """Yields `data` with flipped bits, cut, or with a piece in the wrong place."""
    chance = random.Random(0)
    for turn in range(count):
        damaged = bytearray(data)
        at = chance.randrange(len(data))
        if turn % 4 == 3:
            del damaged[at:]
        elif turn % 4 == 2:
            damaged[at:at] = data[: chance.randrange(40)]
        else:
            for _ in range(turn % 4 + 1):
                damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        yield bytes(damaged)


@pytest.mark.parametrize("name", [CONFIG_FILE, MANIFEST_FILE, PREPROCESSOR_FILE, PROCESSOR_FILE, ANSWERS_FILE])
def test_damaged_file_raises_nothing_but_our_errors(folder: Path, name: str) -> None:
    _read_all(folder)
    messages = []
    for data in _damaged((folder / name).read_bytes(), 120):
        _replace(folder, name, data)
        try:
            _read_all(folder)
        except MixsiamError as error:
            messages.append(str(error))
    assert len(messages) > 30
    assert all(message.isprintable() and len(message) < 1000 for message in messages)


@pytest.mark.parametrize("text", ["[" * 1000 + "]" * 1000, "9" * 5000, "NaN", "-Infinity", "1e999", '"\\ud800"'])
@pytest.mark.parametrize("name", [CONFIG_FILE, MANIFEST_FILE, PREPROCESSOR_FILE, PROCESSOR_FILE, ANSWERS_FILE])
def test_values_that_break_a_parser_or_what_follows_it_are_refused(folder: Path, name: str, text: str) -> None:
    _replace(folder, name, b'{"x": ' + text.encode() + b"," + (folder / name).read_bytes().lstrip()[1:])
    with pytest.raises(ModelError, match=rf"{name} cannot be read as JSON"):
        _read_all(folder)


# mixsiam.json


def test_no_flipped_bit_of_mixsiam_json_changes_what_it_says() -> None:
    sound = Manifest.from_json(parse_json(SOUND, "sound"))
    unnoticed = 0
    for at in range(len(SOUND)):
        data = bytearray(SOUND)
        data[at] ^= 1 << at % 8
        try:
            manifest = Manifest.from_json(parse_json(bytes(data), MANIFEST_FILE))
        except ModelError:
            continue
        unnoticed += 1  # White space.
        assert manifest == sound
    assert unnoticed < len(SOUND) / 4


def test_flipped_fingerprint_is_refused_with_the_fix(folder: Path) -> None:
    raw = read_json(folder / MANIFEST_FILE)
    raw["fingerprint"] = raw["fingerprint"][::-1]
    _replace(folder, MANIFEST_FILE, json.dumps(raw).encode())
    with pytest.raises(ModelError, match=r"mixsiam\.json was damaged or edited.*download or export"):
        ModelFolder.open(folder)


def test_checksum_is_of_what_is_written_and_older_folders_have_none() -> None:
    sound = Manifest.from_json(json.loads(SOUND))
    odd = Manifest(**{**vars(sound), "training": {"sizes": (1, 2), "by_class": {1: 0.5, 10: 1e-7}}})
    assert Manifest.from_json(json.loads(json.dumps(odd.to_json()))).training == {
        "sizes": [1, 2],
        "by_class": {"1": 0.5, "10": 1e-7},
    }
    older = json.loads(SOUND)
    del older["manifest_sha256"]
    assert Manifest.from_json(older) == sound


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw["files"].update({"n" * 300: "0" * 64}), "inside the folder"),
        (lambda raw: raw["files"].update({"../../etc/passwd": "0" * 64}), "inside the folder"),
        (lambda raw: raw["files"].update({"a\\..\\b": "0" * 64}), "inside the folder"),
        (lambda raw: raw["files"].update({HOSTILE: "0" * 64}), "inside the folder"),
        (lambda raw: raw["files"].update(a="0" * 63), "sha256"),
        (lambda raw: raw["files"].update(a=[0]), "sha256"),
        (lambda raw: raw.update(fingerprint="abc"), "fingerprint is 'abc'"),
        (lambda raw: raw.update(license=HOSTILE), "license is"),
        (lambda raw: raw.update(method="m" * 5000), "method is"),
        (lambda raw: raw.update({HOSTILE: 1}), "unknown key"),
        (lambda raw: raw.update(format_version=10**17), "format_version is 1"),
        (lambda raw: raw.update(weights=[HOSTILE]), "weights is"),
    ],
)
def test_manifest_with_values_that_are_not_sane_is_refused(folder: Path, change: Any, message: str) -> None:
    _edit(folder, MANIFEST_FILE, change)
    with pytest.raises(ModelError, match=message) as caught:
        ModelFolder.open(folder)
    assert str(caught.value).isprintable()


def test_facts_print_on_one_line_each(folder: Path) -> None:
    _edit(folder, MANIFEST_FILE, lambda raw: raw["training"].update({HOSTILE: HOSTILE, "list": [HOSTILE * 1000]}))
    facts = facts_of(ModelFolder.open(folder))
    assert all(f"{name}{value}".isprintable() and len(value) <= 1000 for name, value in facts.items())


# Numbers


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("std", [1e-46, 0.2, 0.2]),
        ("std", [0.2, 0.2, -0.2]),
        ("std", [10**17, 1, 1]),
        ("std", [True, 0.2, 0.2]),
        ("mean", [1e300, 0, 0]),
        ("mean", ["0.5", 0, 0]),
        ("mean", [0.5, 0.5]),
        ("crop_pct", 0.01),
        ("crop_pct", 1.01),
        ("input_size", [3, 100_000, 100_000]),
        ("input_size", [3, 0, 0]),
        ("input_size", [3, 64.0, 64.0]),
        ("input_size", [3, [64], [64]]),
        ("interpolation", HOSTILE),
    ],
)
def test_config_with_numbers_that_are_not_sane_names_the_field(folder: Path, key: str, value: object) -> None:
    _edit(folder, CONFIG_FILE, lambda raw: raw["pretrained_cfg"].update({key: value}))
    with pytest.raises(ModelError, match=rf"{CONFIG_FILE}: pretrained_cfg.*{key}") as caught:
        ModelFolder.open(folder)
    assert str(caught.value).isprintable()


def test_stride_that_is_no_integer_is_refused(folder: Path) -> None:
    _edit(folder, CONFIG_FILE, lambda raw: raw["model_args"].update(output_stride=16.0))
    with pytest.raises(ModelError, match=r"output_stride is 16\.0"):
        ModelFolder.open(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.update(min_cosine=2),
        lambda raw: raw.update(min_cosine="1"),
        lambda raw: raw["files"][0]["vector"].__setitem__(0, 1e300),
        lambda raw: raw["files"][0]["vector"].__setitem__(0, None),
        lambda raw: raw["files"][0].update(file="../../secret"),
        lambda raw: raw["files"][0].update(file="n" * 300),
        lambda raw: raw.update(files=[HOSTILE]),
        lambda raw: raw.update(files=[{}] * 2000),
    ],
)
def test_known_answers_that_are_not_sane_are_refused(folder: Path, change: Any) -> None:
    _edit(folder, ANSWERS_FILE, change)
    with pytest.raises(ModelError, match=r"vectors\.json") as caught:
        known_answers._read_vectors(ModelFolder.open(folder))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["n" * 300, "n" * 5000 + "/x", "a\0b", HOSTILE])
def test_name_that_no_folder_can_have_is_one_line(name: str) -> None:
    with pytest.raises(MixsiamError) as caught:
        resolve(name, local_files_only=True)
    assert str(caught.value).isprintable()
