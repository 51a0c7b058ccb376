"""Where images come from, and that batches are a function of (seed, epoch, index) and of nothing else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from encoding import encoded

torch = pytest.importorskip("torch", reason="needs the extra train")
pa = pytest.importorskip("pyarrow", reason="needs the extra train")

import pyarrow.parquet as pq
from PIL import ExifTags, Image

from mixsiam_hub.errors import DataError, ImageError
from mixsiam_hub.images.load import load_image
from mixsiam_hub.images.preprocess import normalise
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.images.sources import ImageSet
from mixsiam_hub.images.stream import named_error
from mixsiam_hub.model.config import Preprocessing
from mixsiam_hub.training import data
from mixsiam_hub.training.augment import Augmentation
from mixsiam_hub.training.data import (
    Order,
    ViewBatch,
    ViewPlan,
    Views,
    class_numbers,
    collate,
    common_classes,
    make_loader,
    normalise_on_device,
    open_for_training,
    open_images,
    sample,
)

HOW = Augmentation(16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 images in two classes, one of them nested deeper."""
    for i, (name, image) in enumerate(draw_samples(24).items()):
        place = tmp_path / "images" / ("cats/indoor" if i % 3 == 0 else "dogs")
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / name)
    return tmp_path / "images"


LABELS = [i % 3 for i in range(12)]


def write_parquet(path: Path, *, labels: list[object] | None, plain: bool = False) -> None:
    files = [encoded(image) for image in draw_samples(12).values()]
    image = files if plain else [{"bytes": file, "path": None} for file in files]
    columns = {"image": image} | ({"label": labels} if labels else {})
    pq.write_table(pa.table(columns), path, row_group_size=5)


def batches(data: str | Path, workers: int = 0, first_step: int = 0, **options: object) -> list[ViewBatch]:
    images = open_images(str(data))
    views = Views(images, ViewPlan(HOW, **options), seed=3)
    return list(make_loader(views, Order(len(images), 4, 2, 3, first_step), workers))


def test_folder_is_searched_and_its_first_level_is_the_label(folder: Path) -> None:
    images = open_images(str(folder))
    assert len(images) == 24
    assert images.labels is not None
    assert Counter(images.labels) == {"cats": 8, "dogs": 16}
    assert (images[0].key, images[0].label) == (str(sorted(folder.rglob("*.png"))[0]), "cats")


def test_flat_folder_has_no_labels(folder: Path) -> None:
    assert open_images(str(folder / "dogs")).labels is None


@pytest.mark.parametrize("plain", [False, True])
def test_parquet_struct_and_plain_bytes(tmp_path: Path, plain: bool) -> None:
    write_parquet(tmp_path / "a.parquet", labels=LABELS, plain=plain)
    images = open_images(str(tmp_path / "a.parquet"))
    expected = [np.asarray(image) for image in draw_samples(12).values()]
    assert all(np.array_equal(np.asarray(load_image(images[i].source)), expected[i]) for i in range(12))
    assert images.labels == [str(label) for label in LABELS]


@pytest.mark.parametrize("labels", [[-1] * 12, [0] * 11 + [-1], [0] * 11 + [None], [0.5] * 12])
def test_parquet_whose_labels_are_not_all_known_classes_has_none(tmp_path: Path, labels: list[object]) -> None:
    write_parquet(tmp_path / "a.parquet", labels=labels)
    images = open_images(str(tmp_path / "a.parquet"))
    assert (len(images), images.labels) == (12, None)


def test_folder_of_parquet_files_is_one_set(tmp_path: Path) -> None:
    for name in ("train-0.parquet", "train-1.parquet"):
        write_parquet(tmp_path / name, labels=None)
    assert len(open_images(str(tmp_path))) == 24
    assert len(open_images(str(tmp_path / "train-*.parquet"))) == 24
    assert open_images(str(tmp_path)).labels is None


def test_parquet_without_images_says_what_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"picture": [b"x"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no column 'image'; it has picture"):
        open_images(str(tmp_path / "a.parquet"))
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"b\.parquet"):
        open_images(str(tmp_path / "b.parquet"))


def test_parts_of_the_split_are_disjoint_whole_and_fixed() -> None:
    whole, train, val = (open_images(spec) for spec in ("digits", "digits::train", "digits::val"))
    assert len(val) == len(whole) // 10
    assert np.array_equal(np.sort(np.concatenate([train.indices, val.indices])), whole.indices)
    assert np.array_equal(val.indices, open_images("digits::val").indices)
    assert val.labels is not None
    assert whole.labels is not None
    assert val.labels == [whole.labels[index] for index in val.indices]
    assert len(set(val.labels)) == 10


@pytest.mark.parametrize("spec", ["nowhere", "digits::test", "nowhere/*.parquet"])
def test_what_is_not_there_is_named(spec: str) -> None:
    with pytest.raises(DataError, match=spec.replace("*", r"\*") if "::" not in spec else "train and val"):
        open_images(spec)


def test_training_and_validation(folder: Path) -> None:
    train, val = open_for_training("digits", "split")
    assert val is not None
    assert not set(train.indices) & set(val.indices)
    assert open_for_training(str(folder / "dogs"), "split")[1] is None
    with pytest.raises(DataError, match="no labels"):
        open_for_training("digits", str(folder / "dogs"))
    with pytest.raises(DataError, match="no labels"):
        open_for_training(str(folder / "dogs"), "digits")
    with pytest.raises(DataError, match="--data"):
        open_for_training("", "")
    with pytest.raises(DataError, match="part of a split"):
        open_for_training("digits::train", "split")


def test_batches_do_not_depend_on_workers(folder: Path) -> None:
    alone, shared = batches(folder), batches(folder, workers=2)
    assert len(alone) == len(shared) == 12
    for a, b in zip(alone, shared, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))


def test_batches_can_start_in_the_middle_of_an_epoch(folder: Path) -> None:
    for a, b in zip(batches(folder)[7:], batches(folder, first_step=7), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))


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

    with patch("mixsiam_hub.training.data.load_image", noted):
        jpeg, png = (Views(open_images(str(tmp_path / name)), plan, seed=3)[0, 0] for name in ("jpeg", "png"))
    assert max(decoded[0].size) < 210  # A quarter.
    assert max(decoded[1].size) == 801
    for name in ("views", "local_views"):
        off = np.abs(getattr(jpeg, name).astype(int) - getattr(png, name))
        assert off.mean() < 2  # Of 255.
        assert getattr(png, name).std() > 50
    np.testing.assert_array_equal(jpeg.colours, png.colours)


def class_folders(root: Path, *names: str) -> ImageSet:
    """Two images in a folder for each class."""
    for name in names:
        (root / name).mkdir(parents=True)
        for file, image in draw_samples(2).items():
            image.save(root / name / file)
    return open_images(str(root))


def test_classes_of_two_folders_are_compared_by_name(tmp_path: Path) -> None:
    train = class_folders(tmp_path / "train", "cat", "dog", "fox")
    test = class_folders(tmp_path / "test", "dog", "fox", "owl")
    classes = common_classes(train, test)
    assert classes == ["cat", "dog", "fox", "owl"]
    assert class_numbers(train, classes).tolist() == [0, 0, 1, 1, 2, 2]
    assert class_numbers(test, classes).tolist() == [1, 1, 2, 2, 3, 3]


def test_sets_without_a_common_class_and_labels_of_two_kinds_are_refused(tmp_path: Path) -> None:
    train = class_folders(tmp_path / "train", "cat", "dog")
    with pytest.raises(DataError, match=r"no class in common: cat, dog, and fox, owl"):
        common_classes(train, class_folders(tmp_path / "test", "fox", "owl"))
    with pytest.raises(DataError, match=r"digits has numbers for its classes and .*train has names"):
        common_classes(train, open_images("digits"))
    with pytest.raises(DataError, match="numbers"):
        open_for_training(str(tmp_path / "train"), "digits")


def test_a_sample_is_in_random_order_and_the_same_again(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", labels=[0] * 6 + [1] * 6)
    images = open_images(str(tmp_path / "a.parquet"))
    assert sorted(sample(images, 99).indices) == list(range(12))
    assert sample(images, 12).labels not in (images.labels, images.labels[::-1])
    assert np.array_equal(sample(images, 5).indices, sample(images, 12).indices[:5])


def test_other_processes_draw_the_same_views_where_there_is_no_fork(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows and macOS: images, augmentation and collation reach the other process pickled."""
    monkeypatch.setattr(data, "_start_method", lambda: "spawn")
    (folder / "dogs" / "broken.png").write_bytes(b"no image")
    images = open_images(str(folder))
    views = Views(images, ViewPlan(HOW), 0)
    here, there = (list(make_loader(views, Order(len(images), 25, 1, 0), workers)) for workers in (0, 1))
    assert len(here) == len(there) == 1
    for one, two in zip(here[0][:3], there[0][:3], strict=True):
        assert torch.equal(one, two)
    assert here[0].skipped == there[0].skipped
    assert list(here[0].skipped) == [str(folder / "dogs" / "broken.png")]
