"""Tars far away as training images: each read from its start to its end, by one process and worker where that can be.

To fetch images one by one takes a request for each. Read on, a shard comes as fast as the line is; so images come in
an order that does not leap, `order.Lanes`, and each worker reads the shards of its own lane.
"""

from __future__ import annotations

import time
from collections.abc import Generator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from mixsiam_hub.errors import DataError
from mixsiam_hub.images.remote import open_address
from mixsiam_hub.images.sources import ImageSet, Item
from mixsiam_hub.images.tar import TarStore
from mixsiam_hub.training.order import Lanes, Order

HELD_BYTES = 2**28
"""Encoded images that a worker holds, to draw the next one from."""
PAUSES_S = (1, 10, 60)
"""Before each new attempt to read a shard where the line broke."""


def lanes_of(images: ImageSet, batch_size: int, seed: int, parts: int, turns: int) -> Lanes | None:
    """Returns the order in which images far away are read.

    Args:
        images: The training images.
        batch_size: Of all processes together.
        seed: Of the run.
        parts: Processes that the run began with.
        turns: Workers of each that it began with.

    Returns:
        None where the images are here, and any order is as good.
    """
    store = images.store
    if not (isinstance(store, TarStore) and store.is_far):
        return None
    tars = store.tar_of(images.indices)
    held = max(1, HELD_BYTES // max(1, int(store.sizes[images.indices].mean())))
    return Lanes(tars, images.indices, batch_size, seed, parts=parts, turns=turns, held=held)


class ShardReader:
    """Reads the images that a worker of a loader will be asked for, in about the order of their shards."""

    def __init__(self, images: ImageSet, order: Order) -> None:
        """Takes what will be asked for.

        Args:
            images: In tars.
            order: The loader's, arranged by the lanes of these images.
        """
        assert isinstance(images.store, TarStore)
        self._images, self._order, self._store = images, order, images.store
        self._epoch = -1
        self._to_read: dict[int, NDArray[np.int64]] = {}
        self._open: dict[int, Generator[tuple[int, bytes], None, None]] = {}
        self._held: dict[int, bytes] = {}

    def item(self, epoch: int, position: int) -> Item:
        """Returns an image with its bytes.

        Args:
            epoch: As the order has it; never less than before.
            position: Of the image, asked for in that order.

        Raises:
            DataError: Its tar cannot be read on, after some attempts.
        """
        if epoch != self._epoch:
            self._begin(epoch)
        if position not in self._held:
            self._read_to(position)
        index = int(self._images.indices[position])
        item = self._store[index]
        return Item(item.key, self._held.pop(position), item.label)

    def _begin(self, epoch: int) -> None:
        """Finds what this worker will be asked for in an epoch; batches go to the workers in turns."""
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        asked = [
            positions
            for step, positions in self._order.batches(epoch)
            if (step - self._order.first_step) % count == number
        ]
        positions = np.concatenate(asked)
        indices = self._images.indices[positions]
        places = np.argsort(indices)
        tars = self._store.tar_of(indices[places])
        tar_numbers, starts = np.unique(tars, return_index=True)
        self._to_read = dict(zip(tar_numbers.tolist(), np.split(positions[places], starts[1:]), strict=True))
        self._epoch, self._open, self._held = epoch, {}, {}

    def _read_to(self, position: int) -> None:
        """Reads a shard on until it comes to an image; holds all of those passed that will be asked for."""
        tar = int(self._store.tar_of(self._images.indices[position]))
        pauses = iter(PAUSES_S)
        while position not in self._held:
            if tar not in self._open:
                self._open[tar] = self._read(tar)
            try:
                found, data = next(self._open[tar])
            except DataError as error:
                del self._open[tar]
                if (pause := next(pauses, None)) is None:
                    raise DataError(f"{error}; the last checkpoint stays: mend that and add --resume") from error
                time.sleep(pause)
            else:
                self._held[found] = data
        if not len(self._to_read[tar]):
            self._open.pop(tar).close()

    def _read(self, tar: int) -> Generator[tuple[int, bytes], None, None]:
        """Yields the images of a tar that were not yet read; where it is read anew, it goes on behind the last."""
        path = self._store.paths[tar]
        positions = self._to_read[tar]
        with open_address(path, start=int(self._store.offsets[self._images.indices[positions[0]]])) as file:
            for count, position in enumerate(positions.tolist(), start=1):
                index = int(self._images.indices[position])
                size = int(self._store.sizes[index])
                file.seek(int(self._store.offsets[index]))
                data = file.read(size)
                if len(data) < size:
                    raise DataError(f"{path} has become shorter: it ends within {self._store.names[index]!r}")
                self._to_read[tar] = positions[count:]
                yield position, data
