from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from manifests import edit_manifest

from mixsiam_hub.backends.choose import present_backends
from mixsiam_hub.errors import ModelError
from mixsiam_hub.model.checks import check_fingerprint, check_preprocessing
from mixsiam_hub.model.files import ANSWERS_FILE, PREPROCESSOR_FILE, PROCESSOR_FILE
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.model.known_answers import verify, verify_folder
from mixsiam_hub.untrusted import read_json


@pytest.fixture
def edited(model_folder: Path, tmp_path: Path) -> Callable[[str, Callable[[Any], None]], ModelFolder]:
    """Opens the folder after one of its JSON files was edited and its sha256 was written anew."""

    def edit(name: str, change: Callable[[Any], None]) -> ModelFolder:
        folder = Path(shutil.copytree(model_folder, tmp_path / "model", copy_function=os.link))
        raw = read_json(folder / name)
        change(raw)
        (folder / name).unlink()
        (folder / name).write_text(json.dumps(raw))
        edit_manifest(folder, name)
        return ModelFolder.open(folder)

    return edit


@pytest.mark.parametrize("kind", ["model_folder", "compact_folder"])
def test_exported_folder_verifies_on_every_backend(kind: str, request: pytest.FixtureRequest) -> None:
    verified = verify_folder(request.getfixturevalue(kind))
    assert verified.files == len(verified.folder.manifest.files)
    assert {check.backend for check in verified.vectors} == set(present_backends())
    assert all(check.holds for check in verified.vectors)
    assert min(check.min_cosine for check in verified.vectors) > 0.9999


def test_changed_file_fails(model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model", copy_function=os.link))
    (folder / PREPROCESSOR_FILE).unlink()
    (folder / PREPROCESSOR_FILE).write_text("{}")
    with pytest.raises(ModelError, match=PREPROCESSOR_FILE):
        verify_folder(folder)


def test_wrong_answer_is_listed_with_its_cosine(edited: Any) -> None:
    def turn(raw: Any) -> None:
        raw["files"][1]["vector"] = [-value for value in raw["files"][1]["vector"]]

    folder = edited(ANSWERS_FILE, turn)
    name = read_json(folder.path / ANSWERS_FILE)["files"][1]["file"]
    with pytest.raises(
        ModelError, match=rf"model\.onnx by onnx: cosine 0\.8\d+ on average and -1\.0+ at worst, on {name}"
    ):
        verify(folder)


def test_vector_of_zeros_has_no_cosine_and_fails(edited: Any) -> None:
    def zero(raw: Any) -> None:
        raw["files"][0]["vector"] = [0.0] * len(raw["files"][0]["vector"])

    with pytest.raises(ModelError, match="nan"):
        verify(edited(ANSWERS_FILE, zero))


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.pop("min_cosine"),
        lambda raw: raw.update(min_cosine=-float("inf")),
        lambda raw: raw.update(min_cosine=0.9),
        lambda raw: raw.update(files=[]),
        lambda raw: raw["files"][0].update(vector=[1.0]),
        lambda raw: raw.update(format_version=2),
    ],
)
def test_malformed_answers_are_refused(edited: Any, change: Any) -> None:
    with pytest.raises(ModelError, match=r"vectors\.json"):
        verify(edited(ANSWERS_FILE, change))


@pytest.mark.parametrize(
    ("name", "change", "field"),
    [
        (PREPROCESSOR_FILE, lambda raw: raw.update(resample=3), "resample"),
        (PREPROCESSOR_FILE, lambda raw: raw.update(size={"shortest_edge": 33}), "size"),
        (PREPROCESSOR_FILE, lambda raw: raw.pop("image_mean"), "image_mean"),
        (PROCESSOR_FILE, lambda raw: raw["image_processor"]["pretrained_cfg"].update(crop_pct=0.5), "crop_pct"),
        (PROCESSOR_FILE, lambda raw: raw.update(image_processor={}), "pretrained_cfg"),
        (PROCESSOR_FILE, lambda raw: raw.update(image_processor=None), "image_processor"),
    ],
)
def test_copies_of_the_preprocessing_must_agree(edited: Any, name: str, change: Any, field: str) -> None:
    with pytest.raises(ModelError, match=field):
        check_preprocessing(edited(name, change))


def test_agreeing_copies_pass(model_folder: Path) -> None:
    folder = ModelFolder.open(model_folder)
    check_preprocessing(folder)
    other = replace(folder.config, preprocessing=replace(folder.config.preprocessing, input_px=31))
    with pytest.raises(ModelError, match="31"):
        check_preprocessing(replace(folder, config=other))


def test_fingerprint_is_of_weights_and_preprocessing(model_folder: Path) -> None:
    folder = ModelFolder.open(model_folder)
    check_fingerprint(folder)
    config = replace(folder.config, preprocessing=replace(folder.config.preprocessing, crop_pct=0.9))
    with pytest.raises(ModelError, match="fingerprint"):
        check_fingerprint(replace(folder, config=config))
