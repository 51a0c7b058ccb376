"""precision="auto" takes the fastest that is close enough, measures once, and says why it took it."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mixsiam_hub import ImageEncoder
from mixsiam_hub.backends import choose as backends
from mixsiam_hub.backends.choose import Choice
from mixsiam_hub.errors import ArgumentError, BackendError, MixsiamError
from mixsiam_hub.model import fastest, hub
from mixsiam_hub.model.fastest import load_fastest
from mixsiam_hub.model.figures import FastDecoding
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.model.hub import BUILTIN
from mixsiam_hub.model.known_answers import read_answers


class Fake:
    """A backend that takes so many seconds of a clock of its own, and whose vectors are off by an angle."""

    clock = 0.0

    def __init__(self, choice: Choice, seconds: float, cosine: float) -> None:
        self.name, self.device, self.precision = choice.backend, choice.device, choice.precision
        self.seconds, self.angle = seconds, np.arccos(cosine)
        self.expected = read_answers(ModelFolder.open(BUILTIN))[2]

    def embedding(self, pixels: np.ndarray) -> np.ndarray:
        Fake.clock += self.seconds
        vectors = np.resize(self.expected, (len(pixels), self.expected.shape[1]))
        aside = np.roll(vectors, 1, axis=1)
        aside -= (aside * vectors).sum(1, keepdims=True) / (vectors**2).sum(1, keepdims=True) * vectors
        aside *= np.linalg.norm(vectors, axis=1, keepdims=True) / np.linalg.norm(aside, axis=1, keepdims=True)
        return (np.cos(self.angle) * vectors + np.sin(self.angle) * aside).astype(np.float32)


FAKES = {"fp32": (0.004, 1.0), "bf16": (0.002, 0.9995), "int8": (0.001, 0.992)}


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Precisions in the order in which they are loaded."""
    precisions: list[str] = []

    def load(choice: Choice, folder: ModelFolder, threads: int) -> Fake:
        precisions.append(choice.precision)
        return Fake(choice, *FAKES[choice.precision])

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(backends, "present_backends", lambda: ("openvino",))
    monkeypatch.setattr(backends, "choose", lambda backend, device, precision: Choice(backend, "cpu", precision))
    monkeypatch.setattr(backends, "load", load)
    monkeypatch.setattr(fastest, "time", SimpleNamespace(perf_counter=lambda: Fake.clock))
    return precisions


@pytest.mark.parametrize(("min_cosine", "expected"), [(0.9999, "fp32"), (0.999, "bf16"), (0.99, "int8")])
def test_the_fastest_that_is_close_enough_is_taken(min_cosine: float, expected: str, loaded: list[str]) -> None:
    folder = ModelFolder.open(BUILTIN)
    assert load_fastest(folder, "auto", "auto", min_cosine, 1).precision == expected
    assert loaded == ["fp32", "bf16", "int8"]
    assert load_fastest(folder, "auto", "auto", min_cosine, 1).precision == expected
    assert loaded == ["fp32", "bf16", "int8", expected]  # As measured before.


def test_another_encoder_or_number_of_threads_is_measured_anew(loaded: list[str]) -> None:
    folder = ModelFolder.open(BUILTIN)
    other = replace(folder, manifest=replace(folder.manifest, fingerprint="0" * 64))
    for opened, threads in ((folder, 1), (folder, 2), (other, 1)):
        load_fastest(opened, "auto", "auto", 0.999, threads)
    assert loaded == 3 * ["fp32", "bf16", "int8"]


@pytest.mark.parametrize("damage", ["", "{}", '{"choice": {"backend": "onnx"}}', "[]", '{"choice": 3}'])
def test_a_damaged_note_is_measured_anew(damage: str, loaded: list[str], tmp_path: Path) -> None:
    folder = ModelFolder.open(BUILTIN)
    load_fastest(folder, "auto", "auto", 0.999, 1)
    (note,) = (tmp_path / "cache/mixsiam-hub/fastest").iterdir()
    assert json.loads(note.read_text())["choice"]["precision"] == "bf16"
    note.write_text(damage)
    assert load_fastest(folder, "auto", "auto", 0.999, 1).precision == "bf16"
    assert loaded == 2 * ["fp32", "bf16", "int8"]


def test_what_was_measured_is_said(loaded: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mixsiam_hub"):
        load_fastest(ModelFolder.open(BUILTIN), "auto", "auto", 0.999, 1)
    assert "int8 by openvino: " in caplog.text
    assert "cosine 0.992000, too far" in caplog.text
    assert "precision auto is bf16 by openvino" in caplog.text


def test_nothing_close_enough_is_an_error(loaded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAKES, "fp32", (0.001, 0.99))
    with pytest.raises(BackendError, match=r"no precision reaches a cosine of 0\.9999; the best one has 0\.9995"):
        load_fastest(ModelFolder.open(BUILTIN), "auto", "auto", 0.9999, 1)

    def refuse(*_: object) -> None:
        raise BackendError("not here")

    monkeypatch.setattr(backends, "load", refuse)
    with pytest.raises(BackendError, match="no backend of openvino can run"):
        load_fastest(ModelFolder.open(BUILTIN), "auto", "auto", 0.9999, 1)


def test_a_cache_that_cannot_be_written_stops_nothing(
    loaded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    assert load_fastest(ModelFolder.open(BUILTIN), "auto", "auto", 0.999, 1).precision == "bf16"


def test_from_pretrained_measures_for_real(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    encoder = ImageEncoder.from_pretrained(backend="onnx", precision="auto", threads=1)
    assert (encoder.backend, encoder.precision) == ("onnx", "fp32")  # The built-in encoder's only graph.
    (note,) = (tmp_path / "mixsiam-hub/fastest").iterdir()
    assert json.loads(note.read_text())["images_per_second"] > 0
    with pytest.raises(ArgumentError, match="min_cosine is 2"):
        ImageEncoder.from_pretrained(precision="auto", min_cosine=2)


@pytest.mark.parametrize(
    ("decode", "precision", "min_cosine", "expected"),
    [
        (None, "auto", 0.999, "fast"),
        (None, "auto", 0.9999, "exact"),
        (None, "fp32", 0.999, "exact"),
        ("exact", "auto", 0.999, "exact"),
        ("fast", "auto", 0.9999, "fast"),
    ],
)
def test_auto_decodes_fast_where_export_found_that_close_enough(
    decode: str | None,
    precision: str,
    min_cosine: float,
    expected: str,
    loaded: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = ModelFolder.open(BUILTIN)
    assert folder.manifest.parity is not None
    parity = replace(folder.manifest.parity, fast_decoding=FastDecoding("photos", 64, 0.9999, 0.9997))
    measured = replace(folder, manifest=replace(folder.manifest, parity=parity))
    options: dict[str, Any] = {"backend": "openvino", "precision": precision, "min_cosine": min_cosine}
    for given, decoded in [(measured, expected), (folder, decode or "exact")]:
        monkeypatch.setattr(hub, "resolve", lambda *arguments, given=given, **others: given)
        assert ImageEncoder.from_pretrained(**options, decode=decode).variant.split("-")[1] == decoded


def test_a_plain_folder_cannot_be_checked() -> None:
    folder = replace(ModelFolder.open(BUILTIN), is_plain=True)
    with pytest.raises(MixsiamError, match="give a precision"):
        fastest.load_fastest(folder, "auto", "auto", 0.9999, 1)
