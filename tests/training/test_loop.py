"""A run folder: what it holds, and which runs and resumes are refused; `test_stops.py` has what stops a run."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("sklearn", reason="needs the extra train")
pytest.importorskip("tensorboard", reason="needs the extra train")

from small_run import log, recipe

from mixsiam_hub.errors import DataError, OutputError, RecipeError
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.model.hub import BUILTIN
from mixsiam_hub.training import checkpoint, loop
from mixsiam_hub.training.checkpoint import CHECKPOINT_FILE, load_encoder, measure_clean, read_checkpoint
from mixsiam_hub.training.data import open_images
from mixsiam_hub.training.loop import train
from mixsiam_hub.training.recipe import Recipe, load_recipe
from mixsiam_hub.training.step import cosine_lr, make_model, make_optimiser


def test_run_folder_holds_recipe_log_and_checkpoint(whole_run: Path) -> None:
    pictures = {"training.png", "neighbours.png"}
    assert {path.name for path in whole_run.iterdir()} == pictures | {
        "recipe.toml",
        "log.jsonl",
        "checkpoint.pt",
        "tensorboard",
    }
    for picture in pictures:
        with Image.open(whole_run / picture) as drawn:
            assert len(drawn.convert("RGB").getcolors(2**20) or ()) > 20  # Something is drawn.
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
    assert provenance["init"].pop("core_hours") > 0
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
    with pytest.raises(DataError, match=r"none of 3 images can be read; the first: .*png"):
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
    assert read_checkpoint(whole_run)["head"] is None
    encoder = load_encoder(whole_run)
    assert (encoder.head, encoder.config.head_dim, encoder.backbone.fc) == (None, None, None)
    measure_clean(encoder.backbone, open_images("digits::val"), recipe(tmp_path))
    assert "gets no head: digits::val: 179 images can be read, and a head for 512 features needs" in caplog.text


def test_a_run_of_before_there_were_heads_is_read(whole_run: Path, tmp_path: Path) -> None:
    shutil.copytree(whole_run, tmp_path / "run")
    state = read_checkpoint(whole_run)
    del state["head"]
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
