"""Vectors behind the head: what embed gives, what stands before the head, and the first numbers of a vector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from manifests import edit_manifest
from safetensors.numpy import load, save

from mixsiam_hub import BUILTIN, ImageEncoder
from mixsiam_hub.errors import ArgumentError, DataError, ModelError
from mixsiam_hub.images.samples import draw_samples, write_samples
from mixsiam_hub.model.checks import check_dense
from mixsiam_hub.model.config import ModelConfig
from mixsiam_hub.model.files import CONFIG_FILE, DENSE_CONFIG_FILE, DENSE_FILE, MANIFEST_FILE, WEIGHTS_FILE
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.model.known_answers import verify_folder
from mixsiam_hub.model.manifest import Manifest
from mixsiam_hub.vectors.embed import embed_files
from mixsiam_hub.vectors.search import check_encoder
from mixsiam_hub.vectors.table import read_vectors

PICTURES = list(draw_samples(5).values())


def _unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_vector_is_the_heads_output_for_the_pooled_features(backend: str) -> None:
    encoder = ImageEncoder.from_pretrained(backend=backend)
    head = load((BUILTIN / WEIGHTS_FILE).read_bytes())
    pooled = encoder.embed(PICTURES, pooled=True, normalize=False)
    assert (pooled.shape, encoder.dim) == ((5, 512), 512)
    np.testing.assert_allclose(encoder.features(PICTURES).mean(axis=(2, 3)), pooled, atol=1e-5)
    expected = pooled @ head["fc.weight"].T + head["fc.bias"]
    np.testing.assert_allclose(encoder.embed(PICTURES, normalize=False), expected, atol=2e-3)
    got = encoder.embed(PICTURES)
    np.testing.assert_allclose(got, _unit(expected), atol=1e-4)
    assert (got.shape, got.dtype) == ((5, 512), np.float32)


def test_the_first_numbers_are_vectors_of_length_1(backend: str) -> None:
    whole = ImageEncoder.from_pretrained(backend=backend)
    cut = ImageEncoder.from_pretrained(backend=backend, dim=64)
    assert (cut.dim, cut.variant, whole.variant) == (64, "fp32-exact-64", "fp32-exact")
    np.testing.assert_allclose(cut.embed(PICTURES), _unit(whole.embed(PICTURES)[:, :64]), atol=1e-6)
    assert cut.embed(PICTURES, pooled=True).shape == (5, 512)
    assert cut.embed([]).shape == (0, 64)
    assert cut.embed([], pooled=True).shape == (0, 512)
    assert ImageEncoder.from_pretrained(backend=backend, dim=512).variant == "fp32-exact"


@pytest.mark.parametrize("dim", [0, -1, 513])
def test_a_vector_cannot_be_cut_longer_or_to_nothing(dim: int) -> None:
    with pytest.raises(ArgumentError, match=rf"dim is {dim}; it must be from 1 to 512"):
        ImageEncoder.from_pretrained(dim=dim)


def test_what_is_fine_tuned_ends_at_the_pooled_features() -> None:
    torch = pytest.importorskip("torch", reason="needs the extra torch")
    backbone = ImageEncoder.from_pretrained().to_torch()
    assert backbone.fc is None
    assert not [name for name in backbone.state_dict() if name.startswith("fc.")]
    assert backbone(torch.zeros(2, 3, 64, 64)).shape == (2, 512)


def test_vectors_of_two_widths_are_never_compared() -> None:
    vectors, _ = embed_files(ImageEncoder.from_pretrained(dim=64), PICTURES)
    check_encoder(ImageEncoder.from_pretrained(dim=64), vectors)
    with pytest.raises(DataError, match=r"variant fp32-exact-64, the encoder of fp32-exact; give .*--dim 64,"):
        check_encoder(ImageEncoder.from_pretrained(), vectors)
    whole, _ = embed_files(ImageEncoder.from_pretrained(), PICTURES)
    with pytest.raises(DataError, match=r"the encoder of fp32-exact-64; give --precision fp32 and no --dim,"):
        check_encoder(ImageEncoder.from_pretrained(dim=64), whole)


def test_the_commands_take_the_width(tmp_path: Path) -> None:
    images = write_samples(tmp_path / "images")
    out = tmp_path / "vectors.npz"
    assert run("embed", *images, "--out", out, "--dim", "32").exit_code == 0
    stored = read_vectors(out)
    assert (stored.vectors.shape, stored.variant) == ((len(images), 32), "fp32-exact-32")
    np.testing.assert_allclose(np.linalg.norm(stored.vectors, axis=1), 1, atol=1e-6)
    found = run("search", out, images[0], "--dim", "32", "-k", "1")
    assert found.exit_code == 0
    assert " 1.000 " in found.stdout
    refused = run("search", out, images[0])
    assert refused.exit_code == 1
    assert "--dim 32" in refused.stderr


def test_info_names_the_head() -> None:
    split = (line.partition("  ") for line in run("info").stdout.splitlines())
    facts = {name: value.strip() for name, _, value in split}
    manifest = ModelFolder.open(BUILTIN).manifest
    assert manifest.head is not None
    assert (facts["dim"], facts["features_dim"]) == ("512", "512")
    assert facts["head.data"] == manifest.head.data
    assert int(facts["head.images"]) == manifest.head.images >= 512


# Broken folders


def _without(name: str, raw: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key != name}


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({}, "has a head; export the folder again"),
        ({"data": "photos", "images": 600}, "floor is missing"),
        ({"data": "photos", "images": 600, "floor": 2.0}, r"floor is 2\.0"),
        ({"data": "photos", "images": 600, "floor": float("nan")}, "NaN"),
        ({"data": "photos", "images": -1, "floor": 0.01}, "images is -1"),
        ({"data": "photos", "images": 600, "floor": 0.01, "resizing": -1}, "resizing is -1"),
        ({"data": "photos", "images": 600, "floor": 0.01, "scale": 1}, "scale"),
    ],
)
def test_a_head_that_mixsiam_json_does_not_describe_is_refused(
    folder: Path, head: dict[str, Any], message: str
) -> None:
    edit_manifest(folder, edit=lambda raw: raw.update(head=head))
    with pytest.raises(ModelError, match=message):
        ImageEncoder.from_pretrained(folder)


@pytest.mark.parametrize("width", [-1, 513, 64.5, "256"])
def test_a_width_that_no_head_has_is_refused(folder: Path, width: Any) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text()) | {"num_classes": width}
    with pytest.raises(ModelError, match="num_classes is"):
        ModelConfig.from_json(config)


def test_the_width_is_part_of_what_mixsiam_json_is_for(folder: Path) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text()) | {"num_classes": 128}
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(ModelError, match=f"is not what {MANIFEST_FILE} is for"):
        ImageEncoder.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.weight": np.zeros((128, 512), np.float32)}, r"fc\.weight is \(128, 512\); it must be \(512, 512\)"),
        ({"fc.weight": np.zeros((512, 2048), np.float32)}, r"fc\.weight is \(512, 2048\); it must be \(512, 512\)"),
        ({"fc.bias": np.full(512, np.nan, np.float32)}, r"fc\.bias has .*NaN"),
        ({"fc.bias": None}, r"fc\.bias is missing"),
    ],
)
def test_a_head_of_another_form_is_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    pytest.importorskip("torchvision", reason="needs the extra torch")
    tensors = load((folder / WEIGHTS_FILE).read_bytes()) | change
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    (folder / WEIGHTS_FILE).write_bytes(save(tensors, metadata={"format": "pt"}))
    edit_manifest(folder, WEIGHTS_FILE)
    with pytest.raises(ModelError, match=message):
        ImageEncoder.from_pretrained(folder, backend="torch")


@pytest.mark.parametrize("name", ["linear.weight", "linear.bias"])
def test_a_copy_for_sentence_transformers_that_is_another_head_is_found(folder: Path, name: str) -> None:
    tensors = load((folder / DENSE_FILE).read_bytes())
    check_dense(ModelFolder.open(folder))
    (folder / DENSE_FILE).write_bytes(save(tensors | {name: tensors[name] + 1}))
    edit_manifest(folder, DENSE_FILE)
    with pytest.raises(ModelError, match=rf"{DENSE_FILE}: {name} is not fc\.{name.removeprefix('linear.')} of"):
        verify_folder(folder)
    del tensors[name]
    (folder / DENSE_FILE).write_bytes(save(tensors))
    edit_manifest(folder, DENSE_FILE)
    with pytest.raises(ModelError, match=f"{name} is not"):
        check_dense(ModelFolder.open(folder))


def test_a_form_for_sentence_transformers_that_is_another_or_not_listed_is_found(folder: Path) -> None:
    form = json.loads((folder / DENSE_CONFIG_FILE).read_text())
    (folder / DENSE_CONFIG_FILE).write_text(json.dumps(form | {"out_features": 128}))
    edit_manifest(folder, DENSE_CONFIG_FILE)
    with pytest.raises(ModelError, match=f"{DENSE_CONFIG_FILE}: out_features is 128; {CONFIG_FILE} asks for 512"):
        verify_folder(folder)
    edit_manifest(folder, edit=lambda raw: raw["files"].pop(DENSE_CONFIG_FILE))
    with pytest.raises(ModelError, match=f"does not list {DENSE_CONFIG_FILE}; export the folder again"):
        check_dense(ModelFolder.open(folder))


def test_format_versions_to_come_are_refused() -> None:
    raw = json.loads((BUILTIN / MANIFEST_FILE).read_text())
    assert raw["format_version"] == 2
    with pytest.raises(ModelError, match="format_version is 3, this mixsiam-hub reads 1 and 2"):
        Manifest.from_json(raw | {"format_version": 3})
    with pytest.raises(ModelError, match="unknown key 'head'"):
        Manifest.from_json(raw | {"format_version": 1})
    with pytest.raises(ModelError, match="head is missing"):
        Manifest.from_json(_without("head", raw))
