"""Twelve photos, five to a shard."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mixsiam_hub import ImageEncoder
from mixsiam_hub.images.samples import draw_samples


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    return ImageEncoder.from_pretrained(threads=1)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    from bulk_runs import ROWS  # Here, since it needs the extra bulk, without which the tests are skipped.

    monkeypatch.setattr("mixsiam_hub.vectors.shard_writer.ROWS", ROWS)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Twelve images, of which the first says that it lies on its side."""
    folder = tmp_path / "photos"
    folder.mkdir()
    paths = []
    for name, image in draw_samples(12).items():
        paths.append(folder / name)
        image.save(paths[-1])
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (60, 30), "red").save(paths[0], exif=turned)
    return paths


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "vectors"
