"""A folder of format version 1, from before there were heads, gives the vectors that it gave.

tests/version1/encoder is the built-in encoder in that format, without its pictures and weights: these are the built-in
encoder's, which has a head beside them. Where they change, tests/helpers/version_1.py writes it anew.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from mixsiam_hub import BUILTIN, ImageEncoder
from mixsiam_hub.errors import ArgumentError
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model.files import ANSWERS_FILE, MANIFEST_FILE, WEIGHTS_FILE
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.model.known_answers import replay_vectors
from mixsiam_hub.model.manifest import CHECKSUM, Manifest

STORED = Path(__file__).parents[1] / "version1" / "encoder"
PICTURES = list(draw_samples(4).values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = Path(shutil.copytree(STORED, tmp_path_factory.mktemp("version1") / "encoder"))
    tensors = {
        name: tensor for name, tensor in load((BUILTIN / WEIGHTS_FILE).read_bytes()).items() if name[:3] != "fc."
    }
    (copy / WEIGHTS_FILE).write_bytes(save(tensors, metadata={"format": "pt"}))
    return copy


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_its_vectors_are_the_pooled_features_to_the_last_bit(folder: Path, backend: str) -> None:
    if backend == "torch":
        pytest.importorskip("torchvision", reason="needs the extra torch")
    old = ImageEncoder.from_pretrained(folder, backend=backend)
    now = ImageEncoder.from_pretrained(backend=backend)
    assert (old.dim, old.variant) == (512, "fp32-exact")
    assert old.fingerprint == json.loads((STORED / MANIFEST_FILE).read_text())["fingerprint"] != now.fingerprint
    expected = now.embed(PICTURES, pooled=True)
    np.testing.assert_array_equal(old.embed(PICTURES), expected)
    np.testing.assert_array_equal(old.embed(PICTURES, pooled=True), expected)
    np.testing.assert_array_equal(old.features(PICTURES), now.features(PICTURES))


def test_it_gives_its_known_answers(folder: Path) -> None:
    (check,) = replay_vectors(ModelFolder.open(folder), ["onnx"])
    assert check.holds
    entry = json.loads((folder / ANSWERS_FILE).read_text())["files"][0]
    vector = np.array(entry["vector"])
    (got,) = ImageEncoder.from_pretrained(folder).embed([folder / "known_answers" / entry["file"]])
    np.testing.assert_allclose(got, vector / np.linalg.norm(vector), atol=1e-5)


def test_it_has_no_head_to_cut(folder: Path) -> None:
    with pytest.raises(ArgumentError, match=r"dim is 64 and .* has no head.*--whiten DATA"):
        ImageEncoder.from_pretrained(folder, dim=64)


def test_its_manifest_is_written_as_it_was() -> None:
    raw = json.loads((STORED / MANIFEST_FILE).read_text())
    assert raw["format_version"] == 1
    assert Manifest.from_json(raw).to_json() == raw
    assert CHECKSUM in raw
