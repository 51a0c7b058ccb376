"""The whole path by the command line: unlabelled images -> run -> report -> folder -> vectors -> neighbours."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

for module in ("torch", "sklearn", "tensorboard", "matplotlib", "onnx", "onnxscript"):
    pytest.importorskip(module, reason="needs the extras train and export")

from click.testing import CliRunner, Result

from mixsiam_hub import ImageEncoder
from mixsiam_hub.cli import main
from mixsiam_hub.images.samples import draw_samples


def mixsiam(*arguments: object, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == exit_code, result.output
    return result


def test_from_images_to_neighbours(digits_run: Path, tmp_path: Path) -> None:
    run = digits_run
    table = mixsiam("evaluate", run, "--train", "digits::train", "--test", "digits::val").output
    assert "raw pixels" in table
    assert "undertrained" in table

    folder = tmp_path / "encoder"
    assert "verified" in mixsiam("export", run, folder, "--license", "apache-2.0").output
    manifest = json.loads((folder / "mixsiam.json").read_text())
    assert manifest["quality"] == json.loads((run / "report.json").read_text())
    assert manifest["training"]["recipe"]["data"] == "digits"
    assert str(tmp_path) not in (folder / "mixsiam.json").read_text()

    report = run / "report.json"
    evaluated = report.read_text()
    report.write_text(evaluated.replace('"steps": 4', '"steps": 2'))
    assert "evaluate it again" in mixsiam("export", run, tmp_path / "stale", "--license", "MIT", exit_code=1).output
    assert not (tmp_path / "stale").exists()
    report.write_text(evaluated)

    images = tmp_path / "images"
    images.mkdir()
    for name, image in draw_samples(12).items():
        image.save(images / name)
    vectors = tmp_path / "vectors.npz"
    mixsiam("embed", images, "--model", folder, "--out", vectors)
    with np.load(vectors, allow_pickle=False) as stored:
        assert np.allclose(np.linalg.norm(stored["vectors"], axis=1), 1, atol=1e-5)
    query = sorted(images.iterdir())[0]
    found = mixsiam("search", vectors, query, "--model", folder, "-k", 3, "--sheet", tmp_path / "sheet.png").output
    assert found.splitlines()[1].split() == ["1.000", str(query)]
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    assert "mixsiam" in mixsiam("info", folder).output
    assert "torch" in mixsiam("verify", folder).output


@pytest.mark.slow
def test_a_folder_is_exported_again_with_an_int8_graph(model_folder: Path, tmp_path: Path) -> None:
    given = ["--license", "MIT", "--calibration", "digits"]
    told = mixsiam("export", model_folder, tmp_path / "again", *given, "--force").output
    assert re.search(r"int8: [\d.]+ MB, cosine to fp32 0\.\d+ in the mean, .* on 1285 images \(digits\)", told)
    figures = json.loads((tmp_path / "again/mixsiam.json").read_text())["parity"]["variants"]["int8"]
    assert (figures["calibration_images"], figures["held_out"]) == (512, True)
    assert "knn20" in figures
    assert "| int8" in (tmp_path / "again/README.md").read_text()
    assert ImageEncoder.from_pretrained(tmp_path / "again", precision="int8").variant == "int8-exact"
    refused = mixsiam("export", model_folder, tmp_path / "small", *given, "--compact", exit_code=1).output
    assert "a compact folder has no int8 graph" in refused
    assert not (tmp_path / "small").exists()


def test_training_continues_from_a_folder(model_folder: Path, tmp_path: Path) -> None:
    """`init` starts from the folder's weights; another architecture is refused with what to set."""
    from mixsiam_hub.training.init import load_init
    from mixsiam_hub.training.recipe import load_recipe
    from mixsiam_hub.training.step import make_model

    recipe = load_recipe("digits", [f'init="{model_folder}"'])
    model = make_model(recipe)
    load_init(model.backbone, recipe)
    expected = ImageEncoder.from_pretrained(model_folder).to_torch().state_dict()
    for name, tensor in model.backbone.state_dict().items():
        assert tensor.equal(expected[name]), name
    settings = ["--set", f"init={model_folder}", "--set", "output_stride=32", "--set", f"run_dir={tmp_path / 'run'}"]
    result = mixsiam("train", "digits", *settings, exit_code=1)
    assert "output_stride = 16" in result.output
    assert not (tmp_path / "run").exists()


def test_errors_are_one_line(tmp_path: Path) -> None:
    result = mixsiam("export", tmp_path, tmp_path / "out", "--license", "apache-2.0", exit_code=1)
    assert "no run folder" in result.output
    assert "Traceback" not in result.output
    assert "unknown key 'colour'" in mixsiam("train", "digits", "--set", "colour=1", exit_code=1).output
    assert "add --data" in mixsiam("train", "folder", exit_code=1).output
