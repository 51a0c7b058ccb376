"""Features of clean images through the deployed preprocessing, and BatchNorm statistics estimated on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from mixsiam_hub.errors import ImageError
from mixsiam_hub.images.preprocess import resize_and_crop
from mixsiam_hub.model.config import Preprocessing
from mixsiam_hub.training.data import ImageSet, normalise

BATCH_SIZE = 256
STATISTICS_IMAGES = 4096
"""Images that the shipped BatchNorm statistics are estimated on."""


def clean_batches(images: ImageSet, pre: Preprocessing) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Yields the images as an encoder will see them; corrupt ones are left out.

    Yields:
        Pixels, (n, S, S, 3) uint8 RGB, n at most BATCH_SIZE, and their positions in `images`, (n,).
    """

    def read(position: int) -> tuple[int, NDArray[np.uint8]] | None:
        try:
            return position, resize_and_crop(images[position], pre)
        except ImageError:
            return None

    positions = iter(range(len(images)))
    with ThreadPoolExecutor(2) as pool:
        while chunk := list(islice(positions, BATCH_SIZE)):
            good = [item for item in pool.map(read, chunk) if item is not None]
            if good:
                yield np.stack([pixels for _, pixels in good]), np.array([position for position, _ in good])


@torch.inference_mode()
def extract(
    network: nn.Module, pixels: Iterable[NDArray[np.uint8]], pre: Preprocessing, precision: str = "fp32"
) -> NDArray[np.float32]:
    """Runs a network in eval mode over batches of pixels.

    Args:
        network: Takes (N, 3, S, S) normalised; on its device; its mode is put back afterwards.
        pixels: Batches of (n, S, S, 3) uint8 RGB.
        pre: Whose mean and std normalise.
        precision: `fp32`, or `bf16` for autocast.

    Returns:
        (N, D) float32.
    """
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    out = []
    for batch in pixels:
        x = normalise(torch.from_numpy(batch).to(device), pre.mean, pre.std)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            out.append(network(x).float().cpu().numpy())
    network.train(was_training)
    return np.concatenate(out)


def labelled_features(
    network: nn.Module, images: ImageSet, pre: Preprocessing, precision: str = "fp32"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Extracts features and their labels, corrupt images left out of both.

    Returns:
        (n, D) float32 and (n,) int64.
    """
    assert images.labels is not None
    kept: list[NDArray[np.int64]] = []

    def pixels() -> Iterator[NDArray[np.uint8]]:
        with tqdm(total=len(images), desc=images.name, unit="image", leave=False) as bar:
            for batch, positions in clean_batches(images, pre):
                kept.append(positions)
                yield batch
                bar.update(len(batch))

    features = extract(network, pixels(), pre, precision)
    return features, images.labels[np.concatenate(kept)]


def estimate_statistics(backbone: nn.Module, images: ImageSet, pre: Preprocessing) -> None:
    """Re-estimates every BatchNorm's running statistics, in place, on a fixed sample of clean images.

    Training records statistics of augmented views; what is shipped sees clean images.

    Args:
        backbone: Its mode is put back afterwards; its weights stay as they are.
        images: Training images; STATISTICS_IMAGES of them are used.
        pre: The deployed preprocessing.
    """
    # A small last batch would weigh as much as a full one: update_bn averages over batches.
    batches = list(clean_batches(images.sample(STATISTICS_IMAGES), pre))
    whole = [pixels for pixels, _ in batches if len(pixels) == len(batches[0][0])]
    device = next(backbone.parameters()).device
    update_bn((normalise(torch.from_numpy(pixels).to(device), pre.mean, pre.std) for pixels in whole), backbone)
