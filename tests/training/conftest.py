"""What several test files of training share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run, trained to its end."""
    from small_run import recipe

    from mixsiam_hub.training.loop import train

    run = tmp_path_factory.mktemp("runs") / "whole"
    assert train(recipe(run)).finished
    return run
