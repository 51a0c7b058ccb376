"""Does a folder still give what it was exported with? Its known answers, replayed by every graph, and by torch.

known_answers/vectors.json is {"format_version": 1, "min_cosine": 0.9999, "files": [{"file": "name.png", "vector":
[the floats of an embedding, not normalised]}]}; the images stand beside it. The bars are those of
`mixsiam_hub.model.bars`; min_cosine is there for other programs that replay it, and must not be lower.
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
from mixsiam_hub.model.checks import check_files
from mixsiam_hub.model.files import (
    ANSWERS,
    ANSWERS_FILE,
    PREPROCESS_FILE,
    VARIANT_FILES,
    WEIGHTS_FILE,
)
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.untrusted import field, number, one_of, path_inside, quote
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
        backend_names: What replays the known answers; None for onnx, and openvino and torch where they are installed.
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


def replay_vectors(folder: ModelFolder, backend_names: Collection[str]) -> tuple[VectorCheck, ...]:
    """Embeds the known images on the CPU: by onnx with every graph of the network, by others in fp32.

    Args:
        folder: The model.
        backend_names: Of `onnx`, `openvino` and `torch`.

    Returns:
        What came out, whether it reaches its bar or not.

    Raises:
        ModelError: A graph cannot be run, or the known answers cannot be read.
        BackendError: onnxruntime is not installed.
        ImageError: An image of the known answers cannot be read.
    """
    manifest = folder.manifest
    files, pixels, expected = read_answers(folder)
    runs = [("onnx", "fp32", manifest.onnx_file)]
    runs += [("onnx", precision, file) for precision, file in VARIANT_FILES.items() if file in manifest.files]
    runs += [("openvino", "fp32", manifest.onnx_file), ("torch", "fp32", WEIGHTS_FILE)]
    runs = [(backend, precision, file) for backend, precision, file in runs if backend in backend_names]
    checks = []
    for backend, precision, file in runs:
        network = backends.load(backends.choose(backend, "cpu", precision), folder, available_cpus())
        vectors = [network.embedding(image[None])[0] for image in pixels]
        cosines = row_cosines(np.stack(vectors), expected)
        worst = int(np.argmin(cosines))  # A NaN comes first.
        figures = (float(cosines.mean()), float(cosines[worst]), files[worst])
        record = manifest.variant(precision) if precision in VARIANT_FILES else None
        forced = record is not None and record.forced
        checks.append(VectorCheck(file, backend, precision, *figures, BARS[precision], forced))
    return tuple(checks)


def replay_pixels(folder: ModelFolder) -> PixelCheck:
    """Runs preprocess.onnx on noise of several sizes.

    Raises:
        ModelError: The graph cannot be run.
    """
    return PixelCheck(PREPROCESS_FILE, PreprocessGraph(folder, available_cpus()).levels_off()[0], MAX_LEVELS)


def read_answers(folder: ModelFolder) -> tuple[list[str], NDArray[np.float32], NDArray[np.float64]]:
    """Reads the known answers.

    Returns:
        The names of the images, n, the network's input for each, (n, 3, S, S), and their vectors, (n, D).

    Raises:
        ModelError: They cannot be read.
        ImageError: An image cannot.
    """
    files, expected = _read_vectors(folder)
    pre = folder.config.preprocessing
    images = [(folder.read(f"{ANSWERS}/{file}"), str(folder.path / ANSWERS / file)) for file in files]
    return files, np.stack([preprocess(load_image(data, name=name), pre) for data, name in images]), expected


def _read_vectors(folder: ModelFolder) -> tuple[list[str], NDArray[np.float64]]:
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
    """Returns the file name and the vector, of `dim` numbers, of one entry of the known answers."""
    if not isinstance(entry, dict):
        raise ModelError(f"{source}: an entry of files is {quote(entry)}; it must be an object")
    file = field(entry, "file", str, source)
    path_inside(Path(ANSWERS), file, source)
    vector = field(entry, "vector", list, source)
    if len(vector) != dim:
        raise ModelError(f"{source}: the vector of {file} has {len(vector)} numbers; it must have {dim}")
    return file, [number(value, -MAX_FEATURE, MAX_FEATURE, f"the vector of {file}", source) for value in vector]
