"""The picture of a model card that export draws: what the encoder finds similar."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mixsiam_hub.config import Preprocessing
from mixsiam_hub.export.verify import run
from mixsiam_hub.neighbours import nearest
from mixsiam_hub.preprocess import preprocess
from mixsiam_hub.resnet import Backbone
from mixsiam_hub.samples import draw_samples
from mixsiam_hub.sheet import Tile, contact_sheet

SHEET_PICTURE = "neighbours.png"
SHEET_COUNT = 64
_QUERIES = range(3, SHEET_COUNT, 13)  # Five, of five families.
_NEIGHBOURS = 5


def write_sheet(backbone: Backbone, pre: Preprocessing, path: Path) -> None:
    """Draws a few of the drawn samples with their nearest neighbours among all of them.

    Nobody's photos: a card is public, and the images that an encoder was trained on need not be.

    Args:
        backbone: In eval mode, float32, on the CPU.
        pre: The deployed preprocessing.
        path: The PNG.
    """
    samples = draw_samples(SHEET_COUNT)
    names = list(samples)
    vectors = run(backbone, np.stack([preprocess(image, pre) for image in samples.values()]))[0]
    indices, cosines = nearest(vectors[list(_QUERIES)], vectors, _NEIGHBOURS + 1)
    rows = []
    for query, found, values in zip(_QUERIES, indices.tolist(), cosines.tolist(), strict=True):
        others = [(i, cosine) for i, cosine in zip(found, values, strict=True) if i != query][:_NEIGHBOURS]
        tiles = [Tile(samples[names[i]], names[i], cosine) for i, cosine in others]
        rows.append([Tile(samples[names[query]], names[query]), *tiles])
    contact_sheet(rows, tile_px=96).save(path, optimize=True)
