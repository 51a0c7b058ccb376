"""What the network will see: x1, x2 and x_m of a few images, as one picture."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from mixsiam_hub.atomic import make_folder, replacing
from mixsiam_hub.errors import DataError
from mixsiam_hub.images.sheet import image_grid
from mixsiam_hub.training.data import open_for_training, sample
from mixsiam_hub.training.init import with_shape_of_init
from mixsiam_hub.training.mixing import mix, pick
from mixsiam_hub.training.recipe import Recipe
from mixsiam_hub.training.views import Views, collate

IMAGES = 8


def preview(recipe: Recipe, out: Path) -> Path:
    """Draws the views and mixtures that the first epoch makes of eight images, one image a row.

    Args:
        recipe: Whose data and augmentation.
        out: The PNG to write; its folder is made where it is missing.

    Raises:
        DataError: The data cannot be used, or none of the eight images can be read.
        OutputError: `out` cannot be written, said before any image is read.
    """
    make_folder(out.parent)
    with replacing(out) as file:
        _draw(recipe).save(file, format="PNG")
    return out


def _draw(recipe: Recipe) -> Image.Image:
    recipe = with_shape_of_init(recipe)
    images = sample(open_for_training(recipe.data, recipe.val_data)[0], IMAGES, recipe.seed)
    samples = Views(images, recipe.view_plan, recipe.seed)
    batch = collate([samples[0, position] for position in range(len(images))])
    if not batch.size:
        raise DataError(f"{recipe.data}: none of {len(images)} sampled images can be read")
    views, local_views = batch.coloured(torch.device("cpu"))
    # Pixels mix as their normalised values do: the mixture is linear and so is the normalisation.
    mixtures = [
        mix(pick(views, pair[:, 0]), pick(views, pair[:, 1]), lam)
        for lam, pair in zip(batch.lams, batch.pairs, strict=True)
    ]
    names = [f"x{number}" for number in range(1, len(views) + 1)]
    tiles: list[Image.Image | None] = []
    captions = []
    for row in range(batch.size):
        tiles += [_tile(view[row]) for view in (*views, *local_views)]
        captions += names + ["local"] * len(local_views)
        for mixture, lam, pair in zip(mixtures, batch.lams, batch.pairs, strict=True):
            tiles.append(_tile(mixture[row]))
            of = "" if len(names) == 2 else " of " + ", ".join(names[number] for number in pair[row])
            captions.append(f"x_m{of}\nlam = {lam[row].mean():.2f}")
    return image_grid(tiles, captions, columns=len(tiles) // batch.size)


def _tile(view: torch.Tensor) -> Image.Image:
    """Draws a view: (3, S, S) float32, 0 to 255."""
    return Image.fromarray(view.round().byte().permute(1, 2, 0).numpy())
