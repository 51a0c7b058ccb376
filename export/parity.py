"""The check of every export: each runtime must give, from the written folder, the vectors of the network in memory."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mixsiam_hub.backends import choose as backends
from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.backends.choose import Backend
from mixsiam_hub.backends.onnx_preprocess import SIZES, PreprocessGraph
from mixsiam_hub.cpus import available_cpus
from mixsiam_hub.errors import ModelError
from mixsiam_hub.images.load import load_image
from mixsiam_hub.images.preprocess import preprocess
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model.bars import MAX_LEVELS, MAX_RELATIVE_ERROR, MIN_FILE_COSINE
from mixsiam_hub.model.config import Preprocessing
from mixsiam_hub.model.figures import Parity, PreprocessParity
from mixsiam_hub.model.files import PREPROCESS_FILE
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.vectors.cosine import row_cosines

BATCH_SIZES = (1, 2, 3, 17)
Floats = NDArray[np.float32]


def measure_parity(backbone: Backbone, folder: ModelFolder, files: Sequence[Path]) -> Parity:
    """Compares a written folder with the network that it was written from.

    Args:
        backbone: In eval mode, float32, on the CPU.
        folder: Complete but for the figures that this returns.
        files: Image files for the comparison from file to vector.

    Returns:
        What was measured, without the variants.

    Raises:
        ModelError: Something differs by more than is allowed; the message says what and by how much.
    """
    pre = folder.config.preprocessing
    pixels = np.stack([preprocess(image, pre) for image in draw_samples(max(BATCH_SIZES)).values()])
    networks = {name: _load(name, folder) for name in ("torch", "onnx")}
    errors = {name: worst_error(backbone, network, pixels) for name, network in networks.items()}
    for name, error in errors.items():
        _at_most(f"the largest error of the {name} backend, over the mean absolute feature,", error, MAX_RELATIVE_ERROR)
    graph = prepared = None
    if PREPROCESS_FILE in folder.manifest.files:
        graph = PreprocessGraph(folder, available_cpus())
        levels, share = graph.levels_off()
        _at_most(f"the largest difference between {PREPROCESS_FILE} and Pillow, in grey levels,", levels, MAX_LEVELS)
        prepared = PreprocessParity(levels, _short(share), SIZES)
    cosine = file_cosine(backbone, networks["onnx"], graph, pre, files)
    if not cosine >= MIN_FILE_COSINE:
        raise ModelError(_refusal("the smallest cosine from file to vector", cosine, f"at least {MIN_FILE_COSINE}"))
    return Parity(
        max_relative_error={name: _short(error) for name, error in errors.items()},
        batch_sizes=BATCH_SIZES,
        file_to_vector_min_cosine=round(cosine, 8),
        versions={name: version(name) for name in ("torch", "onnxruntime", "pillow")},
        preprocess=prepared,
    )


def worst_error(backbone: Backbone, network: Backend, pixels: Floats) -> float:
    """Returns the largest error of a backend over BATCH_SIZES and all outputs, relative to the mean absolute output.

    The expected values come from one batch of all images, so a vector that depends on its batch mates shows too.

    Args:
        backbone: Gives the expected values.
        network: What is measured.
        pixels: (N, 3, S, S) float32, normalised, N = max(BATCH_SIZES).
    """
    outputs = run(backbone, pixels)
    runs = {"embedding": network.embedding, "pooled": network.pooled, "feature_map": network.feature_map}
    errors = []
    for size in BATCH_SIZES:
        for name, run_backend in runs.items():
            errors.append(_relative_error(getattr(outputs, name)[:size], run_backend(pixels[:size])))
    return float(np.max(errors))  # Not max(): a NaN stays one.


def file_cosine(
    backbone: Backbone,
    network: Backend,
    graph: PreprocessGraph | None,
    pre: Preprocessing,
    files: Sequence[Path],
) -> float:
    """Returns the smallest cosine between two ways from file to vector: Pillow and torch, and the graphs.

    Args:
        backbone: The network in memory.
        network: The folder's graph.
        graph: preprocess.onnx; without it Pillow prepares the input of both.
        pre: The folder's preprocessing.
        files: Image files.
    """
    images = [load_image(path) for path in files]
    pixels = np.stack([preprocess(image, pre) for image in images])
    other = pixels if graph is None else np.concatenate([graph.run(np.asarray(image)) for image in images])
    return min_cosine(run(backbone, pixels).embedding, network.embedding(other))


def min_cosine(a: Floats, b: Floats) -> float:
    """Returns the smallest cosine between rows of a and b, (N, D) each; NaN where one is not finite or zero."""
    return float(np.min(row_cosines(a, b)))


class Outputs(NamedTuple):
    """What a network in memory gives, not normalised: (N, K), (N, D) and (N, D, h, w) float32."""

    embedding: Floats
    pooled: Floats
    feature_map: Floats


def run(backbone: Backbone, pixels: Floats) -> Outputs:
    """Returns the outputs for pixels, (N, 3, S, S) float32; without a head the embedding is the pooled features."""
    with torch.inference_mode():
        *embedding, pooled, feature_map = (output.numpy() for output in backbone.outputs(torch.from_numpy(pixels)))
    return Outputs(embedding[0] if embedding else pooled, pooled, feature_map)


def _load(name: str, folder: ModelFolder) -> Backend:
    """Returns the very backend that users of the folder get."""
    return backends.load(backends.choose(name, "cpu", "fp32"), folder, available_cpus())


def _relative_error(expected: Floats, got: Floats) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).mean())


def _at_most(what: str, measured: float, allowed: float) -> None:
    if not measured <= allowed:  # Not `>`: a NaN is refused too.
        raise ModelError(_refusal(what, measured, f"at most {allowed:g}"))


def _refusal(what: str, measured: float, allowed: str) -> str:
    return (
        f"{what} is {measured:.8g}; {allowed} is allowed. Nothing was written: check that the weights are finite and "
        "from a trained network, and that torch and onnxruntime are releases that this package knows"
    )


def _short(value: float) -> float:
    return float(f"{value:.3g}")
