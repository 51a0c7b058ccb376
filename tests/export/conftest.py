"""A folder of an encoder with a head, for the tests of what is outside our Python API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mixsiam_hub.images.preprocess import preprocess
from mixsiam_hub.images.samples import draw_samples

if TYPE_CHECKING:
    from mixsiam_hub.training.checkpoint import TrainedEncoder


@pytest.fixture(scope="session")
def headed_folder(trained_encoder: TrainedEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small encoder in the full form, with a head fitted on drawn samples. Read-only."""
    pytest.importorskip("onnxscript", reason="needs the extra export")
    from mixsiam_hub.export.bundle import export_folder
    from mixsiam_hub.export.parity import run
    from mixsiam_hub.training.head import fit_head, moments_of

    samples = draw_samples(600, seed=2).values()
    pixels = np.stack([preprocess(image, trained_encoder.config.preprocessing) for image in samples])
    head = fit_head(moments_of(run(trained_encoder.backbone, pixels).pooled))
    folder = tmp_path_factory.mktemp("headed") / "model"
    export_folder(trained_encoder.whitened(head, "drawn samples"), folder, "Apache-2.0")
    return folder
