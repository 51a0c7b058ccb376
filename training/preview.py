"""What the network will see: x1, x2 and x_m of a few images, as one picture."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from mixsiam_hub.atomic import make_folder, replacing
from mixsiam_hub.errors import DataError
from mixsiam_hub.images.sheet import image_grid
from mixsiam_hub.training.data import Views, collate, open_for_training, sample
from mixsiam_hub.training.init import with_shape_of_init
from mixsiam_hub.training.mixing import mix, pick
from mixsiam_hub.training.recipe import Recipe

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
    views = Views(images, recipe.view_plan, recipe.seed)
    batch = collate([views[0, position] for position in range(len(images))])
    if not batch.size:
        raise DataError(f"{recipe.data}: none of {len(images)} sampled images can be read")
    planes = batch.views.permute(0, 1, 4, 2, 3)  # (K, n, S, S, 3) -> (K, n, 3, S, S)
    # Pixels mix as their normalised values do: the mixture is linear and so is the normalisation.
    mixtures = [
        mix(pick(planes, pair[:, 0]), pick(planes, pair[:, 1]), lam).round().to(torch.uint8)
        for lam, pair in zip(batch.lams, batch.pairs, strict=True)
    ]
    names = [f"x{number}" for number in range(1, len(planes) + 1)]
    tiles: list[Image.Image | None] = []
    captions = []
    for row in range(batch.size):
        tiles += [Image.fromarray(view[row].numpy()) for view in (*batch.views, *batch.local_views)]
        captions += names + ["local"] * len(batch.local_views)
        for mixture, lam, pair in zip(mixtures, batch.lams, batch.pairs, strict=True):
            tiles.append(Image.fromarray(mixture[row].permute(1, 2, 0).numpy()))
            of = "" if len(names) == 2 else " of " + ", ".join(names[number] for number in pair[row])
            captions.append(f"x_m{of}\nlam = {lam[row].mean():.2f}")
    return image_grid(tiles, captions, columns=len(tiles) // batch.size)
