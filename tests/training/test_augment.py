"""Every augmentation does nothing at p = 0, acts at p = 1, and leaves the draws of the others alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")

from PIL import Image

from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.training.augment import CROP_RATIO, Augmentation, draw_crop, draw_view
from mixsiam_hub.training.recolour import COLOURS, recolour
from mixsiam_hub.training.streams import Purpose, stream

OFF = Augmentation(32, (1.0, 1.0), flip=0, jitter=0, grey=0, blur=0)


def picture() -> Image.Image:
    """Colourful and square, so that the whole image is an allowed crop."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((32, 32), Image.Resampling.BICUBIC)


def view(how: Augmentation, index: int = 0) -> np.ndarray:
    pixels, colours = draw_view(picture(), how, stream(0, Purpose.VIEW_1, 0, index))
    planes = torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())
    return recolour(planes, torch.from_numpy(colours[None]))[0].permute(1, 2, 0).numpy()


def whole_crops() -> list[int]:
    """Streams whose crop happens to be the whole image, so that only the switched step can change it."""
    found = []
    for index in range(4000):
        how = replace(OFF, crop_scale=(0.9999, 1.0))
        if draw_crop(32, 32, how.crop_scale, stream(0, Purpose.VIEW_1, 0, index)) == (0, 0, 32, 32):
            found.append(index)
    return found[:5]


def test_all_off_is_the_image_itself() -> None:
    indices = whole_crops()
    assert indices
    how = replace(OFF, crop_scale=(0.9999, 1.0))
    for index in indices:
        assert np.array_equal(view(how, index), np.asarray(picture()))


@pytest.mark.parametrize("step", ["flip", "jitter", "grey", "blur", "shrink"])
def test_each_step_acts_at_one_and_only_then(step: str) -> None:
    how = replace(OFF, crop_scale=(0.5, 1.0))
    changed = [not np.array_equal(view(how, i), view(replace(how, **{step: 1.0}), i)) for i in range(20)]
    assert np.mean(changed) > 0.7 if step == "blur" else all(changed)  # A blur of 0.1 px changes no pixel.
    same = [np.array_equal(view(how, i), view(replace(how, **{step: 0.0}), i)) for i in range(20)]
    assert all(same)


@pytest.mark.parametrize("step", ["flip", "jitter", "grey", "blur", "shrink"])
def test_each_step_acts_about_as_often_as_asked(step: str) -> None:
    acted = [not np.array_equal(view(OFF, i), view(replace(OFF, **{step: 0.5}), i)) for i in range(200)]
    assert 0.35 < np.mean(acted) < 0.65


def test_flip_mirrors() -> None:
    for index in range(5):
        assert np.array_equal(view(OFF, index)[:, ::-1], view(replace(OFF, flip=1.0), index))


def test_grey_has_equal_channels() -> None:
    grey = view(replace(OFF, grey=1.0))
    assert np.array_equal(grey[..., 0], grey[..., 1])
    assert np.array_equal(grey[..., 0], grey[..., 2])


@pytest.mark.parametrize("step", ["blur", "shrink"])
def test_blur_and_few_pixels_smooth(step: str) -> None:
    def roughness(pixels: np.ndarray) -> float:
        return float(np.abs(np.diff(pixels.astype(float), axis=0)).mean())

    indices = range(20)
    assert np.mean([roughness(view(replace(OFF, **{step: 1.0}), i)) for i in indices]) < 0.9 * np.mean(
        [roughness(view(OFF, i)) for i in indices]
    )


def test_switching_a_step_off_leaves_the_others_as_they_were() -> None:
    both, one = replace(OFF, flip=1.0, jitter=1.0), replace(OFF, jitter=1.0)
    for index in range(5):
        np.testing.assert_allclose(view(both, index)[:, ::-1], view(one, index), atol=1e-3)  # Of 255.


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 400), (400, 1), (80, 90), (200, 190)])
def test_crops_lie_inside_and_have_the_asked_area(height: int, width: int) -> None:
    areas = []
    for index in range(300):
        left, top, right, bottom = draw_crop(width, height, (0.2, 1.0), stream(0, Purpose.VIEW_1, 0, index))
        w, h = right - left, bottom - top
        assert 0 <= top <= top + h <= height
        assert 0 <= left <= left + w <= width
        assert h > 0
        assert w > 0
        areas.append(h * w / (height * width))
    if min(height, width) > 30:
        assert 0.18 < min(areas) < 0.3
        assert max(areas) > 0.8


def test_crops_keep_the_ratio_within_bounds() -> None:
    for index in range(300):
        left, top, right, bottom = draw_crop(300, 300, (0.2, 1.0), stream(0, Purpose.VIEW_1, 0, index))
        assert CROP_RATIO[0] * 0.97 < (right - left) / (bottom - top) < CROP_RATIO[1] * 1.03


def test_odd_images_of_every_size_give_views() -> None:
    for index, image in enumerate(draw_samples(8).values()):
        pixels, colours = draw_view(image, Augmentation(24), stream(0, Purpose.VIEW_2, 0, index))
        assert pixels.shape == (24, 24, 3)
        assert pixels.dtype == np.uint8
        assert colours.shape == (COLOURS,)
        assert colours.dtype == np.float32
