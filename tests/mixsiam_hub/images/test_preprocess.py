"""Preprocessing equals torchvision's on PIL images, and long strips stay small."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from mixsiam_hub.errors import ImageError
from mixsiam_hub.images import preprocess as preprocess_module
from mixsiam_hub.images.preprocess import (
    MAX_RESIZED_PIXELS,
    _resize,
    load_pixels,
    load_pixels_and_facts,
    normalise,
    preprocess,
    resize_and_crop,
)
from mixsiam_hub.model.config import INTERPOLATIONS, Preprocessing

PILLOW = tuple(int(part) for part in PIL.__version__.split(".")[:2])
SIZES = [(1, 1), (1, 7), (9, 1), (2, 3), (31, 32), (32, 31), (32, 32), (33, 47), (36, 36), (37, 36), (36, 39)]
SIZES += [(64, 101), (101, 64), (255, 37), (123, 456), (500, 375), (333, 500), (17, 900)]


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("input_px", "crop_pct"), [(32, 1.0), (32, 0.875), (33, 0.9), (32, 0.4)])
def test_equals_torchvision_bit_for_bit(interpolation: str, input_px: int, crop_pct: float) -> None:
    transforms = pytest.importorskip("torchvision.transforms", reason="needs the extra torch")
    pre = Preprocessing(input_px, crop_pct, interpolation)
    reference = transforms.Compose(
        [
            transforms.Resize(pre.resize_px, transforms.InterpolationMode(interpolation), antialias=True),
            transforms.CenterCrop(input_px),
        ]
    )
    # torchvision resizes by Pillow, whose order before 13 was another one in tall images.
    for size in (size for size in SIZES if PILLOW >= (13,) or size[1] <= 2 * size[0]):
        image = noise(*size)
        np.testing.assert_array_equal(resize_and_crop(image, pre), np.asarray(reference(image)), err_msg=str(size))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_the_order_of_the_passes_is_that_of_pillow_13(interpolation: str) -> None:
    """Older Pillow takes the width first in every image; then only these sizes differ from its single call."""
    resampling = Image.Resampling[interpolation.upper()]
    rng = np.random.default_rng(0)
    for _ in range(200):
        width, height, *size = (int(edge) for edge in rng.integers(1, 120, 4))
        image = noise(width, height)
        ours = _resize(image, (size[0], size[1]), resampling)
        by_height = size[1] < height and height - size[1] > 2 * (width - size[0])
        if PILLOW >= (13,) or not by_height:
            np.testing.assert_array_equal(
                np.asarray(ours), np.asarray(image.resize(size, resampling)), err_msg=str(size)
            )
        between = (width, size[1]) if by_height else (size[0], height)
        literal = image.resize(between, resampling).resize(size, resampling)
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(literal))


def test_a_tall_image_is_shrunk_alike_by_every_version_of_pillow() -> None:
    """The digest is that of Pillow 13's single call."""
    y, x = np.mgrid[:217, :40]
    image = Image.fromarray(np.stack([x * 37 % 256, y * 91 % 256, (x * y) % 256], -1).astype(np.uint8))
    pixels = resize_and_crop(image, Preprocessing(16))
    assert (
        hashlib.sha256(pixels.tobytes()).hexdigest()
        == "0f89bd879521b1b4236df90cec0f2e898ad52c08be264db9d28407df209e718f"
    )


def test_normalise_equals_torchvision_bit_for_bit() -> None:
    torch = pytest.importorskip("torch", reason="needs the extra torch")
    transforms = pytest.importorskip("torchvision.transforms", reason="needs the extra torch")
    pre = Preprocessing(16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
    pixels = np.arange(16 * 16 * 3, dtype=np.int64).reshape(16, 16, 3).astype(np.uint8)  # every byte in every channel
    scaled = torch.from_numpy(pixels).permute(2, 0, 1).float().div(255)
    reference = transforms.Normalize(pre.mean, pre.std)(scaled).numpy()
    np.testing.assert_array_equal(normalise(pixels, pre), reference)


def test_normalise_takes_one_image_or_a_batch() -> None:
    pre = Preprocessing(4)
    batch = np.stack([np.asarray(noise(4, 4)), np.asarray(noise(5, 5).crop((0, 0, 4, 4)))])
    out = normalise(batch, pre)
    assert out.shape == (2, 3, 4, 4)
    assert out.dtype == np.float32
    assert out.flags.c_contiguous
    np.testing.assert_array_equal(out[1], normalise(batch[1], pre))
    np.testing.assert_allclose(out[0, 2, 1, 3], (batch[0, 1, 3, 2] / 255 - pre.mean[2]) / pre.std[2], atol=1e-6)


def test_preprocess_is_both_steps() -> None:
    pre = Preprocessing(20, 0.8)
    image = noise(50, 41)
    out = preprocess(image, pre)
    assert out.shape == (3, 20, 20)
    np.testing.assert_array_equal(out, normalise(resize_and_crop(image, pre), pre))


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    image = noise(24, 24)
    np.testing.assert_array_equal(resize_and_crop(image, Preprocessing(24)), np.asarray(image))


@pytest.mark.parametrize("size", [(1, 20000), (20000, 1)])
@pytest.mark.parametrize("input_px", [32, 64, 224])
def test_a_long_strip_is_refused_before_it_is_resized(
    size: tuple[int, int], input_px: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image.Image, "resize", lambda *_, **__: pytest.fail("resized"))
    with pytest.raises(ImageError, match=f"{size[0]}x{size[1]}.*{MAX_RESIZED_PIXELS}"):
        resize_and_crop(Image.new("RGB", size), Preprocessing(input_px))


def test_errors_of_load_pixels_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "strip.png"
    Image.new("RGB", (20000, 1)).save(path)
    with pytest.raises(ImageError, match=r"strip\.png: 20000x1 would be resized"):
        load_pixels(path, Preprocessing(64))
    with pytest.raises(ImageError, match=r"absent\.png: no such file"):
        load_pixels(tmp_path / "absent.png", Preprocessing(64))


def test_load_pixels_is_load_then_resize(tmp_path: Path) -> None:
    path = tmp_path / "grey.png"
    noise(40, 30).convert("L").save(path)
    expected = resize_and_crop(noise(40, 30).convert("L").convert("RGB"), Preprocessing(24))
    np.testing.assert_array_equal(load_pixels(path, Preprocessing(24)), expected)


def photo(width: int, height: int) -> Image.Image:
    """A smooth picture with some detail, as a camera gives it."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    planes = [np.sin(9 * x + 4 * y), np.cos(7 * y - 3 * x), np.sin(40 * x * y)]
    return Image.fromarray(np.uint8(127.5 + 120 * np.stack(planes, axis=-1)))


def encoded(image: Image.Image, form: str = "JPEG", turn: int | None = None) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    if turn:
        exif[0x0112] = turn
    image.save(file, form, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize(("width", "height"), [(1000, 700), (641, 2001), (1023, 517)])
def test_fast_decoding_is_off_by_a_few_levels(width: int, height: int, turn: int | None) -> None:
    data, pre = encoded(photo(width, height), turn=turn), Preprocessing(64)
    exact, facts = load_pixels_and_facts(data, pre)
    fast, fast_facts = load_pixels_and_facts(data, pre, decode="fast")
    assert fast_facts == facts
    assert (facts.width, facts.height) == ((height, width) if turn > 4 else (width, height))
    difference = np.abs(exact.astype(int) - fast)
    assert 0 < difference.mean() < 0.6
    assert difference.max() <= 6


def test_fast_decoding_never_goes_below_twice_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    resize = preprocess_module.resize_and_crop
    monkeypatch.setattr(
        preprocess_module, "resize_and_crop", lambda image, *others: sizes.append(image.size) or resize(image, *others)
    )
    for edge in (127, 128, 255, 256, 400, 512, 600, 1023, 1024, 4000):
        load_pixels_and_facts(encoded(photo(edge + 40, edge)), Preprocessing(64), decode="fast")
    assert [min(size) for size in sizes] == [127, 128, 255, 128, 200, 128, 150, 256, 128, 500]


def test_fast_decoding_changes_no_other_image() -> None:
    pre, turned = Preprocessing(64), encoded(photo(400, 200), "TIFF", turn=6)
    for source in (
        encoded(photo(500, 400), "PNG"),
        encoded(photo(200, 250)),
        photo(500, 400),
        b"\xff\xd8\xff no JPEG",
        turned,
    ):
        results = []
        for decode in ("exact", "fast"):
            try:
                results.append(load_pixels_and_facts(source, pre, decode=decode))
            except ImageError as error:
                results.append(str(error))
        if isinstance(results[0], str):
            assert results[0] == results[1]
        else:
            np.testing.assert_array_equal(results[0][0], results[1][0])
            assert results[0][1] == results[1][1]
            assert results[0][1] == results[1][1]
