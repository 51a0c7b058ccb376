"""Recipes: the shipped ones load, what is wrong is named, and a recipe survives being written and read."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra train")

from mixsiam_hub.errors import RecipeError
from mixsiam_hub.model.config import ModelConfig
from mixsiam_hub.training.recipe import Recipe, data_name, load_recipe, recipe_from

SHIPPED = sorted(
    item.name.removesuffix(".toml")
    for item in resources.files("mixsiam_hub.training").joinpath("recipes").iterdir()
    if item.name.endswith(".toml")
)


def test_the_methods_table_is_shipped() -> None:
    assert {"digits", "cifar10", "tiny-imagenet", "folder", "imagenet-resnet50"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_load_by_both_names(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe == load_recipe(f"{name}.toml")
    assert recipe.name == name
    assert recipe.method == "mixsiam"
    assert ModelConfig.from_json(recipe.model_config.to_json("apache-2.0")) == recipe.model_config


def test_a_recipe_survives_its_file(tmp_path: Path) -> None:
    recipe = Recipe(name='a "quoted" \\ name', data="some dir", crop_scale=(0.3, 0.9), epochs=3)
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert load_recipe(str(path)) == recipe


def test_unknown_key_is_named_and_the_allowed_ones_listed() -> None:
    with pytest.raises(RecipeError, match=r"(?s)x\.toml.*'learning_rate'.*weight_decay"):
        recipe_from({"learning_rate": 1.0}, "x.toml")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", "ten"),
        ("epochs", True),
        ("epochs", 1.5),
        ("lr", "0.1"),
        ("data", 3),
        ("crop_scale", [0.2]),
        ("crop_scale", "0.2"),
        ("crop_scale", [0.9, 0.2]),
        ("flip", 1.5),
        ("method", "byol"),
        ("output_stride", 12),
        ("backbone", "resnet1000"),
        ("batch_size", 1),
        ("lam_alpha", 0),
    ],
)
def test_wrong_values_name_file_and_key(key: str, value: object) -> None:
    with pytest.raises(RecipeError, match=rf"x\.toml.*{key}"):
        recipe_from({key: value}, "x.toml")


def test_overrides_are_typed_and_quotes_may_be_left_off() -> None:
    recipe = load_recipe("digits", ["lr=0.5", "data=my dir", "crop_scale=[0.1, 0.5]", "epochs = 3", "lam_alpha=2"])
    assert (recipe.lr, recipe.data, recipe.crop_scale, recipe.epochs) == (0.5, "my dir", (0.1, 0.5), 3)
    assert recipe.lam_alpha == 2.0
    with pytest.raises(RecipeError, match="key=value"):
        load_recipe("digits", ["lr"])


def test_missing_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(RecipeError, match="cifar10, digits"):
        load_recipe("imagenet-of-tomorrow")


def test_broken_toml_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("lr = = 3")
    with pytest.raises(RecipeError, match=r"broken\.toml"):
        load_recipe(str(path))


def test_epochs_scale_with_the_number_of_images() -> None:
    recipe = Recipe(epochs=0)
    assert recipe.epochs_for(1_000) == 400
    assert recipe.epochs_for(20_000) == 100
    assert recipe.epochs_for(10_000_000) == 10
    assert Recipe(epochs=7).epochs_for(1_000) == 7


def test_simsiam_has_no_mixture_and_lr_scales_with_the_batch() -> None:
    assert Recipe(method="simsiam", w=1.0).mixture_weight == 0
    assert Recipe(lr=0.05, batch_size=512).peak_lr == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("/home/me/tiny-imagenet", "tiny-imagenet"),
        ("tiny-imagenet::val", "tiny-imagenet::val"),
        ("/data/cifar10/test.parquet", "cifar10/test.parquet"),
        ("/data/pets/train", "pets/train"),
        ("/data/birds/Val::train", "birds/Val::train"),
        ("digits", "digits"),
    ],
)
def test_the_name_of_a_data_set_says_which_it_is_and_not_where(spec: str, name: str) -> None:
    assert data_name(spec) == name
