"""README.md of a folder: figures with their floors, terms and limits, code that runs, metadata for the Hub."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx", reason="needs the extra export")

from huggingface_hub import ModelCard

from mixsiam_hub.config import Manifest, ModelConfig, Preprocessing
from mixsiam_hub.export.card import render_card
from mixsiam_hub.samples import draw_samples

ROWS = {
    "raw pixels": {"knn20": 0.25, "knn200": 0.24, "linear": 0.3},
    "random weights": {"knn20": 0.2, "knn200": 0.19, "linear": 0.28},
    "mixsiam": {"knn20": 0.41, "knn200": 0.4, "linear": 0.5},
}
EVALUATION = {
    "train": "pets::train",
    "test": "pets::val",
    "n_train": 9000,
    "n_test": 1000,
    "classes": 12,
    "precision": "bf16",
    "rows": ROWS,
    "clears_raw_pixels": True,
    "command": "mixsiam evaluate runs/pets --train pets::train --test pets::val",
}
PARITY = {"batch_sizes": [1, 2], "max_relative_error": {"onnx": 1e-6}, "file_to_vector_min_cosine": 1.0}
CONFIG = ModelConfig("resnet18", Preprocessing(64))
MANIFEST = Manifest(
    license="Apache-2.0",
    fingerprint="0" * 64,
    config_digest="0" * 64,
    card_sha256="",
    files={"report.png": "0" * 64, "neighbours.png": "0" * 64},
    training={"recipe": {"name": "pets", "data": "pets::train", "data_terms": "CC0"}, "seconds": 77, "commit": None},
    parity=PARITY,
    quality={"evaluations": [EVALUATION]},
)
IMPORTED = {
    "imported_from": "lightly",
    "file": "a.ckpt",
    "sha256": "1" * 64,
    "dropped": ["fc.weight"],
    "preprocessing": "what was given",
    "base_model": "lab/first",
}


def card(name: str = "pets", **changes: Any) -> str:
    return render_card(name, CONFIG, replace(MANIFEST, **changes))


def metadata(text: str) -> Any:
    return ModelCard(text).data


def test_every_figure_stands_with_its_floors_and_command() -> None:
    text = card()
    for name, cells in (("raw pixels", "25.0 | 24.0 | 30.0"), ("mixsiam", "41.0 | 40.0 | 50.0")):
        assert f"| {name} | {cells} |" in text
    assert str(EVALUATION["command"]) in text
    assert "Undertrained" not in text


def test_an_undertrained_encoder_is_called_so() -> None:
    assert "Undertrained" in card(quality={"evaluations": [EVALUATION | {"clears_raw_pixels": False}]})


def test_figures_from_before_the_rounding_say_so() -> None:
    training = MANIFEST.training | {"fp16_rounding_min_cosine": 0.9999}
    for digit, is_said in (("1", True), ("0", False)):
        text = card(training=training, quality={"evaluations": [EVALUATION | {"fingerprint": digit * 64}]})
        assert ("before the weights were rounded" in text) is is_said


def test_the_smaller_graphs_stand_with_what_they_were_measured_on() -> None:
    figures = {"bytes": 2e6, "data": "pets", "images": 900, "mean_cosine": 0.9991, "min_cosine": 0.98}
    figures |= {"neighbour_agreement": 0.95, "knn20": 0.4, "knn20_fp32": 0.41, "knn20_change_points": -1.0}
    int8 = figures | {"calibration_images": 512, "held_out": True, "forced": True}
    plain = {name: figures[name] for name in figures if "knn" not in name}
    text = card(parity=PARITY | {"variants": {"fp16": plain, "int8": int8}})
    assert "| fp16 | 2.0 | 0.999100 | 0.980000 | 95.0 % | not measured |" in text
    assert "| int8, forced | 2.0 | 0.999100 | 0.980000 | 95.0 % | -1.00 |" in text
    assert "fp16 on 900 images of pets. int8 on 900 images of pets, half classified by half: 41.0 % before" in text
    assert "calibrated on 512, others." in text
    assert "${onnx}/model_quantized.onnx" in text
    assert "model_quantized" not in card()


def test_what_is_not_known_is_said() -> None:
    text = card(quality={}, training={"recipe": {}})
    assert "Not measured" in text
    assert "terms were not recorded" in text
    assert "| wall time, s | not recorded |" in text


def test_what_is_known_is_told() -> None:
    text = card()
    assert "\nCC0.\n" in text
    assert "| wall time, s | 77 |" in text
    assert "| commit of mixsiam-hub | not recorded |" in text
    assert "![" in text
    assert "](report.png)" in text
    assert "](neighbours.png)" in text
    assert "](at/report.png)" in render_card("pets", CONFIG, MANIFEST, pictures_at="at/")


def test_pictures_that_the_folder_lacks_are_not_linked() -> None:
    assert "![" not in card(files={})


def test_metadata_are_what_the_hub_reads() -> None:
    data = metadata(card())
    assert (data.library_name, data.pipeline_tag, data.license) == ("timm", "image-feature-extraction", "apache-2.0")
    assert {"mixsiam-hub", "onnx", "transformers.js", "self-supervised-learning"} <= set(data.tags)
    assert data.datasets == ["pets"]
    assert data.base_model is None
    assert data.model_name == "pets"
    results = {result.metric_name: result.metric_value for result in data.eval_results}
    assert results["Accuracy of kNN, k = 20, %"] == 41.0
    assert {result.dataset_name for result in data.eval_results} == {"pets::val"}


def test_data_without_a_plain_name_is_no_dataset() -> None:
    for data in ("", "my photos/*.jpg"):
        assert metadata(card(training={"recipe": {"data": data}})).datasets is None


def test_an_import_names_its_origin_and_no_training() -> None:
    text = card(training=IMPORTED, method="imported from lightly", quality={})
    assert "lightly checkpoint `a.ckpt`" in text
    assert "mixsiam train" not in text
    assert "arxiv.org" not in text
    assert metadata(text).base_model == "lab/first"
    assert "self-supervised-learning" not in metadata(text).tags


def test_a_run_that_went_on_from_a_hub_model_names_it() -> None:
    assert metadata(card(training={"recipe": {"init": "lab/first"}})).base_model == "lab/first"
    assert metadata(card(training={"recipe": {"init": "some-folder"}})).base_model is None


def test_on_the_hub_every_example_names_the_repository() -> None:
    text = card("lab/pets")
    for line in (
        'ImageEncoder.from_pretrained("lab/pets")',
        'timm.create_model("hf-hub:lab/pets"',
        'AutoModel.from_pretrained("lab/pets")',
        'SentenceTransformer("lab/pets")',
        'pipeline("image-feature-extraction", "lab/pets")',
        "hf download lab/pets --local-dir pets",
        "mixsiam verify lab/pets",
    ):
        assert line in text
    assert 'timm.create_model("local-dir:pets"' in card("pets")


def test_nothing_of_the_template_is_left_over(model_folder: Path, compact_folder: Path) -> None:
    for folder in (model_folder, compact_folder):
        text = (folder / "README.md").read_text(encoding="utf-8")
        assert not re.search(r"\{[{%]|[%}]\}|Undefined", text)
        assert "\n\n\n" not in text


_CHECK = """
import numpy
found = vectors if "vectors" in dir() else vector
found = numpy.asarray(found.detach() if hasattr(found, "detach") else found)
assert found.shape[-1] == 512 and numpy.isfinite(found).all()
"""


@pytest.mark.slow
def test_its_python_runs_as_it_stands(model_folder: Path, tmp_path: Path) -> None:
    for module in ("timm", "transformers", "sentence_transformers"):
        pytest.importorskip(module, reason="needs the extra dev")
    for name, image in zip(("one.jpg", "two.png"), draw_samples(2).values(), strict=True):
        image.save(tmp_path / name)
    (tmp_path / "model").symlink_to(model_folder)
    blocks = re.findall(r"```python\n(.*?)```", (model_folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        code = f"{block}\n{_CHECK}"
        command = [sys.executable, "-c", code]
        result = subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
        )
        assert result.returncode == 0, f"{block}\n{result.stderr}"
