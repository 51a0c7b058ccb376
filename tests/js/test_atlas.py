"""The table of `mixsiam map` in embedding-atlas, opened as the README says, in a real browser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the extra bulk")

from in_javascript import atlas

from mixsiam_hub.vectors.map import NEIGHBOURS, Map, write_map
from mixsiam_hub.vectors.nearest import nearest

pytestmark = pytest.mark.js
ROUTE = "atlas"


def test_embedding_atlas_opens_a_map(tmp_path: Path) -> None:
    places = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    rows, cosines = nearest(places, places, NEIGHBOURS)
    with open(tmp_path / "map.parquet", "wb") as file:
        write_map(file, Map([f"photo-{row}.jpg" for row in range(40)], places, rows, 1 - cosines))
    text = atlas(tmp_path / "map.parquet", "photo-0.jpg")
    assert "40 / 40 points" in text
    assert "photo-1.jpg" in text
