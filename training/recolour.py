"""The colours of views, changed where the network is: jitter, grey and blur, each view by its own draw.

torchvision's formulas for one float tensor, done to a batch at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
COLOURS = 10
"""Numbers that say what is to be done to a view:

- factors of brightness, contrast and saturation (1 changes nothing), and the shift of hue in turns (0 changes nothing);
- which of these four comes first, second, third and last;
- 1 where all colour goes after that, else 0;
- sigma in pixels of the Gaussian blur that comes last, up to MAX_SIGMA_PX, or 0.
"""
UNCHANGED = (1.0, 1.0, 1.0, 0.0)
MAX_SIGMA_PX = 2.0

_GREY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in a grey as bright."""
_CPU_PIXELS = 2**17
"""Handled at once on a CPU, so that what is between two operations stays in its cache."""


def recolour(pixels: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
    """Changes the colours of views.

    Args:
        pixels: (n, 3, H, W) uint8 RGB, on any device.
        colours: (n, COLOURS) float32, as `augment.draw_view` draws them; on the CPU, so that no GPU is waited for.

    Returns:
        (n, 3, H, W) float32 RGB, 0 to 255.
    """
    factors, order, grey, sigma = colours[:, :4], colours[:, 4:8], colours[:, 8:9], colours[:, 9:]
    changes: tuple[tuple[Callable[..., torch.Tensor], torch.Tensor, tuple[torch.Tensor, ...]], ...] = (
        (_jitter, (factors != torch.tensor(UNCHANGED)).any(dim=1), (factors, order)),
        (_lose_colour, grey[:, 0] != 0, ()),
        (_blur, sigma[:, 0] != 0, (sigma,)),
    )
    views = pixels.float()
    height, width = pixels.shape[2:]
    at_once = max(1, len(pixels) if views.is_cuda else _CPU_PIXELS // (height * width))
    for change, acts, amounts in changes:
        rows = acts.nonzero()[:, 0]
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            there = part.to(views.device)
            views[there] = change(views[there], *(amount[part] for amount in amounts))
    return views


def _jitter(views: torch.Tensor, factors: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Changes brightness, contrast, saturation and hue, in place: (n, 3, H, W), (n, 4), (n, 4)."""
    for place in range(4):
        step = order[:, place]
        factor = factors.gather(1, step.long()[:, None])[:, 0]  # (n,)
        is_hue = step == HUE
        blend = torch.where(is_hue, 1, factor)
        shares = torch.stack([blend, (1 - blend) * (step == CONTRAST), (1 - blend) * (step == SATURATION)])
        _blend(views, *shares[..., None, None, None].to(views.device))
        rows = is_hue.nonzero()[:, 0]
        if len(rows):
            there = rows.to(views.device)
            views[there] = _shift_hue(views[there], factor[rows].to(views.device))
    return views


def _lose_colour(views: torch.Tensor) -> torch.Tensor:
    """Gives each pixel its grey: (n, 3, H, W) -> (n, 3, H, W)."""
    return _grey(views).expand_as(views)


def _grey(views: torch.Tensor) -> torch.Tensor:
    """(n, 3, H, W) -> (n, 1, H, W)."""
    grey = _GREY[0] * views[:, :1]
    return grey.add_(views[:, 1:2], alpha=_GREY[1]).add_(views[:, 2:], alpha=_GREY[2])


def _blend(views: torch.Tensor, factor: torch.Tensor, to_mean: torch.Tensor, to_grey: torch.Tensor) -> None:
    """Multiplies views in place, and adds shares of their mean grey and of each pixel's: (n, 3, H, W), (n, 1, 1, 1)."""
    grey = _grey(views)
    mean = grey.mean(dim=(2, 3), keepdim=True)
    views.mul_(factor).add_(grey.mul_(to_grey).add_(to_mean * mean)).clamp_(0, 255)


def _shift_hue(views: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Shifts the hue at the same value and saturation, in HSV: (n, 3, H, W), (n,) -> (n, 3, H, W)."""
    red, green, blue = views.unbind(dim=1)  # (n, H, W) each
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    scale = 1 / chroma.clamp_min(1e-9)
    # 0 or 1, between which torch.lerp chooses, in less time than torch.where.
    is_below_red, is_below_green = (value - red).sign_(), (value - green).sign_()
    sextant = torch.lerp((blue - red).mul_(scale).add_(2), (red - green).mul_(scale).add_(4), is_below_green)
    sextant = torch.lerp((green - blue).mul_(scale), sextant, is_below_red).add_(6 * turns[:, None, None])
    sextant.sub_(torch.floor(sextant / 6), alpha=6)  # In [0, 6)
    pure = torch.stack([(sextant - 3).abs_() - 1, 2 - (sextant - 2).abs_(), 2 - (sextant - 4).abs_()], dim=1)
    return pure.clamp_(0, 1).mul_(chroma[:, None]).add_((value - chroma)[:, None])


def _blur(views: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Blurs each view by its own Gaussian, mirrored at the edges: (n, 3, H, W), (n, 1) -> (n, 3, H, W)."""
    n, _, height, width = views.shape
    radius = min(math.ceil(3 * MAX_SIGMA_PX), height - 1, width - 1)
    at = torch.arange(-radius, radius + 1, device=views.device)
    weights = torch.softmax(-((at / sigma.to(views.device)) ** 2) / 2, dim=1)  # (n, 2 radius + 1)
    kernels = weights.repeat_interleave(3, dim=0)[:, None, :, None]  # (3 n, 1, 2 radius + 1, 1)
    image = functional.pad(views.reshape(1, 3 * n, height, width), 4 * [radius], mode="reflect")
    image = functional.conv2d(image, kernels, groups=3 * n)
    return functional.conv2d(image, kernels.transpose(2, 3), groups=3 * n).reshape(views.shape)
