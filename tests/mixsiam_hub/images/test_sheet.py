"""Sheets have the size, the pictures and the marks that they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mixsiam_hub.images import sheet
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.images.sheet import Tile, contact_sheet, image_grid

RED, BLUE = (255, 0, 0), (0, 0, 255)


def count(image: Image.Image, colour: tuple[int, int, int] | str, box: tuple[int, int, int, int] | None = None) -> int:
    """Pixels of exactly this colour."""
    wanted = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    return int((np.asarray(image.crop(box) if box else image) == wanted).all(axis=-1).sum())


def test_a_row_is_the_query_and_its_neighbours() -> None:
    red, blue = Image.new("RGB", (40, 40), RED), Image.new("RGB", (40, 40), BLUE)
    drawn = contact_sheet([[Tile(red, "query.png"), Tile(blue, "near.png", 0.5)]], tile_px=100)
    half = drawn.width // 2
    left, right = (0, 0, half, drawn.height), (half, 0, drawn.width, drawn.height)
    assert count(drawn, RED, left) == count(drawn, BLUE, right) == 88 * 88
    assert count(drawn, RED, right) == count(drawn, BLUE, left) == 0
    assert count(drawn, "#d9480f", left) == 100 * 100 - 94 * 94
    assert count(drawn, "#d9480f", right) == 0


def test_cosines_and_names_are_written() -> None:
    picture = Image.new("RGB", (10, 10), RED)
    sheets = [contact_sheet([[Tile(picture, name, cosine)]]) for name, cosine in [("a", 0.5), ("a", 0.6), ("b", 0.5)]]
    assert len({s.tobytes() for s in sheets}) == 3


def test_rows_of_different_length_leave_places_empty() -> None:
    picture = Image.new("RGB", (10, 10), RED)
    tile = Tile(picture, "a", 0.1)
    drawn = contact_sheet([[tile, tile, tile], [tile]], tile_px=64)
    assert count(drawn, RED) == 4 * 52 * 52
    width, height = drawn.size
    assert count(drawn, "white", (width // 3 + 6, height // 2 + 6, width, height)) == (width - width // 3 - 6) * (
        height - height // 2 - 6
    )


def test_an_unreadable_image_leaves_the_sheet_whole(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"junk")
    red = Image.new("RGB", (10, 10), RED)
    tiles = [Tile(red, "a"), Tile(tmp_path / "bad.png", "bad.png", 0.2), Tile(red, "b", 0.1)]
    assert count(contact_sheet([tiles], tile_px=64), RED) == 2 * 52 * 52


def test_pictures_keep_their_proportions_and_thin_ones_show() -> None:
    wide = image_grid([Image.new("RGB", (400, 100), RED)], [""], 1, tile_px=92)
    assert count(wide, RED) == 80 * 20
    strip = image_grid([Image.new("RGB", (1, 5000), RED)], [""], 1, tile_px=92)
    assert count(strip, RED) == 80


def test_a_grid_fills_row_by_row() -> None:
    pictures = [Image.new("RGB", (8, 8), (i, 200, 0)) for i in range(5)]
    drawn = image_grid([*pictures, None], [str(i) for i in range(6)], 3, tile_px=50)
    for i in range(5):
        left, top = i % 3 * drawn.width // 3, i // 3 * drawn.height // 2
        assert count(drawn, (i, 200, 0), (left, top, left + drawn.width // 3 + 12, top + drawn.height // 2)) == 38 * 38


def test_nothing_to_draw() -> None:
    assert contact_sheet([]).mode == "RGB"
    assert image_grid([], [], 4).width > 0


def test_long_names_lose_their_middle_and_fit() -> None:
    name = "holiday_at_the_seaside_with_everyone_2024_part_0042.jpeg"
    short = sheet._shorten(name, 128)
    assert sheet._font().getlength(short) <= 128
    assert short.startswith("holi")
    assert short.endswith(".jpeg")
    assert sheet._shorten("cat.png", 128) == "cat.png"


def test_the_samples_make_a_sheet() -> None:
    samples = draw_samples(8)
    drawn = image_grid(list(samples.values()), list(samples), 4)
    assert len(drawn.getcolors(drawn.width * drawn.height)) > 100
