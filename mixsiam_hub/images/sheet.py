"""Sheets of images to look at: neighbours of a query, or the views of a training step."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from mixsiam_hub.atomic import replacing
from mixsiam_hub.errors import ImageError
from mixsiam_hub.images.kinds import ImageSource
from mixsiam_hub.images.load import load_image

_PAPER, _CELL, _TEXT, _FAINT, _ACCENT = "#ffffff", "#eef0f3", "#24292f", "#6b7480", "#d9480f"
_FONT_PX = 13
_LINE_PX = 17
_GAP_PX = 12
_FRAME_PX = 3


@dataclass(frozen=True)
class Tile:
    """One picture of a contact sheet.

    Attributes:
        image: Anything that `load_image` takes.
        name: Its caption; the middle is left out where it is too long.
        cosine: Similarity to the row's query; None for the query itself.
    """

    image: ImageSource
    name: str
    cosine: float | None = None


def contact_sheet(rows: Sequence[Sequence[Tile]], *, tile_px: int = 128) -> Image.Image:
    """Draws each query and its neighbours in a row, the cosine under each.

    Args:
        rows: One a query: the query first, then its neighbours. They may differ in length.
        tile_px: Edge of the square that each image is fitted into.

    Returns:
        An RGB image.
    """
    columns = max((len(row) for row in rows), default=1)
    images: list[ImageSource | None] = []
    captions: list[str] = []
    for row in rows:
        blank = columns - len(row)
        images += [*(tile.image for tile in row), *[None] * blank]
        captions += [*(f"{t.name}\n{'query' if t.cosine is None else f'{t.cosine:.3f}'}" for t in row), *[""] * blank]
    return image_grid(images, captions, columns, tile_px=tile_px, marked=range(0, len(images), columns))


def image_grid(
    images: Sequence[ImageSource | None],
    captions: Sequence[str],
    columns: int,
    *,
    tile_px: int = 128,
    marked: Collection[int] = (),
) -> Image.Image:
    """Draws images in a grid, row by row, each fitted into a square with its caption below.

    Args:
        images: What to draw; None leaves its place empty. An image that cannot be read says so in its tile.
        captions: One an image; the first line is dark, those after a newline are faint.
        columns: Tiles in a row.
        tile_px: Edge of a tile.
        marked: Indices of the images that get a coloured frame.

    Returns:
        An RGB image.
    """
    lines = max((len(caption.splitlines()) for caption in captions), default=0)
    cell = (tile_px + _GAP_PX, tile_px + _GAP_PX + lines * _LINE_PX)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell[0] + _GAP_PX, rows * cell[1] + _GAP_PX), _PAPER)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        if image is not None:
            left, top = _GAP_PX + i % columns * cell[0], _GAP_PX + i // columns * cell[1]
            sheet.paste(_tile(image, tile_px, i in marked), (left, top))
            _write(sheet, caption, (left, top + tile_px + 2), tile_px)
    return sheet


def write_png(path: str | os.PathLike[str], image: Image.Image) -> None:
    """Writes an image as a PNG, whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    with replacing(path) as file:
        image.save(file, format="PNG", optimize=True)


def _tile(source: ImageSource, tile_px: int, is_marked: bool) -> Image.Image:
    tile = Image.new("RGB", (tile_px, tile_px), _CELL)
    draw = ImageDraw.Draw(tile)
    try:
        picture = fit(load_image(source), tile_px - 4 * _FRAME_PX)
        tile.paste(picture, ((tile_px - picture.width) // 2, (tile_px - picture.height) // 2))
    except ImageError:
        draw.text((tile_px / 2, tile_px / 2), "unreadable", _FAINT, _font(), anchor="mm")
    if is_marked:
        draw.rectangle((0, 0, tile_px - 1, tile_px - 1), outline=_ACCENT, width=_FRAME_PX)
    return tile


def fit(image: Image.Image, edge_px: int) -> Image.Image:
    """Returns an image at the largest size that fits into a square of this edge, in pixels, at least 1 on each side."""
    scale = edge_px / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Few pixels are shown as they are: smoothing would suggest detail that the encoder never saw.
    return image.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS)


def _write(sheet: Image.Image, caption: str, corner: tuple[int, int], width_px: int) -> None:
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(caption.splitlines()):
        place = (corner[0] + width_px / 2, corner[1] + i * _LINE_PX)
        draw.text(place, _shorten(line, width_px), _FAINT if i else _TEXT, _font(), anchor="ma")


def _shorten(text: str, width_px: int) -> str:
    """Leaves out the middle of a text until it fits: a file name's ends tell most."""
    font = _font()
    shortened = text
    keep = len(text)
    while font.getlength(shortened) > width_px and keep > 2:
        keep -= 1
        shortened = f"{text[: (keep + 1) // 2]}…{text[-(keep // 2) :]}"
    return shortened


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT_PX)
