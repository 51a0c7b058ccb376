"""The picture of a model card that export draws: what the encoder finds similar."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.export.card import SHEET_COUNT
from mixsiam_hub.export.parity import run
from mixsiam_hub.images.preprocess import preprocess
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.images.sheet import Tile, contact_sheet, write_png
from mixsiam_hub.model.config import Preprocessing
from mixsiam_hub.vectors.nearest import nearest_others

_QUERIES = range(3, SHEET_COUNT, 13)  # Five, of five families.
_NEIGHBOURS = 5


def write_sheet(backbone: Backbone, pre: Preprocessing, path: Path) -> None:
    """Draws a few of the drawn samples with their nearest neighbours among all of them.

    Nobody's photos: a card is public, and the images that an encoder was trained on need not be.

    Args:
        backbone: In eval mode, float32, on the CPU, with its head.
        pre: The deployed preprocessing.
        path: The PNG.
    """
    samples = draw_samples(SHEET_COUNT)
    names = list(samples)
    vectors = run(backbone, np.stack([preprocess(image, pre) for image in samples.values()])).embedding
    indices, cosines = nearest_others(vectors, _QUERIES, _NEIGHBOURS)
    rows = []
    for query, found, values in zip(_QUERIES, indices.tolist(), cosines.tolist(), strict=True):
        tiles = [Tile(samples[names[i]], names[i], cosine) for i, cosine in zip(found, values, strict=True)]
        rows.append([Tile(samples[names[query]], names[query]), *tiles])
    write_png(path, contact_sheet(rows, tile_px=96))
