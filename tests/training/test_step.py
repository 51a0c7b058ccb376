"""A step: what was trained in another memory layout goes on as if in this; heads can learn alone."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import islice, pairwise

import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")

from mixsiam_hub.training.data import open_images
from mixsiam_hub.training.machine import memory_format
from mixsiam_hub.training.order import Order
from mixsiam_hub.training.recipe import load_recipe
from mixsiam_hub.training.step import HEADS_FIRST, Step, is_for_heads, make_model, make_optimiser
from mixsiam_hub.training.views import Views, make_loader

RECIPE = load_recipe("digits", ["batch_size=8"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_and_momentum_of_another_layout_go_on(precision: str) -> None:
    images = open_images("digits")
    order = Order(len(images), RECIPE.batch_size, 1, seed=0)
    first, second = islice(make_loader(Views(images, RECIPE.view_plan, 0), order, 0), 2)
    model = make_model(RECIPE)
    optimiser = make_optimiser(model, RECIPE)
    step = Step(RECIPE, model, optimiser, precision)
    step(first, lr=0.1)
    layout = memory_format(precision, torch.device("cpu"))
    other = torch.contiguous_format if layout == torch.channels_last else torch.channels_last
    moved = make_model(RECIPE)
    moved.load_state_dict(model.state_dict())
    moved.to(memory_format=other)
    moved_optimiser = make_optimiser(moved, RECIPE)
    state = copy.deepcopy(optimiser.state_dict())
    for values in state["state"].values():
        if values["momentum_buffer"].ndim == 4:
            values["momentum_buffer"] = values["momentum_buffer"].contiguous(memory_format=other)
    moved_optimiser.load_state_dict(state)
    moved_step = Step(RECIPE, moved, moved_optimiser, precision)
    step(second, lr=0.1)
    moved_step(second, lr=0.1)
    for name, weights in model.state_dict().items():
        torch.testing.assert_close(moved.state_dict()[name], weights, rtol=0, atol=0, msg=name)
    kernel = moved.backbone.layer1[0].conv1.weight
    assert kernel.is_contiguous(memory_format=layout)
    assert moved_optimiser.state[kernel]["momentum_buffer"].stride() == kernel.stride()


def test_heads_learn_alone_and_then_all_do() -> None:
    images = open_images("digits")
    order = Order(len(images), RECIPE.batch_size, 1, seed=0)
    first, second = islice(make_loader(Views(images, RECIPE.view_plan, 0), order, 0), 2)
    model = make_model(RECIPE)
    step = Step(RECIPE, model, make_optimiser(model, RECIPE), "fp32")
    seen = [_copy_of(model)]
    step(first, lr=0.1, heads_alone=True)
    seen.append(_copy_of(model))
    step(second, lr=0.1)
    seen.append(_copy_of(model))
    moved_alone, moved = (
        {name for name in before if not torch.equal(before[name], after[name])} for before, after in pairwise(seen)
    )
    assert moved_alone == {name for name in seen[0] if not name.startswith("backbone.")}
    assert {"backbone.conv1.weight", "backbone.bn1.bias", "projector.0.weight"} <= moved


def _copy_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weights.detach().clone() for name, weights in model.named_parameters()}


def test_only_a_run_from_an_encoder_begins_with_its_heads() -> None:
    adapted = replace(RECIPE, init="builtin")
    assert not is_for_heads(RECIPE, 0, 10_000)
    assert [is_for_heads(adapted, step, 10_000) for step in (0, HEADS_FIRST - 1, HEADS_FIRST)] == [True, True, False]
    assert [is_for_heads(adapted, step, 50) for step in (9, 10)] == [True, False]
    assert not is_for_heads(adapted, 0, 4)
