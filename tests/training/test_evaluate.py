"""Evaluation: every figure beside its floors, classes by name, the backbone untouched."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("sklearn", reason="needs the extra train")

from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mixsiam_hub.errors import DataError
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model.figures import EMBEDDING, FIRST, POOLED, RANDOM, RAW, WHITENED, Evaluation, Whitening
from mixsiam_hub.training import evaluate as evaluation
from mixsiam_hub.training import probe
from mixsiam_hub.training.checkpoint import CHECKPOINT_FILE, load_encoder, read_checkpoint
from mixsiam_hub.training.data import open_images
from mixsiam_hub.training.evaluate import Features, evaluate
from mixsiam_hub.training.head import FLOOR, MAX_DIM, RESIZING, clean_moments, fit_head
from mixsiam_hub.training.probe import hits, probe_accuracy
from mixsiam_hub.user_cache import ArrayCache


@pytest.fixture(scope="module")
def result(digits_run: Path) -> Evaluation:
    return evaluate(str(digits_run), "digits::train", "digits::val")


def test_every_figure_stands_beside_its_floors(result: Evaluation) -> None:
    whitened = [f"{RAW}{WHITENED}", f"{RANDOM}{WHITENED}"]
    assert list(result.rows) == [EMBEDDING, FIRST, POOLED, RAW, whitened[0], RANDOM, whitened[1]]
    for name, accuracy in result.rows.items():
        assert 0 <= accuracy.knn20 <= 1
        assert 0 <= accuracy.knn200 <= 1
        assert (accuracy.linear is None) == (name in (FIRST, *whitened))
    assert result.rows[RAW].knn20 > 0.95  # Digits: raw pixels are hard to beat.
    assert not result.clears_raw_pixels
    assert (result.n_train, result.n_test, result.classes) == (1618, 179, 10)
    assert result.train_digest == open_images("digits::train").identity
    assert result.test_digest == open_images("digits::val").identity
    assert result.command == "mixsiam evaluate digits --train digits::train --test digits::val"


def test_a_run_carries_its_head(digits_run: Path) -> None:
    encoder = load_encoder(digits_run)
    assert encoder.head == Whitening("digits", 1618, FLOOR, RESIZING)
    head = read_checkpoint(digits_run)["head"]
    assert (head["images"], head["weight"].shape) == (1618, (MAX_DIM, 512))
    assert encoder.backbone.fc is not None
    assert torch.equal(encoder.backbone.fc.weight, head["weight"])
    assert torch.equal(encoder.backbone.fc.bias, head["bias"])


def test_a_run_from_before_heads_were_kept_gets_its_own(digits_run: Path, tmp_path: Path) -> None:
    encoder = load_encoder(digits_run)
    bare = encoder.backbone
    bare.fc = None
    moments = clean_moments(bare, open_images("digits::train"), encoder.config.preprocessing)._replace(resizing=None)
    state = read_checkpoint(digits_run)
    del state["head"]
    shutil.copytree(digits_run, tmp_path / "run")
    kept = {"images": moments.images, "mean": moments.mean, "covariance": moments.covariance}
    torch.save(state | {"moments": kept}, tmp_path / "run" / CHECKPOINT_FILE)
    old = load_encoder(tmp_path / "run")
    assert old.head == Whitening("digits", 1618, FLOOR)
    torch.testing.assert_close(old.backbone.fc.weight, fit_head(moments).weight, rtol=1e-3, atol=1e-3)


def test_a_changed_backbone_is_noticed(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = evaluation._features

    def disturb(networks: dict[str, Any], *args: Any) -> dict[str, Features]:
        with torch.no_grad():
            next(networks["mixsiam"].parameters()).mul_(1.0001)
        return features(networks, *args)

    monkeypatch.setattr(evaluation, "_features", disturb)
    with pytest.raises(AssertionError, match="changed the backbone"):
        evaluate(str(digits_run), "digits::val", "digits::val")


def write_classes(root: Path, **images_of: Iterable[int]) -> str:
    """Plain grey pictures, the images of a class around the brightness that its numbers give."""
    rng = np.random.default_rng(0)
    for name, levels in images_of.items():
        (root / name).mkdir(parents=True)
        for i, level in enumerate(levels):
            pixels = np.clip(rng.normal(level, 4, (16, 16, 3)), 0, 255).astype(np.uint8)
            pixels[: level // 16] = 255 - pixels[: level // 16]  # Raw pixels are mean-centred: let the shape tell.
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return str(root)


def test_a_class_that_the_test_images_lack_moves_no_other(digits_run: Path, tmp_path: Path) -> None:
    train = write_classes(tmp_path / "train", cat=[20] * 8, dog=[120] * 8, fox=[220] * 8)
    test = write_classes(tmp_path / "test", dog=[120] * 8, fox=[220] * 8)
    found = evaluate(str(digits_run), train, test)
    assert found.rows[RAW].linear == 1.0  # It was 0: dog was class 1 in one folder and class 0 in the other.
    assert (found.classes, found.n_train, found.n_test) == (3, 24, 16)


def test_sets_without_a_common_class_are_refused(digits_run: Path, tmp_path: Path) -> None:
    train = write_classes(tmp_path / "train", cat=[20] * 2, dog=[120] * 2)
    with pytest.raises(DataError, match="no class in common"):
        evaluate(str(digits_run), train, write_classes(tmp_path / "test", fox=[20] * 2, owl=[120] * 2))
    with pytest.raises(DataError, match="numbers for its classes"):
        evaluate(str(digits_run), train, "digits")


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
    assert probe_accuracy(separable[:200], labels[:200], separable[200:], labels[200:]) > 0.98
    assert probe_accuracy(noise[:200], labels[:200], noise[200:], labels[200:]) < 0.6


def test_linear_probe_is_logistic_regression() -> None:
    digits = load_digits()
    features, labels = digits.data.astype(np.float32), digits.target
    scaler = StandardScaler().fit(features[:1000])
    theirs = LogisticRegression(C=1.0, max_iter=1000, tol=1e-6)
    theirs.fit(scaler.transform(features[:1000]), labels[:1000])
    expected = theirs.score(scaler.transform(features[1000:]), labels[1000:])
    ours = hits(features[:1000], labels[:1000], features[1000:], labels[1000:], c=1.0) / len(labels[1000:])
    assert ours == pytest.approx(expected, abs=0.002)


@pytest.mark.parametrize("choices", [(1.0, 1e-7), (1e-7, 1.0)])
def test_training_images_choose_the_probes_regularisation(
    choices: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "CHOICES_OF_C", choices)
    rng = np.random.default_rng(0)
    labels = np.append(rng.integers(0, 3, 200), [0] * 100)  # With weights held near 0 all are of the commonest class.
    features = (rng.normal(size=(300, 4)) * 0.1 + np.eye(4)[labels]).astype(np.float32)
    order = rng.permutation(300)
    features, labels = (array[order] for array in (features, labels))
    parts = features[:200], labels[:200], features[200:], labels[200:]
    assert hits(*parts, c=1e-7) < 70 < 95 < hits(*parts, c=1.0) == 100 * probe_accuracy(*parts)
    few = features[:8], labels[:8], features[200:], labels[200:]
    assert 100 * probe_accuracy(*few) == hits(*few, c=choices[0])  # None of them can be held out.


def test_features_are_taken_from_the_cache_while_nothing_changed(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = write_classes(tmp_path / "train", dog=[120] * 8, fox=[220] * 8)
    test = write_classes(tmp_path / "test", dog=[120] * 6, fox=[220] * 6)
    cache, runs = ArrayCache(tmp_path / "cache"), []
    extract = evaluation.extract
    monkeypatch.setattr(evaluation, "extract", lambda *args: runs.append(args) or extract(*args))
    searches, search = [], evaluation.knn_accuracy
    monkeypatch.setattr(evaluation, "knn_accuracy", lambda *args: searches.append(args) or search(*args))
    first = evaluate(str(digits_run), train, test, probe=False, cache=cache)
    assert len(runs) == 4  # Two networks, two sets.
    assert (len(searches), first.rows[POOLED].linear) == (len(first.rows), None)
    assert evaluate(str(digits_run), train, test, probe=False, cache=cache) == first
    assert len(runs) == 4
    assert len(searches) == len(first.rows)  # What was found with the features is kept, too.
    probed = evaluate(str(digits_run), train, test, cache=cache).rows
    assert probed[POOLED] == replace(first.rows[POOLED], linear=probed[POOLED].linear)
    assert probed[POOLED].linear is not None
    assert len(searches) == len(first.rows)
    changed = next(Path(test).rglob("*.png"))
    pixels = np.asarray(Image.open(changed))
    Image.fromarray(pixels[::-1]).save(changed)
    evaluate(str(digits_run), train, test, probe=False, cache=cache)
    assert len(runs) == 6
    for path in cache.folder.iterdir():
        path.write_bytes(path.read_bytes()[:100])  # Damaged: as if it were not there.
    evaluate(str(digits_run), train, test, probe=False, cache=cache)
    assert len(runs) == 10
