"""How good are the features, without labels? How many directions they use, and how they lie on the unit sphere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.errors import DataError
from mixsiam_hub.model.config import Preprocessing
from mixsiam_hub.model.figures import EMBEDDING, POOLED, RANDOM, RAW
from mixsiam_hub.training.augment import Augmentation, draw_view
from mixsiam_hub.training.data import open_images, sample
from mixsiam_hub.training.features import extract, in_batches, read_batches
from mixsiam_hub.training.head import behind
from mixsiam_hub.training.monitor import effective_rank, raw_pixels
from mixsiam_hub.training.networks import evaluation_precision, find_encoder, on_device, random_backbone
from mixsiam_hub.training.pictures import draw_neighbours
from mixsiam_hub.training.recolour import recolour
from mixsiam_hub.training.streams import Purpose, stream

IMAGES = 5000
"""Of the sheet of neighbours, at most."""
PAIRS = 1024
"""Images that all numbers are of, and of each two views, at most."""


@dataclass(frozen=True)
class Geometry:
    """Where an encoder puts images, as unit vectors. Compare encoders on the same images, and with the floors beside.

    Attributes:
        rank: Effective rank of the vectors before they are scaled; large is good.
        alignment: Mean squared distance of two random views of an image (arXiv 2005.10242); 0 is the best, and 2 that
            of unrelated ones.
        uniformity: log of the mean of exp(-2 x squared distance) over pairs of different images (the same paper); the
            smaller, the more evenly they fill the sphere. About -4 at best, 0 where all are the same.
    """

    rank: float
    alignment: float
    uniformity: float


def describe(model: str, data: str, sheet: Path) -> dict[str, Geometry]:
    """Measures an encoder beside raw pixels and random weights, and draws neighbours among the images.

    Args:
        model: A run folder, a model folder, a Hub id, or "" for the built-in encoder.
        data: Images, as `data.open_images` takes them; a random sample of them is used.
        sheet: The PNG of eight images and their neighbours.

    Returns:
        Rows as of an evaluation: the embedding and the pooled features of an encoder with a head, else by its method.

    Raises:
        DataError: Fewer than two images can be read.
        ModelError: No such model.
        OutputError: The PNG cannot be written.
    """
    images = sample(open_images(data), IMAGES)
    encoder = find_encoder(model)
    pre = encoder.config.preprocessing
    pixels = np.concatenate([batch.pixels for batch in read_batches(images, pre)])
    if len(pixels) < 2:
        raise DataError(f"{data}: one image can be read; give at least two")
    how = Augmentation(pre.input_px)
    parts = [pixels[:PAIRS]]
    for purpose in (Purpose.VIEW_1, Purpose.VIEW_2):
        streams = (stream(0, purpose, index=i) for i in range(len(parts[0])))
        drawn = (draw_view(Image.fromarray(square), how, rng) for square, rng in zip(parts[0], streams, strict=True))
        views, colours = (torch.from_numpy(np.stack(column)) for column in zip(*drawn, strict=True))
        parts.append(recolour(views.permute(0, 3, 1, 2), colours).round().byte().permute(0, 2, 3, 1).numpy())
    backbone, head = on_device(encoder.backbone), encoder.backbone.fc
    of_network = {encoder.method if head is None else POOLED: backbone, RANDOM: random_backbone(encoder.config, images)}
    rows = {name: [_extract(network, part, pre) for part in parts] for name, network in of_network.items()}
    rows[RAW] = [raw_pixels(part) for part in parts]
    shown = _extract(backbone, pixels, pre)
    if head is not None:
        rows = {EMBEDDING: [behind(head, part) for part in rows[POOLED]]} | rows
        shown = behind(head, shown)
    draw_neighbours(pixels, shown, sheet)
    return {name: geometry(*parts) for name, parts in rows.items()}


def geometry(vectors: NDArray[np.float32], views_1: NDArray[np.float32], views_2: NDArray[np.float32]) -> Geometry:
    """Measures vectors, (n, D) each, of the same n images, at least two: as they are, and of two random views."""
    units, one, two = (functional.normalize(torch.from_numpy(part).double()) for part in (vectors, views_1, views_2))
    squares = torch.pdist(units).square()  # (n, D) -> (n (n - 1) / 2,)
    return Geometry(
        effective_rank(vectors),
        float((one - two).square().sum(dim=1).mean()),
        float((-2 * squares).exp().mean().log()),
    )


def _extract(network: Backbone, pixels: NDArray[np.uint8], pre: Preprocessing) -> NDArray[np.float32]:
    """Returns features, (n, D), of (n, S, S, 3) uint8 RGB."""
    return extract(network, in_batches(pixels), pre, evaluation_precision())
