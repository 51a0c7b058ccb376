"""Features of clean images through the deployed preprocessing, and BatchNorm statistics estimated on them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from mixsiam_hub.cpus import available_cpus
from mixsiam_hub.errors import DataError
from mixsiam_hub.images.sources import ImageSet
from mixsiam_hub.images.stream import DecodedBatch, decode_batches
from mixsiam_hub.model.config import Preprocessing
from mixsiam_hub.training.data import sample

BATCH_SIZE = 256
STATISTICS_IMAGES = 4096
"""Images that the shipped BatchNorm statistics are estimated on."""

Statistics = dict[str, torch.Tensor]
"""Name of each running mean and variance in a state_dict -> its value, (C,) float32 on the CPU."""


def read_batches(images: ImageSet, pre: Preprocessing, decode: str = "exact") -> Iterator[DecodedBatch]:
    """Yields the images as an encoder will see them, BATCH_SIZE at a time, with a progress bar.

    Args:
        images: A set.
        pre: The encoder's preprocessing.
        decode: As `ImageEncoder.from_pretrained` takes it.

    Raises:
        DataError: Not one of them can be read; once all were tried.
    """
    good, first = 0, ""
    with tqdm(total=len(images), desc=images.name, unit="image", leave=False, disable=None) as bar:
        for batch in decode_batches(images, pre, batch_size=BATCH_SIZE, workers=available_cpus(), decode=decode):
            good += len(batch.indices)
            first = first or next(map(str, batch.errors.values()), "")
            yield batch
            bar.update(len(batch.indices) + len(batch.errors))
    if not good:
        raise DataError(f"{images.name}: none of {len(images)} images can be read; the first: {first}")


def in_batches(pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Cuts (n, S, S, 3) pixels into batches of BATCH_SIZE and a last one of what is left."""
    return [pixels[start : start + BATCH_SIZE] for start in range(0, len(pixels), BATCH_SIZE)]


def normalise_on_device(pixels: torch.Tensor, pre: Preprocessing) -> torch.Tensor:
    """Does what `preprocess.normalise` does, to the last bit, where the pixels are.

    Args:
        pixels: (N, 3, S, S) RGB of 0 to 255, uint8 or float32.
        pre: Whose mean and std.

    Returns:
        (N, 3, S, S) float32, in memory as the pixels are.
    """
    # As tensors: on a GPU torch multiplies by the reciprocal of a number.
    mean, std, full = (
        torch.tensor(values, device=pixels.device).reshape(-1, 1, 1) for values in (pre.mean, pre.std, [255.0])
    )
    return (pixels / full).sub_(mean).div_(std)


@torch.inference_mode()
def extract(
    network: nn.Module, pixels: Iterable[NDArray[np.uint8]], pre: Preprocessing, precision: str = "fp32"
) -> NDArray[np.float32]:
    """Runs a network in eval mode over batches of pixels.

    Args:
        network: Takes (N, 3, S, S) normalised; on its device; its mode is put back afterwards.
        pixels: Batches of (n, S, S, 3) uint8 RGB; empty ones are passed over.
        pre: Whose mean and std normalise.
        precision: `fp32`, or `bf16` for autocast.

    Returns:
        (N, D) float32.
    """
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    out = []
    for batch in filter(len, pixels):
        x = normalise_on_device(torch.from_numpy(batch).to(device).permute(0, 3, 1, 2), pre)  # (n, 3, S, S)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            out.append(network(x).float().cpu().numpy())
    network.train(was_training)
    return np.concatenate(out)


def clean_statistics(backbone: nn.Module, images: ImageSet, pre: Preprocessing) -> Statistics:
    """Estimates every BatchNorm's mean and variance on a fixed random sample of clean images.

    Training records statistics of augmented views; what is shipped sees clean images.

    Args:
        backbone: Stays as it is.
        images: Training images; STATISTICS_IMAGES of them are used.
        pre: The deployed preprocessing.

    Raises:
        DataError: Fewer than two of them can be read.
    """
    pixels = (batch.pixels for batch in read_batches(sample(images, STATISTICS_IMAGES), pre))
    try:
        return input_statistics(backbone, pixels, pre)
    except DataError as error:
        raise DataError(f"{images.name}: {error}") from None


@torch.inference_mode()
def input_statistics(network: nn.Module, pixels: Iterable[NDArray[np.uint8]], pre: Preprocessing) -> Statistics:
    """Estimates the mean and variance of what enters each BatchNorm, over all images, each counting alike.

    Each batch passes through in training mode, normalised by its own statistics. An average of the batches' variances
    would lack what the batches' means differ by, so means and squared deviations are merged instead.

    Args:
        network: Takes (N, 3, S, S) normalised; on its device; stays as it is.
        pixels: Batches of (n, S, S, 3) uint8 RGB, in random order.
        pre: Whose mean and std normalise.

    Raises:
        DataError: Fewer than two images.
    """
    device = next(network.parameters()).device
    network = copy.deepcopy(network).train()
    norms = {name: _InputMoments(module) for name, module in network.named_modules() if isinstance(module, _BatchNorm)}
    for batch in _full_batches(pixels):
        if len(batch) < 2:
            raise DataError("BatchNorm statistics need at least two images that can be read")
        network(normalise_on_device(torch.from_numpy(batch).to(device).permute(0, 3, 1, 2), pre))
    statistics: Statistics = {}
    for name, moments in norms.items():
        statistics[f"{name}.running_mean"] = moments.mean.float().cpu()
        statistics[f"{name}.running_var"] = (moments.squares / (moments.count - 1)).float().cpu()
    return statistics


def use_statistics(network: nn.Module, statistics: Mapping[str, torch.Tensor]) -> None:
    """Puts statistics in place of a network's own.

    Raises:
        DataError: They are not of this network.
    """
    own = {name for name, _ in network.named_buffers() if name.endswith(("running_mean", "running_var"))}
    if own != set(statistics):
        raise DataError(f"BatchNorm statistics of another network: {sorted(own ^ set(statistics))[0]!r} does not fit")
    network.load_state_dict(dict(statistics), strict=False)


class _InputMoments:
    """Mean and squared deviations of a BatchNorm's input, for each channel, (C,) float64, over all batches so far."""

    def __init__(self, norm: nn.Module) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.squares = torch.zeros(())
        norm.register_forward_pre_hook(lambda _, inputs: self._add(inputs[0]))

    def _add(self, x: torch.Tensor) -> None:
        values = x.transpose(0, 1).flatten(1).double()  # (N, C, ...) -> (C, N * ...)
        count, mean = values.shape[1], values.mean(dim=1)
        squares = (values - mean[:, None]).square().sum(dim=1)
        total = self.count + count
        shift = mean - self.mean.to(mean)
        self.squares = self.squares.to(mean) + squares + shift.square() * (self.count * count / total)
        self.mean = self.mean.to(mean) + shift * (count / total)
        self.count = total


def _full_batches(pixels: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """Joins batches that corrupt images made short: each has BATCH_SIZE images at least, if there are so many."""
    full: list[NDArray[np.uint8]] = []
    rest: list[NDArray[np.uint8]] = []
    for batch in pixels:
        rest.append(batch)
        if sum(map(len, rest)) >= BATCH_SIZE:
            if full:
                yield np.concatenate(full)
            full, rest = rest, []
    if last := full + rest:
        yield np.concatenate(last)
