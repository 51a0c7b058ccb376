"""README.md of a folder: figures with their floors, terms and limits, and a front matter that parses."""

from __future__ import annotations

import pytest

pytest.importorskip("onnx", reason="needs the extra export")

from mixsiam_hub.config import Manifest, ModelConfig, Preprocessing
from mixsiam_hub.export.card import render_card

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


def card(evaluation: dict[str, object] | None = None, terms: str = "CC0") -> str:
    manifest = Manifest(
        license="Apache-2.0",
        fingerprint="0" * 64,
        config_digest="0" * 64,
        files={},
        training={"recipe": {"name": "pets", "data_terms": terms}},
        parity=PARITY,
        quality={"evaluations": [evaluation]} if evaluation else {},
    )
    return render_card("pets", ModelConfig("resnet18", Preprocessing(64)), manifest)


def test_every_figure_stands_with_its_floors_and_command() -> None:
    text = card(EVALUATION)
    for name, cells in (("raw pixels", "25.0 | 24.0 | 30.0"), ("mixsiam", "41.0 | 40.0 | 50.0")):
        assert f"| {name} | {cells} |" in text
    assert str(EVALUATION["command"]) in text
    assert "Undertrained" not in text


def test_an_undertrained_encoder_is_called_so() -> None:
    assert "Undertrained" in card(EVALUATION | {"clears_raw_pixels": False})


def test_what_is_not_known_is_said() -> None:
    assert "Not measured" in card()
    assert "terms were not recorded" in card(terms="")
    assert "Data: CC0." in card()


def test_front_matter_is_valid_metadata() -> None:
    cards = pytest.importorskip("huggingface_hub")
    data = cards.ModelCard(card(EVALUATION)).data
    assert data.pipeline_tag == "image-feature-extraction"
    assert data.license == "apache-2.0"
