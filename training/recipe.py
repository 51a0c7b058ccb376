"""A recipe: one flat set of keys that says everything about a training run."""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mixsiam_hub.errors import RecipeError, missing_extra
from mixsiam_hub.images.finding import is_address
from mixsiam_hub.model.config import ARCHITECTURES, MAX_INPUT_PX, ModelConfig, Preprocessing
from mixsiam_hub.model.hub import HUB_ID
from mixsiam_hub.training.augment import Augmentation
from mixsiam_hub.training.losses import TARGETS
from mixsiam_hub.training.mixing import MIXTURES
from mixsiam_hub.training.views import ViewPlan
from mixsiam_hub.untrusted import parsing, quote, read_bytes

OF_INIT = "init"
"""As backbone: that of the encoder that training continues from, with OF_INIT_KEYS."""
OF_INIT_KEYS = ("backbone", "output_stride", "input_size", "interpolation")

_CHOICES: dict[str, tuple[object, ...]] = {
    "method": ("mixsiam", "simsiam"),
    "backbone": (*ARCHITECTURES, OF_INIT),
    "output_stride": (32, 16, 8),
    "target": TARGETS,
    "mixture": MIXTURES,
    "interpolation": ("bilinear", "bicubic", "lanczos"),  # That preprocess.onnx can be built for.
    "predictors": ("shared", "own"),
    "precision": ("auto", "fp32", "bf16"),
}
_RANGES: dict[str, tuple[float, float]] = {
    "input_size": (8, MAX_INPUT_PX),
    "view_size": (0, MAX_INPUT_PX),
    "views": (2, 64),
    "local_views": (0, 64),
    "local_size": (8, MAX_INPUT_PX),
    "mixtures": (1, 64),
    "momentum_target": (0, 0.99999),
    "coding_rate": (0, 100),
    "epochs": (0, 100_000),
    "batch_size": (2, 65_536),
    "lr": (1e-6, 100),
    "weight_decay": (0, 1),
    "w": (0, 1000),
    "lam_alpha": (0.01, 1000),
    "projector_layers": (2, 10),
    "projector_dim": (1, 65_536),
    "predictor_dim": (1, 65_536),
    "flip": (0, 1),
    "jitter": (0, 1),
    "grey": (0, 1),
    "blur": (0, 1),
    "shrink": (0, 1),
    "workers": (0, 256),
    "threads": (0, 1024),
    "seed": (0, 2**63 - 1),
    "checkpoint_minutes": (0, 525_600),
    "stop_after": (0, 100_000),
}
"""Smallest and largest value of every numeric key."""
_AUTO_IMAGES_SEEN = 2_000_000
_MAX_BYTES = 2**20


@dataclass(frozen=True)
class Recipe:
    """Every key of a recipe file, with its default.

    Attributes:
        name: Names the run folder, so no slash; the file's name where absent.
        method: `mixsiam`, or its baseline `simsiam` (then w is not used).
        data: Training images: a folder, a Parquet file or folder, or `digits`; `DATA::train` and `DATA::val` are the
            two parts of a fixed split (see `data.open_images`).
        data_terms: What the images' owners allow; the model card prints it.
        val_data: Labelled images for the kNN of the log, "" for none, or `split`: hold out a tenth of `data`.
        backbone: `resnet18`, `resnet34` or `resnet50`; or `init`, for that of `init` with its output_stride, input_size
            and interpolation in place of these keys.
        output_stride: 32, or 16 or 8 for small inputs.
        input_size: Edge of the deployed input, in pixels; 8 to 1024.
        view_size: Edge of the views in training, in pixels, to 1024; 0 is input_size. Smaller ones cost less.
        interpolation: Of the deployed preprocessing.
        epochs: Passes over the data; 0 scales them to the number of images, for about 2 million images in all,
            between 10 and 400 epochs. At most 100,000.
        batch_size: Images a step, over all processes, 2 to 65,536.
        lr: Base learning rate, 1e-6 to 100; the optimiser's is lr x batch_size / 256.
        weight_decay: On all parameters, 0 to 1.
        w: Weight of the mixture term, 0 to 1000; 0 is SimSiam.
        lam_alpha: lam ~ Beta(lam_alpha, lam_alpha); 0.01 to 1000.
        target: `max` (the paper's), `mean` or `max-centred` (ablations).
        mixture: `linear` (the paper's) or `cutmix` (ablation).
        views: Random views of each image, 2 (the paper's) to 64; each is drawn to the mean of the others.
        mixtures: Mixtures of each image, 1 (the paper's) to 64, each of two of its views.
        predictors: `shared` (the paper's), or `own`: mixtures and local views have a predictor of their own.
        local_views: Small views of each image that predict its views and are no targets, 0 (the paper's) to 64.
        local_size: Edge of the local views, in pixels, 8 to 1024; they show from a quarter of crop_scale's smallest
            share of the image's area up to that share.
        momentum_target: Targets come from a moving average of the encoder that keeps this share of its past at each
            step, as in 0.99; 0 (the paper's) has none.
        coding_rate: Weight of a term that spreads the projections of a batch over many directions, 0 (the paper's) to
            100.
        projector_layers: 3 in SimSiam for ImageNet, 2 for small images; 2 to 10.
        projector_dim: Hidden and output width of the projector, 1 to 65,536.
        predictor_dim: Hidden width of the predictor, 1 to 65,536.
        crop_scale: Share of the image's area that a view shows, (smallest, largest), above 0 and at most 1.
        flip: Probability of a horizontal flip; 0 where left and right mean something.
        jitter: Probability of colour jitter; 0 where colour is the signal.
        grey: Probability of losing colour; 1 for grey images.
        blur: Probability of a blur.
        shrink: Probability that a view is shrunk to a third of its edge or more and enlarged again, each by a kernel
            drawn at random, for an encoder that will see small images too, enlarged by whatever does it.
        precision: `auto` (bf16 on GPUs that compute it and on CPUs that train faster in it), `bf16` or `fp32`.
        sync_batchnorm: Of several processes on GPUs, let every BatchNorm normalise by the images of all; else each
            process normalises by its own.
        workers: Processes that decode and augment for each one that trains, at most 256; 0 does it in that one.
        threads: Of each process that trains, at most 1024; 0 takes the CPUs it may use, shared among those of this
            machine.
        seed: Of everything random, 0 to 2**63 - 1.
        init: A model folder or Hub id whose backbone training continues from, or `builtin`; "" starts from random
            weights. In the first steps only projector and predictors learn (`step.HEADS_FIRST`).
        run_dir: The run's folder; "" is runs/NAME-DATE.
        checkpoint_minutes: Longest work that a crash can lose, at most a year; 0 writes a checkpoint at every step, of
            several processes at every tenth.
        stop_after: Stop after so many collapsed epochs in a row, at most 100,000; 0 never stops.
    """

    name: str = "run"
    method: str = "mixsiam"
    data: str = ""
    data_terms: str = ""
    val_data: str = ""
    backbone: str = "resnet18"
    output_stride: int = 32
    input_size: int = 96
    view_size: int = 0
    interpolation: str = "lanczos"
    epochs: int = 0
    batch_size: int = 256
    lr: float = 0.03
    weight_decay: float = 5e-4
    w: float = 1.0
    lam_alpha: float = 1.0
    target: str = "max"
    mixture: str = "linear"
    views: int = 2
    mixtures: int = 1
    predictors: str = "shared"
    local_views: int = 0
    local_size: int = 32
    momentum_target: float = 0.0
    coding_rate: float = 0.0
    projector_layers: int = 3
    projector_dim: int = 2048
    predictor_dim: int = 512
    crop_scale: tuple[float, float] = (0.2, 1.0)
    flip: float = 0.5
    jitter: float = 0.8
    grey: float = 0.2
    blur: float = 0.5
    shrink: float = 0.0
    precision: str = "auto"
    sync_batchnorm: bool = False
    workers: int = 2
    threads: int = 0
    seed: int = 0
    init: str = ""
    run_dir: str = ""
    checkpoint_minutes: float = 5.0
    stop_after: int = 3

    def __post_init__(self) -> None:
        """Checks every value's range.

        Raises:
            RecipeError: Names the key, the value and what is allowed.
        """
        for key, allowed in _CHOICES.items():
            _require(key, getattr(self, key), getattr(self, key) in allowed, f"one of {', '.join(map(str, allowed))}")
        for key, (least, most) in _RANGES.items():
            value = getattr(self, key)  # NaN lies in no range.
            _require(key, value, least <= value <= most, f"a number from {least:,} to {most:,}")
        for key in (f.name for f in fields(self) if isinstance(f.default, str)):
            _require(key, getattr(self, key), _is_utf8(getattr(self, key)), "text that UTF-8 can hold; rename the file")
        is_folder_name = self.name.isprintable() and self.name.strip(". ") and not set(self.name) & set("/\\")
        _require("name", self.name, bool(is_folder_name), "a folder's name, without slashes; set name=...")
        _require("view_size", self.view_size, self.view_size == 0 or self.view_size >= 8, "0, or a number from 8")
        _require("backbone", self.backbone, self.backbone != OF_INIT or bool(self.init), "another, or set init too")
        has_own = bool(self.mixture_weight or self.local_views)
        _require("predictors", self.predictors, self.predictors == "shared" or has_own, "shared: there are no mixtures")
        low, high = self.crop_scale
        _require(
            "crop_scale", [low, high], 0 < low <= high <= 1, "[smallest, largest] with 0 < smallest <= largest <= 1"
        )

    @property
    def mixture_weight(self) -> float:
        """The w of the objective: 0 for simsiam."""
        return self.w if self.method == "mixsiam" else 0.0

    @property
    def peak_lr(self) -> float:
        """The optimiser's learning rate: lr x batch_size / 256 (SimSiam, section 4)."""
        return self.lr * self.batch_size / 256

    @property
    def view_plan(self) -> ViewPlan:
        """What is drawn of each image."""
        size_px = self.view_size or self.input_size
        how = Augmentation(size_px, self.crop_scale, self.flip, self.jitter, self.grey, self.blur, self.shrink)
        least = self.crop_scale[0]
        local_how = replace(how, size_px=self.local_size, crop_scale=(least / 4, least)) if self.local_views else None
        return ViewPlan(how, self.views, local_how, self.local_views, self.mixture, self.mixtures, self.lam_alpha)

    @property
    def model_config(self) -> ModelConfig:
        """The encoder that the run will deploy."""
        return ModelConfig(self.backbone, Preprocessing(self.input_size, 1.0, self.interpolation), self.output_stride)

    def epochs_for(self, images: int) -> int:
        """Returns `epochs`, or where it is 0 the number that shows about two million images."""
        return self.epochs or min(400, max(10, math.ceil(_AUTO_IMAGES_SEEN / images)))

    def to_json(self) -> dict[str, Any]:
        """Returns what travels with the weights: every key, data and `init` by name alone, not by where they lay.

        An `init` on the Hub keeps its whole id, `org/name`, and no folder of this machine looks like one.
        """
        values: dict[str, Any] = {key: value for key, value in asdict(self).items() if key != "run_dir"}
        for key in ("data", "val_data"):
            values[key] = data_name(values[key])
        hub_id = self.init.partition("@")[0]
        is_on_hub = HUB_ID.fullmatch(hub_id) and not Path(self.init).exists()
        values["init"] = hub_id if is_on_hub else Path(self.init).name
        return values | {"crop_scale": list(self.crop_scale)}

    def to_toml(self) -> str:
        """Returns the recipe as a TOML file that `load_recipe` reads back.

        Raises:
            MissingExtraError: tomli-w is not installed.
        """
        try:
            import tomli_w
        except ImportError:
            missing_extra("tomli-w", "train")
        return tomli_w.dumps(asdict(self))


_PART_NAMES = {"train", "training", "test", "testing", "val", "valid", "validation", "images", "data"}
"""Names of folders that say nothing without the name of the folder above them."""


def data_name(spec: str) -> str:
    """Returns a data set's name without the machine's folders, or an address's password or signature.

    It is its folder's; for a file, or a folder of a name such as `train`, with the folder above it in front; and its
    `::train` or `::val`.
    """
    where, colons, part = spec.partition("::")
    if is_address(where):
        parts = urlsplit(where)
        where = f"{parts.netloc.rpartition('@')[2]}{parts.path}"
    path = Path(where)
    needs_parent = path.suffix or path.name.lower() in _PART_NAMES
    return f"{Path(path.parent.name, path.name).as_posix() if needs_parent else path.name}{colons}{part}"


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        name_or_path: A TOML file, or the name of a shipped recipe (`digits` or `digits.toml`).
        overrides: `key=value` pairs, the value as in TOML; quotes may be left off.

    Raises:
        RecipeError: No such recipe, no TOML, an unknown key, a wrong type or range.
    """
    stem = name_or_path.removesuffix(".toml")
    path = Path(name_or_path)
    if not os.path.isfile(path):  # Path.is_file raises where a name is too long.
        shipped = resources.files("mixsiam_hub.training").joinpath("recipes")
        names = sorted(item.name.removesuffix(".toml") for item in shipped.iterdir() if item.name.endswith(".toml"))
        if stem not in names:
            raise RecipeError(f"{quote(name_or_path)}: no such file, nor a shipped recipe ({', '.join(names)})")
        path = Path(str(shipped.joinpath(f"{stem}.toml")))
    with parsing(path, RecipeError, "TOML"):
        values = tomllib.loads(read_bytes(path, _MAX_BYTES, RecipeError).decode())
    for pair in overrides:
        key, equals, text = pair.partition("=")
        if not equals:
            raise RecipeError(f"--set {quote(pair)}: write key=value")
        values[key.strip()] = _parse(text.strip())
    return recipe_from({"name": path.stem} | values, str(path))


def recipe_from(values: Mapping[str, Any], source: str) -> Recipe:
    """Builds a recipe from parsed TOML.

    Raises:
        RecipeError: An unknown key (the allowed ones are listed), a wrong type or range.
    """
    kinds = {f.name: type(f.default) for f in fields(Recipe)}
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in kinds:
            raise RecipeError(f"{source}: unknown key {quote(key)}; allowed are {', '.join(kinds)}")
        checked[key] = _convert(key, value, kinds[key], source)
    try:
        return Recipe(**checked)
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from None


def _convert(key: str, value: Any, kind: type, source: str) -> Any:
    if kind is float and _is_number(value):
        return float(value)
    if kind is tuple and isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)):
        return (float(value[0]), float(value[1]))
    if type(value) is not kind:
        wanted = {str: "a string", int: "an integer", float: "a number", bool: "true or false", tuple: "two numbers"}[
            kind
        ]
        raise RecipeError(f"{source}: {key} is {_shown(value)}; it must be {wanted}")
    return value


def _is_number(value: object) -> bool:
    """Tells what a float can hold; TOML's integers have 64 bits, Python reads longer ones."""
    return type(value) is float or (type(value) is int and value.bit_length() < 64)


def _is_utf8(text: str) -> bool:
    """False for what stands in for bytes of a file's name that are not UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _require(key: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise RecipeError(f"{key} is {_shown(value)}; it must be {wanted}")


def _shown(value: object) -> str:
    try:
        return quote(value)
    except ValueError:  # An integer of thousands of digits.
        return "an integer of thousands of digits"


def _parse(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text
