"""The encoder that the wheel carries: it loads offline on both backends, verifies, and its card is the rendered one."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from mixsiam_hub import ImageEncoder
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model.hub import BUILTIN, resolve
from mixsiam_hub.model.known_answers import verify_folder

CARD = Path(__file__).parents[1] / "MODEL_CARD.md"


def test_it_gives_unit_vectors_of_the_samples() -> None:
    vectors = ImageEncoder.from_pretrained().embed(draw_samples(16).values())
    assert vectors.shape == (16, 512)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_it_tells_drawn_families_apart() -> None:
    """A loose sign of life, no quality claim: the nearest neighbour is of the same family far above chance."""
    samples = draw_samples(64)
    vectors = np.asarray(ImageEncoder.from_pretrained().embed(samples.values()))
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    families = np.array([name.partition("_")[0] for name in samples])
    assert (families[cosines.argmax(axis=1)] == families).mean() > 0.5  # Chance is 1 in 9.


def test_both_backends_agree() -> None:
    pytest.importorskip("torchvision", reason="needs the extra torch")
    images = list(draw_samples(8).values())
    onnx, torch = (np.asarray(ImageEncoder.from_pretrained(backend=name).embed(images)) for name in ("onnx", "torch"))
    assert (onnx * torch).sum(axis=1).min() > 0.99999


def test_it_verifies_and_fits_the_wheel() -> None:
    assert all(check.holds for check in verify_folder().vectors)
    assert sum(path.stat().st_size for path in BUILTIN.rglob("*") if path.is_file()) < 25 * 2**20
    assert resolve().manifest.weights == "fp16"


def test_the_card_is_the_rendered_one() -> None:
    pytest.importorskip("onnx", reason="needs the extra export")
    from mixsiam_hub.export.card import BUILTIN_CARD, render_card

    folder = resolve()
    in_the_folder = (folder.path / "README.md").read_text(encoding="utf-8")
    assert in_the_folder == render_card(BUILTIN_CARD, folder.config, folder.manifest)
    at_the_top = render_card(BUILTIN_CARD, folder.config, folder.manifest, pictures_at="mixsiam_hub/builtin/")
    assert CARD.read_text(encoding="utf-8") == at_the_top
    for picture in re.findall(r"\]\((.*?\.png)\)", at_the_top):
        assert (CARD.parent / picture).is_file()


def test_the_card_says_what_it_is_and_under_what_terms() -> None:
    text = CARD.read_text(encoding="utf-8")
    for words in ("A small encoder", "ImageNet", "non-commercial", "raw pixels", "mixsiam evaluate"):
        assert words in text
