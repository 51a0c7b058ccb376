"""Batches of views are a function of (seed, epoch, index) and of nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")
pa = pytest.importorskip("pyarrow", reason="needs the extra train")

from PIL import ExifTags, Image

from mixsiam_hub.errors import ImageError
from mixsiam_hub.images.load import load_image
from mixsiam_hub.images.preprocess import normalise
from mixsiam_hub.images.stream import named_error
from mixsiam_hub.model.config import Preprocessing
from mixsiam_hub.training import views as views_module
from mixsiam_hub.training.augment import Augmentation
from mixsiam_hub.training.data import open_images
from mixsiam_hub.training.features import normalise_on_device
from mixsiam_hub.training.order import Order
from mixsiam_hub.training.views import ViewBatch, ViewPlan, Views, collate, make_loader

HOW = Augmentation(16)


def batches(data: str | Path, workers: int = 0, first_step: int = 0, **options: object) -> list[ViewBatch]:
    images = open_images(str(data))
    views = Views(images, ViewPlan(HOW, **options), seed=3)
    return list(make_loader(views, Order(len(images), 4, 2, 3, first_step), workers))


def test_batches_do_not_depend_on_workers(folder: Path) -> None:
    alone, shared = batches(folder), batches(folder, workers=2)
    assert len(alone) == len(shared) == 12
    for a, b in zip(alone, shared, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:-1], b[:-1], strict=True))


def test_batches_can_start_in_the_middle_of_an_epoch(folder: Path) -> None:
    for a, b in zip(batches(folder)[7:], batches(folder, first_step=7), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:-1], b[:-1], strict=True))


def test_epochs_differ_in_order_and_views() -> None:
    order = list(Order(10, 5, 2, seed=0))
    first, second = [[position for batch in order[i : i + 2] for _, position in batch] for i in (0, 2)]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    views = Views(open_images("digits"), ViewPlan(HOW), seed=0)
    one, two = views[0, 5], views[1, 5]
    assert isinstance(one, tuple)
    assert isinstance(two, tuple)
    assert not np.array_equal(one.views, two.views)
    assert not np.array_equal(one.views[0], one.views[1])
    assert one.lams != two.lams


def test_the_mixture_leaves_the_views_as_they_were(folder: Path) -> None:
    for a, b in zip(batches(folder), batches(folder, mixture="cutmix"), strict=True):
        assert torch.equal(a.views, b.views)
        assert a.lams.shape != b.lams.shape


def test_corrupt_images_are_left_out_and_named(folder: Path) -> None:
    broken = sorted((folder / "dogs").iterdir())[3]
    broken.write_bytes(broken.read_bytes()[:60])
    found = batches(folder)
    skipped = [item for batch in found for item in batch.skipped.items()]
    assert [key for key, _ in skipped] == [str(broken)] * 2  # Once an epoch.
    assert all(str(broken) in reason for _, reason in skipped)
    assert {batch.size + len(batch.skipped) for batch in found} == {4}


def test_a_batch_of_corrupt_images_is_empty() -> None:
    errors = [named_error(key, ImageError(f"{key}: cut short")) for key in ("a.png", "b.png")]
    batch = collate(errors)
    assert batch.size == 0
    assert batch.skipped == {"a.png": "a.png: cut short", "b.png": "b.png: cut short"}


def test_normalise_on_device_equals_the_deployed_preprocessing_to_the_last_bit() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    ours = normalise_on_device(torch.from_numpy(pixels).permute(0, 3, 1, 2), Preprocessing(8))
    assert np.array_equal(ours.numpy(), normalise(pixels, Preprocessing(8)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_large_jpegs_are_decoded_smaller_and_their_views_are_the_same(tmp_path: Path, orientation: int) -> None:
    """Against the same pixels as PNG, which are decoded in full."""
    waves = np.sin(np.arange(600)[:, None, None] / [31, 47, 59] + np.arange(801)[None, :, None] / [43, 37, 29])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    original = Image.fromarray((127 + 120 * waves).astype(np.uint8))
    for name in ("jpeg", "png"):
        (tmp_path / name).mkdir()
    original.save(tmp_path / "jpeg/a.jpg", quality=95, exif=exif)
    original.save(tmp_path / "png/a.png", exif=exif)
    plan = ViewPlan(
        Augmentation(24, crop_scale=(0.5, 1)), views=3, local_how=Augmentation(12, (0.2, 0.5)), local_views=2
    )
    decoded = []

    def noted(*args: Any, **options: Any) -> Image.Image:
        decoded.append(load_image(*args, **options))
        return decoded[-1]

    with patch("mixsiam_hub.training.views.load_image", noted):
        jpeg, png = (Views(open_images(str(tmp_path / name)), plan, seed=3)[0, 0] for name in ("jpeg", "png"))
    assert max(decoded[0].size) < 210  # A quarter.
    assert max(decoded[1].size) == 801
    for name in ("views", "local_views"):
        off = np.abs(getattr(jpeg, name).astype(int) - getattr(png, name))
        assert off.mean() < 2  # Of 255.
        assert getattr(png, name).std() > 50
    np.testing.assert_array_equal(jpeg.colours, png.colours)


def test_other_processes_draw_the_same_views_where_there_is_no_fork(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows and macOS: images, augmentation and collation reach the other process pickled."""
    monkeypatch.setattr(views_module, "_start_method", lambda: "spawn")
    (folder / "dogs" / "broken.png").write_bytes(b"no image")
    images = open_images(str(folder))
    views = Views(images, ViewPlan(HOW), 0)
    here, there = (list(make_loader(views, Order(len(images), 25, 1, 0), workers)) for workers in (0, 1))
    assert len(here) == len(there) == 1
    for one, two in zip(here[0][:-1], there[0][:-1], strict=True):
        assert torch.equal(one, two)
    assert here[0].skipped == there[0].skipped
    assert list(here[0].skipped) == [str(folder / "dogs" / "broken.png")]
