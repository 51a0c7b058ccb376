"""Where images come from, how they are split, and which classes they have."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from encoding import encoded

torch = pytest.importorskip("torch", reason="needs the extra train")
pa = pytest.importorskip("pyarrow", reason="needs the extra train")

import pyarrow.parquet as pq

from mixsiam_hub.errors import DataError
from mixsiam_hub.images.load import load_image
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.images.sources import ImageSet
from mixsiam_hub.training.augment import Augmentation
from mixsiam_hub.training.data import class_numbers, common_classes, open_for_training, open_images, sample

HOW = Augmentation(16)


LABELS = [i % 3 for i in range(12)]


def write_parquet(path: Path, *, labels: list[object] | None, plain: bool = False) -> None:
    files = [encoded(image) for image in draw_samples(12).values()]
    image = files if plain else [{"bytes": file, "path": None} for file in files]
    columns = {"image": image} | ({"label": labels} if labels else {})
    pq.write_table(pa.table(columns), path, row_group_size=5)


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
