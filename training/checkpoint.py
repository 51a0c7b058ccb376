"""Checkpoints of a run, written by rename, and the trained encoder that export takes from them."""

from __future__ import annotations

import io
import json
import os
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
from mixsiam_hub.untrusted import one_line, parsing, read_json

CHECKPOINT_FILE = "checkpoint.pt"
RECIPE_FILE = "recipe.toml"
REPORT_FILE = "report.json"


_FIELDS = {"model", "optimiser", "step", "seconds", "sums", "log", "data", "unreadable", "statistics"}


@dataclass
class Progress:
    """Everything a run needs to go on where it stopped, beside weights and optimiser.

    Attributes:
        step: Optimiser steps done; with the recipe it determines the data to come.
        seconds: Wall time spent so far, over all sessions of the run.
        sums: The unfinished epoch's sums, by name of the log field.
        log: The lines of log.jsonl.
        data: Which images the run is trained on, and validated on; see `runs.data_identity`.
        unreadable: Key of each corrupt image met so far -> why it was left out.
        statistics: The backbone's BatchNorm statistics on clean training images; empty until training has ended.
    """

    step: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=dict)


def save_checkpoint(run: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
    """Writes checkpoint.pt; a kill or a full disk at any moment leaves the previous one or the new one, whole.

    Raises:
        OutputError: It cannot be written, or the disk is full.
    """
    state = {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": progress.step,
        "seconds": progress.seconds,
        "sums": progress.sums,
        "log": json.dumps(progress.log, allow_nan=False),
        "data": progress.data,
        "unreadable": progress.unreadable,
        "statistics": progress.statistics,
    }
    content = io.BytesIO()  # torch.save hides why a file could not be written behind an error of its own.
    torch.save(state, content)
    with replacing(run / CHECKPOINT_FILE, durable=True) as file:
        file.write(content.getbuffer())


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
        raise DataError(f"{path} cannot be read as a checkpoint: {one_line(error)}") from error
    if not isinstance(state, dict) or (missing := _FIELDS - set(state)):
        lacks = sorted(missing) if isinstance(state, dict) else "all fields"
        raise DataError(f"{path} is no checkpoint of this version of mixsiam train: it lacks {lacks}")
    return state


def load_checkpoint(run: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> Progress:
    """Puts a run's model and optimiser back and returns its progress.

    Raises:
        DataError: As `read_checkpoint`, or the weights are not of this model.
    """
    state = read_checkpoint(run)
    with parsing(run / CHECKPOINT_FILE, DataError, f"a checkpoint of {RECIPE_FILE} beside it"):
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        names = ("step", "seconds", "sums", "data", "unreadable", "statistics")
        return Progress(log=json.loads(state["log"]), **{name: state[name] for name in names})


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


def read_report(folder: Path) -> tuple[Evaluation, ...]:
    """Reads a folder's report.json; none without one.

    Raises:
        DataError: mixsiam did not write it.
    """
    path = folder / REPORT_FILE
    if not os.path.lexists(path):
        return ()
    try:
        return evaluations_from_json(read_json(path, DataError), str(path), DataError)
    except DataError as error:
        raise DataError(f"{error}; mixsiam evaluate did not write it: move it away, or name another folder") from None


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
    with parsing(run / CHECKPOINT_FILE, DataError, f"a checkpoint of {RECIPE_FILE} beside it"):
        backbone.load_state_dict({k.removeprefix(prefix): v for k, v in state["model"].items() if k.startswith(prefix)})
        first = json.loads(state["log"])[0]
    use_statistics(backbone, state["statistics"] or _estimate(recipe, backbone))
    evaluations = read_report(run)
    work = {"images": first["images"], "steps": state["step"], "seconds": round(state["seconds"])}
    values = recipe.to_json()
    if origin := first["run"].get("init"):
        values["init"] = origin["name"]  # Whether it was a folder or on the Hub was known when it was loaded.
    provenance = {**first["run"], "recipe": values, **work}
    picture = run / REPORT_PICTURE
    return TrainedEncoder(
        backbone.eval(),
        recipe.model_config,
        recipe.method,
        provenance,
        evaluations,
        picture if evaluations and picture.is_file() else None,
    )


def _estimate(recipe: Recipe, backbone: Backbone) -> Statistics:
    images, _ = open_for_training(recipe.data, recipe.val_data)
    return clean_statistics(backbone, images, recipe.model_config.preprocessing)
