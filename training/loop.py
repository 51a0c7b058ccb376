"""The training run: a folder with the recipe, a log line an epoch, and a checkpoint to go on from."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mixsiam_hub.atomic import write_text
from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.cpus import available_cpus
from mixsiam_hub.errors import DataError, OutputError
from mixsiam_hub.images.sources import ImageSet
from mixsiam_hub.training.checkpoint import (
    CHECKPOINT_FILE,
    RECIPE_FILE,
    Progress,
    load_checkpoint,
    measure_clean,
    save_checkpoint,
)
from mixsiam_hub.training.data import Order, ViewBatch, Views, make_loader, normalise_on_device, open_for_training
from mixsiam_hub.training.init import Origin, load_init
from mixsiam_hub.training.log import finite, write_log, write_scalars
from mixsiam_hub.training.model import MixSiam
from mixsiam_hub.training.monitor import ADVICE, Health, Monitor, target_bias, verdict, z_std
from mixsiam_hub.training.provenance import provenance
from mixsiam_hub.training.recipe import Recipe
from mixsiam_hub.training.runs import check_data, data_identity, find_run, new_run

logger = logging.getLogger(__name__)

MOMENTUM = 0.9
STEP_VALUES = ("loss", "loss_sim", "loss_mix", "z_std", "target_bias")


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        run: Its folder.
        verdict: `healthy`, `weak` or `collapsed`, of the last epoch.
        finished: False where it stopped early after collapsed epochs.
    """

    run: Path
    verdict: str
    finished: bool


def train(recipe: Recipe, *, resume: bool = False) -> Outcome:
    """Trains an encoder as a recipe says.

    Args:
        recipe: Everything that determines the result.
        resume: Go on with the run in `run_dir`, or with the newest of this name, from its last checkpoint; the result
            equals that of a run that was never stopped, at an equal thread count.

    Raises:
        DataError: The data cannot be used, there is no run to resume, or its images were others.
        RecipeError: The run to resume has another recipe, or `init` does not fit.
        OutputError: The run folder cannot be written, or the disk is full.
    """
    with nullcontext(find_run(recipe)) if resume else new_run(recipe) as run:
        trainer = _prepare(recipe, run)
    return trainer.run_to_end()


def _prepare(recipe: Recipe, run: Path) -> _Trainer:
    """Does all that can fail before the first step."""
    torch.set_num_threads(recipe.threads or available_cpus())
    train_images, val_images = open_for_training(recipe.data, recipe.val_data)
    if len(train_images) < recipe.batch_size:
        raise DataError(
            f"{recipe.data} has {len(train_images)} training images, fewer than batch_size = {recipe.batch_size}; "
            "set a smaller batch_size"
        )
    for folder, reason in train_images.unreadable.items():
        logger.warning("%s cannot be searched for images: %s", folder, reason)
    recipe = replace(recipe, epochs=recipe.epochs_for(len(train_images)), run_dir=str(run))
    return _Trainer(recipe, run, train_images, val_images)


class _Trainer:
    """The state of one run in one process."""

    def __init__(self, recipe: Recipe, run: Path, images: ImageSet, val_images: ImageSet | None) -> None:
        self.recipe = recipe
        self.run = run
        self.images = images
        self.device = pick_device()
        self.precision = pick_precision(recipe.precision, self.device)
        self.pre = recipe.model_config.preprocessing
        self.model = make_model(recipe).to(memory_format=torch.channels_last).to(self.device)
        self.optimiser = make_optimiser(self.model, recipe)
        self.steps_per_epoch = len(images) // recipe.batch_size
        self.total_steps = recipe.epochs * self.steps_per_epoch
        self.origin: Origin | None = None
        self.progress = self._start_or_resume(data_identity(images, val_images))
        write_text(run / RECIPE_FILE, recipe.to_toml())
        self.monitor = Monitor(images, val_images, self.pre, self.precision)
        self.initial = Health(**self.progress.log[0]["health"]) if self.progress.log else None

    def _start_or_resume(self, data: dict[str, Any]) -> Progress:
        if (self.run / CHECKPOINT_FILE).is_file():
            progress = load_checkpoint(self.run, self.model, self.optimiser)
            check_data(self.run, progress.data, data)
            return progress
        if self.recipe.init:
            self.origin = load_init(self.model.backbone, self.recipe)
        return Progress(data=data)

    def run_to_end(self) -> Outcome:
        started, checkpointed = time.monotonic() - self.progress.seconds, time.monotonic()
        if self.initial is None:
            self.initial = self.monitor.measure_untrained(self.model)
            floor = {"images": len(self.images), "raw_pixel_knn": self.monitor.raw_pixel_knn()}
            self._log(0, self.initial, floor)
            self._save()
        self.model.train()
        for batch in self._batches():
            if len(batch.x1) > 1:
                self._step(batch)
            self._skip(batch.skipped)
            self.progress.step += 1
            self.progress.seconds = time.monotonic() - started
            epoch, within = divmod(self.progress.step, self.steps_per_epoch)
            if within == 0:
                self._end_epoch(epoch)
            if within == 0 or time.monotonic() - checkpointed > 60 * self.recipe.checkpoint_minutes:
                self._save()
                checkpointed = time.monotonic()
            if within == 0 and self._has_collapsed():
                break
        write_log(self.run, self.progress.log)
        if not self.progress.statistics:
            measured = measure_clean(self.model.backbone, self.images, self.recipe)
            self.progress.statistics, self.progress.moments = measured
            self._save()
        if count := len(self.progress.unreadable):
            logger.warning("images left out because they cannot be read: %d", count)
        return Outcome(self.run, self.progress.log[-1]["verdict"], self.progress.step == self.total_steps)

    def _batches(self) -> Iterator[ViewBatch]:
        recipe, step = self.recipe, self.progress.step
        if self._has_collapsed():
            return
        views = Views(self.images, recipe.augmentation, recipe.mixture, recipe.lam_alpha, recipe.seed)
        order = Order(len(self.images), recipe.batch_size, recipe.epochs, recipe.seed, step)
        loader = make_loader(views, order, recipe.workers)
        with tqdm(total=self.total_steps, initial=step, unit="step", desc=self.run.name) as bar:
            for batch in loader:
                yield batch
                bar.update()
                if (count := self.progress.sums.get("steps", 0)) > 0:
                    bar.set_postfix(loss=f"{self.progress.sums['loss'] / count:.3f}", refresh=False)

    def _step(self, batch: ViewBatch) -> None:
        for group in self.optimiser.param_groups:
            if group["decays"]:
                group["lr"] = cosine_lr(self.progress.step, self.total_steps, self.recipe.peak_lr)
        x1, x2 = (normalise_on_device(x.to(self.device), self.pre) for x in (batch.x1, batch.x2))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            out = self.model(x1, x2, batch.lam.to(self.device))
        self.optimiser.zero_grad(set_to_none=True)
        out.loss.backward()
        self.optimiser.step()
        values = [out.loss.detach(), out.loss_sim, out.loss_mix, z_std(out.z1)]
        if out.target is not None:
            values.append(target_bias(out.target))
        # One transfer for all: each costs a wait on a GPU.
        self._add(steps=1, **dict(zip(STEP_VALUES, torch.stack(values).tolist(), strict=False)))

    def _add(self, **values: float) -> None:
        for key, value in values.items():
            self.progress.sums[key] = self.progress.sums.get(key, 0.0) + value

    def _skip(self, skipped: dict[str, str]) -> None:
        self._add(skipped=len(skipped))
        for key in skipped.keys() - self.progress.unreadable.keys():
            logger.warning("left out: %s", skipped[key])
            self.progress.unreadable[key] = skipped[key]

    def _save(self) -> None:
        try:
            save_checkpoint(self.run, self.model, self.optimiser, self.progress)
        except OutputError as error:
            raise OutputError(f"{error}; mend that and add --resume: the last checkpoint is whole") from error

    def _end_epoch(self, epoch: int) -> None:
        sums, self.progress.sums = self.progress.sums, {}
        count = max(sums.get("steps", 0), 1)
        means = {key: sums.get(key, math.nan) / count for key in ("loss", "loss_sim", "loss_mix")}
        bias = sums["target_bias"] / count if "target_bias" in sums else None
        health = self.monitor.measure(self.model, sums.get("z_std", math.nan) / count, bias)
        lr = cosine_lr(self.progress.step - 1, self.total_steps, self.recipe.peak_lr)
        self._log(epoch, health, means | {"lr": lr, "skipped": int(sums["skipped"])})

    def _log(self, epoch: int, health: Health, values: dict[str, Any]) -> None:
        assert self.initial is not None
        line = {
            "epoch": epoch,
            "step": self.progress.step,
            "verdict": verdict(health, self.initial),
            **values,
            "rank_backbone_rel": health.rank_backbone / max(self.initial.rank_backbone, 1e-12),
            "rank_z_rel": health.rank_z / max(self.initial.rank_z, 1e-12),
            "health": asdict(health),
            "seconds": round(self.progress.seconds, 3),
        }
        if epoch == 0:
            line["run"] = provenance(self.precision, self.device, self.origin)
        self.progress.log.append(finite(line))
        write_log(self.run, self.progress.log)
        knn = f", knn20 {health.knn20:.1%}" if health.knn20 is not None else ""
        logger.info("epoch %d of %d: %s%s", epoch, self.recipe.epochs, line["verdict"] or "before training", knn)
        write_scalars(self.run, line)

    def _has_collapsed(self) -> bool:
        last = [line["verdict"] for line in self.progress.log[1:]][-self.recipe.stop_after :]
        collapsed = 0 < self.recipe.stop_after == len(last) and set(last) == {"collapsed"}
        if collapsed:
            logger.error("collapsed for %d epochs; stopped. Try: %s", len(last), "; or ".join(ADVICE))
        return collapsed


def make_model(recipe: Recipe) -> MixSiam:
    """Builds a recipe's model with random weights, from its seed."""
    torch.manual_seed(recipe.seed)
    backbone = Backbone(recipe.backbone, recipe.output_stride)
    return MixSiam(
        backbone,
        projector_layers=recipe.projector_layers,
        projector_dim=recipe.projector_dim,
        predictor_dim=recipe.predictor_dim,
        w=recipe.mixture_weight,
        target=recipe.target,
    )


def make_optimiser(model: MixSiam, recipe: Recipe) -> torch.optim.SGD:
    """SGD over all parameters; the predictor's learning rate stays constant (SimSiam, table 1, its best row)."""
    encoder = [*model.backbone.parameters(), *model.projector.parameters()]
    groups = [
        {"params": encoder, "decays": True},
        {"params": list(model.predictor.parameters()), "decays": False},
    ]
    return torch.optim.SGD(groups, lr=recipe.peak_lr, momentum=MOMENTUM, weight_decay=recipe.weight_decay, fused=True)


def cosine_lr(step: int, total_steps: int, peak: float) -> float:
    """Cosine from `peak` at step 0 to 0 at `total_steps`, without warm-up (SimSiam, section 4)."""
    return peak * 0.5 * (1 + math.cos(math.pi * step / total_steps))


def pick_device() -> torch.device:
    """The best device here: cuda, mps or cpu. Only cpu has been run."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_precision(asked: str, device: torch.device) -> str:
    """Resolves `auto`: bf16 where the hardware computes it, else fp32."""
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    native = device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bf16" if native else "fp32"
