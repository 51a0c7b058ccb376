"""Colours changed in a batch are those that torchvision gives each view by itself."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")
functional = pytest.importorskip("torchvision.transforms.functional", reason="needs the extra train")

from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.training import recolour as module
from mixsiam_hub.training.augment import Augmentation, draw_view
from mixsiam_hub.training.recolour import BRIGHTNESS, COLOURS, CONTRAST, HUE, MAX_SIGMA_PX, SATURATION, recolour
from mixsiam_hub.training.streams import Purpose, stream


def drawn(count: int, how: Augmentation) -> tuple[torch.Tensor, torch.Tensor]:
    images = draw_samples(count).values()
    views = [draw_view(image, how, stream(0, Purpose.VIEW_1, 0, index)) for index, image in enumerate(images)]
    pixels, colours = (torch.from_numpy(np.stack(column)) for column in zip(*views, strict=True))
    return pixels.permute(0, 3, 1, 2).contiguous(), colours


def by_torchvision(pixels: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
    """One view, (3, H, W) uint8 -> float32, 0 to 255."""
    adjust = {
        BRIGHTNESS: functional.adjust_brightness,
        CONTRAST: functional.adjust_contrast,
        SATURATION: functional.adjust_saturation,
        HUE: functional.adjust_hue,
    }
    view = pixels / 255
    for step in colours[4:8].tolist():
        view = adjust[step](view, float(colours[int(step)]))
    if colours[8]:
        view = functional.rgb_to_grayscale(view, num_output_channels=3)
    if sigma := float(colours[9]):
        edge = 2 * min(6, pixels.shape[1] - 1) + 1
        view = functional.gaussian_blur(view, [edge, edge], [sigma, sigma])
    return 255 * view


@pytest.mark.parametrize(
    "how", [Augmentation(24), Augmentation(32, jitter=1, grey=0.5, blur=1), Augmentation(5, blur=1)]
)
def test_each_view_is_what_torchvision_makes_of_it(how: Augmentation) -> None:
    pixels, colours = drawn(64, how)
    ours = recolour(pixels, colours)
    theirs = torch.stack([by_torchvision(*one) for one in zip(pixels, colours, strict=True)])
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)
    changed = (ours != pixels).flatten(1).any(dim=1)
    assert changed.float().mean() > 0.7


def test_what_is_to_be_left_alone_is() -> None:
    pixels, colours = drawn(16, Augmentation(24, jitter=0, grey=0, blur=0))
    np.testing.assert_array_equal(recolour(pixels, colours), pixels)
    every_level = torch.arange(256, dtype=torch.uint8).repeat(3, 1).T.reshape(1, 16, 16, 3).permute(0, 3, 1, 2)
    np.testing.assert_array_equal(recolour(every_level, colours[:1]), every_level)


def test_a_view_does_not_depend_on_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, colours = drawn(32, Augmentation(24))
    whole = recolour(pixels, colours)
    monkeypatch.setattr(module, "_CPU_PIXELS", 5 * 24 * 24)
    np.testing.assert_array_equal(recolour(pixels, colours), whole)
    single = torch.cat([recolour(pixels[i : i + 1], colours[i : i + 1]) for i in range(32)])
    np.testing.assert_array_equal(single, whole)


def test_no_views_are_none() -> None:
    assert recolour(torch.empty(0, 3, 8, 8, dtype=torch.uint8), torch.empty(0, COLOURS)).shape == (0, 3, 8, 8)


def test_a_blur_keeps_the_mean_and_reaches_three_sigma() -> None:
    pixels = torch.zeros(1, 3, 33, 33, dtype=torch.uint8)
    pixels[..., 16, 16] = 255
    colours = torch.tensor([[1, 1, 1, 0, 0, 1, 2, 3, 0, MAX_SIGMA_PX]])
    blurred = recolour(pixels, colours)[0, 0].numpy()
    assert blurred[16, 16] == pytest.approx(255 / (2 * np.pi * MAX_SIGMA_PX**2), abs=1)
    assert np.flatnonzero(blurred.max(axis=0)).min() >= 16 - 3 * MAX_SIGMA_PX
