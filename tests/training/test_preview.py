"""The preview shows the very views that training draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("sklearn", reason="needs the extra train")

from PIL import Image

from mixsiam_hub.errors import DataError, OutputError
from mixsiam_hub.training import preview as preview_module
from mixsiam_hub.training.preview import preview
from mixsiam_hub.training.recipe import load_recipe


def test_eight_rows_of_x1_x2_and_their_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[np.ndarray] = []
    captions: list[str] = []
    grid = preview_module.image_grid

    def record(tiles: list[Image.Image], texts: list[str], columns: int) -> Image.Image:
        drawn.extend(np.asarray(tile, float) for tile in tiles)
        captions.extend(texts)
        return grid(tiles, texts, columns)

    monkeypatch.setattr(preview_module, "image_grid", record)
    path = preview(load_recipe("digits"), tmp_path / "sheets" / "preview.png")
    assert Image.open(path).size[1] > Image.open(path).size[0]
    assert len(drawn) == 24
    for row in range(8):
        x1, x2, x_m = drawn[3 * row : 3 * row + 3]
        lam = float(captions[3 * row + 2].split("=")[1])
        assert not np.array_equal(x1, x2)
        assert np.abs(x_m - (lam * x1 + (1 - lam) * x2)).max() < 2.5  # lam is printed with two decimals.


def test_unreadable_images_are_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="can be read"):
        preview(load_recipe("folder", [f'data="{tmp_path}"']), tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


def test_a_target_that_cannot_be_written_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(preview_module, "open_for_training", lambda *_: pytest.fail("images were opened"))
    for target in ("file/preview.png", "file/below/preview.png", "."):
        with pytest.raises(OutputError):
            preview(load_recipe("digits"), tmp_path / target)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
