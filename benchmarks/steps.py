"""Our training step and its data, as `mixsiam train` has them, for benchmarks to time."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mixsiam_hub.images.sources import ImageSet
from mixsiam_hub.training.convolution import use_matmul
from mixsiam_hub.training.data import Order, ViewBatch, Views, make_loader, normalise_on_device
from mixsiam_hub.training.loop import make_model, make_optimiser
from mixsiam_hub.training.machine import pick_device
from mixsiam_hub.training.model import Inputs
from mixsiam_hub.training.recipe import Recipe

EPOCHS = 1000
"""More than a benchmark reaches."""


class OurStep:
    """Our step, as `mixsiam train` does it."""

    def __init__(self, recipe: Recipe, precision: str, *, matmul: bool) -> None:
        """Makes model and optimiser; `matmul` computes convolutions as matrix products."""
        self.recipe, self.precision, self.device = recipe, precision, pick_device()
        self.model = make_model(recipe).to(memory_format=torch.channels_last).to(self.device).train()
        if matmul:
            use_matmul(self.model.backbone)
        self.optimiser = make_optimiser(self.model, recipe)

    def __call__(self, batch: ViewBatch) -> None:
        """Does one step."""
        pre = self.recipe.model_config.preprocessing
        moved = [[part.to(self.device, non_blocking=True) for part in column] for column in batch[:4]]
        views = [normalise_on_device(view, pre) for view in moved[0]]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.model(Inputs(views, [], moved[2], moved[3])).loss
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()


def our_batches(images: ImageSet, recipe: Recipe) -> Iterator[ViewBatch]:
    """Yields batches without end, from worker processes."""
    order = Order(len(images), recipe.batch_size, EPOCHS, recipe.seed)
    return make_loader(Views(images, recipe.view_plan, recipe.seed), order, recipe.workers)
