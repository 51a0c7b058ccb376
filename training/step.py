"""The optimiser's step: a batch of views to the device, the objective, its gradients, new weights."""

from __future__ import annotations

import math

import torch

from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.training.convolution import use_matmul
from mixsiam_hub.training.features import normalise_on_device
from mixsiam_hub.training.machine import has_bf16, memory_format
from mixsiam_hub.training.model import Inputs, MixSiam, Objective
from mixsiam_hub.training.processes import Processes
from mixsiam_hub.training.recipe import Recipe
from mixsiam_hub.training.views import ViewBatch, blank_batch

MOMENTUM = 0.9
HEADS_FIRST = 100
"""Steps at the start of a run from a trained encoder in which its backbone stands still, at most a fifth of all.

Projector and predictors start from random weights, and what they would ask of the backbone spoils it.
"""


class Step:
    """Trains a model a batch at a time, alone or together with the other processes of a run."""

    def __init__(
        self,
        recipe: Recipe,
        model: MixSiam,
        optimiser: torch.optim.Optimizer,
        precision: str,
        processes: Processes | None = None,
    ) -> None:
        """Prepares a model to be trained.

        Args:
            recipe: Whose views and preprocessing.
            model: On its device; its memory layout is changed in place, and by each step its weights.
            optimiser: As `make_optimiser` makes it; its state follows the model's layout.
            precision: `fp32` or `bf16`.
            processes: That train together; None for this one alone.
        """
        self._recipe = recipe
        self._model = model.train()
        self._optimiser = optimiser
        self._precision = precision
        self._device = next(model.parameters()).device
        self._processes = processes or Processes()
        self._format = memory_format(precision, self._device)
        _lay_out(model, optimiser, self._format)
        if precision == "bf16" and self._device.type == "cpu" and has_bf16():
            use_matmul(model.backbone)
        self._hold_backbone(False)

    def __call__(self, batch: ViewBatch, lr: float, *, heads_alone: bool = False) -> Objective | None:
        """Does one step.

        Args:
            batch: This process's share of it.
            lr: Of the encoder; the predictors' stays constant.
            heads_alone: Let projector and predictors learn, and leave the backbone's weights as they are.

        Returns:
            The objective before the step; None where the batch has fewer than two images, which no BatchNorm can
            normalise: then nothing is learned from it.
        """
        is_enough = batch.size > 1
        if not is_enough and self._processes.count == 1:
            return None
        if heads_alone != self._is_held:
            self._hold_backbone(heads_alone)
        for group in self._optimiser.param_groups:
            if group["decays"]:
                group["lr"] = lr
        # A process without images still takes part: the others wait for its gradients.
        inputs = self._inputs(batch if is_enough else blank_batch(self._recipe.view_plan))
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            out: Objective = self._network(inputs)
        self._optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(out.loss if is_enough else 0 * out.loss)
        self._optimiser.step()
        self._model.update_average()
        return out if is_enough else None

    def _hold_backbone(self, is_held: bool) -> None:
        self._is_held = is_held
        self._model.backbone.requires_grad_(not is_held)
        if self._optimiser.state and not is_held:  # The fused optimiser wants a momentum of all weights, or of none.
            for weight in self._model.backbone.parameters():
                self._optimiser.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
        self._network = self._processes.wrap(self._model, self._recipe.sync_batchnorm)

    def _inputs(self, batch: ViewBatch) -> Inputs:
        lams, pairs = (
            [part.to(self._device, non_blocking=True) for part in column] for column in (batch.lams, batch.pairs)
        )
        pre = self._recipe.model_config.preprocessing
        views, local_views = (
            [normalise_on_device(view, pre).contiguous(memory_format=self._format) for view in column]
            for column in batch.coloured(self._device)
        )
        return Inputs(views, local_views, lams, pairs)


@torch.no_grad()
def _lay_out(model: MixSiam, optimiser: torch.optim.Optimizer, layout: torch.memory_format) -> None:
    """Gives a model and its optimiser's state one layout; the fused optimiser goes by place in memory, unchecked."""
    model.to(memory_format=layout)
    for parameter, state in optimiser.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter).copy_(value)


def make_model(recipe: Recipe) -> MixSiam:
    """Builds a recipe's model with random weights, from its seed."""
    torch.manual_seed(recipe.seed)
    backbone = Backbone(recipe.backbone, recipe.output_stride)
    return MixSiam(
        backbone,
        projector_layers=recipe.projector_layers,
        projector_dim=recipe.projector_dim,
        predictor_dim=recipe.predictor_dim,
        w=recipe.mixture_weight,
        target=recipe.target,
        predictors=recipe.predictors,
        momentum_target=recipe.momentum_target,
        coding_rate=recipe.coding_rate,
    )


def make_optimiser(model: MixSiam, recipe: Recipe) -> torch.optim.SGD:
    """SGD over all parameters; the predictors' learning rate stays constant (SimSiam, table 1, its best row)."""
    encoder = [*model.backbone.parameters(), *model.projector.parameters()]
    predictors = [*model.predictor.parameters()]
    if model.own_predictor is not None:
        predictors += model.own_predictor.parameters()
    groups = [{"params": encoder, "decays": True}, {"params": predictors, "decays": False}]
    return torch.optim.SGD(groups, lr=recipe.peak_lr, momentum=MOMENTUM, weight_decay=recipe.weight_decay, fused=True)


def is_for_heads(recipe: Recipe, step: int, total_steps: int) -> bool:
    """Tells whether only the heads learn at a step, as at the start of a run from a trained encoder."""
    return bool(recipe.init) and step < min(HEADS_FIRST, total_steps // 5)


def cosine_lr(step: int, total_steps: int, peak: float) -> float:
    """Cosine from `peak` at step 0 to 0 at `total_steps`, without warm-up (SimSiam, section 4)."""
    return peak * 0.5 * (1 + math.cos(math.pi * step / total_steps))
