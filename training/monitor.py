"""Is the encoder learning, or collapsing? Numbers that tell, and the verdict that rests on all of them.

The std of normalised z alone proves nothing: after a BatchNorm without affine, a rank-1 z and a nearly constant input
both score 1. Rank, the variance before that BatchNorm, and the kNN tell them apart.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mixsiam_hub.images.sources import ImageSet
from mixsiam_hub.model.config import Preprocessing
from mixsiam_hub.training.data import class_numbers, common_classes, sample
from mixsiam_hub.training.features import extract, in_batches, input_statistics, read_batches, use_statistics
from mixsiam_hub.training.knn import knn_accuracy
from mixsiam_hub.training.model import MixSiam

RANK_IMAGES = 1024
BANK_IMAGES = 5000
QUERY_IMAGES = 2000
MAX_BIAS = 0.56
"""`target_bias` of the maximum of two unrelated views: sqrt(1 / pi)."""

ADVICE = (
    "halve lr: large steps early on are the usual cause",
    "raise weight_decay to at least 1e-4: without it the heads can drift into the constant solution",
    "make views harder to tell apart by a shortcut: raise jitter and grey, or lower the smallest crop_scale",
)
"""What to change where an encoder is not healthy."""


@dataclass(frozen=True)
class Health:
    """One epoch's health numbers (method, "Health numbers and the verdict").

    Attributes:
        rank_backbone: Effective rank of backbone features of a fixed sample, eval mode.
        rank_z: The same of projector outputs.
        pre_bn_var_min: Smallest variance of a unit before the projector's last BatchNorm, over its eps.
        pre_bn_var_median: The median of the same.
        z_std: Mean over units of the batch std of z / |z|, times sqrt(D), averaged over the epoch; 1 is isotropic. None
            before training.
        target_bias: Mean cosine of the mixture's target with the all-ones vector, averaged over the epoch. None before
            training, and where there is no mixture.
        knn20: Accuracy of validation images against a sample of training images, k = 20, or None without labels.
        knn200: The same at k = 200.
    """

    rank_backbone: float
    rank_z: float
    pre_bn_var_min: float
    pre_bn_var_median: float
    z_std: float | None = None
    target_bias: float | None = None
    knn20: float | None = None
    knn200: float | None = None


class Monitor:
    """Measures one model again and again on the same images, which are decoded once."""

    def __init__(self, train: ImageSet, val: ImageSet | None, pre: Preprocessing, precision: str) -> None:
        """Decodes a random sample of the images.

        Args:
            train: Training images; with `val` labelled.
            val: Labelled images for the kNN; None for no kNN.
            pre: The deployed preprocessing.
            precision: `fp32` or `bf16`, of the features.

        Raises:
            DataError: None of the sample can be read, or the two sets have no class in common.
        """
        self._pre = pre
        self._precision = precision
        classes = [] if val is None else common_classes(train, val)
        self._bank = _decode(sample(train, BANK_IMAGES if classes else RANK_IMAGES), pre, classes)
        self._val = None if val is None else _decode(sample(val, QUERY_IMAGES), pre, classes)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """A random sample of the training images as the encoder sees them, (n, S, S, 3) uint8 RGB."""
        return self._bank.pixels

    def measure_untrained(self, model: MixSiam) -> Health:
        """Measures a model that has seen no image yet, as if its BatchNorms had seen the clean ones.

        Args:
            model: To measure; stays as it is.
        """
        model = copy.deepcopy(model)
        encoder = nn.Sequential(model.backbone, model.projector)
        use_statistics(encoder, input_statistics(encoder, in_batches(self._bank.pixels), self._pre))
        return self.measure(model)

    def measure(self, model: MixSiam, z_std: float | None = None, target_bias: float | None = None) -> Health:
        """Measures the model in eval mode, leaving it as it was.

        Args:
            model: To measure.
            z_std: The epoch's mean of `z_std()`.
            target_bias: The epoch's mean of `target_bias()`, where there is a target.
        """
        was_training = model.training
        model.eval()
        features = self._extract(model.backbone, self._bank.pixels)
        queries = None if self._val is None else self._extract(model.backbone, self._val.pixels)
        *layers, last_norm = model.projector
        before = _apply(nn.Sequential(*layers), features[:RANK_IMAGES])  # (n, C) -> (n, D)
        z = _apply(last_norm, before)
        model.train(was_training)
        if not (np.isfinite(features).all() and np.isfinite(z).all()):
            return Health(math.nan, math.nan, math.nan, math.nan, z_std, target_bias)
        variance = before.var(axis=0) / last_norm.eps  # (n, D) -> (D,)
        knn = self._knn(features, queries)
        return Health(
            effective_rank(features[:RANK_IMAGES]),
            effective_rank(z),
            float(variance.min()),
            float(np.median(variance)),
            z_std,
            target_bias,
            knn.get(20),
            knn.get(200),
        )

    def raw_pixel_knn(self) -> dict[int, float]:
        """Returns the floor on the same images: kNN of raw pixels by k; empty without labels."""
        return self._knn(raw_pixels(self._bank.pixels), None if self._val is None else raw_pixels(self._val.pixels))

    def _knn(self, bank: NDArray[np.float32], queries: NDArray[np.float32] | None) -> dict[int, float]:
        if self._val is None or queries is None:
            return {}
        return knn_accuracy(bank, self._bank.labels, queries, self._val.labels)

    def _extract(self, backbone: nn.Module, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return extract(backbone, in_batches(pixels), self._pre, self._precision)


class _Decoded(NamedTuple):
    """(n, S, S, 3) uint8 pixels and their classes, (n,), by number; (0,) where no kNN is asked for."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


def effective_rank(features: NDArray[np.float32]) -> float:
    """RankMe (arXiv 2210.02885): exp of the entropy of the singular values over their sum.

    Args:
        features: (N, D).

    Returns:
        Between 1 and min(N, D); 0 where every feature is 0.
    """
    singular = np.linalg.svd(features.astype(np.float64), compute_uv=False)  # (N, D) -> (min(N, D),)
    if not singular.any():
        return 0.0
    p = singular / singular.sum()
    p = p[p > 0]
    return math.exp(-(p * np.log(p)).sum())


def health_of(line: Mapping[str, Any]) -> Health:
    """Returns the health numbers of a log line, where None stands for what is not finite."""
    needed = vars(Health(math.nan, math.nan, math.nan, math.nan, math.nan if line["epoch"] else None))
    return Health(**{key: needed[key] if value is None else value for key, value in line["health"].items()})


def z_std(z: torch.Tensor) -> torch.Tensor:
    """Mean over units of the batch std of z / |z|, times sqrt(D), of (N, D) projections; a scalar."""
    return nn.functional.normalize(z, dim=1).std(dim=0).mean() * math.sqrt(z.shape[1])


def target_bias(target: torch.Tensor) -> torch.Tensor:
    """Mean over images of the cosine of a target, (N, D), with the all-ones vector; a scalar.

    For the maximum of two views it is 0.56 if they are unrelated and of unit variance, 0.18 at a correlation of 0.9.
    The cosine of the batch's *mean* says nothing: after a BatchNorm it is near 1 for every encoder.
    """
    return nn.functional.cosine_similarity(target, torch.ones_like(target), dim=1).mean()


def verdict(now: Health, initial: Health) -> str | None:
    """Judges an encoder: `healthy`, `weak` or `collapsed`; None before training.

    Collapsed: numbers that are not finite, features or projections of rank near 1, units that no longer vary before
    the last BatchNorm (their variance under its eps: what it then amplifies is noise), or projections that hardly
    differ. Weak: most of the rank at initialisation is lost, some units are dead, the target is mostly one constant
    direction, or the kNN fell below where random weights stood. An objective without such a target is not judged by it.

    Args:
        now: Of the epoch.
        initial: Of the same model before training.
    """
    if now.z_std is None:
        return None
    if _signs_of_collapse(now, now.z_std):
        return "collapsed"
    return "weak" if _signs_of_weakness(now, initial, now.z_std) else "healthy"


def explain(now: Health, initial: Health, raw_pixel_knn20: float | None) -> str:
    """Returns the verdict with its numbers, and where it is not healthy what speaks against and what to change.

    Args:
        now: Of an epoch.
        initial: Of the same model before training.
        raw_pixel_knn20: The floor, or None without labels.
    """
    judged = verdict(now, initial)
    if judged is None or now.z_std is None:
        return "before training"
    numbers = [
        f"effective rank of features {now.rank_backbone:.0f} ({initial.rank_backbone:.0f} before training)",
        f"of projections {now.rank_z:.0f} ({initial.rank_z:.0f})",
        f"z_std {now.z_std:.2f}",
    ]
    if now.knn20 is not None and initial.knn20 is not None and raw_pixel_knn20 is not None:
        numbers.append(f"kNN {now.knn20:.1%} ({initial.knn20:.1%}; raw pixels {raw_pixel_knn20:.1%})")
    lines = [f"{judged}: {', '.join(numbers)}"]
    if judged != "healthy":
        signs = _signs_of_collapse(now, now.z_std) or _signs_of_weakness(now, initial, now.z_std)
        lines += ["because " + ", and ".join(signs), "try: " + "; or ".join(ADVICE)]
    return "\n".join(lines)


def _signs_of_collapse(now: Health, std: float) -> list[str]:
    is_finite = all(math.isfinite(value) for value in vars(now).values() if value is not None)
    signs = {
        "some numbers are not finite": not is_finite,
        "all features lie on one line": now.rank_backbone < 2,
        "all projections lie on one line": now.rank_z < 2,
        "half of the projector's units no longer vary": now.pre_bn_var_median < 1,
        "projections hardly differ": std < 0.1,
    }
    return [sign for sign, is_seen in signs.items() if is_seen]


def _signs_of_weakness(now: Health, initial: Health, std: float) -> list[str]:
    lost_knn = now.knn20 is not None and initial.knn20 is not None and now.knn20 < 0.9 * initial.knn20
    signs = {
        "features lost three quarters of their rank": now.rank_backbone < initial.rank_backbone / 4,
        "projections lost three quarters of their rank": now.rank_z < initial.rank_z / 4,
        "the kNN fell below that of random weights": lost_knn,
        "the mixtures' target is mostly one constant direction": (now.target_bias or 0) > MAX_BIAS,
        "some of the projector's units no longer vary": now.pre_bn_var_min < 1,
        "projections differ little": std < 0.5,
    }
    return [sign for sign, is_seen in signs.items() if is_seen]


def raw_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The floor every encoder must clear: (N, S, S, 3) uint8 as 16x16 RGB, mean-centred per image, (N, 768) float32."""
    planes = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()  # (N, S, S, 3) -> (N, 3, S, S)
    flat = nn.functional.adaptive_avg_pool2d(planes, 16).flatten(1)  # (N, 3, 16, 16) -> (N, 768)
    centred: NDArray[np.float32] = (flat - flat.mean(dim=1, keepdim=True)).numpy()
    return centred


def _decode(images: ImageSet, pre: Preprocessing, classes: Sequence[str]) -> _Decoded:
    batches = list(read_batches(images, pre))
    pixels = np.concatenate([batch.pixels for batch in batches])
    if not classes:
        return _Decoded(pixels, np.empty(0, np.int64))
    return _Decoded(pixels, class_numbers(images, classes)[np.concatenate([batch.indices for batch in batches])])


@torch.inference_mode()
def _apply(layers: nn.Module, features: NDArray[np.float32]) -> NDArray[np.float32]:
    device = next(iter(layers.buffers())).device
    out: NDArray[np.float32] = layers(torch.from_numpy(features).to(device)).cpu().numpy()
    return out
