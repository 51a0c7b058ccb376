"""How the head's floor and width were chosen: kNN behind heads of several floors and widths, and what int8 loses there.

Give training parts only: what is chosen on test images says nothing about them. Of each data set a random part is
classified by the rest. Heads are fitted on that rest of the first set and used on all. kNN alone would choose a low
floor and all components, but a low floor amplifies what an int8 graph gets wrong: of the heads whose int8 vectors reach
the bar on every set, the one with the best kNN, on average over the sets and both k, is chosen. The last table
says what it gains and costs to count as variance what another resampling kernel changes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from machine import command_and_machine
from numpy.typing import NDArray
from torch import nn

from mixsiam_hub.backends import choose as backends
from mixsiam_hub.cpus import available_cpus
from mixsiam_hub.errors import DataError, MixsiamError
from mixsiam_hub.images.preprocess import normalise
from mixsiam_hub.model.bars import BARS
from mixsiam_hub.model.files import VARIANT_FILES
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.model.hub import resolve
from mixsiam_hub.training.data import class_numbers, open_images, sample
from mixsiam_hub.training.features import read_batches
from mixsiam_hub.training.head import (
    FIT_IMAGES,
    FLOOR,
    MAX_DIM,
    RESIZED_IMAGES,
    Moments,
    moments_of,
    resized_pairs,
    resizing_of,
    whitening,
)
from mixsiam_hub.training.knn import knn_accuracy
from mixsiam_hub.training.monitor import raw_pixels
from mixsiam_hub.training.recipe import data_name
from mixsiam_hub.vectors.cosine import row_cosines

FLOORS = (1e-3, 3e-3, 1e-2, 3e-2)
WIDTHS = (64, 128, 256, 512)
FITTED_ON = (600, 1024, 2048, 4096, 8192, FIT_IMAGES)
RESIZINGS = (0, 1, 3, 10, 30)
QUERIES = 6
"""One image in so many is classified by the others."""

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Extracted:
    """What is known of the images of a labelled data set, all in one random order.

    Attributes:
        name: Of the data set.
        labels: (N,) int64 classes.
        pooled: (N, D) features by the fp32 graph.
        raw: (N, 768) raw pixels.
        int8: (q, D) features of the queries by the int8 graph; None where the folder has none.
        resized: (2m, D) features of `resized_pairs` of the queries, and of RESIZED_IMAGES of the bank behind them.
    """

    name: str
    labels: NDArray[np.int64]
    pooled: Vectors
    raw: Vectors
    int8: Vectors | None
    resized: Vectors

    @property
    def queries(self) -> int:
        """The first so many images are classified, by the rest, the bank."""
        return len(self.labels) // QUERIES

    def knn(self, vectors: Vectors) -> tuple[float, ...]:
        """Returns the accuracy in % for k = 20 and 200, of (N, K) vectors of the images."""
        q = self.queries
        found = knn_accuracy(vectors[q:], self.labels[q:], vectors[:q], self.labels[:q])
        return tuple(100 * accuracy for accuracy in found.values())


@dataclass(frozen=True)
class Row:
    """One head, and what was measured behind it, each a set after the other.

    Attributes:
        floor: Of its fit.
        dim: Its width.
        accuracies: kNN in %, for k = 20 and 200.
        cosines: Mean and smallest cosine of int8 to fp32; empty without an int8 graph.
    """

    floor: float
    dim: int
    accuracies: Sequence[tuple[float, ...]]
    cosines: Sequence[tuple[float, float]]

    @property
    def reaches_bar(self) -> bool:
        """Whether int8 keeps its bar on every set."""
        return all(mean >= BARS["int8"].mean and least >= BARS["int8"].min for mean, least in self.cosines)


def extract(folder: ModelFolder, spec: str, images: int, seed: int) -> Extracted:
    """Runs the folder's graphs over a random part of a data set.

    Raises:
        DataError: No such images, or none with labels, or too few to fit a head on.
    """
    chosen = sample(open_images(spec), images, seed)
    if chosen.labels is None:
        raise DataError(f"{spec} has no labels, which the kNN needs; give a Parquet set or one sub-folder a class")
    precisions = ("fp32", "int8") if VARIANT_FILES["int8"] in folder.manifest.files else ("fp32",)
    threads = available_cpus()
    networks = {p: backends.load(backends.choose("onnx", "cpu", p), folder, threads) for p in precisions}
    found: dict[str, list[Vectors]] = {name: [] for name in ("raw", "resized", *precisions)}
    queries = len(chosen) // QUERIES
    kept = []
    for batch in read_batches(chosen, folder.config.preprocessing):
        if not len(batch.indices):
            continue
        x = normalise(batch.pixels, folder.config.preprocessing)  # (n, 3, S, S)
        found["raw"].append(raw_pixels(batch.pixels))
        kept.append(batch.indices)
        for precision, network in networks.items():
            if precision == "fp32" or batch.indices[0] < queries:
                found[precision].append(network.pooled(x))
        if batch.indices[0] < queries + RESIZED_IMAGES:
            pairs = normalise(resized_pairs(batch.pixels), folder.config.preprocessing)
            found["resized"].append(networks["fp32"].pooled(pairs))
    indices = np.concatenate(kept)
    parts = {name: np.concatenate(batches) for name, batches in found.items()}
    labels = class_numbers(chosen, sorted(set(chosen.labels)))[indices]
    int8 = parts["int8"][: len(labels) // QUERIES] if "int8" in parts else None
    return Extracted(data_name(spec), labels, parts["fp32"], parts["raw"], int8, parts["resized"])


@torch.inference_mode()
def apply(layer: nn.Module, features: Vectors) -> Vectors:
    """Returns the head's output, (N, K)."""
    vectors: Vectors = layer(torch.from_numpy(features)).numpy()
    return vectors


def fitted_moments(data: Extracted) -> Moments:
    """Returns what a head is fitted to, of a set's bank."""
    resizing = resizing_of(data.resized[2 * data.queries :][: 2 * RESIZED_IMAGES])
    return moments_of(data.pooled[data.queries :][:FIT_IMAGES])._replace(resizing=resizing)


def measure_heads(sets: Sequence[Extracted]) -> Iterator[Row]:
    """Yields every floor and width, fitted on the first set."""
    moments = fitted_moments(sets[0])
    for floor in FLOORS:
        for dim in WIDTHS:
            if dim > len(moments.mean):
                continue
            head = whitening(moments, dim, floor)
            vectors = [apply(head, data.pooled) for data in sets]
            cosines = [
                row_cosines(apply(head, data.int8), full[: len(data.int8)])
                for data, full in zip(sets, vectors, strict=True)
                if data.int8 is not None
            ]
            yield Row(
                floor,
                dim,
                [data.knn(full) for data, full in zip(sets, vectors, strict=True)],
                [(float(values.mean()), float(values.min())) for values in cosines],
            )


def measure_floors(sets: Sequence[Extracted]) -> Mapping[str, list[tuple[float, ...]]]:
    """Returns the kNN of what a head must clear: a name -> accuracies, a set after the other."""
    heads = [whitening(moments_of(data.raw[data.queries :]), MAX_DIM) for data in sets]
    return {
        f"pooled, {sets[0].pooled.shape[1]} numbers": [data.knn(data.pooled) for data in sets],
        f"raw pixels, {sets[0].raw.shape[1]} numbers": [data.knn(data.raw) for data in sets],
        f"raw pixels, whitened on the set itself, {MAX_DIM} numbers": [
            data.knn(apply(head, data.raw)) for data, head in zip(sets, heads, strict=True)
        ],
    }


def measure_fits(sets: Sequence[Extracted]) -> Mapping[int, list[tuple[float, ...]]]:
    """Returns the kNN behind the standard head by how many images of the first set it is fitted on."""
    bank = sets[0].pooled[sets[0].queries :]
    resizing = fitted_moments(sets[0]).resizing
    heads = {
        images: whitening(moments_of(bank[:images])._replace(resizing=resizing), min(MAX_DIM, bank.shape[1]))
        for images in FITTED_ON
        if bank.shape[1] <= images <= len(bank)
    }
    return {images: [data.knn(apply(head, data.pooled)) for data in sets] for images, head in heads.items()}


def measure_resizing(sets: Sequence[Extracted]) -> Iterator[tuple[int, list[tuple[float, ...]], list[Vectors]]]:
    """Yields every weight of the change by another kernel: kNN, and the cosines of the pairs, a set after the other."""
    moments = fitted_moments(sets[0])
    for weight in RESIZINGS:
        head = whitening(moments, min(MAX_DIM, len(moments.mean)), resizing=weight)
        pairs = [apply(head, data.resized[: 2 * data.queries]) for data in sets]
        cosines = [row_cosines(vectors[::2], vectors[1::2]) for vectors in pairs]
        yield weight, [data.knn(apply(head, data.pooled)) for data in sets], cosines


def best(rows: Sequence[Row]) -> Row | None:
    """Returns the row that this benchmark chooses; None where int8 reaches its bar behind no head."""
    return max((row for row in rows if row.reaches_bar), key=lambda row: np.mean(row.accuracies), default=None)


def print_tables(sets: Sequence[Extracted]) -> None:
    """Measures and prints all of it."""
    names = [f"{data.name}, kNN in %, k = 20 / 200" for data in sets]
    int8 = [f"int8 on {data.name}, cosine mean / smallest" for data in sets if data.int8 is not None]
    print("\nWithout a head:\n")
    _print_row("features", *names, header=True)
    for name, accuracies in measure_floors(sets).items():
        _print_row(name, *map(_accuracy, accuracies))
    fitted_on = min(FIT_IMAGES, len(sets[0].labels) - sets[0].queries)
    print(f"\nBehind heads fitted on {fitted_on} of the classifying images of {sets[0].name}:\n")
    _print_row("floor", "width", *names, *int8, header=True)
    rows = []
    for row in measure_heads(sets):
        rows.append(row)
        cosines = [f"{mean:.4f} / {least:.4f}" for mean, least in row.cosines]
        _print_row(f"{row.floor:g}", row.dim, *map(_accuracy, row.accuracies), *cosines)
    if int8:
        chosen = best(rows)
        print(f"\nThe best kNN on average where int8 keeps its bar, {BARS['int8'].mean} / {BARS['int8'].min}: ", end="")
        print(f"floor {chosen.floor:g}, width {chosen.dim}." if chosen else "nowhere.")
    print(f"\nFloor {FLOOR:g}, width {MAX_DIM}, by the number of images it is fitted on:\n")
    _print_row("images", *names, header=True)
    for images, accuracies in measure_fits(sets).items():
        _print_row(images, *map(_accuracy, accuracies))
    print("\nBy how many times the change by another resampling kernel counts, and the cosine of an image, shrunk and")
    print("enlarged by one kernel, to the same enlarged by the other:\n")
    _print_row("times", *names, *(f"{data.name}, cosine mean / smallest" for data in sets), header=True)
    for weight, accuracies, found in measure_resizing(sets):
        cosines = [f"{values.mean():.4f} / {values.min():.4f}" for values in found]
        _print_row(weight, *map(_accuracy, accuracies), *cosines)


def _accuracy(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.1f}" for value in values)


def _print_row(*cells: object, header: bool = False) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
    if header:
        print("|" + " --- |" * len(cells))


def main() -> None:
    """Prints the tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="+", help="labelled images, as `mixsiam evaluate` takes them: training parts")
    parser.add_argument("--model", help="model folder or Hub id, with an int8 graph; default: the built-in encoder")
    parser.add_argument("--images", type=int, default=24_000, help="of each set, at most (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the images and of their split (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        folder = resolve(arguments.model)
        sets = [extract(folder, spec, arguments.images, arguments.seed) for spec in arguments.data]
        print(f"{command_and_machine()}; encoder {folder.manifest.fingerprint[:12]}\n")
        for data in sets:
            bank = len(data.labels) - data.queries
            print(f"- {data.name}, {len(set(data.labels))} classes: {data.queries} images classified by {bank}")
        print_tables(sets)
    except MixsiamError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
