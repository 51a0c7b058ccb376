"""The training run: a folder with the recipe, a log line an epoch, and a checkpoint to go on from."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mixsiam_hub.atomic import write_text
from mixsiam_hub.cpus import available_cpus
from mixsiam_hub.errors import DataError, OutputError, RecipeError, TrainingError
from mixsiam_hub.images.sources import ImageSet
from mixsiam_hub.model.files import CURVES_PICTURE, SHEET_PICTURE
from mixsiam_hub.training.checkpoint import (
    CHECKPOINT_FILE,
    RECIPE_FILE,
    Progress,
    load_checkpoint,
    load_encoder,
    measure_clean,
    run_recipe,
    save_checkpoint,
)
from mixsiam_hub.training.data import open_for_training
from mixsiam_hub.training.features import extract, in_batches
from mixsiam_hub.training.head import behind
from mixsiam_hub.training.init import load_init, with_shape_of_init
from mixsiam_hub.training.log import finite, write_log, write_scalars
from mixsiam_hub.training.machine import pick_device, pick_precision
from mixsiam_hub.training.monitor import ADVICE, Health, Monitor, explain, health_of, target_bias, verdict, z_std
from mixsiam_hub.training.networks import on_device
from mixsiam_hub.training.order import Order
from mixsiam_hub.training.pictures import draw_curves, draw_neighbours
from mixsiam_hub.training.processes import Processes, joined, sigterm_noted
from mixsiam_hub.training.provenance import Origin, provenance
from mixsiam_hub.training.recipe import OF_INIT, OF_INIT_KEYS, Recipe
from mixsiam_hub.training.runs import check_data, data_identity, find_run, new_run
from mixsiam_hub.training.shards import ShardReader, lanes_of
from mixsiam_hub.training.step import Step, cosine_lr, is_for_heads, make_model, make_optimiser
from mixsiam_hub.training.views import ViewBatch, Views, make_loader

logger = logging.getLogger(__name__)

_AFTER_NOT_FINITE = "The checkpoint before it stays. Start anew with half the lr, or with --set precision=fp32"

STEP_VALUES = ("loss", "loss_sim", "loss_mix", "z_std", "target_bias")
SYNC_STEPS = 10
"""Steps between two looks at the losses: each look waits for the device, and for the other processes."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        run: Its folder.
        verdict: `healthy`, `weak` or `collapsed`, of the last epoch; None before the first one's end.
        summary: The verdict with its numbers; what to change follows on lines of its own where it is not healthy.
        finished: False where it stopped early: after collapsed epochs, or when it was told to.
        interrupted: Stopped by SIGTERM, with a checkpoint: `--resume` goes on.
    """

    run: Path
    verdict: str | None
    summary: str
    finished: bool
    interrupted: bool = False


def train(recipe: Recipe, *, resume: bool = False) -> Outcome:
    """Trains an encoder as a recipe says, in this process or, under torchrun, in all of them together.

    Args:
        recipe: Everything that determines the result.
        resume: Go on with the run in `run_dir`, or with the newest of this name, from its last checkpoint; the result
            equals that of a run that was never stopped, at an equal thread count. The number of processes may change.

    Raises:
        DataError: The data cannot be used, or no longer be read; there is no run to resume, or its images were others.
        RecipeError: The run to resume has another recipe, `init` does not fit, or batch_size is no multiple of the
            number of processes, or gives one of them a single image.
        OutputError: The run folder cannot be written, or the disk is full.
        TrainingError: The loss or a weight is no longer finite, or a worker was killed; the last checkpoint stays.
    """
    with joined() as processes:
        _check_fit(recipe, processes)
        with ExitStack() as stack:
            folder = nullcontext(find_run(recipe)) if resume else new_run(recipe)
            run = processes.first(lambda: stack.enter_context(folder))
            trainer = _prepare(recipe, run, processes)
        return trainer.run_to_end()


def _check_fit(recipe: Recipe, processes: Processes) -> None:
    """Raises RecipeError where a recipe cannot run on these processes."""
    if recipe.batch_size % processes.count:
        raise RecipeError(
            f"batch_size is {recipe.batch_size}, of all processes together; it must be a multiple of their number, "
            f"{processes.count}"
        )
    if recipe.batch_size < 2 * processes.count:
        raise RecipeError(
            f"batch_size is {recipe.batch_size}, of all {processes.count} processes together; each needs two images or "
            "more for BatchNorm"
        )
    if recipe.sync_batchnorm and pick_device().type != "cuda":
        raise RecipeError("sync_batchnorm needs GPUs; set it to false")


def _prepare(recipe: Recipe, run: Path, processes: Processes) -> _Trainer:
    """Does all that can fail before the first step."""
    torch.set_num_threads(recipe.threads or max(1, available_cpus() // processes.on_this_machine))
    train_images, val_images = processes.first(lambda: open_for_training(recipe.data, recipe.val_data))
    if len(train_images) < recipe.batch_size:
        raise DataError(
            f"{recipe.data} has {len(train_images)} training images, fewer than batch_size = {recipe.batch_size}; "
            "set a smaller batch_size"
        )
    for folder, reason in train_images.unreadable.items():
        logger.warning("%s cannot be searched for images: %s", folder, reason)
    if recipe.backbone == OF_INIT:
        stored = run_recipe(run)  # Where it goes on, this says what `init` was.
        recipe = with_shape_of_init(replace(recipe, **{key: getattr(stored, key) for key in OF_INIT_KEYS}))
    recipe = replace(recipe, epochs=recipe.epochs_for(len(train_images)), run_dir=str(run))
    return _Trainer(recipe, run, train_images, val_images, processes)


class _Trainer:
    """The state of one run in one of its processes; only the first one writes."""

    def __init__(
        self, recipe: Recipe, run: Path, images: ImageSet, val_images: ImageSet | None, processes: Processes
    ) -> None:
        self.recipe = recipe
        self.run = run
        self.images = images
        self.processes = processes
        self.device = pick_device()
        self.model = make_model(recipe).to(self.device)
        self.optimiser = make_optimiser(self.model, recipe)
        self.steps_per_epoch = len(images) // recipe.batch_size
        self.total_steps = recipe.epochs * self.steps_per_epoch
        self.origin: Origin | None = None
        self.progress = self._start_or_resume(data_identity(images, val_images))
        self.precision = self._precision()
        self.values = STEP_VALUES if recipe.mixture_weight else STEP_VALUES[:-1]
        self.rows: list[torch.Tensor] = []
        self.initial = health_of(self.progress.log[0]) if self.progress.log else None
        if processes.is_first:
            write_text(run / RECIPE_FILE, recipe.to_toml())
            self.monitor = Monitor(images, val_images, recipe.model_config.preprocessing, self.precision)

    def _start_or_resume(self, data: dict[str, Any]) -> Progress:
        if (self.run / CHECKPOINT_FILE).is_file():
            progress = load_checkpoint(self.run, self.model, self.optimiser)
            check_data(self.run, progress.data, data)
            return progress
        if self.recipe.init:
            self.origin = load_init(self.model.backbone, self.recipe)
            self.model.restart_average()
        return Progress(data=data, lanes=(self.processes.count, max(1, self.recipe.workers)))

    def _precision(self) -> str:
        """A run keeps the precision that it began with, wherever it goes on."""
        if self.progress.log and self.recipe.precision == "auto":
            return str(self.progress.log[0]["run"]["precision"])
        precision = self.processes.first(lambda: pick_precision(self.recipe.precision, self.device))
        logger.info("precision: %s on %s", precision, self.device)
        return precision

    def run_to_end(self) -> Outcome:
        self.started, checkpointed = time.monotonic() - self.progress.seconds, time.monotonic()
        if self.initial is None:
            self._log(self.processes.first(self._measure_untrained))
            self._save()
        self.step = Step(self.recipe, self.model, self.optimiser, self.precision, self.processes)
        with sigterm_noted() as told:
            for batch in self._batches():
                self._step(batch)
                self.progress.step += 1
                self.progress.seconds = time.monotonic() - self.started
                epoch, within = divmod(self.progress.step, self.steps_per_epoch)
                is_alone = self.processes.count == 1  # Else all of them do the same at the same step.
                is_look = within == 0 or self.progress.step % SYNC_STEPS == 0
                is_told = self._look(told.is_set()) if is_look else is_alone and told.is_set()
                if within == 0:
                    self._end_epoch(epoch)
                is_due = time.monotonic() - checkpointed > 60 * self.recipe.checkpoint_minutes
                if within == 0 or is_told or (is_due and (is_look or is_alone)):
                    self._save()
                    checkpointed = time.monotonic()
                if is_told and self.progress.step < self.total_steps:
                    return self._outcome(interrupted=True)
                if within == 0 and self._has_collapsed():
                    break
        return self.processes.first(self._finish)

    def _measure_untrained(self) -> dict[str, Any]:
        self.initial = self.monitor.measure_untrained(self.model)
        floor = {"images": len(self.images), "raw_pixel_knn": self.monitor.raw_pixel_knn()}
        machine = provenance(self.precision, self.device, self.processes.count, self.origin)
        return self._line(0, self.initial, floor | {"run": machine})

    def _finish(self) -> Outcome:
        write_log(self.run, self.progress.log)
        if not self.progress.statistics:
            backbone = on_device(make_model(self.recipe).backbone)
            backbone.load_state_dict(self.model.backbone.state_dict())
            self.progress.statistics, self.progress.head = measure_clean(backbone, self.images, self.recipe)
            self._save()
        if count := len(self.progress.unreadable):
            logger.warning("images left out because they cannot be read: %d", count)
        self._draw()
        return self._outcome()

    def _draw(self) -> None:
        """Draws the run: its curves, and neighbours by what `embed` would give."""
        draw_curves(self.progress.log, self.run / CURVES_PICTURE)
        encoder = load_encoder(self.run)
        network = on_device(encoder.backbone)
        pixels = self.monitor.pixels
        vectors = extract(network, in_batches(pixels), encoder.config.preprocessing, self.precision)
        if encoder.backbone.fc is not None:
            vectors = behind(encoder.backbone.fc, vectors)
        draw_neighbours(pixels, vectors, self.run / SHEET_PICTURE)

    def _outcome(self, *, interrupted: bool = False) -> Outcome:
        first, last = self.progress.log[0], self.progress.log[-1]
        floors = {int(k): accuracy for k, accuracy in first["raw_pixel_knn"].items()}  # JSON made them text.
        summary = explain(health_of(last), health_of(first), floors.get(20))
        return Outcome(self.run, last["verdict"], summary, self.progress.step == self.total_steps, interrupted)

    def _batches(self) -> Iterator[ViewBatch]:
        recipe, step, processes = self.recipe, self.progress.step, self.processes
        if self._has_collapsed():
            return
        parts, turns = self.progress.lanes
        lanes = lanes_of(self.images, recipe.batch_size, recipe.seed, parts, turns)
        order = Order(
            len(self.images),
            recipe.batch_size,
            recipe.epochs,
            recipe.seed,
            step,
            rank=processes.rank,
            processes=processes.count,
            arrangement=lanes,
        )
        shards = ShardReader(self.images, order) if lanes else None
        loader = make_loader(Views(self.images, recipe.view_plan, recipe.seed, shards), order, recipe.workers)
        with tqdm(
            total=self.total_steps, initial=step, unit="step", desc=self.run.name, disable=not processes.is_first
        ) as bar:
            for batch in loader:
                yield batch
                bar.update()
                bar.set_postfix(self._postfix(bar.format_dict["rate"]), refresh=False)

    def _postfix(self, steps_per_second: float | None) -> dict[str, str]:
        shown = {"images/s": f"{(steps_per_second or 0) * self.recipe.batch_size:.0f}"}
        if count := self.progress.sums.get("steps"):
            shown["loss"] = f"{self.progress.sums['loss'] / count:.3f}"
        shown["rank"] = f"{self.progress.log[-1]['health']['rank_backbone'] or 0:.0f}"
        return shown

    def _step(self, batch: ViewBatch) -> None:
        self._note(batch.skipped)
        row = torch.zeros(len(self.values) + 2, device=self.device)  # One step, its values, and the images left out.
        row[-1] = len(batch.skipped)
        step, total = self.progress.step, self.total_steps
        lr = cosine_lr(step, total, self.recipe.peak_lr)
        out = self.step(batch, lr, heads_alone=is_for_heads(self.recipe, step, total))
        if out is not None:
            values = [out.loss.detach(), out.loss_sim, out.loss_mix, z_std(out.z1)]
            if out.target is not None:
                values.append(target_bias(out.target))
            row[:-1] = torch.stack([torch.ones_like(out.loss_sim), *values])
        self.rows.append(row)

    def _look(self, is_told: bool = False) -> bool:
        """Adds up the values of the steps since the last look; returns whether any process was told to stop.

        Raises:
            TrainingError: The loss of one of them is not finite.
            DataError: Not one image of them could be read.
        """
        # One transfer for all: each waits for the device, and for the other processes.
        told = torch.zeros_like(self.rows[0])
        told[0] = is_told
        *rows, told = self.processes.sum(torch.stack([*self.rows, told])).tolist()
        first_step = self.progress.step - len(rows)
        self.rows = []
        if sum(skipped for *_, skipped in rows) == len(rows) * self.recipe.batch_size:
            reason = next(reversed(self.progress.unreadable.values()))
            raise DataError(
                f"{self.images.name}: no image since step {first_step} can be read; {reason}. The "
                "last checkpoint stays: put the images back and add --resume"
            )
        for step, (steps, *values, skipped) in enumerate(rows, start=first_step):
            means = {name: value / steps for name, value in zip(self.values, values, strict=True)} if steps else {}
            if not math.isfinite(means.get("loss", 0)):
                raise TrainingError(self._diagnosis(step, means))
            for name, value in (({"steps": 1} if steps else {}) | means | {"skipped": int(skipped)}).items():
                self.progress.sums[name] = self.progress.sums.get(name, 0.0) + value
        return bool(told[0])

    def _diagnosis(self, step: int, values: Mapping[str, float]) -> str:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        broken = self._not_finite()
        where = f"{len(broken)} weights and statistics are not finite either, {broken[0]} the first" if broken else ""
        return (
            f"{self.run}: the loss of step {step} (epoch {step // self.steps_per_epoch + 1}) is not finite: {shown}; "
            f"learning rate {cosine_lr(step, self.total_steps, self.recipe.peak_lr):.4g}, {self.precision}"
            f"{'; ' * bool(where)}{where}. {_AFTER_NOT_FINITE}"
        )

    def _not_finite(self) -> list[str]:
        return [name for name, tensor in self.model.state_dict().items() if not tensor.isfinite().all()]

    def _note(self, skipped: dict[str, str]) -> None:
        for key in skipped.keys() - self.progress.unreadable.keys():
            logger.warning("left out: %s", skipped[key])
            self.progress.unreadable[key] = skipped[key]

    def _save(self) -> None:
        if not self.processes.is_first:
            return
        if self.rows:
            self._look()
        if broken := self._not_finite():
            raise TrainingError(
                f"{self.run}: after step {self.progress.step} {broken[0]} is not finite. {_AFTER_NOT_FINITE}"
            )
        try:
            save_checkpoint(self.run, self.model, self.optimiser, self.progress)
        except OutputError as error:
            raise OutputError(f"{error}; mend that and add --resume: the last checkpoint is whole") from error

    def _end_epoch(self, epoch: int) -> None:
        for unreadable in self.processes.gather(self.progress.unreadable):
            self.progress.unreadable |= unreadable
        self._log(self.processes.first(lambda: self._measure(epoch)))
        self.progress.sums = {}

    def _measure(self, epoch: int) -> dict[str, Any]:
        sums = self.progress.sums
        count = max(sums.get("steps", 0), 1)
        means = {key: sums.get(key, math.nan) / count for key in ("loss", "loss_sim", "loss_mix")}
        bias = sums["target_bias"] / count if "target_bias" in sums else None
        health = self.monitor.measure(self.model, sums.get("z_std", math.nan) / count, bias)
        lr = cosine_lr(self.progress.step - 1, self.total_steps, self.recipe.peak_lr)
        return self._line(epoch, health, means | {"lr": lr, "skipped": int(sums["skipped"])})

    def _line(self, epoch: int, health: Health, values: dict[str, Any]) -> dict[str, Any]:
        assert self.initial is not None
        line: dict[str, Any] = finite(
            {
                "epoch": epoch,
                "step": self.progress.step,
                "verdict": verdict(health, self.initial),
                **values,
                "rank_backbone_rel": health.rank_backbone / max(self.initial.rank_backbone, 1e-12),
                "rank_z_rel": health.rank_z / max(self.initial.rank_z, 1e-12),
                "health": asdict(health),
                "seconds": round(self.progress.seconds, 3),
            }
        )
        return line

    def _log(self, line: dict[str, Any]) -> None:
        self.progress.log.append(line)
        if not self.processes.is_first:
            return
        write_log(self.run, self.progress.log)
        knn20 = line["health"]["knn20"]
        knn = f", knn20 {knn20:.1%}" if knn20 is not None else ""
        epochs = self.recipe.epochs
        logger.info("epoch %d of %d: %s%s", line["epoch"], epochs, line["verdict"] or "before training", knn)
        write_scalars(self.run, line)

    def _has_collapsed(self) -> bool:
        last = [line["verdict"] for line in self.progress.log[1:]][-self.recipe.stop_after :]
        collapsed = 0 < self.recipe.stop_after == len(last) and set(last) == {"collapsed"}
        if collapsed and self.processes.is_first:
            logger.error("collapsed for %d epochs; stopped. Try: %s", len(last), "; or ".join(ADVICE))
        return collapsed
