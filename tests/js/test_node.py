"""A model folder's two graphs in Node, through the sample of examples/node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from in_javascript import BARS, node, replay

pytestmark = pytest.mark.js
ROUTE = "node"


def test_sixteen_pictures(loader_folder: Path, pictures: list[Path], cosines: Callable[..., np.ndarray]) -> None:
    vectors = node(loader_folder, pictures)
    assert cosines(vectors, pictures).min() >= BARS[ROUTE]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


def test_odd_pictures_are_read_as_image_encoder_does(
    loader_folder: Path, odd: dict[str, Path], cosines: Callable[..., np.ndarray]
) -> None:
    files = list(odd.values())
    found = dict(zip(odd, cosines(node(loader_folder, files), files), strict=True))
    # libvips takes a typical press's inks for CMYK without a profile, Pillow the plain formula.
    # The head amplifies that: 0.94, of pooled features 0.99.
    assert found.pop("CMYK") > 0.9
    assert min(found.values()) > 0.9999, found


def test_the_known_answers_replay(loader_folder: Path) -> None:
    answers = replay(loader_folder)
    assert 8 <= len(answers["cosines"]) <= 12
    assert min(answers["cosines"].values()) >= answers["min_cosine"] >= 0.999


def test_a_file_that_is_no_image_is_named(loader_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no pixels")
    with pytest.raises(RuntimeError, match=r"notes\.png: .*unsupported image format"):
        node(loader_folder, [tmp_path / "notes.png"])
