"""Is the encoder learning, or collapsing? Numbers that tell, and the verdict that rests on all of them.

The std of normalised z alone proves nothing: after a BatchNorm without affine, a rank-1 z and a nearly constant input
both score 1. Rank, the variance before that BatchNorm, and the kNN tell them apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mixsiam_hub.errors import DataError
from mixsiam_hub.model.config import Preprocessing
from mixsiam_hub.training.data import ImageSet
from mixsiam_hub.training.features import clean_batches, extract
from mixsiam_hub.training.knn import knn_accuracy
from mixsiam_hub.training.model import MixSiam

RANK_IMAGES = 1024
BANK_IMAGES = 5000
QUERY_IMAGES = 2000
MAX_BIAS = 0.56
"""`max_bias` of two unrelated views: sqrt(1 / pi)."""

ADVICE = (
    "halve lr: large steps early on are the usual cause",
    "raise weight_decay to at least 1e-4: without it the heads can drift into the constant solution",
    "make views harder to tell apart by a shortcut: raise jitter and grey, or lower the smallest crop_scale",
)
"""What to change after a collapse."""


@dataclass(frozen=True)
class Health:
    """One epoch's health numbers (method, "Health numbers and the verdict").

    Attributes:
        rank_backbone: Effective rank of backbone features of a fixed sample, eval mode.
        rank_z: The same of projector outputs.
        pre_bn_var_min: Smallest variance of a unit before the projector's last BatchNorm, over its eps.
        pre_bn_var_median: The median of the same.
        z_std: Mean over units of the batch std of z / |z|, times sqrt(D), averaged over the epoch; 1 is isotropic.
        max_bias: Mean cosine of z_max with the all-ones vector, averaged over the epoch.
        knn20: Accuracy of validation images against a sample of training images, k = 20, or None without labels.
        knn200: The same at k = 200.
    """

    rank_backbone: float
    rank_z: float
    pre_bn_var_min: float
    pre_bn_var_median: float
    z_std: float
    max_bias: float
    knn20: float | None = None
    knn200: float | None = None


class Monitor:
    """Measures one model again and again on the same images, which are decoded once.

    With `val`, both sets must have labels: they give the kNN.
    """

    def __init__(self, train: ImageSet, val: ImageSet | None, pre: Preprocessing, precision: str) -> None:
        self._pre = pre
        self._precision = precision
        self._bank = _decode(train.sample(BANK_IMAGES if val is not None else RANK_IMAGES), pre)
        self._val = None if val is None else _decode(val.sample(QUERY_IMAGES), pre)

    def measure(self, model: MixSiam, z_std: float, max_bias: float) -> Health:
        """Measures the model in eval mode, leaving it as it was.

        Args:
            model: To measure.
            z_std: The epoch's mean of `z_std()`.
            max_bias: The epoch's mean of `max_bias()`.
        """
        was_training = model.training
        model.eval()
        features = self._extract(model.backbone, self._bank.pixels)
        queries = None if self._val is None else self._extract(model.backbone, self._val.pixels)
        *layers, last_norm = model.projector
        before = _apply(nn.Sequential(*layers), features[:RANK_IMAGES])
        z = _apply(last_norm, before)
        model.train(was_training)
        if not (np.isfinite(features).all() and np.isfinite(z).all()):
            return Health(math.nan, math.nan, math.nan, math.nan, z_std, max_bias)
        variance = before.var(axis=0) / last_norm.eps
        knn = self._knn(features, queries)
        return Health(
            effective_rank(features[:RANK_IMAGES]),
            effective_rank(z),
            float(variance.min()),
            float(np.median(variance)),
            z_std,
            max_bias,
            knn.get(20),
            knn.get(200),
        )

    def raw_pixel_knn(self) -> dict[int, float]:
        """Returns the floor on the same images: kNN of raw pixels by k; empty without labels."""
        return self._knn(raw_pixels(self._bank.pixels), None if self._val is None else raw_pixels(self._val.pixels))

    def _knn(self, bank: NDArray[np.float32], queries: NDArray[np.float32] | None) -> dict[int, float]:
        if self._val is None or queries is None or self._bank.labels is None or self._val.labels is None:
            return {}
        return knn_accuracy(bank, self._bank.labels, queries, self._val.labels)

    def _extract(self, backbone: nn.Module, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        chunks = (pixels[start : start + 256] for start in range(0, len(pixels), 256))
        return extract(backbone, chunks, self._pre, self._precision)


class _Decoded(NamedTuple):
    """(n, S, S, 3) uint8 pixels and (n,) labels, None where there are none."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64] | None


def effective_rank(features: NDArray[np.float32]) -> float:
    """RankMe (arXiv 2210.02885): exp of the entropy of the singular values over their sum.

    Args:
        features: (N, D).

    Returns:
        Between 1 and min(N, D); 0 where every feature is 0.
    """
    singular = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    if not singular.any():
        return 0.0
    p = singular / singular.sum()
    p = p[p > 0]
    return math.exp(-(p * np.log(p)).sum())


def z_std(z: torch.Tensor) -> torch.Tensor:
    """Mean over units of the batch std of z / |z|, times sqrt(D), of (N, D) projections; a scalar."""
    return nn.functional.normalize(z, dim=1).std(dim=0).mean() * math.sqrt(z.shape[1])


def max_bias(z_max: torch.Tensor) -> torch.Tensor:
    """Mean over images of the cosine of z_max, (N, D), with the all-ones vector; a scalar.

    0.56 for two unrelated views of unit variance, 0.18 at a correlation of 0.9. The cosine of the batch's *mean* says
    nothing: after a BatchNorm it is near 1 for every encoder.
    """
    return nn.functional.cosine_similarity(z_max, torch.ones_like(z_max), dim=1).mean()


def verdict(now: Health, initial: Health) -> str:
    """Judges an encoder: `healthy`, `weak` or `collapsed`.

    Collapsed: numbers that are not finite, features or projections of rank near 1, units that no longer vary before
    the last BatchNorm (their variance under its eps: what it then amplifies is noise), or projections that hardly
    differ. Weak: most of the rank at initialisation is lost, some units are dead, the maximum's mean dominates the
    target, or the kNN fell below where random weights stood.

    Args:
        now: Of the epoch.
        initial: Of the same model before training.
    """
    is_finite = all(math.isfinite(value) for value in vars(now).values() if value is not None)
    lost_all = now.rank_backbone < 2 or now.rank_z < 2 or now.pre_bn_var_median < 1 or now.z_std < 0.1
    if lost_all or not is_finite:
        return "collapsed"
    lost_rank = now.rank_backbone < initial.rank_backbone / 4 or now.rank_z < initial.rank_z / 4
    lost_knn = now.knn20 is not None and initial.knn20 is not None and now.knn20 < 0.9 * initial.knn20
    dominated = now.max_bias > MAX_BIAS
    return "weak" if lost_rank or lost_knn or dominated or now.pre_bn_var_min < 1 or now.z_std < 0.5 else "healthy"


def raw_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The floor every encoder must clear: (N, S, S, 3) uint8 as 16x16 RGB, mean-centred per image, (N, 768) float32."""
    small = nn.functional.adaptive_avg_pool2d(torch.from_numpy(pixels).permute(0, 3, 1, 2).float(), 16)
    flat = small.flatten(1)
    centred: NDArray[np.float32] = (flat - flat.mean(dim=1, keepdim=True)).numpy()
    return centred


def _decode(images: ImageSet, pre: Preprocessing) -> _Decoded:
    batches = list(clean_batches(images, pre))
    if not batches:
        raise DataError(f"{images.name}: none of {len(images)} sampled images can be read")
    kept = np.concatenate([positions for _, positions in batches])
    labels = None if images.labels is None else images.labels[kept]
    return _Decoded(np.concatenate([pixels for pixels, _ in batches]), labels)


@torch.inference_mode()
def _apply(layers: nn.Module, features: NDArray[np.float32]) -> NDArray[np.float32]:
    device = next(iter(layers.buffers())).device
    out: NDArray[np.float32] = layers(torch.from_numpy(features).to(device)).cpu().numpy()
    return out
