"""What tests of the inference API share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mixsiam_hub import BUILTIN


@pytest.fixture(params=["onnx", "torch"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "torch":
        pytest.importorskip("torchvision", reason="needs the extra torch")
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The built-in encoder, to be broken."""
    return Path(shutil.copytree(BUILTIN, tmp_path / "model"))
