"""A ResNet as timm saves it, with nothing of ours beside it: saved and judged by the real timm."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the extra train")
timm = pytest.importorskip("timm", reason="needs the extra dev")

from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_model_data_config
from timm.models import save_for_hf

import mixsiam_hub.backends
from mixsiam_hub import ImageEncoder
from mixsiam_hub.errors import BackendError, DataError, ModelError
from mixsiam_hub.model.config import ModelConfig
from mixsiam_hub.model.facts import facts_of
from mixsiam_hub.model.files import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.model.known_answers import verify_folder
from mixsiam_hub.training.checkpoint import TrainedEncoder
from mixsiam_hub.vectors.embed import embed_files
from mixsiam_hub.vectors.search import search

PREPROCESSING = {"input_size": (3, 64, 64), "interpolation": "bicubic", "crop_pct": 0.95}


def _save(encoder: TrainedEncoder, folder: Path, *, classes: int = 7, pickled: bool = False, **changed: Any) -> Path:
    """Saves the trained encoder by timm, with a classifier unless `classes` is 0."""
    net = timm.create_model("resnet18", output_stride=encoder.config.output_stride, num_classes=classes)
    net.load_state_dict(net.state_dict() | encoder.backbone.state_dict())
    save_for_hf(net, str(folder), safe_serialization=not pickled, data_config=PREPROCESSING | changed)
    return folder


@pytest.fixture
def plain(trained_encoder: TrainedEncoder, tmp_path: Path) -> Path:
    return _save(trained_encoder, tmp_path / "plain")


def _timm_vectors(folder: Path, pictures: list[Path]) -> NDArray[np.float32]:
    """What timm itself makes of them, scaled to length 1."""
    net = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    transform = create_transform(**resolve_model_data_config(net), is_training=False)
    with torch.inference_mode():
        vectors = net(torch.stack([transform(Image.open(path).convert("RGB")) for path in pictures]))
    return np.asarray(vectors / vectors.norm(dim=1, keepdim=True))


def _edit(folder: Path, **changed: Any) -> None:
    """Changes config.json; None takes a key out."""
    raw = json.loads((folder / CONFIG_FILE).read_text()) | changed
    (folder / CONFIG_FILE).write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))


# Vectors


@pytest.mark.parametrize("changed", [{}, {"interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.25,) * 3}])
def test_vectors_are_timms(
    trained_encoder: TrainedEncoder, pictures: list[Path], tmp_path: Path, changed: dict[str, Any]
) -> None:
    folder = _save(trained_encoder, tmp_path / "plain", **changed)
    expected = _timm_vectors(folder, pictures)
    encoder = ImageEncoder.from_pretrained(folder)
    vectors = encoder.embed(pictures)
    assert (vectors * expected).sum(1).min() > 0.9999
    assert (encoder.backend, encoder.input_size, encoder.variant) == ("torch", (64, 64), "fp32-exact")
    other = _save(trained_encoder, tmp_path / "other", **changed, crop_pct=1.0)
    assert (ImageEncoder.from_pretrained(other).embed(pictures) * expected).sum(1).min() < 0.9999


def test_classifier_is_no_part_of_the_encoder(trained_encoder: TrainedEncoder, tmp_path: Path) -> None:
    with_head, without = (_save(trained_encoder, tmp_path / str(n), classes=n) for n in (7, 0))
    assert set(load_file(with_head / WEIGHTS_FILE)) - set(load_file(without / WEIGHTS_FILE)) == {
        "fc.weight",
        "fc.bias",
    }
    one, two = (ImageEncoder.from_pretrained(folder) for folder in (with_head, without))
    assert one.fingerprint == two.fingerprint
    assert set(one.to_torch().state_dict()) == set(trained_encoder.backbone.state_dict())


def test_nothing_can_choose_its_precision(plain: Path) -> None:
    with pytest.raises(BackendError, match="saved by timm, so that no candidate can be checked; give a precision"):
        ImageEncoder.from_pretrained(plain, precision="auto")


def test_fingerprint_is_of_the_preprocessing_too(trained_encoder: TrainedEncoder, plain: Path, tmp_path: Path) -> None:
    other = _save(trained_encoder, tmp_path / "other", interpolation="bilinear")
    assert ModelFolder.open(plain).manifest.fingerprint == ModelFolder.open(plain).manifest.fingerprint
    assert ModelFolder.open(plain).manifest.fingerprint != ModelFolder.open(other).manifest.fingerprint


def test_stored_vectors_are_searched_with_the_same_encoder_only(
    trained_encoder: TrainedEncoder, plain: Path, pictures: list[Path], tmp_path: Path
) -> None:
    encoder = ImageEncoder.from_pretrained(plain)
    stored, bad = embed_files(encoder, pictures[:4], model=str(plain))
    assert not bad
    again = pickle.loads(pickle.dumps(encoder))
    assert search(again, stored, pictures[1:2], k=1)[0].found[0][0] == str(pictures[1])
    other = ImageEncoder.from_pretrained(_save(trained_encoder, tmp_path / "other", crop_pct=0.5))
    with pytest.raises(DataError, match="fingerprint"):
        search(other, stored, pictures[:1], k=1)


# What it says of itself, and what it has not


def test_info_says_what_it_is(plain: Path) -> None:
    facts = facts_of(ModelFolder.open(plain))
    assert (facts["method"], facts["license"]) == ("timm", "apache-2.0")
    assert (facts["preprocessing.interpolation"], facts["preprocessing.crop_pct"]) == ("bicubic", "0.95")
    cfg = json.loads((plain / CONFIG_FILE).read_text())["pretrained_cfg"]
    del cfg["license"]
    _edit(plain, pretrained_cfg=cfg)
    assert facts_of(ModelFolder.open(plain))["license"] == "not stated"


def test_there_is_nothing_to_verify_it_by(plain: Path) -> None:
    with pytest.raises(ModelError, match=r"no known answers.*mixsiam import"):
        verify_folder(plain)


def test_only_torch_runs_it(plain: Path) -> None:
    with pytest.raises(BackendError, match=r"no graph.*backend='torch'.*mixsiam import"):
        ImageEncoder.from_pretrained(plain, backend="onnx")
    with pytest.raises(BackendError, match="torch backend allows fp32, bf16, fp16"):
        ImageEncoder.from_pretrained(plain, precision="int8")


def test_missing_torch_names_the_extra(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mixsiam_hub.backends.torch", None)
    monkeypatch.delattr(mixsiam_hub.backends, "torch", raising=False)
    with pytest.raises(BackendError, match=r"mixsiam-hub\[torch\]"):
        ImageEncoder.from_pretrained(plain)


# What is refused


class _Trap:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_pickled_weights_alone_are_refused_with_the_fix(trained_encoder: TrainedEncoder, tmp_path: Path) -> None:
    folder = _save(trained_encoder, tmp_path / "plain", pickled=True)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Trap(tmp_path / "unpickled")))
    with pytest.raises(ModelError, match=r"no model\.safetensors.*safe_serialization=True.*mixsiam import"):
        ImageEncoder.from_pretrained(folder)
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize(
    ("gone", "added"),
    [("fc.bias", None), ("bn1.bias", None), (None, "fc.scale"), (None, "head.weight")],
)
def test_every_tensor_but_the_classifiers_is_accounted_for(plain: Path, gone: str | None, added: str | None) -> None:
    tensors = load_file(plain / WEIGHTS_FILE)
    tensors.pop(gone, None)
    if added:
        tensors[added] = torch.zeros(3)
    save_file(tensors, plain / WEIGHTS_FILE)
    # Half a classifier is not dropped: the other half is then what should not be there.
    name = {"fc.bias": "fc.weight"}.get(str(gone), gone) or added
    with pytest.raises(ModelError, match=f"tensor {name} is"):
        ImageEncoder.from_pretrained(plain)


def test_weights_that_cannot_be_read_are_refused(plain: Path) -> None:
    save_file({"conv1.weight": torch.zeros(3, dtype=torch.float8_e4m3fn)}, plain / WEIGHTS_FILE)
    with pytest.raises(ModelError, match=f"{WEIGHTS_FILE} cannot be read as safetensors"):
        ImageEncoder.from_pretrained(plain)
    (plain / WEIGHTS_FILE).write_bytes(pickle.dumps({}))
    with pytest.raises(ModelError, match=f"{WEIGHTS_FILE} cannot be read as safetensors"):
        ImageEncoder.from_pretrained(plain)


def test_weights_changed_after_they_were_opened_are_refused(plain: Path) -> None:
    folder = ModelFolder.open(plain)
    save_file(load_file(plain / WEIGHTS_FILE) | {"fc.bias": torch.ones(7)}, plain / WEIGHTS_FILE)
    with pytest.raises(ModelError, match="was changed"):
        folder.file(WEIGHTS_FILE)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"architecture": "resnet26"}, "architecture is 'resnet26'; allowed are resnet18"),
        ({"pretrained_cfg": None}, "pretrained_cfg is missing"),
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"model_args": {"in_chans": 1}}, "in_chans"),
        ({"model_args": None, "global_pool": "max"}, "global_pool"),
        ({"model_args": 3}, "model_args is 3"),
    ],
)
def test_what_is_no_such_resnet_says_what_is_missing(plain: Path, changed: dict[str, Any], message: str) -> None:
    _edit(plain, **changed)
    with pytest.raises(ModelError, match=f"{MANIFEST_FILE} is missing, .*{message}.*mixsiam export"):
        ModelFolder.open(plain)


def test_mixsiam_json_is_as_strict_as_ever(plain: Path, model_folder: Path) -> None:
    (plain / MANIFEST_FILE).write_text("{}")
    with pytest.raises(ModelError, match="format_version is missing"):
        ModelFolder.open(plain)
    (plain / CONFIG_FILE).write_bytes((model_folder / CONFIG_FILE).read_bytes())
    (plain / MANIFEST_FILE).unlink()
    with pytest.raises(ModelError, match=f"{MANIFEST_FILE} is missing"):
        ModelFolder.open(plain)


def test_config_is_read_as_timm_reads_it(plain: Path) -> None:
    raw = json.loads((plain / CONFIG_FILE).read_text())
    config = ModelConfig.from_timm(raw)
    assert config == ModelConfig.from_json(raw | {"model_args": {"output_stride": 16}, "num_classes": 0})
    assert config.preprocessing.resize_px == 67
    _edit(plain, model_args=None, global_pool=None)
    assert ModelConfig.from_timm(json.loads((plain / CONFIG_FILE).read_text())).output_stride == 32
