"""The small encoder that the tests share, and its folders: `python tests/helpers/small_encoder.py DIR` writes them.

An environment without torch runs the tests of embedding and search on folders written by another one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.export.bundle import export_folder
from mixsiam_hub.images.preprocess import preprocess
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model.config import ModelConfig, Preprocessing
from mixsiam_hub.training.checkpoint import TrainedEncoder

TRAINING_STEPS = 30


def train_small_encoder() -> TrainedEncoder:
    """A ResNet-18 at 32 px that tells the drawn samples' families apart; on random weights every cosine is near 1."""
    config = ModelConfig("resnet18", Preprocessing(32), output_stride=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = Backbone(config.architecture, config.output_stride)
        _train(backbone, config)
    provenance = {"recipe": {"data": "drawn samples"}, "steps": TRAINING_STEPS}
    return TrainedEncoder(backbone.eval(), config, "mixsiam", provenance)


def _train(backbone: Backbone, config: ModelConfig) -> None:
    """Trains on the families of the drawn samples, from their names."""
    samples = draw_samples(256, seed=1)
    families = sorted({name.partition("_")[0] for name in samples})
    x = torch.from_numpy(np.stack([preprocess(image, config.preprocessing) for image in samples.values()]))
    y = torch.tensor([families.index(name.partition("_")[0]) for name in samples])
    head = torch.nn.Linear(backbone.dim, len(families))
    optimiser = torch.optim.Adam([*backbone.parameters(), *head.parameters()], lr=1e-3)
    for _ in range(TRAINING_STEPS):
        batch = torch.randperm(len(x))[:32]
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(head(backbone(x[batch])), y[batch]).backward()
        optimiser.step()
    # One pass over all images gives BatchNorm their statistics: thirty steps of running averages lag behind.
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        backbone.train()(x)


def main() -> None:
    """Writes the full folder to DIR/full, the compact one to DIR/compact."""
    encoder = train_small_encoder()
    for form in ("full", "compact"):
        export_folder(encoder, Path(sys.argv[1]) / form, "Apache-2.0", compact=form == "compact")


if __name__ == "__main__":
    main()
