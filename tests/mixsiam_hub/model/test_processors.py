"""preprocessor_config.json names the filter by Pillow's number."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from mixsiam_hub.model.config import INTERPOLATIONS, ModelConfig, Preprocessing
from mixsiam_hub.model.processors import preprocessor_json


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_the_number_of_a_filter_is_pillows(interpolation: str) -> None:
    config = ModelConfig("resnet18", replace(Preprocessing(64), interpolation=interpolation))
    assert preprocessor_json(config)["resample"] == Image.Resampling[interpolation.upper()]
