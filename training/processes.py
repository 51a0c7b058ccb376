"""The processes of one run: a single one, or those that torchrun started."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from mixsiam_hub.errors import MixsiamError
from mixsiam_hub.training.machine import pick_device

T = TypeVar("T")

LONGEST_WAIT = timedelta(days=1)
"""For another process, which may be indexing shards far away; one that ends is noticed at once, by torchrun."""


@dataclass(frozen=True)
class Processes:
    """This process among the others of its run. Alone, every method returns at once.

    Attributes:
        rank: Number of this process, from 0.
        count: How many there are.
        on_this_machine: How many of them share this machine's CPUs.
    """

    rank: int = 0
    count: int = 1
    on_this_machine: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one writes the run folder."""
        return self.rank == 0

    def wrap(self, model: nn.Module, sync_batchnorm: bool) -> nn.Module:
        """Returns a model that averages its gradients over the processes.

        Args:
            model: On this process's device.
            sync_batchnorm: Let every BatchNorm normalise by the images of all processes; CUDA only.
        """
        if self.count == 1:
            return model
        if sync_batchnorm:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        # Buffers differ from process to process and are shipped from the first; every forward would send them around.
        device = next(model.parameters()).device
        return DistributedDataParallel(
            model, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False
        )

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the sum of a tensor over all processes."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """Returns every process's value, by rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def first(self, work: Callable[[], T]) -> T:
        """Does work in the first process while the others wait, and returns its result in all of them.

        Raises:
            MixsiamError: What the work raises, in all processes.
        """
        if self.count == 1:
            return work()
        box: list[Any] = [None]
        if self.is_first:
            try:
                box = [work()]
            except MixsiamError as error:
                box = [error]
        distributed.broadcast_object_list(box, src=0)
        if isinstance(box[0], MixsiamError):
            raise box[0]
        result: T = box[0]
        return result


def rows_of_all(z: torch.Tensor) -> torch.Tensor:
    """Returns the rows of all processes, (N, D), for a loss of the whole batch; alone, z itself.

    All must call it, in the pass that `Processes.wrap` averages the gradients of. Each gives its own rows their share
    of the gradient, so that the average is that of one process with all images.

    Args:
        z: This process's rows, (n, D) float32.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return z
    count = distributed.get_world_size()
    lengths = [torch.empty(1, dtype=torch.int64) for _ in range(count)]
    distributed.all_gather(lengths, torch.tensor([len(z)]))  # Between CPUs: no GPU is waited for.
    longest = max(int(length) for length in lengths)
    parts = [z.new_empty(longest, z.shape[1]) for _ in range(count)]
    distributed.all_gather(parts, functional.pad(z.detach(), (0, 0, 0, longest - len(z))))
    rows = [part[: int(length)] for part, length in zip(parts, lengths, strict=True)]
    rows[distributed.get_rank()] = z.detach() + count * (z - z.detach())  # The same value, `count` times the gradient.
    return torch.cat(rows)


@contextmanager
def joined() -> Iterator[Processes]:
    """Joins the processes that torchrun started, by nccl on GPUs and gloo on CPUs; without torchrun there is one."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1 or not distributed.is_available():
        yield Processes()
        return
    device = pick_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backends = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backends, timeout=LONGEST_WAIT)
    try:
        yield Processes(distributed.get_rank(), count, int(os.environ.get("LOCAL_WORLD_SIZE", count)))
    finally:
        distributed.destroy_process_group()


@contextmanager
def sigterm_noted() -> Iterator[threading.Event]:
    """Sets an event where SIGTERM would end the process at once, so that a checkpoint can be written first."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # Only the main one may set handlers.
        yield told
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.set())
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)
