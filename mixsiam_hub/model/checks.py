"""Does a model folder hold together? All that can be checked without running a graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.errors import ModelError
from mixsiam_hub.model.config import ModelConfig
from mixsiam_hub.model.files import (
    CONFIG_FILE,
    DENSE_CONFIG_FILE,
    DENSE_FILE,
    FASTEMBED_FILE,
    MANIFEST_FILE,
    PREPROCESS_FILE,
    PREPROCESSOR_FILE,
    PROCESSOR_FILE,
    VARIANT_FILES,
    WEIGHTS_FILE,
)
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.model.processors import dense_json, fastembed_json, preprocessor_json
from mixsiam_hub.model.tensors import fingerprint, read_tensors
from mixsiam_hub.untrusted import field, one_line, quote


def check_files(folder: ModelFolder) -> None:
    """Checks every file's sha256, the fingerprint, the copies of the preprocessing, and which graphs there are.

    It computes no vector, so it imports neither onnxruntime nor torch.

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
    check_graphs(folder)
    if folder.config.head_dim:
        check_dense(folder)


def check_graphs(folder: ModelFolder) -> None:
    """Compares the graphs of a folder with those that its kind has and its record names: any other would go unchecked.

    Raises:
        ModelError: A graph is missing, or there is one more.
    """
    manifest = folder.manifest
    expected = {manifest.onnx_file}
    if not manifest.is_compact:
        expected.add(PREPROCESS_FILE)
    for precision, file in VARIANT_FILES.items():
        if (record := manifest.variant(precision)) and not record.left_out:
            expected.add(file)
    found = set(manifest.files)
    if folder.fetch is None:
        found |= {path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*")}
    found = {name for name in found if name.lower().endswith((".onnx", ".ort"))}
    if missing := sorted(expected - found):
        raise ModelError(f"{folder.path} lacks {', '.join(missing)}, which {MANIFEST_FILE} asks for; export it again")
    if extra := sorted(found - expected):
        names = one_line(", ".join(extra))
        raise ModelError(f"{folder.path} has {names}, of which {MANIFEST_FILE} records nothing; remove it")


def check_fingerprint(folder: ModelFolder) -> None:
    """Works the fingerprint out again from the weights and the preprocessing.

    Raises:
        ModelError: It is not mixsiam.json's, or the weights are no safetensors file.
    """
    tensors = _tensors(folder, WEIGHTS_FILE)
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
        _check_copy(folder, name, expected)
    path = folder.path / PROCESSOR_FILE
    raw = field(folder.read_json(PROCESSOR_FILE), "image_processor", dict, str(path))
    other = ModelConfig.from_json(raw, f"{path}: image_processor").preprocessing
    if other != folder.config.preprocessing:
        raise ModelError(f"{path} holds {other}; {CONFIG_FILE} holds {folder.config.preprocessing}")


def check_dense(folder: ModelFolder) -> None:
    """Compares sentence-transformers' copy of the head with the head.

    Raises:
        ModelError: It is missing, or another one.
    """
    if DENSE_CONFIG_FILE not in folder.manifest.files:  # Earlier versions did not list it, so a push left it behind.
        raise ModelError(f"{folder.path}: {MANIFEST_FILE} does not list {DENSE_CONFIG_FILE}; export the folder again")
    _check_copy(folder, DENSE_CONFIG_FILE, dense_json(folder.config))
    head, copy = _tensors(folder, WEIGHTS_FILE), _tensors(folder, DENSE_FILE)
    for name in ("weight", "bias"):
        if not np.array_equal(head[f"fc.{name}"], copy.get(f"linear.{name}", ())):
            raise ModelError(f"{folder.path / DENSE_FILE}: linear.{name} is not fc.{name} of {WEIGHTS_FILE}")


def _check_copy(folder: ModelFolder, name: str, expected: Mapping[str, Any]) -> None:
    copy = folder.read_json(name)
    for key, value in expected.items():
        if copy.get(key) != value:
            got = quote(copy.get(key))
            raise ModelError(f"{folder.path / name}: {key} is {got}; {CONFIG_FILE} asks for {value}")


def _tensors(folder: ModelFolder, name: str) -> dict[str, NDArray[Any]]:
    return read_tensors(folder.read(name), folder.path / name)
