"""A recipe: one flat set of keys that says everything about a training run."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from mixsiam_hub.errors import RecipeError
from mixsiam_hub.model.config import ARCHITECTURES, INTERPOLATIONS, ModelConfig, Preprocessing
from mixsiam_hub.model.hub import HUB_ID
from mixsiam_hub.training.augment import Augmentation
from mixsiam_hub.training.losses import TARGETS
from mixsiam_hub.training.mixing import MIXTURES

_CHOICES: dict[str, tuple[object, ...]] = {
    "method": ("mixsiam", "simsiam"),
    "backbone": tuple(ARCHITECTURES),
    "output_stride": (32, 16, 8),
    "target": TARGETS,
    "mixture": MIXTURES,
    "interpolation": INTERPOLATIONS,
    "precision": ("auto", "fp32", "bf16"),
}
_PROBABILITIES = ("flip", "jitter", "grey", "blur")
_AT_LEAST = {"epochs": 0, "batch_size": 2, "input_size": 8, "workers": 0, "seed": 0, "threads": 0, "stop_after": 0}
_AT_LEAST |= {"projector_layers": 2, "projector_dim": 1, "predictor_dim": 1, "w": 0, "weight_decay": 0}
_ABOVE_ZERO = ("lr", "lam_alpha", "checkpoint_minutes")
_AUTO_IMAGES_SEEN = 2_000_000


@dataclass(frozen=True)
class Recipe:
    """Every key of a recipe file, with its default.

    Attributes:
        name: Names the run folder; the file's name where absent.
        method: `mixsiam`, or its baseline `simsiam` (then w is not used).
        data: Training images: a folder, a Parquet file or folder, or `digits`; `DATA::train` and `DATA::val` are the
            two parts of a fixed split (see `data.open_images`).
        data_terms: What the images' owners allow; the model card prints it.
        val_data: Labelled images for the kNN of the log, "" for none, or `split`: hold out a tenth of `data`.
        backbone: `resnet18`, `resnet34` or `resnet50`.
        output_stride: 32, or 16 or 8 for small inputs.
        input_size: Edge of the views and of the deployed input, in pixels.
        interpolation: Of the deployed preprocessing.
        epochs: Passes over the data; 0 scales them to the number of images, for about 2 million images in all,
            between 10 and 400 epochs.
        batch_size: Images a step.
        lr: Base learning rate; the optimiser's is lr x batch_size / 256.
        weight_decay: On all parameters.
        w: Weight of the mixture term; 0 is SimSiam.
        lam_alpha: lam ~ Beta(lam_alpha, lam_alpha).
        target: `max` (the paper's), `mean` or `max-centred` (ablations).
        mixture: `linear` (the paper's) or `cutmix` (ablation).
        projector_layers: 3 in SimSiam for ImageNet, 2 for small images.
        projector_dim: Hidden and output width of the projector.
        predictor_dim: Hidden width of the predictor.
        crop_scale: Share of the image's area that a view shows, (smallest, largest).
        flip: Probability of a horizontal flip; 0 where left and right mean something.
        jitter: Probability of colour jitter; 0 where colour is the signal.
        grey: Probability of losing colour; 1 for grey images.
        blur: Probability of a blur.
        precision: `auto` (bf16 where the hardware computes it), `bf16` or `fp32`.
        workers: Processes that decode and augment; 0 does it in the main one.
        threads: Of the main process; 0 takes the CPUs it may use.
        seed: Of everything random.
        init: A model folder or Hub id whose backbone training continues from; "" starts from random weights.
        run_dir: The run's folder; "" is runs/NAME-DATE.
        checkpoint_minutes: Longest work that a crash can lose.
        stop_after: Stop after so many collapsed epochs in a row; 0 never stops.
    """

    name: str = "run"
    method: str = "mixsiam"
    data: str = ""
    data_terms: str = ""
    val_data: str = ""
    backbone: str = "resnet18"
    output_stride: int = 32
    input_size: int = 96
    interpolation: str = "lanczos"
    epochs: int = 0
    batch_size: int = 256
    lr: float = 0.03
    weight_decay: float = 5e-4
    w: float = 1.0
    lam_alpha: float = 1.0
    target: str = "max"
    mixture: str = "linear"
    projector_layers: int = 3
    projector_dim: int = 2048
    predictor_dim: int = 512
    crop_scale: tuple[float, float] = (0.2, 1.0)
    flip: float = 0.5
    jitter: float = 0.8
    grey: float = 0.2
    blur: float = 0.5
    precision: str = "auto"
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
        for key, least in _AT_LEAST.items():
            _require(key, getattr(self, key), getattr(self, key) >= least, f"at least {least}")
        for key in _ABOVE_ZERO:
            _require(key, getattr(self, key), getattr(self, key) > 0, "above 0")
        for key in _PROBABILITIES:
            _require(key, getattr(self, key), 0 <= getattr(self, key) <= 1, "a probability in [0, 1]")
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
    def augmentation(self) -> Augmentation:
        """How views are drawn."""
        return Augmentation(self.input_size, self.crop_scale, self.flip, self.jitter, self.grey, self.blur)

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
        """Returns the recipe as a TOML file that `load_recipe` reads back."""
        return "".join(f"{key} = {_toml(value)}\n" for key, value in asdict(self).items())


_PART_NAMES = {"train", "training", "test", "testing", "val", "valid", "validation", "images", "data"}
"""Names of folders that say nothing without the name of the folder above them."""


def data_name(spec: str) -> str:
    """Returns a data set's name without the machine's folders.

    It is its folder's; for a file, or a folder of a name such as `train`, with the folder above it in front; and its
    `::train` or `::val`.
    """
    where, colons, part = spec.partition("::")
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
    if not path.is_file():
        shipped = resources.files("mixsiam_hub.training").joinpath("recipes")
        names = sorted(item.name.removesuffix(".toml") for item in shipped.iterdir() if item.name.endswith(".toml"))
        if stem not in names:
            raise RecipeError(f"{name_or_path}: no such file, nor a shipped recipe ({', '.join(names)})")
        path = Path(str(shipped.joinpath(f"{stem}.toml")))
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path}: {error}") from error
    for pair in overrides:
        key, equals, text = pair.partition("=")
        if not equals:
            raise RecipeError(f"--set {pair}: write key=value")
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
            raise RecipeError(f"{source}: unknown key {key!r}; allowed are {', '.join(kinds)}")
        checked[key] = _convert(key, value, kinds[key], source)
    try:
        return Recipe(**checked)
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from None


def _convert(key: str, value: Any, kind: type, source: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is tuple and isinstance(value, list) and [type(v) in (int, float) for v in value] == [True, True]:
        return (float(value[0]), float(value[1]))
    if type(value) is not kind:
        wanted = {str: "a string", int: "an integer", float: "a number", tuple: "two numbers"}[kind]
        raise RecipeError(f"{source}: {key} is {value!r}; it must be {wanted}")
    return value


def _require(key: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise RecipeError(f"{key} is {value!r}; it must be {wanted}")


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _toml(value: object) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(list(value)) if isinstance(value, tuple) else str(value)
