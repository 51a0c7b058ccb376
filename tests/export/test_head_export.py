"""An encoder with a head in one folder: every runtime's own place for it holds the same one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra export")
pytest.importorskip("onnxscript", reason="needs the extra export")

import onnxruntime
from commands import assert_one_error_line, run
from safetensors.numpy import load

from mixsiam_hub import ImageEncoder
from mixsiam_hub.errors import DataError
from mixsiam_hub.export import parity
from mixsiam_hub.export.bundle import export_folder
from mixsiam_hub.export.source import open_encoder, with_report
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model.figures import Accuracy, Evaluation, Whitening, evaluations_to_json
from mixsiam_hub.model.files import ANSWERS_FILE, CONFIG_FILE, ONNX_FILE, WEIGHTS_FILE
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.model.manifest import Manifest
from mixsiam_hub.training.checkpoint import TrainedEncoder
from mixsiam_hub.training.head import FLOOR, RESIZING

PIXELS = np.random.default_rng(0).standard_normal((3, 3, 32, 32), np.float32)


class Exported(NamedTuple):
    encoder: TrainedEncoder
    folder: Path
    manifest: Manifest


@pytest.fixture(scope="module")
def exported(headed_folder: Path) -> Exported:
    return Exported(open_encoder(str(headed_folder)), headed_folder, ModelFolder.open(headed_folder).manifest)


def test_the_graph_gives_the_embedding_first(exported: Exported) -> None:
    options = onnxruntime.SessionOptions()
    session = onnxruntime.InferenceSession(str(exported.folder / ONNX_FILE), options, ["CPUExecutionProvider"])
    assert [(node.name, node.shape) for node in session.get_outputs()] == [
        ("image_embeds", ["batch", 512]),
        ("pooler_output", ["batch", 512]),
        ("feature_map", ["batch", 512, 2, 2]),
    ]
    outputs = session.run(None, {"pixel_values": PIXELS})
    for got, expected in zip(outputs, parity.run(exported.encoder.backbone, PIXELS), strict=True):
        assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).mean()


def test_timm_has_the_head_as_its_classifier(exported: Exported) -> None:
    timm = pytest.importorskip("timm", reason="needs the extra dev")
    model = timm.create_model(f"local-dir:{exported.folder}", pretrained=True).eval()
    with torch.no_grad():
        got = model(torch.from_numpy(PIXELS)).numpy()
        pooled = model.forward_head(model.forward_features(torch.from_numpy(PIXELS)), pre_logits=True).numpy()
    expected = parity.run(exported.encoder.backbone, PIXELS)
    np.testing.assert_allclose(got, expected.embedding, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(pooled, expected.pooled, rtol=1e-4, atol=1e-5)


def test_sentence_transformers_has_a_copy_of_it(exported: Exported) -> None:
    modules = json.loads((exported.folder / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Dense", "2_Normalize"]
    dense, weights = exported.folder / "1_Dense", load((exported.folder / WEIGHTS_FILE).read_bytes())
    assert json.loads((dense / "config.json").read_text())["in_features"] == 512
    assert {"1_Dense/config.json", "1_Dense/model.safetensors"} <= exported.manifest.files.keys()
    copy = load((dense / "model.safetensors").read_bytes())
    np.testing.assert_array_equal(copy["linear.weight"], weights["fc.weight"])
    np.testing.assert_array_equal(copy["linear.bias"], weights["fc.bias"])


def test_fingerprint_and_known_answers_cover_it(exported: Exported, model_folder: Path) -> None:
    before = Manifest.from_json(json.loads((model_folder / "mixsiam.json").read_text()))
    assert exported.manifest.fingerprint != before.fingerprint
    answers = json.loads((exported.folder / ANSWERS_FILE).read_text())["files"]
    assert {len(entry["vector"]) for entry in answers} == {512}
    assert json.loads((exported.folder / CONFIG_FILE).read_text())["num_classes"] == 512


def test_the_smaller_graph_is_measured_behind_the_head(exported: Exported) -> None:
    images = list(draw_samples(4).values())
    full, half = (ImageEncoder.from_pretrained(exported.folder, precision=p).embed(images) for p in ("fp32", "fp16"))
    assert full.shape == half.shape == (4, 512)
    assert (full * half).sum(axis=1).min() > 0.999


def test_an_export_of_the_folder_keeps_it(exported: Exported, tmp_path: Path) -> None:
    manifest = export_folder(exported.encoder, tmp_path / "again", "Apache-2.0", compact=True)
    assert manifest.head == exported.manifest.head == Whitening("drawn samples", 600, FLOOR, RESIZING)
    images = list(draw_samples(3).values())
    vectors = [ImageEncoder.from_pretrained(folder).embed(images) for folder in (exported.folder, tmp_path / "again")]
    assert (vectors[0] * vectors[1]).sum(axis=1).min() > 0.999


def test_the_command_refuses_too_few_images_and_writes_nothing(exported: Exported, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name, image in draw_samples(20).items():
        image.save(images / name)
    out = tmp_path / "out"
    result = run("export", exported.folder, out, "--license", "MIT", "--whiten", images)
    assert_one_error_line(result, "images: 20 images can be read", "needs at least 512")
    assert not out.exists()


# Figures from a report


def _report(folder: Path, *fingerprints: str) -> Path:
    scores = {"embedding": Accuracy(0.5, 0.4, 0.6), "pooled": Accuracy(0.3, 0.2, 0.6), "raw": Accuracy(0.1, 0.1)}
    entry = Evaluation("a", "b", 9, 8, 2, "fp32", 3.5, scores, True, "mixsiam evaluate", "0" * 64)
    entries = [replace(entry, fingerprint=fingerprint) for fingerprint in fingerprints]
    (folder / "report.json").write_text(json.dumps(evaluations_to_json(entries)))
    return folder


def test_an_encoder_takes_its_own_figures_from_a_report(exported: Exported, tmp_path: Path) -> None:
    own = exported.manifest.fingerprint
    encoder = with_report(exported.encoder, _report(tmp_path, "ab" * 32, own))
    assert [entry.fingerprint for entry in encoder.evaluations] == [own]
    assert encoder.evaluations[0].rows["raw"].linear is None


def test_a_report_without_its_figures_is_refused(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"report\.json is missing; `mixsiam evaluate` writes it"):
        with_report(exported.encoder, tmp_path)
    with pytest.raises(DataError, match="of another encoder"):
        with_report(exported.encoder, _report(tmp_path, "ab" * 32))
