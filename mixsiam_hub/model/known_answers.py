"""Does a folder still give the vectors it was exported with? Its known answers, replayed on every backend here.

known_answers/vectors.json is {"format_version": 1, "min_cosine": 0.9999, "files": [{"file": "name.png", "vector":
[D floats, not normalised]}]}; the images stand beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.backends import choose as backends
from mixsiam_hub.cpus import available_cpus
from mixsiam_hub.encoder import ImageEncoder
from mixsiam_hub.errors import ModelError
from mixsiam_hub.images.sources import Item
from mixsiam_hub.model import hub
from mixsiam_hub.model.config import ModelConfig
from mixsiam_hub.model.files import (
    ANSWERS,
    ANSWERS_FILE,
    CONFIG_FILE,
    FASTEMBED_FILE,
    PREPROCESSOR_FILE,
    PROCESSOR_FILE,
    WEIGHTS_FILE,
)
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.model.processors import fastembed_json, preprocessor_json
from mixsiam_hub.model.tensors import fingerprint, read_tensors
from mixsiam_hub.untrusted import field, number, one_of, path_inside, quote

MAX_ANSWERS = 1000
MAX_FEATURE = 1e6
"""Bounds of what vectors.json may hold: export writes ten images, whose features are below 100."""


@dataclass(frozen=True)
class Answer:
    """One image on one backend, against the vector it was exported with.

    Attributes:
        backend: `onnx` or `torch`.
        file: Name of the image.
        cosine: Of the two vectors.
        max_rel_error: Largest absolute difference over the mean absolute expected feature.
    """

    backend: str
    file: str
    cosine: float
    max_rel_error: float


@dataclass(frozen=True)
class Verified:
    """What `verify` found to hold.

    Attributes:
        folder: The folder.
        files: How many files have the sha256 that mixsiam.json lists.
        answers: Every known answer on every backend.
    """

    folder: ModelFolder
    files: int
    answers: list[Answer]


def verify_folder(name_or_path: str | Path | None = None) -> Verified:
    """Finds a model folder and checks it as `verify` does.

    Args:
        name_or_path: As in `ImageEncoder.from_pretrained`; of a Hub id every file is downloaded.

    Raises:
        ModelError: Something does not hold; the message says what.
        HubError: The repository cannot be reached, found or read.
    """
    return verify(hub.resolve(name_or_path))


def verify(folder: ModelFolder) -> Verified:
    """Checks a folder: the sha256 of every file, the fingerprint, the copies of the preprocessing, the known answers.

    Raises:
        ModelError: Something does not hold; the message says what.
        HubError: A file of a repository cannot be fetched.
    """
    if folder.is_plain:
        raise ModelError(
            f"{folder.path} was saved by timm, so it has no known answers to verify it by; to make a folder that has, "
            f"run: mixsiam import {folder.path} FOLDER --from timm --license ID"
        )
    for name in folder.manifest.files:
        folder.file(name)
    check_fingerprint(folder)
    check_preprocessing(folder)
    return Verified(folder, len(folder.manifest.files), replay(folder, backends.present_backends()))


def replay(folder: ModelFolder, backend_names: Sequence[str]) -> list[Answer]:
    """Embeds the known images, in float32 on the CPU, and compares with the vectors they were exported with.

    Args:
        folder: The model.
        backend_names: Of `onnx` and `torch`.

    Raises:
        ModelError: A cosine is below the folder's min_cosine, or the known answers cannot be read.
        BackendError: A backend that cannot be had here.
    """
    min_cosine, files, expected = _read_answers(folder)
    images = [Item(file, folder.read(f"{ANSWERS}/{file}")) for file in files]
    threads = available_cpus()
    answers: list[Answer] = []
    for name in backend_names:
        network = backends.load(backends.choose(name, "cpu", "fp32"), folder, threads)
        vectors = ImageEncoder(folder, network, threads).embed(images, normalize=False)
        answers += [
            Answer(name, file, *_compare(got, want)) for file, got, want in zip(files, vectors, expected, strict=True)
        ]
    if wrong := [answer for answer in answers if not answer.cosine >= min_cosine]:  # Not `<`: a NaN fails too.
        listed = ", ".join(f"{a.file} on {a.backend} {a.cosine:.6f}" for a in wrong)
        raise ModelError(f"{folder.path}: known answers below a cosine of {min_cosine}: {listed}; export it again")
    return answers


def check_fingerprint(folder: ModelFolder) -> None:
    """Works the fingerprint out again from the weights and the preprocessing.

    Raises:
        ModelError: It is not mixsiam.json's, or the weights are no safetensors file.
    """
    tensors = read_tensors(folder.read(WEIGHTS_FILE), folder.path / WEIGHTS_FILE)
    if (got := fingerprint(tensors, folder.config)) != folder.manifest.fingerprint:
        raise ModelError(
            f"{folder.path}: the fingerprint of {WEIGHTS_FILE} and {CONFIG_FILE} is {got}, mixsiam.json says "
            f"{folder.manifest.fingerprint}; export it again"
        )


def check_preprocessing(folder: ModelFolder) -> None:
    """Compares the copies of the preprocessing that other loaders read with config.json's, which is ours.

    Raises:
        ModelError: A copy is missing or differs; the message names the field.
    """
    copies = {PREPROCESSOR_FILE: preprocessor_json(folder.config), FASTEMBED_FILE: fastembed_json(folder.config)}
    if FASTEMBED_FILE not in folder.manifest.files:
        del copies[FASTEMBED_FILE]  # A compact folder has no onnx/.
    for name, expected in copies.items():
        copy = folder.read_json(name)
        for key, value in expected.items():
            if copy.get(key) != value:
                got = quote(copy.get(key))
                raise ModelError(f"{folder.path / name}: {key} is {got}; {CONFIG_FILE} asks for {value}")
    path = folder.path / PROCESSOR_FILE
    raw = field(folder.read_json(PROCESSOR_FILE), "image_processor", dict, str(path))
    other = ModelConfig.from_json(raw, f"{path}: image_processor").preprocessing
    if other != folder.config.preprocessing:
        raise ModelError(f"{path} holds {other}; {CONFIG_FILE} holds {folder.config.preprocessing}")


def _read_answers(folder: ModelFolder) -> tuple[float, list[str], NDArray[np.float64]]:
    """Returns min_cosine, the file names and their vectors, (n, D)."""
    source = str(folder.path / ANSWERS_FILE)
    raw = folder.read_json(ANSWERS_FILE)
    one_of(field(raw, "format_version", int, source), (1,), "format_version", source)
    min_cosine = number(field(raw, "min_cosine", (int, float), source), -1, 1, "min_cosine", source)
    entries = field(raw, "files", list, source)
    if not 0 < len(entries) <= MAX_ANSWERS:
        raise ModelError(f"{source} has {len(entries)} files; it must have 1 to {MAX_ANSWERS}")
    files = [_answer(entry, folder.config.dim, source) for entry in entries]
    return min_cosine, [file for file, _ in files], np.array([vector for _, vector in files], np.float64)


def _answer(entry: object, dim: int, source: str) -> tuple[str, list[float]]:
    """Returns the file name and the vector, of `dim` features, of one entry of the known answers."""
    if not isinstance(entry, dict):
        raise ModelError(f"{source}: an entry of files is {quote(entry)}; it must be an object")
    file = field(entry, "file", str, source)
    path_inside(Path(ANSWERS), file, source)
    vector = field(entry, "vector", list, source)
    if len(vector) != dim:
        raise ModelError(f"{source}: the vector of {file} has {len(vector)} features; it must have {dim}")
    return file, [number(value, -MAX_FEATURE, MAX_FEATURE, f"the vector of {file}", source) for value in vector]


def _compare(got: NDArray[np.float32], want: NDArray[np.float64]) -> tuple[float, float]:
    """Returns the cosine of two vectors, (D,), and the largest difference relative to the mean expected feature."""
    exact = got.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):  # A zero vector has no cosine: NaN, which is refused.
        cosine = exact @ want / (np.linalg.norm(exact) * np.linalg.norm(want))
        return float(cosine), float(np.abs(exact - want).max() / np.abs(want).mean())
