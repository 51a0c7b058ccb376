"""The preprocessing of an imported network: given in full, or known from what its source wrote; never guessed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torchvision.models import get_model_weights

from mixsiam_hub.errors import ArgumentError, ModelError
from mixsiam_hub.model.config import ModelConfig
from mixsiam_hub.model.files import CONFIG_FILE
from mixsiam_hub.untrusted import read_json


@dataclass(frozen=True)
class Given:
    """What the user says: the name of torchvision's weights, or every other field, or nothing.

    Attributes:
        weights: As torchvision names them, `ResNet50_Weights.IMAGENET1K_V2`; their preprocessing is known by that.
        input_size: Edge of the square input, in pixels.
        crop_pct: Share of the resized short edge that the crop keeps, in (0, 1].
        interpolation: One of config.INTERPOLATIONS.
        mean: Per channel (R, G, B), subtracted after scaling to [0, 1].
        std: Per channel (R, G, B), divided by.
    """

    weights: str | None = None
    input_size: int | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


def choose_config(architecture: str, source: str, given: Given, timm_folder: Path | None) -> tuple[ModelConfig, str]:
    """Settles architecture, stride and preprocessing.

    Args:
        architecture: What the tensors are, a key of config.ARCHITECTURES.
        source: Whose checkpoint it is.
        given: What the user says.
        timm_folder: The checkpoint, if it is a folder with timm's config.json: then that says everything.

    Returns:
        The configuration, and in a few words where its preprocessing is from.

    Raises:
        ArgumentError: Something is missing, said twice, or out of place; the message lists what.
        ModelError: A value is out of its range, or config.json asks for what a model folder does not do.
    """
    named = {f"--{name.replace('_', '-')}": value for name, value in asdict(given).items()}
    said = [option for option, value in named.items() if value is not None]
    if timm_folder:
        if said:
            raise ArgumentError(f"{timm_folder / CONFIG_FILE} says the preprocessing; leave out {', '.join(said)}")
        return _of_timm(timm_folder / CONFIG_FILE, architecture), CONFIG_FILE
    if given.weights is not None:
        if source != "torchvision" or said != ["--weights"]:
            raise ArgumentError("--weights says the preprocessing of a checkpoint from torchvision, and stands alone")
        return _of_torchvision(given.weights, architecture), given.weights
    if missing := [option for option in named if option not in said and option != "--weights"]:
        raise ArgumentError(
            f"the preprocessing is not known and never guessed; add {', '.join(missing)}{_hint(source)}"
        )
    return _config(architecture, asdict(given), "preprocessing options"), "options of the import"


def _hint(source: str) -> str:
    """Returns what to give in place of the options, for sources that state the preprocessing themselves."""
    return {
        "torchvision": " (or, for weights that torchvision publishes, only --weights NAME)",
        "timm": f" (or give timm's folder, with {CONFIG_FILE}, in place of the file)",
    }.get(source, "")


def _of_timm(path: Path, architecture: str) -> ModelConfig:
    config = ModelConfig.from_timm(read_json(path), str(path))
    if config.architecture != architecture:
        raise ModelError(f"{path}: architecture is {config.architecture}, and the tensors are a {architecture}")
    return config


def _of_torchvision(name: str, architecture: str) -> ModelConfig:
    """Takes the preprocessing from the weights' own transforms."""
    known = {str(weights): weights for weights in get_model_weights(architecture)}
    if name not in known:
        raise ArgumentError(f"--weights is {name!r}; for a {architecture} torchvision has {', '.join(known)}")
    transforms = known[name].transforms()
    size, resized = transforms.crop_size[0], transforms.resize_size[0]
    interpolation = transforms.interpolation.value
    values = {"input_size": size, "crop_pct": size / resized, "interpolation": interpolation}
    return _config(architecture, values | {"mean": transforms.mean, "std": transforms.std}, name)


def _config(architecture: str, values: dict[str, Any], source: str) -> ModelConfig:
    edge = values["input_size"]
    cfg = {name: values[name] for name in ("crop_pct", "interpolation")}
    cfg |= {"input_size": [3, edge, edge], "mean": list(values["mean"]), "std": list(values["std"])}
    return ModelConfig.from_json({"architecture": architecture, "pretrained_cfg": cfg}, source)
