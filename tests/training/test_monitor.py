"""The verdict tells planted failures from a healthy encoder; each health number equals its definition."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("sklearn", reason="needs the extra train")

from objective import paper_inputs
from sklearn.datasets import load_digits
from torch import nn

from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.images.preprocess import load_pixels
from mixsiam_hub.model.config import Preprocessing
from mixsiam_hub.training.data import open_images, sample
from mixsiam_hub.training.knn import knn_accuracy
from mixsiam_hub.training.log import finite
from mixsiam_hub.training.model import MixSiam
from mixsiam_hub.training.monitor import (
    MAX_BIAS,
    RANK_IMAGES,
    Health,
    Monitor,
    effective_rank,
    explain,
    health_of,
    raw_pixels,
    target_bias,
    verdict,
    z_std,
)

PRE = Preprocessing(16)


class Planted(nn.Module):
    """An encoder whose features are what a test makes of the flattened pixels, (N, 768) -> (N, dim)."""

    dim = 64

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.kind = kind
        self.linear = nn.Linear(3 * 16 * 16, self.dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.linear(x.flatten(1))
        if self.kind == "constant":
            return torch.ones_like(features) + 1e-6 * features
        if self.kind == "rank 1":
            return features[:, :1] * torch.linspace(-1, 1, self.dim)
        return features


def measure(kind: str) -> Health:
    """Health of a planted encoder whose projector has seen it, so that its statistics fit."""
    torch.manual_seed(0)
    model = MixSiam(Planted(kind), projector_layers=2, projector_dim=64, predictor_dim=16)
    images = open_images("digits::train")
    x = torch.stack([torch.from_numpy(load_pixels(images[i].source, PRE).copy()) for i in range(512)])
    x = x.permute(0, 3, 1, 2).float() / 255
    model.train()
    out = model
    with torch.no_grad():
        for _ in range(60):
            out = model(paper_inputs(x, x, torch.ones(512, 1, 1, 1)))
    monitor = Monitor(images, open_images("digits::val"), PRE, "fp32")
    return monitor.measure(model, float(z_std(out.z1)), float(target_bias(out.target)))


def test_the_verdict_tells_planted_failures_from_a_healthy_encoder() -> None:
    healthy, rank_1, constant = measure("healthy"), measure("rank 1"), measure("constant")
    initial = healthy
    assert verdict(healthy, initial) == "healthy"
    assert verdict(rank_1, initial) == "collapsed"
    assert explain(healthy, initial, 0.5).startswith("healthy: effective rank of features ")
    said = explain(rank_1, initial, 0.5).splitlines()
    assert said[0].startswith("collapsed: effective rank of features 1 (")
    assert said[0].endswith("; raw pixels 50.0%)")
    assert said[1].startswith("because all features lie on one line")
    assert said[2].count("; or ") == 2  # Three things to change.
    assert verdict(constant, initial) == "collapsed"
    assert rank_1.rank_backbone == pytest.approx(1, abs=0.05)
    assert constant.pre_bn_var_median < 1
    assert healthy.pre_bn_var_min > 1
    # This is why the verdict never rests on z_std: both failures look fine by it.
    assert rank_1.z_std > 0.5


def test_weak_signs_are_seen_one_by_one() -> None:
    good = Health(100, 100, 1e3, 1e4, 1.0, 0.3, 0.5, 0.5)
    assert verdict(good, good) == "healthy"
    for change in (
        {"rank_backbone": 20.0},
        {"rank_z": 20.0},
        {"pre_bn_var_min": 0.5},
        {"target_bias": MAX_BIAS + 0.05},
        {"z_std": 0.4},
        {"knn20": 0.3},
    ):
        assert verdict(Health(**(vars(good) | change)), good) == "weak", change
    assert verdict(Health(**(vars(good) | {"rank_z": math.nan})), good) == "collapsed"


def test_before_training_there_is_no_verdict_and_nothing_invented() -> None:
    torch.manual_seed(0)
    model = MixSiam(Backbone("resnet18", 16), projector_layers=2, projector_dim=64, predictor_dim=16)
    monitor = Monitor(open_images("digits::train"), open_images("digits::val"), Preprocessing(32), "fp32")
    initial = monitor.measure_untrained(model)
    assert (initial.z_std, initial.target_bias) == (None, None)
    assert verdict(initial, initial) is None
    # With its BatchNorms at (0, 1) instead, an untrained network looks as if it had all but collapsed.
    assert initial.pre_bn_var_median > 100 * monitor.measure(model).pre_bn_var_median


@pytest.mark.parametrize(("w", "target"), [(0, "max"), (1, "max"), (1, "mean"), (1, "max-centred")])
def test_the_bias_is_of_the_target_that_ran(w: float, target: str) -> None:
    torch.manual_seed(0)
    model = MixSiam(Planted("healthy"), projector_layers=2, projector_dim=64, predictor_dim=16, w=w, target=target)
    x1, x2 = torch.randn(2, 256, 3, 16, 16)
    found = model(paper_inputs(x1, x2, torch.ones(256, 1, 1, 1))).target
    if not w:
        assert found is None
    elif target == "max":
        assert float(target_bias(found)) == pytest.approx(MAX_BIAS, abs=0.05)
    else:
        assert float(target_bias(found)) == pytest.approx(0, abs=0.05)


def test_the_rank_is_measured_on_images_of_every_class(tmp_path: Path) -> None:
    digits = load_digits()
    for position, label in enumerate(digits.target):
        path = tmp_path / str(label) / f"{position}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.uint8(digits.images[position] * 15)).save(path)
    images = sample(open_images(str(tmp_path)), RANK_IMAGES)
    assert set(images.labels or ()) == set("0123456789")
    assert np.diff(images.indices).min() < 0  # The monitor takes the first of these.


def test_effective_rank_of_known_matrices() -> None:
    assert effective_rank(np.eye(8, dtype=np.float32)) == pytest.approx(8)
    assert effective_rank(np.ones((8, 5), np.float32)) == pytest.approx(1, abs=1e-4)
    assert effective_rank(np.zeros((4, 4), np.float32)) == 0
    p = np.array([3, 1]) / 4
    assert effective_rank(np.diag([3, 1]).astype(np.float32)) == pytest.approx(math.exp(-(p * np.log(p)).sum()))


def test_z_std_and_target_bias_of_known_batches() -> None:
    z = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))
    assert float(z_std(z)) == pytest.approx(1, abs=0.02)
    assert float(z_std(torch.ones(10, 64))) == pytest.approx(0, abs=1e-6)
    other = torch.randn(2000, 64, generator=torch.Generator().manual_seed(1))
    assert float(target_bias(torch.maximum(z, other))) == pytest.approx(math.sqrt(1 / math.pi), abs=0.01)
    assert float(target_bias(z)) == pytest.approx(0, abs=0.01)
    assert float(target_bias(torch.ones(3, 8))) == pytest.approx(1)


def test_monitor_leaves_the_model_as_it_was() -> None:
    model = MixSiam(Planted("healthy"), projector_layers=2, projector_dim=64, predictor_dim=16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    monitor = Monitor(open_images("digits::val"), None, PRE, "fp32")
    monitor.measure_untrained(model)
    monitor.measure(model, 1.0, 0.0)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_diverged_model_is_collapsed_not_a_crash() -> None:
    model = MixSiam(Planted("healthy"), projector_layers=2, projector_dim=64, predictor_dim=16)
    monitor = Monitor(open_images("digits::train"), open_images("digits::val"), PRE, "fp32")
    initial = monitor.measure_untrained(model)
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    assert verdict(monitor.measure(model, math.nan, math.nan), initial) == "collapsed"


def test_raw_pixels_are_centred_16_px_images() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    flat = raw_pixels(pixels)
    assert flat.shape == (3, 16 * 16 * 3)
    assert np.allclose(flat.mean(axis=1), 0, atol=1e-3)
    top_left = pixels[0, :2, :2, 0].mean() - pixels[0].reshape(-1).mean()
    assert flat[0, 0] == pytest.approx(top_left, abs=1e-2)


def test_knn_equals_the_votes_counted_one_by_one() -> None:
    rng = np.random.default_rng(0)
    bank, queries = (rng.normal(size=(n, 5)).astype(np.float32) for n in (40, 15))
    bank_labels, labels = rng.integers(0, 3, 40), rng.integers(0, 3, 15)
    for k in (1, 5, 40):
        right = 0
        for query, label in zip(queries, labels, strict=True):
            cosines = bank @ query / np.linalg.norm(bank, axis=1) / np.linalg.norm(query)
            votes = np.zeros(3)
            for i in sorted(range(40), key=lambda i: -cosines[i])[:k]:
                votes[bank_labels[i]] += math.exp(cosines[i] / 0.1)
            right += int(votes.argmax() == label)
        assert knn_accuracy(bank, bank_labels, queries, labels, (k,))[k] == pytest.approx(right / 15)


def test_numbers_that_are_not_finite_come_back_from_the_log() -> None:
    broken = Health(math.nan, math.nan, math.nan, math.nan, math.nan, None, None, None)
    line = json.loads(json.dumps(finite({"epoch": 3, "health": asdict(broken)})))
    good = Health(30.0, 20.0, 5.0, 9.0, 0.9, None, 0.5, 0.4)
    assert verdict(health_of(line), good) == "collapsed"
    assert "because some numbers are not finite" in explain(health_of(line), good, None)
    before = replace(good, z_std=None)
    assert health_of({"epoch": 0, "health": asdict(before)}) == before
    assert explain(before, before, None) == "before training"
