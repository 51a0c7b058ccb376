"""Does a folder still give what it was exported with? Its known answers, replayed by every graph, and by torch.

known_answers/vectors.json is {"format_version": 1, "min_cosine": 0.9999, "files": [{"file": "name.png", "vector":
[D floats, not normalised]}]}; the images stand beside it. The bars are those of `mixsiam_hub.model.bars`; min_cosine is
there for other programs that replay it, and must not be lower.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.backends import choose as backends
from mixsiam_hub.backends.onnx_preprocess import PreprocessGraph
from mixsiam_hub.cpus import available_cpus
from mixsiam_hub.errors import ModelError
from mixsiam_hub.images.load import load_image
from mixsiam_hub.images.preprocess import preprocess
from mixsiam_hub.model import hub
from mixsiam_hub.model.bars import BARS, MAX_LEVELS, PixelCheck, VectorCheck
from mixsiam_hub.model.config import ModelConfig
from mixsiam_hub.model.figures import Variant
from mixsiam_hub.model.files import (
    ANSWERS,
    ANSWERS_FILE,
    CONFIG_FILE,
    FASTEMBED_FILE,
    MANIFEST_FILE,
    PREPROCESS_FILE,
    PREPROCESSOR_FILE,
    PROCESSOR_FILE,
    VARIANT_FILES,
    WEIGHTS_FILE,
)
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.model.processors import fastembed_json, preprocessor_json
from mixsiam_hub.model.tensors import fingerprint, read_tensors
from mixsiam_hub.untrusted import field, number, one_line, one_of, path_inside, quote
from mixsiam_hub.vectors.cosine import row_cosines

MAX_ANSWERS = 100
MAX_FEATURE = 1e6
"""Bounds of what vectors.json may hold: export writes ten images, whose features are below 100."""


@dataclass(frozen=True)
class Verified:
    """What `verify` found to hold.

    Attributes:
        folder: The folder.
        files: How many files have the sha256 that mixsiam.json lists.
        vectors: Every graph of the network, and torch where it is installed.
        pixels: preprocess.onnx; None in a compact folder, which has none.
    """

    folder: ModelFolder
    files: int
    vectors: tuple[VectorCheck, ...]
    pixels: PixelCheck | None


def verify_folder(name_or_path: str | Path | None = None, *, accept_forced: bool = False) -> Verified:
    """Finds a model folder and checks it as `verify` does.

    Args:
        name_or_path: As in `ImageEncoder.from_pretrained`; of a Hub id every file is downloaded.
        accept_forced: As in `verify`.

    Raises:
        ModelError: Something does not hold; the message says what.
        HubError: The repository cannot be reached, found or read.
    """
    return verify(hub.resolve(name_or_path), accept_forced=accept_forced)


def verify(
    folder: ModelFolder, backend_names: Collection[str] | None = None, *, accept_forced: bool = False
) -> Verified:
    """Checks every file's sha256, the fingerprint, the copies of the preprocessing, and what each graph gives.

    Args:
        folder: The model.
        backend_names: What replays the known answers; None for onnx, and torch where it is installed.
        accept_forced: Let a graph pass that fails its bar where mixsiam.json says that export was forced to write it.

    Raises:
        ModelError: Something does not hold; the message says what.
        BackendError: onnxruntime is not installed.
        ImageError: An image of the known answers cannot be read.
        HubError: A file of a repository cannot be fetched.
    """
    check_files(folder)
    if backend_names is None:  # onnxruntime is no choice: without it no graph would be replayed.
        backend_names = {"onnx", *backends.present_backends()}
    vectors = replay_vectors(folder, backend_names)
    pixels = replay_pixels(folder) if PREPROCESS_FILE in folder.manifest.files else None
    wrong = [str(check) for check in vectors if not check.holds and not (accept_forced and check.forced)]
    if pixels and not pixels.holds:
        wrong.append(str(pixels))
    if wrong:
        raise ModelError(f"{folder.path} does not give what it was exported with: {'. '.join(wrong)}; export it again")
    return Verified(folder, len(folder.manifest.files), vectors, pixels)


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


def replay_vectors(folder: ModelFolder, backend_names: Collection[str]) -> tuple[VectorCheck, ...]:
    """Embeds the known images on the CPU: by onnx with every graph of the network, by torch with the weights.

    Args:
        folder: The model.
        backend_names: `onnx`, `torch` or both.

    Returns:
        What came out, whether it reaches its bar or not.

    Raises:
        ModelError: A graph cannot be run, or the known answers cannot be read.
        BackendError: onnxruntime is not installed.
        ImageError: An image of the known answers cannot be read.
    """
    manifest = folder.manifest
    files, expected = _read_answers(folder)
    runs = [("onnx", "fp32", manifest.onnx_file)]
    runs += [("onnx", precision, file) for precision, file in VARIANT_FILES.items() if file in manifest.files]
    runs.append(("torch", "fp32", WEIGHTS_FILE))
    runs = [(backend, precision, file) for backend, precision, file in runs if backend in backend_names]
    checks = []
    for backend, precision, file in runs:
        network = backends.load(backends.choose(backend, "cpu", precision), folder, available_cpus())
        vectors = [network.pooled(_pixels(folder, image))[0] for image in files]
        cosines = row_cosines(np.stack(vectors), expected)
        worst = int(np.argmin(cosines))  # A NaN comes first.
        figures = (float(cosines.mean()), float(cosines[worst]), files[worst])
        record = _record(folder, precision) if precision in VARIANT_FILES else None
        forced = record is not None and record.forced
        checks.append(VectorCheck(file, backend, precision, *figures, BARS[precision], forced))
    return tuple(checks)


def replay_pixels(folder: ModelFolder) -> PixelCheck:
    """Runs preprocess.onnx on noise of several sizes.

    Raises:
        ModelError: The graph cannot be run.
    """
    return PixelCheck(PREPROCESS_FILE, PreprocessGraph(folder, available_cpus()).levels_off()[0], MAX_LEVELS)


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
        if (record := _record(folder, precision)) and not record.left_out:
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


def _record(folder: ModelFolder, precision: str) -> Variant | None:
    """Returns what export recorded of a smaller graph."""
    parity = folder.manifest.parity
    return parity.variants.get(precision) if parity else None


def _pixels(folder: ModelFolder, image: str) -> NDArray[np.float32]:
    """Returns the network's input, (1, 3, S, S), of one of the known images."""
    name = f"{ANSWERS}/{image}"
    loaded = load_image(folder.read(name), name=str(folder.path / name))
    return preprocess(loaded, folder.config.preprocessing)[None]


def _read_answers(folder: ModelFolder) -> tuple[list[str], NDArray[np.float64]]:
    """Returns the file names and their vectors, (n, D)."""
    source = str(folder.path / ANSWERS_FILE)
    raw = folder.read_json(ANSWERS_FILE)
    one_of(field(raw, "format_version", int, source), (1,), "format_version", source)
    number(field(raw, "min_cosine", (int, float), source), BARS["fp32"].min, 1, "min_cosine", source)
    entries = field(raw, "files", list, source)
    if not 0 < len(entries) <= MAX_ANSWERS:
        raise ModelError(f"{source} has {len(entries)} files; it must have 1 to {MAX_ANSWERS}")
    files = [_answer(entry, folder.config.dim, source) for entry in entries]
    return [file for file, _ in files], np.array([vector for _, vector in files], np.float64)


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
