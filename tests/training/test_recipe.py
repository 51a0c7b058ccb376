"""Recipes: the shipped ones load, what is wrong is named, and a recipe survives being written and read."""

from __future__ import annotations

import math
import os
import random
from dataclasses import fields
from importlib import resources
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra train")

from mixsiam_hub.errors import RecipeError
from mixsiam_hub.model.config import ModelConfig
from mixsiam_hub.training.init import with_shape_of_init
from mixsiam_hub.training.recipe import Recipe, data_name, load_recipe, recipe_from

SHIPPED = sorted(
    item.name.removesuffix(".toml")
    for item in resources.files("mixsiam_hub.training").joinpath("recipes").iterdir()
    if item.name.endswith(".toml")
)


def test_the_methods_table_is_shipped() -> None:
    assert {"adapt", "digits", "cifar10", "tiny-imagenet", "folder", "imagenet-resnet50"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_load_by_both_names(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe == load_recipe(f"{name}.toml")
    assert recipe.name == name
    assert recipe.method == "mixsiam"
    recipe = with_shape_of_init(recipe)
    assert ModelConfig.from_json(recipe.model_config.to_json("apache-2.0")) == recipe.model_config


HOSTILE = [*"\"'\\#=[]{}\n\r\t\0\x07\x1b\x7f\x85\u2028\ufeff\ufffe é中🖼", '"""', "'''", "\\u0041", "\r\n", "e\u0301"]


def test_every_recipe_that_is_written_is_read_back(tmp_path: Path) -> None:
    rng = random.Random(0)
    path = tmp_path / "recipe.toml"
    for trial in range(300):
        texts = ["".join(rng.choices(HOSTILE, k=rng.randrange(12))) for _ in range(5)]
        keys = ("data", "data_terms", "val_data", "init", "run_dir")
        low = rng.uniform(1e-9, 0.5)
        numbers = {"lr": 10 ** rng.uniform(-6, 2), "seed": rng.randrange(2**63), "crop_scale": (low, low + 0.5)}
        recipe = Recipe(name=f"a 'b' \"{trial}\" 🖼", **dict(zip(keys, texts, strict=True)), **numbers)
        path.write_bytes(recipe.to_toml().encode())
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
        ("checkpoint_minutes", -1),
        ("name", "a/b"),
        ("name", "a\\b"),
        ("name", ""),
        ("name", ".."),
        ("name", "two\nlines"),
        ("data", "not UTF-8: \udcff"),
        ("lr", 2**70),
        ("crop_scale", [2**2000, 1]),
        ("crop_scale", [math.nan, 1.0]),
        ("crop_scale", [0.1, math.inf]),
    ],
)
def test_wrong_values_name_file_and_key(key: str, value: object) -> None:
    with pytest.raises(RecipeError, match=rf"x\.toml.*{key}"):
        recipe_from({key: value}, "x.toml")


@pytest.mark.parametrize("key", [f.name for f in fields(Recipe) if type(f.default) in (int, float)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, 2**63])
def test_every_number_has_a_range_and_is_finite(key: str, value: float) -> None:
    allowed = "one of 32, 16, 8" if key == "output_stride" else r"a number from \S+ to \S+"
    with pytest.raises(RecipeError, match=f"{key} is {value}; it must be {allowed}"):
        Recipe(**{key: value})


def test_the_largest_input_is_the_contracts() -> None:
    config = Recipe(input_size=1024).model_config
    assert ModelConfig.from_json(config.to_json("mit")) == config
    with pytest.raises(RecipeError, match="input_size is 1025; it must be a number from 8 to 1,024"):
        Recipe(input_size=1025)


def test_overrides_are_typed_and_quotes_may_be_left_off() -> None:
    recipe = load_recipe("digits", ["lr=0.5", "data=my dir", "crop_scale=[0.1, 0.5]", "epochs = 3", "lam_alpha=2"])
    assert (recipe.lr, recipe.data, recipe.crop_scale, recipe.epochs) == (0.5, "my dir", (0.1, 0.5), 3)
    assert recipe.lam_alpha == 2.0
    with pytest.raises(RecipeError, match="key=value"):
        load_recipe("digits", ["lr"])


@pytest.mark.parametrize(
    "text", ["two\nlines", "1\nlr = 2", "[" * 5000, "1" * 5000], ids=["lines", "key", "brackets", "digits"]
)
def test_an_override_is_one_value_or_text(text: str) -> None:
    assert load_recipe("digits", [f"data_terms={text}"]).data_terms == text


def test_missing_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(RecipeError, match="cifar10, digits"):
        load_recipe("imagenet-of-tomorrow")


def test_broken_toml_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("lr = = 3")
    with pytest.raises(RecipeError, match=r"broken\.toml"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"a = " + b"[" * 5000, b"lr = " + b"1" * 5000, b"lr = 0x" + b"f" * 5000, b"\0", b"# " * 2**20],
    ids=["bytes", "brackets", "digits", "hex", "null", "long"],
)
def test_hostile_toml_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hostile.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"hostile\.toml") as told:
        load_recipe(str(path))
    assert len(str(told.value).replace(str(path), "")) < 400
    assert str(told.value).isprintable()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "~nobody-of-this-name/x.toml"])
def test_a_name_that_can_be_no_file_is_one_line(name: str) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe(name)


def test_a_pipe_is_no_recipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe(str(tmp_path / "pipe.toml"))


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
        ("s3://bucket/pets/000.tar::train", "pets/000.tar::train"),
        ("https://acct.blob.example/c/shard.tar?sv=1&sig=SECRET#a", "c/shard.tar"),
        ("https://me:SECRET@host.example/shard.tar", "host.example/shard.tar"),
    ],
)
def test_the_name_of_a_data_set_says_which_it_is_and_not_where(spec: str, name: str) -> None:
    assert data_name(spec) == name
