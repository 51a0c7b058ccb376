"""A run folder: what it holds, that it resumes exactly, and that a kill at any moment loses nothing but time."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("sklearn", reason="needs the extra train")
pytest.importorskip("tensorboard", reason="needs the extra train")

from mixsiam_hub.errors import DataError, OutputError, RecipeError, TrainingError
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.model.hub import BUILTIN
from mixsiam_hub.training import checkpoint, loop
from mixsiam_hub.training.checkpoint import CHECKPOINT_FILE, load_encoder, measure_clean, read_checkpoint
from mixsiam_hub.training.data import Order, Views, make_loader, open_images
from mixsiam_hub.training.loop import cosine_lr, make_model, make_optimiser, train
from mixsiam_hub.training.recipe import Recipe, load_recipe

OVERRIDES = [
    'data="digits::val"',
    'val_data="digits::val"',
    "epochs=2",
    "batch_size=44",
    "lr=0.03",
    "threads=1",
    "output_stride=32",
    "projector_dim=64",
    "predictor_dim=16",
]


def recipe(run: Path, *more: str) -> Recipe:
    """Four steps an epoch of a tenth of the digits, 32 px."""
    return load_recipe("digits", [*OVERRIDES, f'run_dir="{run}"', *more])


def log(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
    return lines


def assert_same_run(a: Path, b: Path) -> None:
    """Equal weights, optimiser state and log, but for the time it took."""
    one, two = read_checkpoint(a), read_checkpoint(b)
    assert one["step"] == two["step"]
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, two["model"][name]), name
    for name, tensor in one["statistics"].items():
        assert torch.equal(tensor, two["statistics"][name]), name
    assert str(one["moments"]) == str(two["moments"])
    for index, state in one["optimiser"]["state"].items():
        assert torch.equal(state["momentum_buffer"], two["optimiser"]["state"][index]["momentum_buffer"])
    assert log(a) == log(b)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    outcome = train(recipe(run))
    assert outcome.finished
    return run


def test_run_folder_holds_recipe_log_and_checkpoint(whole_run: Path) -> None:
    assert {path.name for path in whole_run.iterdir()} == {"recipe.toml", "log.jsonl", "checkpoint.pt", "tensorboard"}
    lines = log(whole_run)
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert [line["step"] for line in lines] == [0, 4, 8]
    health = {
        "rank_backbone",
        "rank_z",
        "pre_bn_var_min",
        "pre_bn_var_median",
        "z_std",
        "target_bias",
        "knn20",
        "knn200",
    }
    for line in lines[1:]:
        assert health == set(line["health"])
        assert {"loss", "loss_sim", "loss_mix", "verdict", "lr", "skipped", "rank_z_rel"} <= set(line)
        assert line["loss"] == pytest.approx(line["loss_sim"] + line["loss_mix"], abs=1e-5)
    assert load_recipe(str(whole_run / "recipe.toml")) == recipe(whole_run)


class Stop(Exception):
    """Stands in for a crash."""


@pytest.mark.parametrize("stop_at", [3, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 4, 6))])
def test_resume_equals_the_uninterrupted_run(
    whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    """Stopped in the middle of an epoch and at its end; a checkpoint at every step, the last one before the crash."""
    run = tmp_path / "stopped"
    step = loop._Trainer._step
    counted = iter(range(100))

    def step_then_stop(trainer: Any, batch: Any) -> None:
        if next(counted) == stop_at:
            raise Stop
        step(trainer, batch)

    monkeypatch.setattr(loop._Trainer, "_step", step_then_stop)
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


def photos(folder: Path) -> Path:
    """Nine drawn images, of which one cannot be read."""
    folder.mkdir()
    for name, image in draw_samples(8).items():
        image.save(folder / name)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def photo_recipe(run: Path, data: Path, *more: str) -> Recipe:
    overrides = ["epochs=2", "batch_size=3", "threads=1", "workers=0", "projector_dim=16", "predictor_dim=8"]
    return load_recipe("folder", [f'data="{data}"', "input_size=32", *overrides, f'run_dir="{run}"', *more])


def test_resume_on_other_images_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And each corrupt image is named once, however often it comes up."""
    data, run = photos(tmp_path / "photos"), tmp_path / "run"
    given = photo_recipe(run, data, "epochs=0")
    with caplog.at_level("WARNING"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recipe, "epochs_for", lambda recipe, images: 2)
        train(given)
    named = [record.message for record in caplog.records if str(data / "broken.png") in record.message]
    assert len(named) == 1
    assert [line["skipped"] for line in log(run)[1:]] == [1, 1]
    assert caplog.records[-1].message == "images left out because they cannot be read: 1"
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    (data / "broken.png").rename(tmp_path / "broken.png")
    with pytest.raises(DataError, match=r"data of 9 images .*, and now there are 8 images .*--set init=FOLDER"):
        train(given, resume=True)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_init_is_loaded_once_and_recorded(tmp_path: Path) -> None:
    start = tmp_path / "start"
    shutil.copytree(BUILTIN, start)
    run = tmp_path / "run"
    given = photo_recipe(run, photos(tmp_path / "photos"), f'init="{start}"', "output_stride=16", "epochs=1")
    train(given)
    shutil.rmtree(start)
    assert train(given, resume=True).finished
    provenance = load_encoder(run).provenance
    fingerprint = ModelFolder.open(BUILTIN).manifest.fingerprint
    assert provenance["init"] == {"name": "start", "revision": None, "fingerprint": fingerprint}
    assert provenance["recipe"]["init"] == "start"
    assert str(tmp_path) not in json.dumps(provenance)


def test_numbers_that_are_not_finite_are_null_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_number(word: str) -> None:
        pytest.fail(f"{word} is no JSON")

    monkeypatch.setattr(loop, "z_std", lambda z: torch.tensor(torch.nan))
    run = tmp_path / "run"
    assert train(photo_recipe(run, photos(tmp_path / "photos"), "epochs=1")).verdict == "collapsed"
    lines = [json.loads(line, parse_constant=no_number) for line in (run / "log.jsonl").read_text().splitlines()]
    assert lines[1]["health"]["z_std"] is None
    assert lines[1]["loss"] is not None


def test_a_full_disk_ends_the_run_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OutputError("checkpoint.pt cannot be written: No space left on device")

    monkeypatch.setattr(loop, "save_checkpoint", full)
    with pytest.raises(OutputError, match=r"No space left on device; .*--resume"):
        train(photo_recipe(tmp_path / "run", photos(tmp_path / "photos")))


def test_a_run_folder_that_cannot_be_written_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(loop, "open_for_training", lambda *_: pytest.fail("images were opened"))
    with pytest.raises(OutputError, match="file"):
        train(recipe(tmp_path / "file" / "run"))


def test_images_that_cannot_be_used_leave_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in "abc":
        (tmp_path / "photos" / f"{name}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of 3 images can be read"):
        train(photo_recipe(tmp_path / "run", tmp_path / "photos"))
    assert not (tmp_path / "run").exists()


def test_resume_wants_the_same_recipe(whole_run: Path) -> None:
    with pytest.raises(RecipeError, match="another lr"):
        train(recipe(whole_run, "lr=0.5"), resume=True)


def test_a_used_folder_is_not_overwritten(whole_run: Path) -> None:
    with pytest.raises(DataError, match="--resume"):
        train(recipe(whole_run))


def test_nothing_to_resume_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no run of digits to resume"):
        train(load_recipe("digits"), resume=True)


def test_too_few_images_for_a_batch(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fewer than batch_size"):
        train(recipe(tmp_path / "run", "batch_size=5000"))
    assert not (tmp_path / "run").exists()


def test_collapsed_run_stops_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "verdict", lambda now, initial: "collapsed")
    outcome = train(recipe(tmp_path / "run", "epochs=5", "stop_after=2"))
    assert not outcome.finished
    assert outcome.verdict == "collapsed"
    assert [line["epoch"] for line in log(tmp_path / "run")] == [0, 1, 2]


def test_simsiam_trains_without_mixture(tmp_path: Path) -> None:
    train(recipe(tmp_path / "run", "method=simsiam", "epochs=1"))
    line = log(tmp_path / "run")[-1]
    assert line["loss_mix"] == 0
    assert line["loss"] == line["loss_sim"]


def test_checkpoint_is_never_unpickled(tmp_path: Path, whole_run: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "owned",)

    (tmp_path / CHECKPOINT_FILE).write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(DataError, match=r"checkpoint\.pt cannot be read"):
        read_checkpoint(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_trained_encoder_carries_clean_statistics(whole_run: Path) -> None:
    encoder = load_encoder(whole_run)
    trained = read_checkpoint(whole_run)["model"]
    for name, tensor in encoder.backbone.state_dict().items():
        is_statistic = "running" in name
        assert torch.equal(tensor, trained[f"backbone.{name}"]) != is_statistic, name
    again = load_encoder(whole_run).backbone.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in encoder.backbone.state_dict().items())
    assert not encoder.backbone.training
    assert encoder.provenance["recipe"]["data"] == "digits::val"
    assert str(whole_run.parent) not in json.dumps(encoder.provenance)


def test_a_run_of_fewer_images_than_features_has_no_head(
    whole_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_checkpoint(whole_run)["moments"] is None
    encoder = load_encoder(whole_run)
    assert (encoder.head, encoder.config.head_dim, encoder.backbone.fc) == (None, None, None)
    measure_clean(encoder.backbone, open_images("digits::val"), recipe(tmp_path))
    assert "gets no head: digits::val: 179 images can be read, and a head for 512 features needs" in caplog.text


def test_a_run_of_before_there_were_heads_is_read(whole_run: Path, tmp_path: Path) -> None:
    shutil.copytree(whole_run, tmp_path / "run")
    state = read_checkpoint(whole_run)
    del state["moments"]
    torch.save(state, tmp_path / "run" / CHECKPOINT_FILE)
    assert load_encoder(tmp_path / "run").head is None


def test_a_run_that_has_ended_ships_without_its_data(whole_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*specs: str) -> None:
        raise DataError("the data are gone")

    statistics = load_encoder(whole_run).backbone.state_dict()
    monkeypatch.setattr(checkpoint, "open_for_training", gone)
    assert all(torch.equal(statistics[name], t) for name, t in load_encoder(whole_run).backbone.state_dict().items())


def test_a_run_that_has_not_ended_has_its_statistics_estimated(whole_run: Path, tmp_path: Path) -> None:
    shutil.copytree(whole_run, tmp_path / "run")
    state = read_checkpoint(whole_run)
    torch.save(state | {"statistics": {}}, tmp_path / "run" / CHECKPOINT_FILE)
    found = load_encoder(tmp_path / "run").backbone.state_dict()
    for name, tensor in state["statistics"].items():
        assert torch.allclose(found[name], tensor, rtol=1e-4, atol=1e-5), name


def test_no_run_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run folder"):
        load_encoder(tmp_path)


def test_schedule_is_a_cosine_to_zero_and_spares_the_predictor() -> None:
    assert cosine_lr(0, 100, 0.5) == 0.5
    assert cosine_lr(50, 100, 0.5) == pytest.approx(0.25)
    assert cosine_lr(100, 100, 0.5) == pytest.approx(0)
    model = make_model(load_recipe("digits"))
    groups = make_optimiser(model, load_recipe("digits")).param_groups
    assert [group["decays"] for group in groups] == [True, False]
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in model.predictor.parameters()}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_initialisation_is_the_seeds() -> None:
    base = load_recipe("digits")
    one, two, other = make_model(base), make_model(base), make_model(replace(base, seed=1))
    states = [m.state_dict() for m in (one, two, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["backbone.conv1.weight"], states[2]["backbone.conv1.weight"])
    assert float(states[0]["backbone.layer1.0.bn2.weight"].abs().max()) == 0


@pytest.mark.slow
def test_the_imagenet_recipe_runs_at_toy_scale(tmp_path: Path) -> None:
    small = ["data=digits::val", "input_size=32", "epochs=1", "batch_size=60", "projector_dim=64", "predictor_dim=16"]
    here = ["workers=0", "threads=1", "sync_batchnorm=false", f"run_dir={tmp_path / 'run'}"]
    outcome = train(load_recipe("imagenet-resnet50", [*small, *here]))
    assert outcome.finished
    assert load_encoder(outcome.run).config.features_dim == 2048


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    step = loop._Trainer._step

    def break_the_third(trainer: Any, batch: Any) -> None:
        if trainer.progress.step == 2:
            with torch.no_grad():
                trainer.model.predictor[0].weight.fill_(torch.inf)
        step(trainer, batch)

    monkeypatch.setattr(loop._Trainer, "_step", break_the_third)
    with pytest.raises(TrainingError, match=r"the loss of step 2 \(epoch 1\) is not finite: loss nan.*half the lr"):
        train(recipe(run, "checkpoint_minutes=1e-9"))
    state = read_checkpoint(run)
    assert state["step"] == 2
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_sigterm_ends_a_run_with_a_checkpoint_and_a_resume_equals_it(
    whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    step = loop._Trainer._step

    def told_in_the_sixth(trainer: Any, batch: Any) -> None:
        if trainer.progress.step == 5:
            signal.raise_signal(signal.SIGTERM)
        step(trainer, batch)

    monkeypatch.setattr(loop._Trainer, "_step", told_in_the_sixth)
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
