"""Our training step and its data, as `mixsiam train` has them, for benchmarks to time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mixsiam_hub.images.sources import ImageSet
from mixsiam_hub.training.machine import pick_device
from mixsiam_hub.training.order import Order
from mixsiam_hub.training.recipe import Recipe
from mixsiam_hub.training.step import Step, make_model, make_optimiser
from mixsiam_hub.training.views import ViewBatch, Views, make_loader

EPOCHS = 1000
"""More than a benchmark reaches."""


def our_step(recipe: Recipe, precision: str) -> Callable[[ViewBatch], object]:
    """Returns a step on a model of random weights, on this machine's device."""
    model = make_model(recipe).to(pick_device())
    step = Step(recipe, model, make_optimiser(model, recipe), precision)
    return lambda batch: step(batch, recipe.peak_lr)


def our_batches(images: ImageSet, recipe: Recipe) -> Iterator[ViewBatch]:
    """Yields batches without end, from worker processes."""
    order = Order(len(images), recipe.batch_size, EPOCHS, recipe.seed)
    return make_loader(Views(images, recipe.view_plan, recipe.seed), order, recipe.workers)
