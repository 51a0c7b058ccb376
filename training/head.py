"""The head: PCA whitening of pooled features, fitted on images without labels, as one linear map.

Self-supervised features share a mean and a few strong directions: unlike images come out alike, and all the rest
hardly counts. Behind the head each component has about unit variance, and the first ones varied most over images.

Programs resize images by different kernels, and whitening would amplify what these change in the features as it does
all that is weak. So that change counts as variance, RESIZING times over, and what it dominates stays weak.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.errors import DataError
from mixsiam_hub.images.sources import ImageSet
from mixsiam_hub.model.config import Preprocessing
from mixsiam_hub.training.data import sample
from mixsiam_hub.training.features import extract, in_batches, read_batches

MAX_DIM = 512
FLOOR = 1e-2
"""Width of a head's output, and the smallest variance that a component counts with, as a share of the largest one's.

Both were chosen once, for all encoders, on parts of training sets: `benchmarks/head.py`. Who wants shorter vectors
keeps the first numbers.
"""
RESIZING = 3.0
"""How many times the change of the features by another resampling kernel counts as variance; chosen there, too."""
FIT_IMAGES = 16_384
"""Images that a head is fitted on, at most."""
RESIZED_IMAGES = 2048
"""Images that this change is measured on, at most."""
RESIZED_BY = (Image.Resampling.BILINEAR, Image.Resampling.LANCZOS)
"""The two kernels that a shrunk image is enlarged by."""
_SHRUNK_TO = (1 / 3, 1 / 2, 2 / 3)
"""Its edge, as a share of the input's, of one image after the other."""
_LEAST_SPREAD = 1e-10
"""Of all variance, as a share of the features' mean square: below this stands only rounding."""


class Moments(NamedTuple):
    """What is known of pooled features.

    Attributes:
        images: How many.
        mean: (D,) float64.
        covariance: (D, D) float64.
        resizing: Mean outer product of the change by another resampling kernel, (D, D) float64; None: not measured.
    """

    images: int
    mean: torch.Tensor
    covariance: torch.Tensor
    resizing: torch.Tensor | None = None


class Head(NamedTuple):
    """A fitted head, kept as it is: fitted again with another number of threads, its last bits would differ.

    Attributes:
        images: How many it was fitted on.
        weight: (K, D) float32.
        bias: (K,) float32.
        resizing: How many times the change by another resampling kernel counted; None: not at all.
    """

    images: int
    weight: torch.Tensor
    bias: torch.Tensor
    resizing: float | None = None


def clean_moments(backbone: Backbone, images: ImageSet, pre: Preprocessing) -> Moments:
    """Measures pooled features on a fixed random sample of clean images.

    Args:
        backbone: With the BatchNorm statistics that it is shipped with; stays as it is.
        images: FIT_IMAGES of them are used, for `resizing` RESIZED_IMAGES.
        pre: The deployed preprocessing.

    Raises:
        DataError: Fewer images can be read than there are features, or the features are not finite.
    """
    features, changed = [], []
    left = RESIZED_IMAGES
    for batch in read_batches(sample(images, FIT_IMAGES), pre):
        if not len(batch.indices):
            continue
        features.append(extract(backbone, [batch.pixels], pre))
        if left:
            changed.append(extract(backbone, in_batches(resized_pairs(batch.pixels[:left])), pre))
            left = max(0, left - len(batch.pixels))
    try:
        moments = moments_of(np.concatenate(features))
    except DataError as error:
        raise DataError(f"{images.name}: {error}") from None
    return moments._replace(resizing=resizing_of(np.concatenate(changed)))


def moments_of(features: NDArray[np.float32]) -> Moments:
    """Returns the moments of features.

    Args:
        features: (N, D), N at least D: with fewer, some directions would seem not to vary.

    Raises:
        DataError: Fewer rows, or one that is not finite.
    """
    images, dim = features.shape
    if images < dim:
        raise DataError(f"{images} images can be read, and a head for {dim} features needs at least {dim}; give more")
    if not np.isfinite(features).all():
        raise DataError("the encoder gives NaN or infinite features; its weights are damaged")
    values = torch.from_numpy(features).double()
    return Moments(images, values.mean(dim=0), torch.cov(values.T))


def resized_pairs(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Shrinks images and enlarges each again by both of RESIZED_BY.

    Args:
        pixels: (n, S, S, 3) RGB.

    Returns:
        (2n, S, S, 3), the two of an image side by side.
    """
    out = np.empty((len(pixels), len(RESIZED_BY), *pixels.shape[1:]), np.uint8)
    for number, square in enumerate(pixels):
        edge = max(1, round(len(square) * _SHRUNK_TO[number % len(_SHRUNK_TO)]))
        small = Image.fromarray(square).resize((edge, edge), Image.Resampling.LANCZOS)
        for place, kernel in enumerate(RESIZED_BY):
            out[number, place] = small.resize(square.shape[:2], kernel)
    return out.reshape(-1, *pixels.shape[1:])


def resizing_of(features: NDArray[np.float32]) -> torch.Tensor:
    """Returns `Moments.resizing` from the features of `resized_pairs`, (2n, D)."""
    change = torch.from_numpy(features[::2] - features[1::2]).double()
    return change.T @ change / len(change)


def whitening(moments: Moments, dim: int, floor: float = FLOOR, resizing: float = RESIZING) -> nn.Linear:
    """Returns the head as a layer from features, (N, D), to `dim` white components, the strongest first.

    Args:
        moments: Of the features.
        dim: Components to keep, at most D.
        floor: Components of less than this share of the largest variance are scaled as if they had it.
        resizing: How many times the change by another resampling kernel counts as variance, where it was measured.

    Raises:
        DataError: The features do not vary.
    """
    if not moments.covariance.trace() > _LEAST_SPREAD * moments.mean.square().sum():
        raise DataError("all images have the same features; give images that differ")
    change = 0.0 if moments.resizing is None else resizing * moments.resizing
    # Ascending, (D,); (D, D), a column each.
    variances, directions = torch.linalg.eigh(moments.covariance + change)
    largest = variances[-1]
    variances, directions = variances.flip(0)[:dim], directions.flip(1)[:, :dim].T  # (dim,), (dim, D)
    # Either sign of a direction is right; this one does not depend on the machine.
    strongest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    weight = directions * strongest.sign() / variances.clamp(min=floor * largest).sqrt()[:, None]
    layer = nn.Linear(len(moments.mean), dim)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(-weight @ moments.mean)
    return layer


def fit_head(moments: Moments) -> Head:
    """Returns the head of the standard width, fitted to the moments.

    Raises:
        DataError: The features do not vary.
    """
    layer = whitening(moments, min(MAX_DIM, len(moments.mean)))
    resizing = None if moments.resizing is None else RESIZING
    return Head(moments.images, layer.weight.detach(), layer.bias.detach(), resizing)


def with_head(backbone: Backbone, head: Head) -> Backbone:
    """Returns a copy of a backbone with a head.

    Raises:
        DataError: The head is for another number of features.
    """
    width, features = head.weight.shape
    if features != backbone.dim:
        raise DataError(f"the head is for {features} features; this backbone has {backbone.dim}")
    result = copy.deepcopy(backbone)
    result.fc = nn.Linear(features, width).requires_grad_(False)
    result.fc.load_state_dict({"weight": head.weight, "bias": head.bias})
    return result


@torch.inference_mode()
def behind(head: nn.Linear, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the embedding, (n, K), of pooled features, (n, D)."""
    vectors: NDArray[np.float32] = head.cpu()(torch.from_numpy(features)).numpy()
    return vectors
