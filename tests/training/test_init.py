"""What training continues from: its weights are taken once, and where they came from is kept."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")

from small_run import before_each_step

from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.backends.torch import load_backbone
from mixsiam_hub.errors import RecipeError
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.model.hub import BUILTIN
from mixsiam_hub.training import init
from mixsiam_hub.training.checkpoint import load_encoder
from mixsiam_hub.training.init import Origin, load_init, with_shape_of_init
from mixsiam_hub.training.loop import train
from mixsiam_hub.training.recipe import Recipe, load_recipe

RECIPE = Recipe(init=str(BUILTIN), output_stride=16)
HOURS = init._core_hours(ModelFolder.open(BUILTIN).manifest.training)


class Compared(Exception):
    """Ends a run once it has been looked at."""


def test_the_weights_are_the_folders_and_the_folder_goes_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(BUILTIN, tmp_path / "start")
    folder = ModelFolder.open(BUILTIN)
    monkeypatch.chdir(tmp_path / "start")
    for path in (str(tmp_path / "start"), "."):
        backbone = Backbone("resnet18", 16)
        found = load_init(backbone, replace(RECIPE, init=path))
        assert found == Origin("start", None, folder.manifest.fingerprint, HOURS)
    for name, tensor in load_backbone(folder, with_head=False).state_dict().items():
        assert torch.equal(backbone.state_dict()[name], tensor), name


def test_a_repository_goes_by_its_id_and_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = replace(ModelFolder.open(BUILTIN), revision="0123abcd")
    monkeypatch.setattr(init, "resolve", lambda name: folder)
    found = load_init(Backbone("resnet18", 16), replace(RECIPE, init="lab/first@main"))
    assert found == Origin("lab/first", "0123abcd", folder.manifest.fingerprint, HOURS)


def test_core_hours_are_those_of_the_whole_line() -> None:
    own = {"device": "cpu", "seconds": 900, "threads": 5}
    assert init._core_hours(own) == 1.2
    assert init._core_hours(own | {"init": {"core_hours": 1.25}}) == 2.5
    assert init._core_hours(own | {"init": {"core_hours": None}}) is None
    assert init._core_hours({}) is None


def test_another_architecture_is_refused_with_what_to_set() -> None:
    with pytest.raises(RecipeError, match="output_stride = 16"):
        load_init(Backbone("resnet18", 32), replace(RECIPE, output_stride=32))


def test_another_normalisation_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    load_init(Backbone("resnet18", 16), RECIPE)
    assert not caplog.messages
    folder = ModelFolder.open(BUILTIN)
    pre = replace(folder.config.preprocessing, mean=(0.5, 0.5, 0.5))
    monkeypatch.setattr(init, "resolve", lambda name: replace(folder, config=replace(folder.config, preprocessing=pre)))
    load_init(Backbone("resnet18", 16), RECIPE)
    (said,) = caplog.messages
    assert "was trained with mean (0.5, 0.5, 0.5)" in said


def test_targets_from_an_average_start_from_the_encoder_too(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(trainer: Any) -> None:
        average, backbone = trainer.model.average[0].state_dict(), trainer.model.backbone.state_dict()
        assert all(torch.equal(average[name], tensor) for name, tensor in backbone.items())
        raise Compared

    before_each_step(monkeypatch, compare)
    small = ["data=digits", "batch_size=300", "projector_dim=64", "predictor_dim=16", "workers=0"]
    recipe = load_recipe(
        "adapt", [*small, "momentum_target=0.9", f"init={model_folder}", f"run_dir={tmp_path / 'run'}"]
    )
    with pytest.raises(Compared):
        train(recipe)


def test_the_shape_is_that_of_the_encoder_where_the_recipe_asks_for_it() -> None:
    recipe = with_shape_of_init(load_recipe("adapt", ["data=x"]))
    assert (recipe.backbone, recipe.output_stride, recipe.input_size) == ("resnet18", 16, 80)
    assert load_init(Backbone("resnet18", 16), recipe).name == "builtin"
    assert with_shape_of_init(RECIPE) == RECIPE
    with pytest.raises(RecipeError, match="backbone is 'init'; it must be another, or set init too"):
        load_recipe("adapt", ["init="])


def test_adapting_starts_from_the_encoder_and_resumes_without_it(model_folder: Path, tmp_path: Path) -> None:
    folder, run = tmp_path / "start", tmp_path / "run"
    shutil.copytree(model_folder, folder)
    small = ["data=digits", "epochs=1", "batch_size=300", "projector_dim=64", "predictor_dim=16", "workers=0"]
    recipe = load_recipe("adapt", [*small, f"init={folder}", f"run_dir={run}"])
    config = ModelFolder.open(folder).config
    assert train(recipe).finished
    trained = load_encoder(run)
    assert (trained.config.architecture, trained.config.preprocessing.input_px) == (config.architecture, 32)
    assert trained.provenance["init"]["fingerprint"] == ModelFolder.open(folder).manifest.fingerprint
    shutil.rmtree(folder)
    assert train(recipe, resume=True).finished
    with pytest.raises(RecipeError, match="was started with another input_size"):
        train(replace(recipe, backbone="resnet18", output_stride=trained.config.output_stride), resume=True)
