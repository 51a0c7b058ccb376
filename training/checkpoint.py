"""Checkpoints of a run, written by rename, and the trained encoder that export takes from them."""

from __future__ import annotations

import copy
import io
import json
import logging
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mixsiam_hub.atomic import replacing
from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.errors import DataError
from mixsiam_hub.images.sources import ImageSet
from mixsiam_hub.model.config import ModelConfig
from mixsiam_hub.model.figures import Evaluation, Whitening, evaluations_from_json
from mixsiam_hub.model.files import CURVES_PICTURE, REPORT_PICTURE
from mixsiam_hub.training.data import open_for_training, open_images
from mixsiam_hub.training.features import Statistics, clean_statistics, use_statistics
from mixsiam_hub.training.head import FLOOR, Head, Moments, clean_moments, fit_head, with_head
from mixsiam_hub.training.provenance import core_hours
from mixsiam_hub.training.recipe import Recipe, data_name, load_recipe
from mixsiam_hub.untrusted import one_line, parsing, read_json

logger = logging.getLogger(__name__)

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
        lanes: Processes that the run began with, and workers of each: with them images far away come in the same order.
        unreadable: Key of each corrupt image met so far -> why it was left out.
        statistics: The backbone's BatchNorm statistics on clean training images; empty until training has ended.
        head: Fitted to the pooled features of clean training images; None until training has ended, and
            where there are fewer images than features.
    """

    step: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    lanes: tuple[int, int] = (1, 1)
    unreadable: dict[str, str] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=dict)
    head: Head | None = None


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
        "lanes": progress.lanes,
        "unreadable": progress.unreadable,
        "statistics": progress.statistics,
        "head": progress.head and progress.head._asdict(),
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
    if "head" not in state:  # A run of before heads were kept, or before there were any.
        moments = state.pop("moments", None)
        state["head"] = moments and fit_head(Moments(**moments))._asdict()
    state.setdefault("lanes", (1, 1))  # Of before images came from afar.
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
        names = ("step", "seconds", "sums", "data", "lanes", "unreadable", "statistics")
        head = state["head"] and Head(**state["head"])
        return Progress(log=json.loads(state["log"]), head=head, **{name: state[name] for name in names})


@dataclass(frozen=True)
class TrainedEncoder:
    """What a run, or an import, hands over to export.

    Attributes:
        backbone: In eval mode, float32, with the head if there is one; a run's BatchNorm statistics are re-estimated
            on clean training images.
        config: Architecture, stride, width of the head and the deployed preprocessing.
        method: `mixsiam`, `simsiam`, or `imported from SOURCE`.
        provenance: Recipe, data, epochs, seconds, versions, hardware: `training` in mixsiam.json.
        evaluations: From the run's report.json.
        report: The picture of it, where there is one.
        curves: The picture of a run that has ended.
        head: What the head was fitted on; None without a head.
    """

    backbone: Backbone
    config: ModelConfig
    method: str
    provenance: dict[str, Any] = field(default_factory=dict)
    evaluations: tuple[Evaluation, ...] = ()
    report: Path | None = None
    curves: Path | None = None
    head: Whitening | None = None

    def whitened(self, head: Head, data: str) -> TrainedEncoder:
        """Returns the encoder with another head; what was measured of the encoder before goes.

        Args:
            head: Fitted to its pooled features.
            data: Name of the images that it was fitted on.

        Raises:
            DataError: It is for another number of features.
        """
        backbone = with_head(self.backbone, head)
        assert backbone.fc is not None
        config = replace(self.config, head_dim=backbone.fc.out_features)
        fitted = Whitening(data, head.images, FLOOR, head.resizing)
        return replace(self, backbone=backbone, config=config, head=fitted, evaluations=(), report=None)


def whiten_on(encoder: TrainedEncoder, spec: str) -> TrainedEncoder:
    """Fits an encoder's head on a data set, in place of the one it has.

    Args:
        encoder: Its backbone stays as it is.
        spec: As `open_images` takes it; no labels are used.

    Raises:
        DataError: As `open_images`; fewer images than features can be read, or their features do not vary.
    """
    head = fit_head(clean_moments(encoder.backbone, open_images(spec), encoder.config.preprocessing))
    return encoder.whitened(head, data_name(spec))


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
    statistics, head = state["statistics"], state["head"] and Head(**state["head"])
    if not statistics:
        statistics, head = measure_clean(backbone, open_for_training(recipe.data, recipe.val_data)[0], recipe)
    use_statistics(backbone, statistics)
    evaluations = read_report(run)
    work = {"images": first["images"], "steps": state["step"], "seconds": round(state["seconds"])}
    values = recipe.to_json()
    if origin := first["run"].get("init"):
        values["init"] = origin["name"]  # Whether it was a folder or on the Hub was known when it was loaded.
    provenance = {**first["run"], "recipe": values, **work}
    if (hours := core_hours(provenance)) is not None:
        provenance["core_hours"] = round(hours, 1)
    report, curves = (run / name if (run / name).is_file() else None for name in (REPORT_PICTURE, CURVES_PICTURE))
    encoder = TrainedEncoder(backbone.eval(), recipe.model_config, recipe.method, provenance, curves=curves)
    if head:
        encoder = encoder.whitened(head, data_name(recipe.data))
    return replace(encoder, evaluations=evaluations, report=report if evaluations else None)


def measure_clean(backbone: Backbone, images: ImageSet, recipe: Recipe) -> tuple[Statistics, Head | None]:
    """Measures on clean training images what an encoder is shipped with.

    Args:
        backbone: Stays as it is.
        images: Training images.
        recipe: Whose preprocessing is deployed.

    Returns:
        BatchNorm statistics, and the head fitted to the pooled features with these; None, with a warning, where it
        cannot be had.

    Raises:
        DataError: Fewer than two images can be read.
    """
    pre = recipe.model_config.preprocessing
    statistics = clean_statistics(backbone, images, pre)
    shipped = copy.deepcopy(backbone)
    use_statistics(shipped, statistics)
    try:
        return statistics, fit_head(clean_moments(shipped, images, pre))
    except DataError as error:
        logger.warning("the encoder gets no head: %s", error)
        return statistics, None
