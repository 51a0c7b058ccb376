"""What the network will see: x1, x2 and x_m of a few images, as one picture."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from mixsiam_hub.atomic import make_folder, replacing
from mixsiam_hub.errors import DataError
from mixsiam_hub.images.sheet import image_grid
from mixsiam_hub.training.data import Views, collate, open_for_training, sample
from mixsiam_hub.training.mixing import mix
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
    images = sample(open_for_training(recipe.data, recipe.val_data)[0], IMAGES, recipe.seed)
    views = Views(images, recipe.augmentation, recipe.mixture, recipe.lam_alpha, recipe.seed)
    batch = collate([views[0, position] for position in range(len(images))])
    if not len(batch.x1):
        raise DataError(f"{recipe.data}: none of {len(images)} sampled images can be read")
    # Pixels mix as their normalised values do: the mixture is linear and so is the normalisation.
    x_m = mix(batch.x1.permute(0, 3, 1, 2), batch.x2.permute(0, 3, 1, 2), batch.lam).round().to(torch.uint8)
    tiles: list[Image.Image | None] = []
    captions = []
    for row, triple in enumerate(zip(batch.x1, batch.x2, x_m.permute(0, 2, 3, 1), strict=True)):
        tiles += [Image.fromarray(view.numpy()) for view in triple]
        captions += ["x1", "x2", f"x_m\nlam = {batch.lam[row].mean():.2f}"]
    return image_grid(tiles, captions, columns=3)
