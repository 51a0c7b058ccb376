"""The light part stays light: what is imported when, and that no torch is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mixsiam_hub.images.samples import draw_samples

HEAVY = ("torch", "torchvision", "onnxruntime", "huggingface_hub", "safetensors", "tqdm", "pyarrow", "numpy", "PIL")


def _python(code: str, *arguments: object, path: Path | None = None) -> str:
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def tripwire(tmp_path: Path) -> Path:
    """A folder for the import path whose torch and torchvision fail, with an error `except ImportError` lets by."""
    for name in ("torch", "torchvision"):
        (tmp_path / "wire" / name).mkdir(parents=True)
        (tmp_path / "wire" / name / "__init__.py").write_text(f"raise RuntimeError('{name} was imported')")
    return tmp_path / "wire"


@pytest.mark.parametrize("module", ["mixsiam_hub", "mixsiam_hub.cli"])
def test_import_brings_nothing_heavy(module: str) -> None:
    loaded = _python(f"import {module}, sys; print(*(m for m in {HEAVY} if m in sys.modules))")
    assert loaded.split() == []


def test_encoder_module_brings_no_runtime() -> None:
    loaded = _python(f"import mixsiam_hub.encoder, sys; print(*(m for m in {HEAVY} if m in sys.modules))")
    assert set(loaded.split()) == {"numpy", "PIL"}


def test_embedding_a_local_folder_needs_neither_torch_nor_the_hub(
    model_folder: Path, tripwire: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "picture.png"
    next(iter(draw_samples(1).values())).save(picture)
    code = """if True:
        import sys
        from mixsiam_hub import ImageEncoder
        vectors = ImageEncoder.from_pretrained(sys.argv[1]).embed([sys.argv[2]] * 2)
        print(vectors.shape, "torch" in sys.modules, "huggingface_hub" in sys.modules)
    """
    assert _python(code, model_folder, picture, path=tripwire).split() == ["(2,", "512)", "False", "False"]


def test_command_line_embeds_without_torch(model_folder: Path, tripwire: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name, image in draw_samples(64).items():
        image.save(tmp_path / "images" / name)
    code = "from mixsiam_hub.cli import main; main()"
    arguments = ("demo", tmp_path / "images", "--model", model_folder, "--out", tmp_path / "demo")
    output = _python(code, *arguments, path=tripwire)
    assert "64 vectors of 512" in output


def test_tripwire_trips(model_folder: Path, tripwire: Path) -> None:
    with pytest.raises(AssertionError, match="torch was imported"):
        _python(
            "import sys; from mixsiam_hub import ImageEncoder; ImageEncoder.from_pretrained(sys.argv[1]).to_torch()",
            model_folder,
            path=tripwire,
        )
