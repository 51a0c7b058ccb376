"""What several test files of the command line share."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixsiam_hub.images.samples import draw_samples


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name, image in draw_samples(16).items():
        image.save(folder / name)
    return folder
