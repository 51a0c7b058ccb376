"""In which order a run takes its images: a pure function of its seed, so that it can go on from any step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from mixsiam_hub.training.streams import Purpose, permutation, stream

Arrangement = Callable[[int], NDArray[np.int64]]
"""The order of one epoch, by its number: (n,) or fewer positions, each once."""


class Order(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, position) from a step on: each epoch shuffled anew, its last incomplete batch left out.

    Of several processes each has its own part of every batch, all of the same size.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        epochs: int,
        seed: int,
        first_step: int = 0,
        *,
        rank: int = 0,
        processes: int = 1,
        arrangement: Arrangement | None = None,
    ) -> None:
        """Takes what determines the order.

        Args:
            images: How many there are.
            batch_size: Images a step, over all processes; a multiple of their number.
            epochs: Passes over the images.
            seed: Of the run.
            first_step: To go on from.
            rank: Number of this process, from 0.
            processes: How many there are.
            arrangement: Of each epoch; None for a permutation.
        """
        self.batch_size = batch_size
        self.epochs = epochs
        self.first_step = first_step
        self.steps = images // batch_size
        self.share = slice(rank * batch_size // processes, (rank + 1) * batch_size // processes)
        self._arrangement = arrangement or (lambda epoch: permutation(images, seed, Purpose.ORDER, epoch))

    def batches(self, epoch: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yields the steps of an epoch that are still to be done, and this process's part of each batch."""
        order = self._arrangement(epoch)
        for step in range(max(self.first_step, epoch * self.steps), (epoch + 1) * self.steps):
            start = step % self.steps * self.batch_size
            yield step, order[start : start + self.batch_size][self.share]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in range(self.first_step // max(self.steps, 1), self.epochs):
            for _, positions in self.batches(epoch):
                yield [(epoch, position) for position in positions.tolist()]

    def __len__(self) -> int:
        return self.epochs * self.steps - self.first_step


class Lanes:
    """An arrangement for shards that are read from their start to their end: shuffled, but never far.

    Each epoch takes the shards in another order and deals that sequence out in lanes: of every batch each of `parts`
    equal parts has lanes of its own, which it takes from in turns. So who loads one part of every so many batches
    needs one lane alone. A lane goes through a buffer: the next image is a random one of the `held` that were read.
    """

    def __init__(
        self,
        shards: NDArray[np.int64],
        indices: NDArray[np.int64],
        batch_size: int,
        seed: int,
        *,
        parts: int,
        turns: int,
        held: int,
    ) -> None:
        """Takes what determines the lanes.

        Args:
            shards: (n,) which shard each image lies in.
            indices: (n,) where each image comes among all, shard by shard.
            batch_size: A multiple of `parts`.
            seed: Of the run.
            parts: Of a batch, as many as there are processes.
            turns: Lanes of a part, as many as a process has workers.
            held: Images in a lane's buffer.
        """
        self._shards = shards
        self._indices = indices
        self._batch_size = batch_size
        self._seed = seed
        self._parts = parts
        self._turns = turns
        self._held = held

    def __call__(self, epoch: int) -> NDArray[np.int64]:
        """Returns the positions of an epoch's images, (steps * batch_size,), in order."""
        steps, size = len(self._indices) // self._batch_size, self._batch_size // self._parts
        rank = permutation(int(self._shards.max()) + 1, self._seed, Purpose.ORDER, epoch)
        sequence = np.lexsort((self._indices, rank[self._shards]))
        order = np.empty((steps, self._parts, size), np.int64)
        start = 0
        for part in range(self._parts):
            for turn in range(self._turns):
                batches = len(range(turn, steps, self._turns))
                lane = sequence[start : start + batches * size]
                start += len(lane)
                rng = stream(self._seed, Purpose.BUFFER, epoch, number=part * self._turns + turn)
                order[turn :: self._turns, part] = through_buffer(lane, self._held, rng).reshape(batches, size)
        return order.ravel()


def through_buffer(values: NDArray[np.int64], held: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Returns values, (n,), in the order in which they leave a buffer of `held`, each time a random one."""
    buffer = values[:held].tolist()
    out = []
    for value, place in zip(values[held:].tolist(), rng.integers(held, size=max(len(values) - held, 0)), strict=True):
        out.append(buffer[place])
        buffer[place] = value
    return np.array(out + rng.permutation(buffer).tolist(), np.int64)
