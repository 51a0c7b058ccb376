"""What tests of several folders share: a small encoder that was really trained, and the folders exported from it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mixsiam_hub.backends.backbone import Backbone
    from mixsiam_hub.model.config import ModelConfig
    from mixsiam_hub.training.checkpoint import TrainedEncoder

TRAINING_STEPS = 30


def pytest_configure() -> None:
    """Stops with one line where the source tree is found instead of an installed package."""
    if importlib.util.find_spec("mixsiam_hub.training") is None:
        raise pytest.UsageError("mixsiam_hub.training cannot be imported; develop with: pip install -e '.[dev]'")


@pytest.fixture(scope="session")
def trained_encoder() -> TrainedEncoder:
    """A ResNet-18 at 32 px that tells the drawn samples' families apart; on random weights every cosine is near 1."""
    for module in ("torch", "torchvision"):
        pytest.importorskip(module, reason="needs the extra train")
    import torch

    from mixsiam_hub.backends.backbone import Backbone
    from mixsiam_hub.model.config import ModelConfig, Preprocessing
    from mixsiam_hub.training.checkpoint import TrainedEncoder

    config = ModelConfig("resnet18", Preprocessing(32), output_stride=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = Backbone(config.architecture, config.output_stride)
        _train(backbone, config)
    provenance = {"recipe": {"data": "drawn samples"}, "steps": TRAINING_STEPS}
    return TrainedEncoder(backbone.eval(), config, "mixsiam", provenance)


def _train(backbone: Backbone, config: ModelConfig) -> None:
    """Trains on the families of the drawn samples, from their names."""
    import numpy as np
    import torch

    from mixsiam_hub.images.preprocess import preprocess
    from mixsiam_hub.images.samples import draw_samples

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


@pytest.fixture(scope="session")
def model_folder(trained_encoder: TrainedEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The full folder. Read-only: copy it before changing anything."""
    return _export(trained_encoder, tmp_path_factory.mktemp("full") / "model", compact=False)


@pytest.fixture(scope="session")
def compact_folder(trained_encoder: TrainedEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compact folder. Read-only: copy it before changing anything."""
    return _export(trained_encoder, tmp_path_factory.mktemp("compact") / "model", compact=True)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Sixteen files that every loader must agree on: upright, RGB or grey, without colour profile."""
    pytest.importorskip("skimage", reason="needs the extra dev")
    from pictures import upright_pictures

    return upright_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def loader_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in encoder in the full form, fp16 and int8 graphs included. Read-only."""
    for module in ("torch", "onnxscript"):
        pytest.importorskip(module, reason="needs the extra export")
    from mixsiam_hub.export.bundle import export_folder
    from mixsiam_hub.export.source import folder_encoder
    from mixsiam_hub.export.variants import open_calibration
    from mixsiam_hub.images.samples import draw_samples
    from mixsiam_hub.model.hub import resolve

    photos = tmp_path_factory.mktemp("calibration")
    for name, image in draw_samples(400, seed=7).items():
        image.save(photos / name)
    encoder = folder_encoder(resolve())
    folder = tmp_path_factory.mktemp("loaders") / "encoder"
    calibration = open_calibration(str(photos), encoder.config.preprocessing)
    export_folder(encoder, folder, "Apache-2.0", calibration=calibration)
    return folder


def _export(encoder: TrainedEncoder, folder: Path, *, compact: bool) -> Path:
    for module in ("onnx", "onnxscript"):
        pytest.importorskip(module, reason="needs the extra export")
    from mixsiam_hub.export.bundle import export_folder

    export_folder(encoder, folder, "Apache-2.0", compact=compact)
    return folder
