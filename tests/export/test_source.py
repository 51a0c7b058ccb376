"""A model folder exported again: the same encoder, with all that is known of it, in another form."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra export")
pytest.importorskip("onnxscript", reason="needs the extra export")

from PIL import Image

from mixsiam_hub.backends.backbone import backbone_fingerprint
from mixsiam_hub.errors import DataError, ModelError
from mixsiam_hub.export import source
from mixsiam_hub.export.bundle import export_folder
from mixsiam_hub.export.card import ROUNDING
from mixsiam_hub.export.source import open_encoder
from mixsiam_hub.model.figures import Accuracy, Evaluation
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.model.manifest import Manifest
from mixsiam_hub.training.checkpoint import TrainedEncoder
from mixsiam_hub.untrusted import read_json


@pytest.mark.slow
def test_a_compact_folder_in_its_full_form_is_the_same_encoder(compact_folder: Path, tmp_path: Path) -> None:
    again = export_folder(open_encoder(str(compact_folder)), tmp_path / "full", "MIT")
    before = Manifest.from_json(read_json(compact_folder / "mixsiam.json"))
    assert again.fingerprint == before.fingerprint
    assert (again.training, again.method, again.license) == (before.training, before.method, "MIT")
    assert (tmp_path / "full/onnx/model.onnx").is_file()


def test_rounding_is_told_as_it_was_first_measured(compact_folder: Path, tmp_path: Path) -> None:
    first = read_json(compact_folder / "mixsiam.json")["training"][ROUNDING]
    assert 0.999 < first < 1
    again = export_folder(open_encoder(str(compact_folder)), tmp_path / "again", "MIT", compact=True)
    assert again.training[ROUNDING] == first


@pytest.mark.slow
def test_the_evaluation_and_its_picture_go_along(trained_encoder: TrainedEncoder, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "drawn.png")
    scores = Accuracy(0.5, 0.4, 0.6)
    evaluation = Evaluation("a", "b", 9, 8, 2, "fp32", 3.5, {"mixsiam": scores}, True, "mixsiam evaluate", "0" * 64)
    encoder = replace(
        trained_encoder, evaluations=(evaluation,), report=tmp_path / "drawn.png", curves=tmp_path / "drawn.png"
    )
    export_folder(encoder, tmp_path / "one", "MIT", compact=True)
    export_folder(open_encoder(str(tmp_path / "one")), tmp_path / "two", "MIT", compact=True)
    for name in ("one", "two"):
        for picture in ("report.png", "training.png"):
            assert (tmp_path / name / picture).read_bytes() == (tmp_path / "drawn.png").read_bytes()
            assert f"]({picture})" in (tmp_path / name / "README.md").read_text(encoding="utf-8")
        assert Manifest.from_json(read_json(tmp_path / name / "mixsiam.json")).evaluations == (evaluation,)


def test_the_provenance_names_the_repository_that_it_came_from_and_those_before(
    compact_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = ["1" * 40, "2" * 40]
    folder = ModelFolder.open(compact_folder, revision=commits[0])
    monkeypatch.setattr(source, "resolve", lambda name: folder)
    first = open_encoder("lab/first@v1")
    assert first.provenance == folder.manifest.training | {"exported_from": [f"lab/first@{commits[0]}"]}
    manifest = replace(folder.manifest, training=first.provenance)
    folder = replace(folder, manifest=manifest, revision=commits[1])
    expected = [f"lab/first@{commits[0]}", f"lab/second@{commits[1]}"]
    assert open_encoder("lab/second").provenance["exported_from"] == expected


def test_only_a_runs_own_figures_are_exported(
    trained_encoder: TrainedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = backbone_fingerprint(trained_encoder.backbone, trained_encoder.config)
    theirs = Evaluation("a", "b", 9, 8, 2, "fp32", 3.5, {}, True, "mixsiam evaluate", "0" * 64, steps=7)
    mine = replace(theirs, fingerprint=own, test="c", steps=30)
    (tmp_path / "recipe.toml").touch()
    for evaluations, expected in (((), ()), ((mine,), (mine,)), ((theirs, mine), (mine,))):
        run = replace(trained_encoder, evaluations=evaluations, report=tmp_path / "report.png")
        monkeypatch.setattr(source, "load_encoder", lambda path, run=run: run)
        found = open_encoder(str(tmp_path))
        assert found.evaluations == expected
        assert (found.report is None) is (theirs in evaluations)
    run = replace(trained_encoder, evaluations=(theirs,))
    monkeypatch.setattr(source, "load_encoder", lambda path: run)
    with pytest.raises(
        DataError, match=r"report\.json: its figures are of step 7 or of another encoder, the run is at 30"
    ):
        open_encoder(str(tmp_path))


def test_what_is_neither_run_nor_folder_is_refused(tmp_path: Path, compact_folder: Path) -> None:
    with pytest.raises(ModelError, match="neither a folder nor a Hub id"):
        open_encoder(str(tmp_path / "missing"))
    shutil.copytree(compact_folder, tmp_path / "broken")
    (tmp_path / "broken/model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="was changed"):
        open_encoder(str(tmp_path / "broken"))
