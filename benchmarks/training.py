"""How fast a training step is: bare, with its data, in each precision, and beside lightly's SimSiam in a plain loop.

All of it is SimSiam (two views, no mixture), with the same backbone, heads, view size, batch and workers; the
measurements take turns, so that a slow spell of the machine hits all alike. `--lightly` needs the package of that name.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any
from unittest.mock import patch

import torch
from machine import command_and_machine
from steps import our_batches, our_step
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.images.load import load_image
from mixsiam_hub.images.sources import ImageSet
from mixsiam_hub.training.data import open_images
from mixsiam_hub.training.machine import has_bf16, pick_device, pick_precision
from mixsiam_hub.training.order import Order
from mixsiam_hub.training.recipe import Recipe, load_recipe
from mixsiam_hub.training.views import Views, collate


class _LightlyStep:
    """lightly's parts in the loop that its SimSiam example shows."""

    def __init__(self, recipe: Recipe, precision: str) -> None:
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead

        wide, narrow = recipe.projector_dim, recipe.predictor_dim
        self.precision = precision
        self.backbone = Backbone(recipe.backbone, recipe.output_stride)
        self.projector = SimSiamProjectionHead(self.backbone.dim, wide, wide)
        self.predictor = SimSiamPredictionHead(wide, narrow, wide)
        self.criterion = NegativeCosineSimilarity()
        parameters = nn.ModuleList([self.backbone, self.projector, self.predictor]).train().parameters()
        self.optimiser = torch.optim.SGD(parameters, recipe.peak_lr, momentum=0.9, weight_decay=recipe.weight_decay)

    def __call__(self, batch: tuple[list[torch.Tensor], ...]) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            zs = [self.projector(self.backbone(x)) for x in batch[0]]
            ps = [self.predictor(z) for z in zs]
            loss = (self.criterion(zs[0].detach(), ps[1]) + self.criterion(zs[1].detach(), ps[0])) / 2
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()


class _ForLightly(Dataset[tuple[list[torch.Tensor], int, str]]):
    """The images as lightly's data sets give them: views, class and name."""

    def __init__(self, images: ImageSet, recipe: Recipe) -> None:
        from lightly.transforms import SimSiamTransform

        self.images = images
        self.transform = SimSiamTransform(input_size=recipe.input_size, gaussian_blur=recipe.blur)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[list[torch.Tensor], int, str]:
        item = self.images[index]
        return self.transform(load_image(item.source, name=item.key)), 0, item.key


def their_batches(images: ImageSet, recipe: Recipe) -> Iterator[tuple[list[torch.Tensor], ...]]:
    """Yields lightly's batches of one epoch, from worker processes."""
    return iter(
        DataLoader(
            _ForLightly(images, recipe), recipe.batch_size, shuffle=True, drop_last=True, num_workers=recipe.workers
        )
    )


def tasks(images: ImageSet, recipe: Recipe, with_lightly: bool) -> dict[str, Callable[[int], float]]:
    """Returns name -> what runs so many steps and returns the seconds of one."""
    batch = next(our_batches(images, recipe))
    best = pick_precision("auto", pick_device())
    bare = {"bare step, fp32": our_step(recipe, "fp32"), "bare step, bf16": our_step(recipe, "bf16")}
    if has_bf16():
        with patch("mixsiam_hub.training.step.has_bf16", lambda: False):
            bare["bare step, bf16, torch's convolutions"] = our_step(recipe, "bf16")
    found: dict[str, Callable[[int], float]] = {
        name: lambda steps, step=step: timed(step, [batch] * steps) for name, step in bare.items()
    }
    for precision in dict.fromkeys(("fp32", best)):
        ours, feed = our_step(recipe, precision), our_batches(images, recipe)
        found[f"with data, {precision}"] = lambda steps, step=ours, feed=feed: timed(step, islice(feed, steps))
    if with_lightly:
        for precision in dict.fromkeys(("fp32", best)):
            theirs, their_feed = _LightlyStep(recipe, precision), their_batches(images, recipe)
            found[f"lightly with data, {precision}"] = lambda steps, step=theirs, feed=their_feed: timed(
                step, islice(feed, steps)
            )
    return found


def timed(step: Callable[[Any], object], batches: Iterable[Any]) -> float:
    """Returns the median seconds from one step's end to the next one's."""
    seconds, last = [], time.perf_counter()
    for batch in batches:
        step(batch)
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
    return statistics.median(seconds)


def data_core_seconds(images: ImageSet, recipe: Recipe, batches: int = 16) -> float:
    """Returns the core-seconds that the views of one image cost, in one process; half of the batches warm up."""
    views = Views(images, recipe.view_plan, recipe.seed)
    order = Order(len(images), recipe.batch_size, batches, recipe.seed)
    torch.set_num_threads(1)
    seconds = []
    for keys in islice(order, batches):
        start = time.process_time()
        collate([views[key] for key in keys]).coloured(torch.device("cpu"))
        seconds.append(time.process_time() - start)
    return statistics.median(seconds[batches // 2 :]) / recipe.batch_size


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="training images, as mixsiam train takes them")
    parser.add_argument("--lightly", action="store_true", help="also measure lightly")
    parser.add_argument("--photos", help="also measure two 96 px views of these images")
    parser.add_argument("--steps", type=int, default=8, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    recipe = load_recipe("cifar10", ["method=simsiam", "projector_layers=3"])
    images = open_images(arguments.data)
    found = tasks(images, recipe, arguments.lightly)
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for task in found.values():
        task(2)
    for _ in range(arguments.rounds):
        for name, task in found.items():
            seconds[name].append(task(arguments.steps))
    print(command_and_machine())
    how = f"batch {recipe.batch_size}, {recipe.input_size} px, stride {recipe.output_stride}, {recipe.workers} workers"
    print(f"\n{how}; medians of {arguments.steps} steps in {arguments.rounds} rounds that take turns\n")
    print("| what | images/s | slowest and fastest round | ratio to the first |\n|---|---|---|---|")
    first = statistics.median(next(iter(seconds.values())))
    for name, values in seconds.items():
        rates = sorted(recipe.batch_size / value for value in values)
        middle = statistics.median(values)
        print(
            f"| {name} | {recipe.batch_size / middle:.1f} | {rates[0]:.1f} to {rates[-1]:.1f} | {first / middle:.2f} |"
        )
    print(f"\nTwo views of an image: {1000 * data_core_seconds(images, recipe):.2f} core-ms")
    if arguments.photos:
        photos = open_images(arguments.photos)
        large = replace(recipe, input_size=96, blur=0.5, batch_size=min(16, len(photos)))
        print(f"Two 96 px views of a photo: {1000 * data_core_seconds(photos, large):.1f} core-ms")


if __name__ == "__main__":
    main()
