"""A folder of an encoder with a head, for the tests of what is outside our Python API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mixsiam_hub.images.samples import draw_samples

if TYPE_CHECKING:
    from mixsiam_hub.training.checkpoint import TrainedEncoder


@pytest.fixture(scope="session")
def headed_folder(trained_encoder: TrainedEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small encoder in the full form, with a head fitted on drawn samples. Read-only."""
    pytest.importorskip("onnxscript", reason="needs the extra export")
    from mixsiam_hub.export.bundle import export_folder
    from mixsiam_hub.images.sources import open_source
    from mixsiam_hub.training.head import clean_moments, fit_head

    folder = tmp_path_factory.mktemp("headed")
    samples = folder / "samples"
    samples.mkdir()
    for name, image in draw_samples(600, seed=2).items():
        image.save(samples / name)
    images, pre = open_source(str(samples)), trained_encoder.config.preprocessing
    head = fit_head(clean_moments(trained_encoder.backbone, images, pre))
    export_folder(trained_encoder.whitened(head, "drawn samples"), folder / "model", "Apache-2.0")
    return folder / "model"
