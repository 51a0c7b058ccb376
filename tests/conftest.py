"""What tests of several folders share: a small encoder that was really trained, and the folders exported from it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mixsiam_hub.errors import MissingExtraError

if TYPE_CHECKING:
    from mixsiam_hub.training.checkpoint import TrainedEncoder

# The workers of pytest-xdist share the CPUs; numpy and torch read this when they are imported, below here.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The folder written by tests/helpers/small_encoder.py elsewhere, for the tests of an environment that cannot export.
EXPORTED = os.environ.get("MIXSIAM_EXPORTED_FOLDERS")


def pytest_configure() -> None:
    """Stops with one line where the source tree is found instead of an installed package."""
    if importlib.util.find_spec("mixsiam_hub.training") is None:
        raise pytest.UsageError("mixsiam_hub.training cannot be imported; develop with: pip install -e '.[dev]'")


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the tests' own in place of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Skips, where torch is not installed, the tests that the package stops by saying which extra they need."""
    try:
        yield
    except MissingExtraError as error:
        if importlib.util.find_spec("torch"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def trained_encoder() -> TrainedEncoder:
    """A ResNet-18 at 32 px that tells the drawn samples' families apart; on random weights every cosine is near 1."""
    for module in ("torch", "torchvision"):
        pytest.importorskip(module, reason="needs the extra train")
    from small_encoder import train_small_encoder

    return train_small_encoder()


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch on the digits, made by the command line. Read-only but for its report."""
    for module in ("torch", "sklearn", "tensorboard"):
        pytest.importorskip(module, reason="needs the extra train")
    from commands import run

    path = tmp_path_factory.mktemp("runs") / "digits"
    small = ["epochs=1", "batch_size=400", "lr=0.03", "output_stride=32", "projector_dim=64", "predictor_dim=16"]
    settings = [word for key_value in [*small, f"run_dir={path}"] for word in ("--set", key_value)]
    trained = run("train", "digits", *settings)
    assert trained.exit_code == 0, trained.output
    assert str(path) in trained.output
    return path


@pytest.fixture(scope="session")
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The full folder. Read-only: copy it before changing anything."""
    return _exported("full", request, tmp_path_factory)


@pytest.fixture(scope="session")
def compact_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compact folder. Read-only: copy it before changing anything."""
    return _exported("compact", request, tmp_path_factory)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Sixteen files that every loader must agree on: upright, RGB or grey, without colour profile."""
    pytest.importorskip("skimage", reason="needs the extra dev")
    from pictures import upright_pictures

    return upright_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def loader_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in encoder in the full form, fp16 and int8 graphs included. Read-only."""
    for module in ("torch", "onnxscript"):
        pytest.importorskip(module, reason="needs the extra export")
    from mixsiam_hub.export.bundle import export_folder
    from mixsiam_hub.export.source import folder_encoder
    from mixsiam_hub.export.variants import open_calibration
    from mixsiam_hub.images.samples import draw_samples
    from mixsiam_hub.model.hub import resolve

    photos = tmp_path_factory.mktemp("calibration")
    for name, image in draw_samples(400, seed=7).items():
        image.save(photos / name)
    encoder = folder_encoder(resolve())
    folder = tmp_path_factory.mktemp("loaders") / "encoder"
    calibration = open_calibration(str(photos), encoder.config.preprocessing)
    export_folder(encoder, folder, "Apache-2.0", calibration=calibration)
    return folder


def _exported(form: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if EXPORTED:
        return Path(EXPORTED, form)
    encoder: TrainedEncoder = request.getfixturevalue("trained_encoder")
    for module in ("onnx", "onnxscript"):
        pytest.importorskip(module, reason="needs the extra export")
    from mixsiam_hub.export.bundle import export_folder

    folder = tmp_path_factory.mktemp(form) / "model"
    export_folder(encoder, folder, "Apache-2.0", compact=form == "compact")
    return folder
