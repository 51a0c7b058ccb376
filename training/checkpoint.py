"""Checkpoints of a run, written by rename, and the trained encoder that export takes from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixsiam_hub.config import ModelConfig
from mixsiam_hub.resnet import Backbone


@dataclass(frozen=True)
class TrainedEncoder:
    """What a run hands over to export.

    Attributes:
        backbone: In eval mode, float32, its BatchNorm statistics re-estimated on clean training images.
        config: Architecture, stride and the deployed preprocessing.
        method: `mixsiam` or `simsiam`.
        provenance: Recipe, data, epochs, seconds, versions, hardware: `training` in mixsiam.json.
        quality: The run's report.json, or empty.
    """

    backbone: Backbone
    config: ModelConfig
    method: str
    provenance: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)


def load_encoder(run: Path) -> TrainedEncoder:
    """Loads the newest checkpoint of a run."""
    raise NotImplementedError
