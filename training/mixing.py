"""The mixture of two views of the same image (method, section 3: not of two images, as in mixup)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

MIXTURES = ("linear", "cutmix")


def draw_lam(mixture: str, alpha: float, size_px: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draws the weight of x1 for one image.

    The distribution of lam is open in the paper; Beta(alpha, alpha), one draw an image, is our choice.

    Args:
        mixture: `linear`: one number for the whole image. `cutmix` (ablation): a mask that is 0 in a box of x2 with the
            area 1 - lam, cut at the border, and 1 elsewhere.
        alpha: Of the Beta distribution, above 0.
        size_px: Edge of the views.
        rng: The image's own mixture stream.

    Returns:
        (1, 1, 1) for `linear`, (1, size_px, size_px) for `cutmix`, values in [0, 1].
    """
    lam = rng.beta(alpha, alpha)
    if mixture == "linear":
        return np.full((1, 1, 1), lam, np.float32)
    half = size_px * np.sqrt(1 - lam) / 2
    centre = rng.uniform(0, size_px, size=2)
    top, left = np.clip(np.round(centre - half), 0, size_px).astype(int)
    bottom, right = np.clip(np.round(centre + half), 0, size_px).astype(int)
    mask = np.ones((1, size_px, size_px), np.float32)
    mask[:, top:bottom, left:right] = 0
    return mask


def draw_pair(views: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draws which two views of an image are mixed, (2,); of two views always the first and the second, as the paper."""
    return np.sort(rng.choice(views, size=2, replace=False)) if views > 2 else np.arange(2)


def mix(x1: torch.Tensor, x2: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
    """Returns x_m = lam x1 + (1 - lam) x2.

    Args:
        x1: (N, 3, H, W), normalised.
        x2: As x1.
        lam: (N, 1, 1, 1) or (N, 1, H, W) in [0, 1].
    """
    return lam * x1 + (1 - lam) * x2


def pick(views: Sequence[torch.Tensor] | torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Takes of each image the view of its number.

    Args:
        views: K times (N, 3, H, W).
        numbers: (N,) int64, from 0 to K - 1.

    Returns:
        (N, 3, H, W).
    """
    picked = views[0]
    for number, view in enumerate(views[1:], start=1):
        picked = torch.where((numbers == number)[:, None, None, None], view, picked)
    return picked
