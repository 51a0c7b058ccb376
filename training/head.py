"""The head: PCA whitening of pooled features, fitted on images without labels, as one linear map.

Self-supervised features share a mean and a few strong directions: unlike images come out alike, and all the rest
hardly counts. Behind the head each component has unit variance, and the first ones varied most over images.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.errors import DataError
from mixsiam_hub.images.sources import ImageSet
from mixsiam_hub.model.config import Preprocessing
from mixsiam_hub.training.data import sample
from mixsiam_hub.training.features import extract, read_batches

MAX_DIM = 256
FLOOR = 1e-2
"""Width of a head's output, and the smallest variance that a component counts with, as a share of the largest one's.

Both were chosen once, for all encoders, on parts of training sets: `benchmarks/head.py`.
"""
FIT_IMAGES = 16_384
"""Images that a head is fitted on, at most."""
_LEAST_SPREAD = 1e-10
"""Of the largest variance, as a share of the features' mean square: below this stands only rounding."""


class Moments(NamedTuple):
    """Mean and covariance of pooled features.

    Attributes:
        images: How many.
        mean: (D,) float64.
        covariance: (D, D) float64.
    """

    images: int
    mean: torch.Tensor
    covariance: torch.Tensor


class Head(NamedTuple):
    """A fitted head, kept as it is: fitted again with another number of threads, its last bits would differ.

    Attributes:
        images: How many it was fitted on.
        weight: (K, D) float32.
        bias: (K,) float32.
    """

    images: int
    weight: torch.Tensor
    bias: torch.Tensor


def clean_moments(backbone: Backbone, images: ImageSet, pre: Preprocessing) -> Moments:
    """Measures pooled features on a fixed random sample of clean images.

    Args:
        backbone: With the BatchNorm statistics that it is shipped with; stays as it is.
        images: FIT_IMAGES of them are used.
        pre: The deployed preprocessing.

    Raises:
        DataError: Fewer images can be read than there are features, or the features are not finite.
    """
    pixels = (batch.pixels for batch in read_batches(sample(images, FIT_IMAGES), pre))
    try:
        return moments_of(extract(backbone, pixels, pre))
    except DataError as error:
        raise DataError(f"{images.name}: {error}") from None


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


def whitening(moments: Moments, dim: int, floor: float = FLOOR) -> nn.Linear:
    """Returns the head as a layer from features, (N, D), to `dim` components of unit variance, the strongest first.

    Args:
        moments: Of the features.
        dim: Components to keep, at most D.
        floor: Components of less than this share of the largest variance are scaled as if they had it.

    Raises:
        DataError: The features do not vary.
    """
    variances, directions = torch.linalg.eigh(moments.covariance)  # Ascending, (D,); (D, D), a column each.
    largest = variances[-1]
    if not largest > _LEAST_SPREAD * moments.mean.square().sum():
        raise DataError("all images have the same features; give images that differ")
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
    return Head(moments.images, layer.weight.detach(), layer.bias.detach())


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
