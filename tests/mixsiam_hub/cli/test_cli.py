"""Commands about model folders, by the command line."""

from __future__ import annotations

from pathlib import Path

from commands import assert_one_error_line, run

from mixsiam_hub import __version__
from mixsiam_hub.backends.choose import present_backends
from mixsiam_hub.model.hub import resolve


def test_info_prints_the_contract(model_folder: Path) -> None:
    result = run("info", model_folder)
    assert result.exit_code == 0
    facts = dict(line.split(None, 1) for line in result.stdout.splitlines())
    assert facts["architecture"].strip() == "resnet18"
    assert facts["preprocessing.input_px"].strip() == "32"
    assert facts["license"].strip() == "Apache-2.0"


def test_info_prints_a_figure_a_line() -> None:
    split = (line.partition("  ") for line in run("info").stdout.splitlines())
    facts = {name: value.strip() for name, _, value in split}
    measured = resolve().manifest.evaluations[0].rows["embedding"].knn20
    assert float(facts["quality.evaluations.0.rows.embedding.knn20"]) == measured
    assert facts["parity.batch_sizes"] == "[1, 2, 3, 17]"


def test_verify_prints_a_line_for_every_graph(model_folder: Path) -> None:
    result = run("verify", model_folder)
    assert result.exit_code == 0, result.output
    by_others = {"openvino": "onnx/model.onnx", "torch": "model.safetensors"}
    others = [file for backend, file in by_others.items() if backend in present_backends()]
    files = ["onnx/model.onnx", "onnx/model_fp16.onnx", *others, "onnx/preprocess.onnx"]
    assert [line.partition(" by ")[0] for line in result.stdout.splitlines()[1:]] == files
    assert "cosine 1.000000 on average" in result.stdout
    assert "0 grey levels from Pillow" in result.stdout


def test_verify_fails_on_something_else(tmp_path: Path) -> None:
    assert_one_error_line(run("verify", tmp_path), "mixsiam.json")


def test_version() -> None:
    assert __version__ in run("--version").stdout
