"""What a step is given: views of images as a pure function of the seed, in batches, from worker processes."""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mixsiam_hub.errors import DataError, ImageError, TrainingError
from mixsiam_hub.images.load import Draft, load_image
from mixsiam_hub.images.parquet import ParquetStore
from mixsiam_hub.images.sources import ImageSet, Item
from mixsiam_hub.images.stream import named_error
from mixsiam_hub.training.augment import Augmentation, Box, cut_view, draw_crop
from mixsiam_hub.training.mixing import draw_lam, draw_pair
from mixsiam_hub.training.order import Order
from mixsiam_hub.training.recolour import COLOURS, recolour
from mixsiam_hub.training.shards import ShardReader
from mixsiam_hub.training.streams import Purpose, stream
from mixsiam_hub.untrusted import one_line


@dataclass(frozen=True)
class ViewPlan:
    """What is drawn of each image.

    Attributes:
        how: Augmentation of the views.
        views: K, at least 2.
        local_how: Augmentation of the local views.
        local_views: V; 0 for none.
        mixture: One of mixing.MIXTURES.
        mixtures: M, at least 1.
        lam_alpha: lam ~ Beta(lam_alpha, lam_alpha).
    """

    how: Augmentation
    views: int = 2
    local_how: Augmentation | None = None
    local_views: int = 0
    mixture: str = "linear"
    mixtures: int = 1
    lam_alpha: float = 1.0


class Sample(NamedTuple):
    """What is drawn of one image.

    Attributes:
        views: (K, 3, S, S) uint8 RGB, in the image's colours.
        colours: What is to be done to those, (K, COLOURS) float32.
        local_views: (V, 3, s, s) uint8 RGB, likewise.
        local_colours: (V, COLOURS) float32.
        lams: Weight of the first view in each mixture, (M, 1, 1, 1) or (M, 1, S, S) float32.
        pairs: Which two views each mixture is of, (M, 2) int64.
    """

    views: NDArray[np.uint8]
    colours: NDArray[np.float32]
    local_views: NDArray[np.uint8]
    local_colours: NDArray[np.float32]
    lams: NDArray[np.float32]
    pairs: NDArray[np.int64]


class ViewBatch(NamedTuple):
    """One step's input, of n images: as of `Sample`, with n behind the first axis.

    Attributes:
        views: (K, n, 3, S, S) uint8 RGB.
        colours: (K, n, COLOURS) float32.
        local_views: (V, n, 3, s, s) uint8 RGB.
        local_colours: (V, n, COLOURS) float32.
        lams: (M, n, 1, 1, 1) or (M, n, 1, S, S) float32.
        pairs: (M, n, 2) int64.
        skipped: Key of each corrupt image that was left out -> why; n + len(skipped) is this process's share of the
            recipe's batch size.
    """

    views: torch.Tensor
    colours: torch.Tensor
    local_views: torch.Tensor
    local_colours: torch.Tensor
    lams: torch.Tensor
    pairs: torch.Tensor
    skipped: dict[str, str]

    @property
    def size(self) -> int:
        """How many images it holds, n."""
        return self.views.shape[1]

    def coloured(self, device: torch.device) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Returns views and local views on a device in their own colours, (n, 3, S, S) float32 RGB of 0 to 255."""
        views, local_views = (
            [recolour(view.to(device, non_blocking=True), how) for view, how in zip(pixels, colours, strict=True)]
            for pixels, colours in ((self.views, self.colours), (self.local_views, self.local_colours))
        )
        return views, local_views


class Views(Dataset[Sample | ImageError | DataError]):
    """The sample of an (epoch, position), a pure function of the seed.

    In its place an ImageError for a corrupt image, and a DataError where images can no longer be had.
    """

    def __init__(self, images: ImageSet, plan: ViewPlan, seed: int, shards: ShardReader | None = None) -> None:
        """Takes what determines the views.

        Args:
            images: The training images.
            plan: What is drawn of each.
            seed: Of the run.
            shards: What reads the images; None to read each by itself.
        """
        self.images = images
        self.plan = plan
        self.seed = seed
        self._shards = shards

    def __getitem__(self, key: tuple[int, int]) -> Sample | ImageError | DataError:
        epoch, position = key
        try:
            item = self._shards.item(epoch, position) if self._shards else self.images[position]
        except DataError as error:
            return error
        plan, index = self.plan, int(self.images.indices[position])

        def rng(purpose: Purpose, number: int = 0) -> np.random.Generator:
            return stream(self.seed, purpose, epoch, index, number)

        streams = [rng(Purpose.VIEW_1), rng(Purpose.VIEW_2)]
        streams += [rng(Purpose.MORE_VIEWS, number) for number in range(2, plan.views)]
        local_streams = [rng(Purpose.LOCAL_VIEWS, number) for number in range(plan.local_views)]
        hows = plan.views * [plan.how] + plan.local_views * [plan.local_how or plan.how]
        try:
            image, boxes = _load(item, list(zip(hows, streams + local_streams, strict=True)))
        except ImageError as error:
            return named_error(item.key, error)
        views = _cut(image, boxes[: plan.views], plan.how, streams)
        local_views = _cut(image, boxes[plan.views :], plan.local_how or plan.how, local_streams)
        lams, pairs = [], []
        for number in range(plan.mixtures):
            mixture_rng = rng(Purpose.MIXTURE, number)
            lams.append(draw_lam(plan.mixture, plan.lam_alpha, plan.how.size_px, mixture_rng))
            pairs.append(draw_pair(plan.views, mixture_rng))
        return Sample(*views, *local_views, np.stack(lams), np.stack(pairs))


def _load(item: Item, views: Sequence[tuple[Augmentation, np.random.Generator]]) -> tuple[Image.Image, list[Box]]:
    """Decodes an image, a JPEG no larger than its views need; also returns the box of each view in it.

    A view is never cut out of fewer pixels than it has, unless the full image has no more.
    """
    boxes: list[Box] = []

    def short_px(width: int, height: int) -> int:
        boxes.extend(draw_crop(width, height, how.crop_scale, rng) for how, rng in views)
        enlarged = [
            how.size_px / min(x1 - x0, y1 - y0) for (how, _), (x0, y0, x1, y1) in zip(views, boxes, strict=True)
        ]
        return math.ceil(min(width, height) * max(enlarged))

    draft = Draft(short_px)
    image = load_image(item.source, name=item.key, draft=draft)
    if not boxes:  # It is no JPEG.
        short_px(*image.size)
    if not draft.box:
        return image, boxes
    (width, height), (left, top, right, bottom) = draft.size, draft.box
    across, down = (right - left) / width, (bottom - top) / height
    return image, [
        (left + across * x0, top + down * y0, left + across * x1, top + down * y1) for x0, y0, x1, y1 in boxes
    ]


def _cut(
    image: Image.Image, boxes: Sequence[Box], how: Augmentation, streams: Sequence[np.random.Generator]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Cuts a view out of each box; the second array says what is to be done to their colours."""
    pixels = np.empty((len(boxes), 3, how.size_px, how.size_px), np.uint8)
    colours = np.empty((len(boxes), COLOURS), np.float32)
    for number, (box, rng) in enumerate(zip(boxes, streams, strict=True)):
        view, colours[number] = cut_view(image, box, how, rng)
        pixels[number] = view.transpose(2, 0, 1)
    return pixels, colours


def collate(samples: Sequence[Sample | ImageError | DataError]) -> ViewBatch:
    """Stacks the readable samples of a batch.

    Raises:
        DataError: One of them is such an error.
    """
    good: list[Sample] = []
    skipped: dict[str, str] = {}
    for sample in samples:
        if isinstance(sample, DataError):
            raise sample
        if isinstance(sample, ImageError):
            skipped[sample.image] = str(sample)
        else:
            good.append(sample)
    if not good:
        empty = torch.zeros(0, 0)
        return ViewBatch(empty, empty, empty, empty, empty, empty, skipped)
    columns = {
        name: torch.from_numpy(np.stack([getattr(sample, name) for sample in good], axis=1)) for name in Sample._fields
    }
    return ViewBatch(**columns, skipped=skipped)


def blank_batch(plan: ViewPlan) -> ViewBatch:
    """Returns two black images, for a process that has no image of a step and must not let the others wait."""
    black, whole = Image.new("RGB", (1, 1)), (0, 0, 1, 1)
    views, local_views = (
        _cut(black, count * [whole], how, count * [stream(0, Purpose.SAMPLE)])
        for how, count in ((plan.how, plan.views), (plan.local_how or plan.how, plan.local_views))
    )
    lams, pairs = np.ones((plan.mixtures, 1, 1, 1), np.float32), np.tile(np.arange(2), (plan.mixtures, 1))
    sample = Sample(*views, *local_views, lams, pairs)
    return collate([sample, sample])


def make_loader(views: Views, order: Order, workers: int) -> Iterator[ViewBatch]:
    """Yields the batches of a whole run, or of what is left of it.

    Raises:
        DataError: Images can no longer be had.
        TrainingError: One of the workers was killed.
    """
    if isinstance(views.images.store, ParquetStore):
        views.images.store.preload()  # Before workers are forked, which read in no order.
    loader = DataLoader(
        views,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_collate,
        multiprocessing_context=_start_method() if workers else None,
        worker_init_fn=_leave_sigterm,
        pin_memory=torch.cuda.is_available(),
    )
    try:
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            f"a worker that decodes images ended: {one_line(error)}; if the system is out of memory, --resume with "
            "fewer: --set workers=1"
        ) from error


def _collate(samples: Sequence[Sample | ImageError | DataError]) -> ViewBatch | DataError:
    """Hands the error over: what a worker raises would arrive with a page of its stack."""
    try:
        return collate(samples)
    except DataError as error:
        return error


def _leave_sigterm(worker: int) -> None:
    """Lets the main process finish its step where a batch system sends SIGTERM to all of them; it ends its workers."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _start_method() -> str | None:
    """Returns fork on Linux, where it shares the data in memory; elsewhere the system's own way, which pickles it."""
    return "fork" if sys.platform == "linux" else None
