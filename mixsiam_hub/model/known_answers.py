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
from mixsiam_hub.untrusted import read_json


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


def verify(folder: ModelFolder, backend_names: Sequence[str] | None = None) -> Verified:
    """Checks a folder's files and replays its known answers.

    Args:
        folder: The folder.
        backend_names: Where to replay them; None is on every backend installed here.

    Raises:
        ModelError: Something does not hold; the message says what.
        HubError: A file of a repository cannot be fetched.
    """
    check_files(folder)
    answers = replay(folder, backends.present_backends() if backend_names is None else backend_names)
    return Verified(folder, len(folder.manifest.files), answers)


def check_files(folder: ModelFolder) -> None:
    """Checks the sha256 of every file, the fingerprint and the copies of the preprocessing; computes no vector.

    Raises:
        ModelError: Something does not hold, or it is a folder that timm saved; the message says what.
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
    images = [folder.file(f"{ANSWERS}/{file}") for file in files]
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
    tensors = read_tensors(folder.file(WEIGHTS_FILE))
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
        path = folder.file(name)
        copy = read_json(path)
        for key, value in expected.items():
            if copy.get(key) != value:
                raise ModelError(f"{path}: {key} is {copy.get(key)}; {CONFIG_FILE} asks for {value}")
    path = folder.file(PROCESSOR_FILE)
    raw = read_json(path).get("image_processor")
    if not isinstance(raw, dict):
        raise ModelError(f"{path}: image_processor is {raw!r}; it must be an object")
    other = ModelConfig.from_json(raw, f"{path}: image_processor").preprocessing
    if other != folder.config.preprocessing:
        raise ModelError(f"{path} holds {other}; {CONFIG_FILE} holds {folder.config.preprocessing}")


def _read_answers(folder: ModelFolder) -> tuple[float, list[str], NDArray[np.float64]]:
    """Returns min_cosine, the file names and their vectors, (n, D)."""
    path = folder.file(ANSWERS_FILE)
    raw = read_json(path)
    try:
        if raw["format_version"] != 1:
            raise ModelError(f"{path}: format_version is {raw['format_version']}, this mixsiam-hub reads 1")
        files = [str(entry["file"]) for entry in raw["files"]]
        vectors = np.array([entry["vector"] for entry in raw["files"]], np.float64).reshape(len(files), -1)
        min_cosine = float(raw["min_cosine"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} does not have the form of known answers: {error!r}; export it again") from error
    if not files or vectors.shape[1] != folder.config.dim:
        raise ModelError(f"{path} has vectors of shape {vectors.shape}; they must be (n, {folder.config.dim}), n > 0")
    return min_cosine, files, vectors


def _compare(got: NDArray[np.float32], want: NDArray[np.float64]) -> tuple[float, float]:
    """Returns the cosine of two vectors, (D,), and the largest difference relative to the mean expected feature."""
    exact = got.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):  # A zero vector has no cosine: NaN, which is refused.
        cosine = exact @ want / (np.linalg.norm(exact) * np.linalg.norm(want))
        return float(cosine), float(np.abs(exact - want).max() / np.abs(want).mean())
