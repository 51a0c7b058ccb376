"""Measures without labels equal their definitions, and tell a good encoder's geometry from a bad one's."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("torchvision", reason="needs the extra train")

from commands import assert_one_error_line, run
from PIL import Image

from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.training.unlabelled import geometry


def test_measures_are_their_definitions() -> None:
    rng = np.random.default_rng(0)
    vectors, one, two = rng.normal(size=(3, 7, 4)).astype(np.float32)
    units = [[v / math.sqrt(sum(v * v)) for v in part.astype(float)] for part in (vectors, one, two)]
    pairs = [(i, j) for i in range(7) for j in range(i)]
    potentials = [math.exp(-2 * sum((units[0][i] - units[0][j]) ** 2)) for i, j in pairs]
    found = geometry(vectors, one, two)
    assert found.alignment == pytest.approx(sum(sum((a - b) ** 2) for a, b in zip(*units[1:], strict=True)) / 7)
    assert found.uniformity == pytest.approx(math.log(sum(potentials) / len(potentials)))


def test_collapse_is_seen() -> None:
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(200, 64)).astype(np.float32)
    constant = np.ones((200, 64), np.float32) + 1e-3 * spread
    good, bad = geometry(spread, spread, spread + 0.1), geometry(constant, constant, constant)
    assert good.rank > 40 > 3 > bad.rank
    assert good.uniformity < -3 < -0.01 < bad.uniformity <= 0
    assert bad.alignment < good.alignment < 0.1


def test_images_without_labels_are_measured_and_drawn(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, image in draw_samples(12).items():
        image.save(tmp_path / "in" / name)
    result = run("evaluate", "--images", tmp_path / "in", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    rows = [line.split("  ")[0] for line in result.stdout.splitlines()[1:-1]]
    assert rows == ["embedding", "pooled", "random weights", "raw pixels"]
    with Image.open(tmp_path / "out/neighbours.png") as sheet:
        assert sheet.width > 6 * 128
        assert sheet.height > 8 * 128
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["neighbours.png"]


def test_labelled_and_unlabelled_evaluation_do_not_mix(tmp_path: Path) -> None:
    for options in ([], ["--train", "digits"], ["--images", "digits", "--train", "digits", "--test", "digits"]):
        result = run("evaluate", *options)
        assert result.exit_code == 2
        assert "give --train and --test, or --images" in result.stderr


def test_one_image_is_too_few(tmp_path: Path) -> None:
    image = next(iter(draw_samples(2).values()))
    image.save(tmp_path / "one.png")
    result = run("evaluate", "--images", tmp_path / "one.png", "--out", tmp_path / "out")
    assert_one_error_line(result, "one image can be read; give at least two")
