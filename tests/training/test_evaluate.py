"""Evaluation: every figure beside its floors, the backbone untouched, the report complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("sklearn", reason="needs the extra train")

from mixsiam_hub.errors import DataError
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.training import evaluate as evaluation
from mixsiam_hub.training.evaluate import RANDOM, RAW, Features, evaluate, linear_probe
from mixsiam_hub.training.loop import train
from mixsiam_hub.training.recipe import load_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "digits"
    options = ["epochs=1", "batch_size=400", "lr=0.03", "output_stride=32", "projector_dim=64", "predictor_dim=16"]
    train(load_recipe("digits", [*options, f'run_dir="{path}"']))
    return path


@pytest.fixture(scope="module")
def result(run: Path) -> dict[str, Any]:
    return evaluate(str(run), "digits::train", "digits::val")


def test_every_figure_stands_beside_its_floors(result: dict[str, Any], run: Path) -> None:
    assert list(result["rows"]) == [RAW, RANDOM, "mixsiam"]
    for scores in result["rows"].values():
        assert set(scores) == {"knn20", "knn200", "linear"}
        assert all(0 <= score <= 1 for score in scores.values())
    assert result["rows"][RAW]["knn20"] > 0.95  # Digits: raw pixels are hard to beat.
    assert not result["clears_raw_pixels"]
    assert (result["n_train"], result["n_test"], result["classes"]) == (1618, 179, 10)
    report = json.loads((run / "report.json").read_text())
    assert report == {"evaluations": [result]}
    assert (run / "report.png").stat().st_size > 10_000


def test_another_data_set_is_added_and_the_same_one_replaced(result: dict[str, Any], tmp_path: Path) -> None:
    evaluation.write_report(result, tmp_path)
    evaluation.write_report(result | {"test": "other"}, tmp_path)
    evaluation.write_report(result | {"n_test": 3}, tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())["evaluations"]
    assert [(entry["test"], entry["n_test"]) for entry in found] == [("other", 179), ("digits::val", 3)]


def test_a_changed_backbone_is_noticed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = evaluation._deep

    def disturb(backbone: Any, *args: Any) -> Features:
        with torch.no_grad():
            next(backbone.parameters()).mul_(1.0001)
        return deep(backbone, *args)

    monkeypatch.setattr(evaluation, "_deep", disturb)
    with pytest.raises(AssertionError, match="changed the backbone"):
        evaluate(str(run), "digits::val", "digits::val")


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    for name, image in draw_samples(3).items():
        image.save(tmp_path / name)
    with pytest.raises(DataError, match="has no labels"):
        evaluate("", str(tmp_path), str(tmp_path))


def test_linear_probe_separates_what_is_separable() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    separable = (rng.normal(size=(300, 4)) * 0.1 + np.eye(4)[labels]).astype(np.float32)
    noise = rng.normal(size=(300, 4)).astype(np.float32)
    assert linear_probe(Features(separable[:200], labels[:200], separable[200:], labels[200:])) > 0.98
    assert linear_probe(Features(noise[:200], labels[:200], noise[200:], labels[200:])) < 0.6
