"""Images far away come in an order that does not leap, whatever reads them, and a broken line ends in an error."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")
fsspec = pytest.importorskip("fsspec", reason="needs the extra train")
pytest.importorskip("sklearn", reason="needs the extra train")
pytest.importorskip("tensorboard", reason="needs the extra train")

from encoding import encoded, tar
from PIL import Image
from small_run import assert_same_run, recipe, tell_to_stop

from mixsiam_hub.errors import DataError
from mixsiam_hub.images.remote import open_address
from mixsiam_hub.training import shards
from mixsiam_hub.training.augment import Augmentation
from mixsiam_hub.training.data import Digits, open_images
from mixsiam_hub.training.loop import train
from mixsiam_hub.training.order import Lanes, Order, through_buffer
from mixsiam_hub.training.shards import ShardReader, lanes_of
from mixsiam_hub.training.views import ViewBatch, ViewPlan, Views, make_loader

ADDRESS = "memory:///digits/*.tar"
IMAGES = 230
PER_SHARD = 30


@pytest.fixture(scope="module", autouse=True)
def bucket() -> Iterator[None]:
    """230 digits in shards of 30, the last of 20."""
    digits = Digits()
    for start in range(0, IMAGES, PER_SHARD):
        members = {}
        for i in range(start, min(start + PER_SHARD, IMAGES)):
            pixels = digits[i].source
            members |= {f"{i}.png": encoded(Image.fromarray(pixels)), f"{i}.cls": digits.label(i).encode()}
        fsspec.filesystem("memory").pipe(f"/digits/{start:03}.tar", tar(members))
    yield
    fsspec.filesystem("memory").rm("/digits", recursive=True)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that were opened to be read on."""
    addresses = []

    def note(address: str, **options: Any) -> Any:
        addresses.append(address)
        return open_address(address, **options)

    monkeypatch.setattr(shards, "open_address", note)
    return addresses


def lanes(parts: int, turns: int, held: int = 20, batch_size: int = 8) -> Lanes:
    indices = np.arange(IMAGES)
    return Lanes(indices // PER_SHARD, indices, batch_size, 0, parts=parts, turns=turns, held=held)


@pytest.mark.parametrize(("parts", "turns"), [(1, 1), (2, 1), (1, 3), (4, 2), (8, 8)])
def test_every_image_comes_once_an_epoch(parts: int, turns: int) -> None:
    arrangement = lanes(parts, turns)
    first, second = arrangement(0), arrangement(1)
    for order in (first, second):
        assert len(order) == len(set(order.tolist())) == IMAGES // 8 * 8
        assert set(order.tolist()) <= set(range(IMAGES))
    assert first.tolist() != second.tolist()
    assert arrangement(0).tolist() == first.tolist()


def test_a_lane_reads_its_shards_one_after_the_other() -> None:
    batches = lanes(parts=2, turns=2)(0).reshape(-1, 2, 4)
    of_lanes = [set(batches[turn::2, part].ravel() // PER_SHARD) for part in range(2) for turn in range(2)]
    assert sum(map(len, of_lanes)) <= IMAGES / PER_SHARD + 4  # Each of eight shards in one lane, or at a seam in two.


def test_a_buffer_draws_only_from_what_was_read() -> None:
    order = through_buffer(np.arange(1000), 50, np.random.default_rng(0))
    assert sorted(order) == list(range(1000))
    assert all(value <= place + 50 for place, value in enumerate(order))
    assert np.abs(order - np.arange(1000)).mean() > 20
    assert sorted(through_buffer(np.arange(3), 50, np.random.default_rng(0))) == [0, 1, 2]
    assert len(through_buffer(np.arange(0), 50, np.random.default_rng(0))) == 0


def batches(
    workers: int, first_step: int = 0, *, rank: int = 0, processes: int = 1, in_turn: bool = True
) -> list[ViewBatch]:
    """Two epochs in batches of 8, in the order of a run of two processes that began with two workers each."""
    images = open_images(f"{ADDRESS}::train")
    order = Order(
        len(images), 8, 2, 3, first_step, rank=rank, processes=processes, arrangement=lanes_of(images, 8, 3, 2, 2)
    )
    reader = ShardReader(images, order) if in_turn else None
    return list(make_loader(Views(images, ViewPlan(Augmentation(16)), 3, reader), order, workers))


def assert_equal(a: list[ViewBatch], b: list[ViewBatch]) -> None:
    assert len(a) == len(b) > 0
    for one, two in zip(a, b, strict=True):
        assert one.size == two.size > 0
        assert all(torch.equal(x, y) for x, y in zip(one[:-1], two[:-1], strict=True))


def test_batches_are_those_of_images_read_one_by_one() -> None:
    expected = batches(0, in_turn=False)
    for workers in (0, 1, 2, 3):
        assert_equal(batches(workers), expected)
        assert_equal(batches(workers, first_step=11), expected[11:])


def test_processes_share_the_batches() -> None:
    whole = batches(0)
    parts = [batches(1, rank=rank, processes=2) for rank in range(2)]
    for batch, *halves in zip(whole, *parts, strict=True):
        assert torch.equal(batch.views, torch.cat([half.views for half in halves], dim=1))


def test_a_shard_is_opened_once_an_epoch_and_few_images_are_held(
    opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_images(ADDRESS)
    size = int(images.store.sizes.mean())
    monkeypatch.setattr(shards, "HELD_BYTES", 20 * size)
    order = Order(len(images), 10, 2, 0, arrangement=lanes_of(images, 10, 0, 1, 1))
    reader = ShardReader(images, order)
    held = []
    for epoch, position in chain.from_iterable(order):
        item = reader.item(epoch, position)
        assert item.key == images[position].key
        assert item.label == images[position].label
        assert item.source == images[position].source.read_bytes()
        held.append(len(reader._held))
    assert len(opened) == 2 * len(set(opened)) == 16
    assert max(held) <= 20
    assert not reader._open


def break_at(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """The line breaks after so many bytes of a shard, the first few times."""
    breaks = []

    class Breaking:
        def __init__(self, file: Any) -> None:
            self._file = file
            self.seek = file.seek

        def read(self, size: int) -> bytes:
            if len(breaks) < times:
                breaks.append(size)
                raise OSError("the line broke")
            return self._file.read(size)

    open_file = fsspec.open

    class Opened:
        def __init__(self, *args: Any) -> None:
            self._opened = open_file(*args)

        def __enter__(self) -> Any:
            file = self._opened.__enter__()
            breaking = Breaking(file)
            breaking.seekable = file.seekable
            return breaking

        def __exit__(self, *args: Any) -> None:
            self._opened.__exit__(*args)

    monkeypatch.setattr(shards, "PAUSES_S", (0, 0, 0))
    open_images(ADDRESS)  # Indexed before the line breaks.
    monkeypatch.setattr(fsspec, "open", Opened)
    return breaks


def test_where_the_line_breaks_reading_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = batches(0)
    breaks = break_at(monkeypatch, times=3)
    assert_equal(batches(0), expected)
    assert len(breaks) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_where_it_stays_broken_the_loader_says_so(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    break_at(monkeypatch, times=10**6)
    with pytest.raises(DataError, match=r"^memory:///digits/\d+\.tar cannot be read: the line broke; .*--resume$"):
        batches(workers)


def test_a_run_goes_on_with_other_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = [f'data="{ADDRESS}"', 'val_data="split"', "epochs=1"]
    runs = whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train(recipe(whole, *data, "workers=2")).finished
    tell_to_stop(monkeypatch, 2)
    assert train(recipe(stopped, *data, "workers=2")).interrupted
    monkeypatch.undo()
    assert train(recipe(stopped, *data, "workers=1"), resume=True).finished
    assert_same_run(*runs)
