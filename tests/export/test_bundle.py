"""The contract of a model folder, and what happens when it cannot be kept."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="needs the extra export")
pytest.importorskip("onnxscript", reason="needs the extra export")

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mixsiam_hub import ImageEncoder
from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.backends.choose import present_backends
from mixsiam_hub.errors import ModelError, OutputError
from mixsiam_hub.export import bundle, parity
from mixsiam_hub.export.bundle import export_folder
from mixsiam_hub.export.variants import Calibration
from mixsiam_hub.images.load import load_image
from mixsiam_hub.images.preprocess import preprocess
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model.config import ModelConfig
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.model.known_answers import verify_folder
from mixsiam_hub.model.manifest import Manifest
from mixsiam_hub.training.checkpoint import TrainedEncoder
from mixsiam_hub.untrusted import read_json, sha256_file

EITHER = {
    *("mixsiam.json", "README.md", "neighbours.png"),
    *("config.json", "preprocessor_config.json", "processor_config.json", "model.safetensors"),
    *("modules.json", "sentence_bert_config.json"),
}
FULL = EITHER | {
    *("onnx/model.onnx", "onnx/model_fp16.onnx", "onnx/preprocess.onnx", "onnx/preprocessor_config.json"),
}
COMPACT = EITHER | {"model.onnx"}


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("kind", "contract"), [("model_folder", FULL), ("compact_folder", COMPACT)])
def test_the_folder_holds_the_contract_and_lists_every_file_by_its_hash(
    kind: str, contract: set[str], request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    files = files_of(folder)
    assert {name for name in files if not name.startswith("known_answers/")} == contract
    manifest = Manifest.from_json(read_json(folder / "mixsiam.json"))
    hashed = files - {"mixsiam.json", "README.md", "config.json"}
    assert manifest.files == {name: sha256_file(folder / name) for name in hashed}
    assert manifest.config_digest == ModelConfig.from_json(read_json(folder / "config.json")).digest
    assert manifest.card_sha256 == sha256_file(folder / "README.md")


def test_the_weights_are_the_backbone_as_transformers_and_other_users_of_the_machine_need_it(
    model_folder: Path, trained_encoder: TrainedEncoder
) -> None:
    path = model_folder / "model.safetensors"
    expected = trained_encoder.backbone.state_dict()
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(expected)
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in expected.items())
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE(model_folder.stat().st_mode) == 0o777 & ~umask


def test_the_json_files_say_what_other_loaders_need(model_folder: Path, trained_encoder: TrainedEncoder) -> None:
    config = read_json(model_folder / "config.json")
    assert ModelConfig.from_json(config) == trained_encoder.config
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == 0
    assert config["model_args"] == {"output_stride": 16}
    assert config["transformers.js_config"] == {"dtype": "fp32"}
    processor = read_json(model_folder / "preprocessor_config.json")
    assert processor["image_processor_type"] == "CLIPImageProcessor"
    assert (processor["size"], processor["crop_size"]) == ({"shortest_edge": 32}, {"height": 32, "width": 32})
    assert processor["resample"] == Image.Resampling.LANCZOS
    timm = read_json(model_folder / "processor_config.json")["image_processor"]
    assert timm["image_processor_type"] == "TimmWrapperImageProcessor"
    assert timm["pretrained_cfg"] == config["pretrained_cfg"]


def test_parity_was_measured_within_tolerance_and_recorded(model_folder: Path, compact_folder: Path) -> None:
    for folder in (model_folder, compact_folder):
        parity = read_json(folder / "mixsiam.json")["parity"]
        assert parity["batch_sizes"] == [1, 2, 3, 17]
        assert all(0 < error < 1e-4 for error in parity["max_relative_error"].values())
        assert parity["file_to_vector_min_cosine"] > 0.99999
    assert read_json(model_folder / "mixsiam.json")["parity"]["preprocess"]["max_levels"] <= 1


@pytest.mark.parametrize("kind", ["model_folder", "compact_folder"])
def test_known_answers_replay_and_are_ten_small_png_and_jpeg_files(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    answers = read_json(folder / "known_answers/vectors.json")
    assert (answers["format_version"], answers["min_cosine"]) == (1, 0.9999)
    images = [Image.open(folder / "known_answers" / entry["file"]) for entry in answers["files"]]
    assert {image.format for image in images} == {"PNG", "JPEG"}
    assert {image.mode for image in images} == {"RGB", "L"}
    assert 8 <= len(images) <= 12
    assert all(edge % 2 for image in images for edge in image.size)
    replayed = [check for check in verify_folder(folder).vectors if check.precision == "fp32"]
    assert [check.backend for check in replayed] == list(present_backends())
    assert min(check.min_cosine for check in replayed) > 0.99999


def test_a_compact_folder_holds_one_rounded_copy_of_the_weights_and_both_backends_agree(
    compact_folder: Path, model_folder: Path
) -> None:
    size = {folder: sum(p.stat().st_size for p in folder.rglob("*")) for folder in (compact_folder, model_folder)}
    assert size[compact_folder] < 25e6 < 0.3 * size[model_folder]
    tensors = load_file(compact_folder / "model.safetensors")
    assert {tensor.dtype for name, tensor in tensors.items() if "bn" in name} == {torch.float32, torch.int64}
    assert tensors["layer4.1.conv2.weight"].dtype == torch.float16
    images = list(draw_samples(12, seed=5).values())
    vectors = {
        backend: ImageEncoder.from_pretrained(compact_folder, backend=backend).embed(images, normalize=False)
        for backend in ("onnx", "torch")
    }
    assert np.abs(vectors["onnx"] - vectors["torch"]).max() < 1e-4 * np.abs(vectors["torch"]).mean()
    full = ImageEncoder.from_pretrained(model_folder).embed(images, normalize=False)
    assert parity.min_cosine(full, vectors["onnx"]) > 0.999
    assert not np.array_equal(full, vectors["onnx"])


def test_a_compact_folder_is_another_model(compact_folder: Path, model_folder: Path) -> None:
    prints = {read_json(folder / "mixsiam.json")["fingerprint"] for folder in (compact_folder, model_folder)}
    assert len(prints) == 2


def test_the_card_says_method_licence_and_figures(model_folder: Path, compact_folder: Path) -> None:
    card = (model_folder / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card.split("---\n")[1].splitlines()
    assert "arXiv 2111.02679" in card
    assert "--data 'drawn samples'" in card
    assert "16 bits" in (compact_folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("license_id", ["", "two words", "a\nb"])
def test_a_licence_is_required(trained_encoder: TrainedEncoder, tmp_path: Path, license_id: str) -> None:
    with pytest.raises(ModelError, match="SPDX"):
        export_folder(trained_encoder, tmp_path / "model", license_id)


def test_a_target_that_is_taken_is_refused_and_left_alone(trained_encoder: TrainedEncoder, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/note.txt").write_text("mine")
    for target in (tmp_path / "taken", tmp_path / "taken/note.txt"):
        with pytest.raises(OutputError, match="choose"):
            export_folder(trained_encoder, target, "MIT")
    assert files_of(tmp_path) == {"taken/note.txt"}


def test_an_empty_target_is_used_and_the_encoder_stays_as_it_was(
    trained_encoder: TrainedEncoder, tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in trained_encoder.backbone.state_dict().items()}
    (tmp_path / "empty").mkdir()
    manifest = export_folder(trained_encoder, tmp_path / "empty", "MIT", compact=True)
    assert manifest == Manifest.from_json(read_json(tmp_path / "empty/mixsiam.json"))
    assert manifest.license == "MIT"
    after = trained_encoder.backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_wrong_graph_is_refused_with_what_was_measured_and_nothing_stays(
    trained_encoder: TrainedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = bundle.full_graph
    monkeypatch.setattr(bundle, "full_graph", lambda _, input_px: graph(Backbone("resnet18", 16).eval(), input_px))
    with pytest.raises(ModelError, match=r"largest error of the onnx backend.* is [0-9.e-]+; at most 0.0001"):
        export_folder(trained_encoder, tmp_path / "model", "MIT")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_preprocessing_graph_is_refused(
    trained_encoder: TrainedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = bundle.preprocess_graph
    monkeypatch.setattr(bundle, "preprocess_graph", lambda pre: graph(replace(pre, interpolation="bilinear")))
    with pytest.raises(ModelError, match=r"preprocess\.onnx and Pillow, in grey levels, is \d+; at most 1 is allowed"):
        export_folder(trained_encoder, tmp_path / "model", "MIT")
    assert list(tmp_path.iterdir()) == []


def test_features_that_are_not_finite_are_refused(trained_encoder: TrainedEncoder, model_folder: Path) -> None:
    backbone = bundle.round_convolutions(trained_encoder.backbone)
    with torch.no_grad():
        backbone.layer4[0].conv1.weight[0] = float("nan")
    with pytest.raises(ModelError, match="is nan; at most"):
        parity.measure_parity(backbone, ModelFolder.open(model_folder), [])


def test_the_known_vectors_are_the_networks_own_to_the_last_bit(
    model_folder: Path, trained_encoder: TrainedEncoder
) -> None:
    entries = read_json(model_folder / "known_answers/vectors.json")["files"]
    pre = trained_encoder.config.preprocessing
    pixels = [preprocess(load_image(model_folder / "known_answers" / entry["file"]), pre) for entry in entries]
    expected = parity.run(trained_encoder.backbone, np.stack(pixels))[0]
    assert np.array_equal(np.array([entry["vector"] for entry in entries], np.float32), expected)


@pytest.mark.slow
def test_int8_that_fails_on_the_known_answers_alone_is_refused_unless_forced(
    trained_encoder: TrainedEncoder, tmp_path: Path
) -> None:
    black = np.zeros((200, 32, 32, 3), np.uint8)
    blank = Calibration("black", black, black)  # On these themselves the graph is close.
    with pytest.raises(
        ModelError, match=r"model_quantized\.onnx by onnx: cosine .* at least 0\.995 and 0\.97 are needed"
    ):
        export_folder(trained_encoder, tmp_path / "model", "MIT", calibration=blank)
    assert not (tmp_path / "model").exists()

    manifest = export_folder(trained_encoder, tmp_path / "model", "MIT", calibration=blank, force=True)
    assert manifest.parity is not None
    assert {name: variant.forced for name, variant in manifest.parity.variants.items()} == {"fp16": False, "int8": True}
    assert manifest.parity.variants["int8"].fidelity.min_cosine > 0.97
    with pytest.raises(ModelError, match="forced at export"):
        verify_folder(tmp_path / "model")
    forced = [
        check.precision for check in verify_folder(tmp_path / "model", accept_forced=True).vectors if check.forced
    ]
    assert forced == ["int8"]
