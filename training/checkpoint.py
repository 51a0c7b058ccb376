"""Checkpoints of a run, written by rename, and the trained encoder that export takes from them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mixsiam_hub.atomic import replacing
from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.errors import DataError
from mixsiam_hub.model.config import ModelConfig
from mixsiam_hub.model.figures import Evaluation, evaluations_from_json
from mixsiam_hub.model.files import REPORT_PICTURE
from mixsiam_hub.training.data import open_for_training
from mixsiam_hub.training.features import Statistics, clean_statistics, use_statistics
from mixsiam_hub.training.recipe import Recipe, load_recipe
from mixsiam_hub.untrusted import read_json

CHECKPOINT_FILE = "checkpoint.pt"
RECIPE_FILE = "recipe.toml"
LOG_FILE = "log.jsonl"
REPORT_FILE = "report.json"


@dataclass
class Progress:
    """Everything a run needs to go on where it stopped, beside weights and optimiser.

    Attributes:
        step: Optimiser steps done; with the recipe it determines the data to come.
        seconds: Wall time spent so far, over all sessions of the run.
        sums: The unfinished epoch's sums, by name of the log field.
        log: The lines of log.jsonl.
        statistics: The backbone's BatchNorm statistics on clean training images; empty until training has ended.
    """

    step: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    statistics: Statistics = field(default_factory=dict)


def save_checkpoint(run: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
    """Writes checkpoint.pt; a kill at any moment leaves the previous one or the new one, whole."""
    state = {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": progress.step,
        "seconds": progress.seconds,
        "sums": progress.sums,
        "log": json.dumps(progress.log),
        "statistics": progress.statistics,
    }
    with replacing(run / CHECKPOINT_FILE, durable=True) as file:
        torch.save(state, file)


def read_checkpoint(run: Path) -> dict[str, Any]:
    """Reads checkpoint.pt onto the CPU, without unpickling anything but tensors and plain values.

    Raises:
        DataError: There is none, or it is no checkpoint of ours.
    """
    path = run / CHECKPOINT_FILE
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; a run folder has one after its first minutes of training") from None
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint
        raise DataError(f"{path} cannot be read as a checkpoint: {error}") from error
    if missing := {"model", "optimiser", "step", "seconds", "sums", "log", "statistics"} - set(state):
        raise DataError(f"{path} is no checkpoint of mixsiam train: it lacks {sorted(missing)}")
    return state


def load_checkpoint(run: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> Progress:
    """Puts a run's model and optimiser back and returns its progress.

    Raises:
        DataError: As `read_checkpoint`.
    """
    state = read_checkpoint(run)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return Progress(state["step"], state["seconds"], state["sums"], json.loads(state["log"]), state["statistics"])


@dataclass(frozen=True)
class TrainedEncoder:
    """What a run, or an import, hands over to export.

    Attributes:
        backbone: In eval mode, float32; a run's BatchNorm statistics are re-estimated on clean training images.
        config: Architecture, stride and the deployed preprocessing.
        method: `mixsiam`, `simsiam`, or `imported from SOURCE`.
        provenance: Recipe, data, epochs, seconds, versions, hardware: `training` in mixsiam.json.
        evaluations: From the run's report.json.
        report: The picture of it, where there is one.
    """

    backbone: Backbone
    config: ModelConfig
    method: str
    provenance: dict[str, Any] = field(default_factory=dict)
    evaluations: tuple[Evaluation, ...] = ()
    report: Path | None = None


def run_recipe(run: Path) -> Recipe:
    """Reads the recipe of a run folder.

    Raises:
        DataError: The folder is no run.
    """
    path = run / RECIPE_FILE
    if not path.is_file():
        raise DataError(f"{run} is no run folder: {RECIPE_FILE} is missing; give a folder that mixsiam train made")
    return load_recipe(str(path))


def load_encoder(run: Path) -> TrainedEncoder:
    """Loads a run's newest backbone with its BatchNorm statistics on clean training images.

    A run that has ended carries them. For one that has not, they are estimated here: its training data must still be
    where the recipe says.

    Raises:
        DataError: The folder is no run, has no checkpoint yet, has not ended and its data are gone, or holds a
            report.json that `mixsiam evaluate` did not write.
    """
    recipe = run_recipe(run)
    state = read_checkpoint(run)
    backbone = Backbone(recipe.backbone, recipe.output_stride)
    prefix = "backbone."
    backbone.load_state_dict({k.removeprefix(prefix): v for k, v in state["model"].items() if k.startswith(prefix)})
    use_statistics(backbone, state["statistics"] or _estimate(recipe, backbone))
    report = run / REPORT_FILE
    evaluations = _read_report(report) if report.is_file() else ()
    first = json.loads(state["log"])[0]
    work = {"images": first["images"], "steps": state["step"], "seconds": round(state["seconds"])}
    provenance = {**first["run"], "recipe": recipe.to_json(), **work}
    picture = run / REPORT_PICTURE
    return TrainedEncoder(
        backbone.eval(),
        recipe.model_config,
        recipe.method,
        provenance,
        evaluations,
        picture if evaluations and picture.is_file() else None,
    )


def _read_report(path: Path) -> tuple[Evaluation, ...]:
    return evaluations_from_json(read_json(path, DataError), str(path), DataError)


def _estimate(recipe: Recipe, backbone: Backbone) -> Statistics:
    images, _ = open_for_training(recipe.data, recipe.val_data)
    return clean_statistics(backbone, images, recipe.model_config.preprocessing)
