"""The encoder that training continues from: the recipe's `init`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.backends.torch import load_backbone
from mixsiam_hub.errors import RecipeError
from mixsiam_hub.model.hub import resolve
from mixsiam_hub.training.provenance import Origin, core_hours
from mixsiam_hub.training.recipe import OF_INIT, Recipe

logger = logging.getLogger(__name__)


def with_shape_of_init(recipe: Recipe) -> Recipe:
    """Returns the recipe with the shape of its `init` where it asks for that, else as it is.

    Raises:
        ModelError: No such folder, or one that breaks the contract.
        HubError: The repository cannot be reached, found or read.
    """
    if recipe.backbone != OF_INIT:
        return recipe
    config = resolve(recipe.init).config
    pre = config.preprocessing
    return replace(
        recipe,
        backbone=config.architecture,
        output_stride=config.output_stride,
        input_size=pre.input_px,
        interpolation=pre.interpolation,
    )


def load_init(backbone: Backbone, recipe: Recipe) -> Origin:
    """Puts the weights of a recipe's `init` into a backbone.

    Args:
        backbone: The recipe's; changed in place.
        recipe: Whose `init` is a model folder, or a Hub id with or without `@revision`.

    Returns:
        What was loaded.

    Raises:
        RecipeError: The encoder has another architecture or stride.
        ModelError: No such folder, or one that breaks the contract, or weights that are not finite.
        HubError: The repository cannot be reached, found or read.
    """
    init = recipe.init
    folder = resolve(init)
    found = (folder.config.architecture, folder.config.output_stride)
    if found != (recipe.backbone, recipe.output_stride):
        raise RecipeError(
            f"init {init} is a {found[0]} of output_stride {found[1]}; set backbone = {found[0]!r} and "
            f"output_stride = {found[1]}"
        )
    backbone.load_state_dict(load_backbone(folder, with_head=False).state_dict())
    pre, deployed = folder.config.preprocessing, recipe.model_config.preprocessing
    if (pre.mean, pre.std) != (deployed.mean, deployed.std):
        logger.warning(
            "init %s was trained with mean %s and std %s; this run has %s and %s, which it must get used to",
            init,
            *(pre.mean, pre.std, deployed.mean, deployed.std),
        )
    name = init.partition("@")[0] if folder.revision else folder.path.resolve().name
    return Origin(name, folder.revision, folder.manifest.fingerprint, _core_hours(folder.manifest.training))


def _core_hours(training: Mapping[str, Any]) -> float | None:
    own, origin = core_hours(training), training.get("init")
    before = origin.get("core_hours") if isinstance(origin, Mapping) else 0
    return None if own is None or not isinstance(before, int | float) else round(own + before, 1)
