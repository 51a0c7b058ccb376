"""What stops a run, and that nothing but time is lost: a crash, a kill, SIGTERM, a loss that is not finite."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("sklearn", reason="needs the extra train")
pytest.importorskip("tensorboard", reason="needs the extra train")

import numpy as np
from PIL import Image
from small_run import OVERRIDES, assert_same_run, before_each_step, recipe, tell_to_stop

from mixsiam_hub.errors import DataError, TrainingError
from mixsiam_hub.training import loop
from mixsiam_hub.training.checkpoint import read_checkpoint
from mixsiam_hub.training.data import open_images
from mixsiam_hub.training.loop import train
from mixsiam_hub.training.order import Order
from mixsiam_hub.training.recipe import load_recipe
from mixsiam_hub.training.views import Views, make_loader


class Stop(Exception):
    """Stands in for a crash."""


@pytest.mark.parametrize("stop_at", [3, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 4, 6))])
def test_resume_equals_the_uninterrupted_run(
    whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    """Stopped in the middle of an epoch and at its end; a checkpoint at every step, the last one before the crash."""
    run = tmp_path / "stopped"

    def stop(trainer: Any) -> None:
        if trainer.progress.step == stop_at:
            raise Stop

    before_each_step(monkeypatch, stop)
    with pytest.raises(Stop):
        train(recipe(run, "checkpoint_minutes=1e-9"))
    monkeypatch.undo()
    assert read_checkpoint(run)["step"] == stop_at
    outcome = train(recipe(run), resume=True)
    assert outcome.finished
    assert_same_run(whole_run, run)


def test_finished_run_resumes_to_itself(whole_run: Path) -> None:
    before = read_checkpoint(whole_run)["model"]
    assert train(recipe(whole_run), resume=True).finished
    after = read_checkpoint(whole_run)["model"]
    assert all(torch.equal(before[name], after[name]) for name in before)


CODE = (
    "import sys; from mixsiam_hub.training.recipe import load_recipe; from mixsiam_hub.training.loop import train; "
    "from pathlib import Path; recipe = load_recipe('digits', sys.argv[1:]); "
    "train(recipe, resume=(Path(recipe.run_dir) / 'recipe.toml').is_file())"
)


def start_process(run: Path) -> subprocess.Popen[bytes]:
    """Starts or resumes the run in a process of its own, with a checkpoint at every step."""
    overrides = [*OVERRIDES, f'run_dir="{run}"', "checkpoint_minutes=1e-9"]
    return subprocess.Popen([sys.executable, "-c", CODE, *overrides], stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def process_seconds(tmp_path_factory: pytest.TempPathFactory) -> float:
    """How long the process takes here when nobody kills it, so that the kills fall within it."""
    start = time.monotonic()
    assert start_process(tmp_path_factory.mktemp("runs") / "alone").wait(600) == 0
    return time.monotonic() - start


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_killed_run_resumes_exactly(whole_run: Path, process_seconds: float, tmp_path: Path, seed: int) -> None:
    """A kill -9 at random moments, four times at the most, then left alone."""
    rng = random.Random(seed)
    for attempt in range(4):  # A machine that has become faster since it was timed may end a run before the first kill.
        run = tmp_path / f"killed-{attempt}"
        if kill_at_random(run, rng, process_seconds / 2**attempt):
            break
    else:
        pytest.fail("no run lived long enough to be killed")
    assert start_process(run).wait(600) == 0
    assert_same_run(whole_run, run)


def kill_at_random(run: Path, rng: random.Random, seconds: float) -> int:
    """Starts a run four times, kills it at a random moment of each, and returns how many of them it lived to see."""
    kills = 0
    for _ in range(4):
        process = start_process(run)
        try:
            process.wait(rng.uniform(0.2, 0.8) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    return kills


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def break_the_third(trainer: Any) -> None:
        if trainer.progress.step == 2:
            with torch.no_grad():
                trainer.model.predictor[0].weight.fill_(torch.inf)

    before_each_step(monkeypatch, break_the_third)
    with pytest.raises(TrainingError, match=r"the loss of step 2 \(epoch 1\) is not finite: loss nan.*half the lr"):
        train(recipe(run, "checkpoint_minutes=1e-9"))
    state = read_checkpoint(run)
    assert state["step"] == 2
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_a_weight_that_is_not_finite_enters_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    save = loop._Trainer._save

    def break_before_the_third(trainer: Any) -> None:
        if trainer.progress.step == 3:
            with torch.no_grad():
                trainer.model.predictor[0].weight[0, 0] = torch.nan
        save(trainer)

    monkeypatch.setattr(loop._Trainer, "_save", break_before_the_third)
    with pytest.raises(TrainingError, match=r"after step 3 predictor\.0\.weight is not finite.*half the lr"):
        train(recipe(run, "checkpoint_minutes=1e-9"))
    state = read_checkpoint(run)
    assert state["step"] == 2
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_images_that_are_gone_stop_a_run_which_goes_on_once_they_are_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, away = tmp_path / "data", tmp_path / "away"
    data.mkdir()
    for number in range(90):
        image = Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8))
        image.save(data / f"{number:02}.png")

    def take_away(trainer: Any) -> None:
        if trainer.progress.step == 3:
            data.rename(away)

    before_each_step(monkeypatch, take_away)
    changes = [f'data="{data}"', 'val_data=""', "stop_after=0", "epochs=6", "workers=0"]
    with pytest.raises(DataError, match=r"data: no image since step 4 can be read; .*png.*add --resume"):
        train(recipe(tmp_path / "run", *changes))
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "run")["step"] == 4
    away.rename(data)
    assert train(recipe(tmp_path / "run", *changes), resume=True).finished


def test_sigterm_ends_a_run_with_a_checkpoint_and_a_resume_equals_it(
    whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    tell_to_stop(monkeypatch, 5)
    outcome = train(recipe(run))
    assert outcome.interrupted
    assert not outcome.finished
    assert read_checkpoint(run)["step"] == 6
    monkeypatch.undo()
    assert train(recipe(run), resume=True).finished
    assert_same_run(whole_run, run)


def test_a_killed_worker_is_an_error(tmp_path: Path) -> None:
    class Deadly(Views):
        def __getitem__(self, key: tuple[int, int]) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

    images = open_images("digits::val")
    views = Deadly(images, load_recipe("digits").view_plan, 0)
    with pytest.raises(TrainingError, match="a worker that decodes images ended"):
        list(make_loader(views, Order(len(images), 4, 1, 0), workers=1))
