"""Embedding by a Ray cluster: the same batches, computed by tasks on all its machines.

Ray Data would need to know all images before it starts. These are found while the run goes on, and what a folder holds
already is left out, so blocks of images go to plain Ray tasks as they come. Ray runs a task again where its machine or
its process was lost, and a block's vectors are the same wherever they are computed.
"""

from __future__ import annotations

import functools
import os
import pickle
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

from mixsiam_hub.encoder import Batch, ImageEncoder, OnError
from mixsiam_hub.errors import BackendError, missing_extra
from mixsiam_hub.images.sources import Item
from mixsiam_hub.untrusted import one_line

BATCHES_A_TASK = 4
_TASKS_A_SLOT = 2
"""One that runs, and one that waits for it to end."""
_RETRIES = 5
"""Of a block whose machine or process was lost: an image that kills its process must not do so for ever."""


class RayEncoder:
    """An `ImageEncoder` whose batches come from a Ray cluster, which `connected` gave.

    The process of a task opens the encoder once. Paths of images and of the model must lead to the same files on all
    machines, which need this package.
    """

    def __init__(self, encoder: ImageEncoder, cpus: int) -> None:
        """Takes the encoder that the tasks open again.

        Args:
            encoder: On a GPU, each task takes one.
            cpus: Else how many CPUs each task takes: the encoder's threads.
        """
        self._needs = {"num_gpus": 1} if encoder.device.startswith("cuda") else {"num_cpus": cpus}
        self._pickled = pickle.dumps(encoder)
        self.fingerprint, self.variant, self.revision = encoder.fingerprint, encoder.variant, encoder.revision
        self.dim = encoder.dim

    def embed_stream(
        self,
        images: Iterable[Item],
        *,
        batch_size: int = 32,
        on_error: OnError = "raise",
        with_sha256: bool = False,
    ) -> Iterator[Batch]:
        """Yields batches as `ImageEncoder.embed_stream` does, in the order of the images.

        Twice as many blocks of images as the cluster computes at a time are under way.

        Raises:
            ImageError: A bad image, with `raise`.
            ModelError: The network gives NaN or infinite features.
            BackendError: A block was lost again and again.
        """
        ray = _ray()
        task = ray.remote(_embed_block).options(**self._needs, max_retries=_RETRIES)
        under_way: deque[tuple[Any, list[Item]]] = deque()
        first = 0
        remaining = iter(images)
        while True:
            while len(under_way) < self._slots() * _TASKS_A_SLOT:
                if not (block := [_absolute(item) for item in islice(remaining, batch_size * BATCHES_A_TASK)]):
                    break
                under_way.append((task.remote(self._pickled, block, batch_size, with_sha256), block))
            if not under_way:
                return
            result, block = under_way.popleft()
            for batch in _batches(result, block):
                if batch.errors and on_error == "raise":
                    raise next(iter(batch.errors.values()))
                errors = {place + first: error for place, error in batch.errors.items()}
                yield Batch(batch.indices + first, batch.keys, batch.vectors, errors, batch.facts)
            first += len(block)

    def _slots(self) -> int:
        """Returns how many tasks the cluster runs at a time, as it is now."""
        resources = _ray().cluster_resources()
        of_tasks = self._needs.get("num_cpus") or 1
        return max(1, int(resources.get("GPU" if "num_gpus" in self._needs else "CPU", 0)) // of_tasks)


@contextmanager
def connected() -> Iterator[None]:
    """Joins the cluster that RAY_ADDRESS names, or starts one of this machine, and leaves it at the end.

    Raises:
        MissingExtraError: ray is not installed.
    """
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    ray.init(log_to_driver=False, logging_level="warning")
    try:
        yield
    finally:
        ray.shutdown()


def _batches(result: Any, block: list[Item]) -> list[Batch]:
    """Waits for the batches of a block; errors within its task are raised as they were there."""
    ray = _ray()
    try:
        batches: list[Batch] = ray.get(result)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        names = f"{one_line(block[0].key)} to {one_line(block[-1].key)}"
        raise BackendError(
            f"the images {names} could not be embedded in {_RETRIES + 1} trials: {one_line(error)}"
        ) from error
    return batches


def _absolute(item: Item) -> Item:
    """Returns an image whose file is found from whatever folder a node works in."""
    return replace(item, source=os.path.abspath(item.source)) if isinstance(item.source, str) else item


def _embed_block(pickled: bytes, block: list[Item], batch_size: int, with_sha256: bool) -> list[Batch]:
    batches = _opened(pickled).embed_stream(block, batch_size=batch_size, on_error="skip", with_sha256=with_sha256)
    return list(batches)


@functools.cache
def _opened(pickled: bytes) -> ImageEncoder:
    """Returns the encoder of this process."""
    encoder: ImageEncoder = pickle.loads(pickled)
    return encoder


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError:
        missing_extra("ray", "ray")
    return ray
