"""The networks that an evaluation compares: an encoder from wherever it lies, and one of random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.backends.torch import load_backbone
from mixsiam_hub.images.sources import ImageSet
from mixsiam_hub.model.config import ModelConfig
from mixsiam_hub.model.hub import resolve
from mixsiam_hub.training.checkpoint import RECIPE_FILE, TrainedEncoder, load_encoder
from mixsiam_hub.training.features import clean_statistics, use_statistics
from mixsiam_hub.training.machine import has_fast_bf16, pick_device


def is_run(model: str) -> bool:
    """Tells a run folder from the other things that name an encoder."""
    return bool(model) and (Path(model) / RECIPE_FILE).is_file()


def report_folder(model: str) -> Path:
    """Returns where to write what is measured of an encoder: into its run, or of others here."""
    return Path(model) if is_run(model) else Path()


def find_encoder(model: str) -> TrainedEncoder:
    """Loads an encoder onto the CPU.

    Args:
        model: A run folder, a model folder, a Hub id, or "" for the built-in encoder.

    Raises:
        DataError: As `load_encoder`, of a run.
        ModelError: No such model.
    """
    if is_run(model):
        return load_encoder(Path(model))
    folder = resolve(model or None)
    manifest = folder.manifest
    return TrainedEncoder(load_backbone(folder), folder.config, manifest.method, manifest.training)


def random_backbone(config: ModelConfig, images: ImageSet) -> Backbone:
    """Returns random weights, always the same, with BatchNorm statistics of clean images, on the device."""
    torch.manual_seed(0)
    backbone = Backbone(config.architecture, config.output_stride)
    use_statistics(backbone, clean_statistics(backbone, images, config.preprocessing))
    return on_device(backbone)


def on_device(backbone: Backbone) -> Backbone:
    """Returns it where and as it computes fastest; a CPU's stays the same object."""
    return backbone.to(memory_format=torch.channels_last).to(pick_device())


def evaluation_precision() -> str:
    """Returns what features are computed in: `bf16` on a GPU that computes it and on a CPU with AMX, else `fp32`."""
    return "bf16" if has_fast_bf16(pick_device()) else "fp32"
