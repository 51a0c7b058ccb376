"""What several test files of training share."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixsiam_hub.images.samples import draw_samples


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run, trained to its end."""
    from small_run import recipe

    from mixsiam_hub.training.loop import train

    run = tmp_path_factory.mktemp("runs") / "whole"
    assert train(recipe(run)).finished
    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 images in two classes, one of them nested deeper."""
    for i, (name, image) in enumerate(draw_samples(24).items()):
        place = tmp_path / "images" / ("cats/indoor" if i % 3 == 0 else "dogs")
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / name)
    return tmp_path / "images"
