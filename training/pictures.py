"""What a run looked like, for people who would rather look than read: its curves, and neighbours among its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.atomic import replacing
from mixsiam_hub.images.sheet import Tile, contact_sheet, write_png
from mixsiam_hub.training.streams import Purpose, permutation
from mixsiam_hub.vectors.nearest import nearest_others

QUERIES = 8
NEIGHBOURS = 5

_PANELS: Mapping[str, Mapping[str, str]] = {
    "loss": {"loss": "total", "loss_sim": "between views", "loss_mix": "of mixtures"},
    "effective rank": {"rank_backbone": "features", "rank_z": "projections"},
    "spread of projections": {"z_std": "std of z, 1 is isotropic", "target_bias": "bias of the target"},
    "kNN of validation images, %": {"knn20": "k = 20", "knn200": "k = 200"},
    "learning rate": {"lr": "encoder"},
}
"""Title -> key of a log line, or of its health -> legend."""


def draw_curves(log: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws a run's numbers by epoch: losses, ranks, kNN beside its floor, learning rate.

    Args:
        log: The lines of log.jsonl, the first of before training.
        path: The PNG.

    Raises:
        OutputError: It cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(_PANELS), 3.2), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
        scale = 100 if title.endswith("%") else 1
        for key, legend in curves.items():
            values = [(line["epoch"], value) for line in log if (value := _number(line, key)) is not None]
            if values:
                epochs, numbers = zip(*values, strict=True)
                axes.plot(epochs, [scale * number for number in numbers], marker=".", label=legend)
        for k, accuracy in log[0].get("raw_pixel_knn", {}).items() if title.startswith("kNN") else ():
            axes.axhline(100 * accuracy, linestyle=":", color="grey", label=f"raw pixels, k = {k}")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    with replacing(path) as file:
        figure.savefig(file, dpi=120, format="png")


def draw_neighbours(pixels: NDArray[np.uint8], vectors: NDArray[np.float32], path: Path) -> None:
    """Draws random images, each with the images nearest to it.

    Args:
        pixels: (n, S, S, 3) uint8 RGB, two at least.
        vectors: (n, D), of these images.
        path: The PNG.

    Raises:
        OutputError: It cannot be written.
    """
    queries = permutation(len(pixels), 0, Purpose.SAMPLE)[:QUERIES].tolist()
    found, cosines = nearest_others(vectors, queries, NEIGHBOURS)
    rows = [
        [Tile(pixels[query], ""), *(Tile(pixels[i], "", float(c)) for i, c in zip(near, near_cosines, strict=True))]
        for query, near, near_cosines in zip(queries, found, cosines, strict=True)
    ]
    write_png(path, contact_sheet(rows))


def _number(line: Mapping[str, Any], key: str) -> float | None:
    value: float | None = line.get(key, line["health"].get(key))
    return value
