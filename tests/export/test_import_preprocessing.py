"""An imported encoder's preprocessing: known from its weights' name or its folder, or said in full by the user."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra export")
pytest.importorskip("onnxscript", reason="needs the extra export")

from foreign_checkpoints import assert_same_features, empty_resnet18, saved, shaken
from torchvision import models

from mixsiam_hub.errors import ArgumentError, ModelError
from mixsiam_hub.export.import_preprocessing import Given, choose_config
from mixsiam_hub.export.importers import import_encoder
from mixsiam_hub.export.layouts import LAYOUTS
from mixsiam_hub.images.preprocess import preprocess
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model.config import ModelConfig, Preprocessing

GIVEN = Given(None, 32, 0.875, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


@pytest.mark.parametrize("architecture", ["resnet18", "resnet34", "resnet50"])
def test_torchvisions_weights_bring_their_transforms(architecture: str) -> None:
    image = draw_samples(1, seed=2).popitem()[1].resize((301, 275))
    for weights in models.get_model_weights(architecture):
        config, known_by = choose_config(architecture, "torchvision", Given(weights=str(weights)), None)
        assert known_by == str(weights)
        theirs = weights.transforms()(image).numpy()
        np.testing.assert_allclose(preprocess(image, config.preprocessing), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("source", "given", "message"),
    [
        ("simsiam", Given(), r"add --input-size, --crop-pct, --interpolation, --mean, --std$"),
        ("simsiam", replace(GIVEN, mean=None, std=None), r"add --mean, --std$"),
        ("torchvision", Given(), "or, for weights that torchvision publishes, only --weights NAME"),
        ("timm", Given(), r"or give timm's folder, with config\.json, in place of the file"),
        ("torchvision", replace(GIVEN, weights="ResNet18_Weights.IMAGENET1K_V1"), "stands alone"),
        ("timm", Given(weights="ResNet18_Weights.IMAGENET1K_V1"), "from torchvision"),
        ("torchvision", Given(weights="ResNet50_Weights.IMAGENET1K_V1"), r"has ResNet18_Weights\.IMAGENET1K_V1$"),
        ("torchvision", Given(weights="best"), "--weights is 'best'"),
        ("timm", replace(GIVEN, crop_pct=2.0), "crop_pct is 2.0; it must be a number from"),
        ("timm", replace(GIVEN, input_size=0), "input_size is 0; it must be an integer from"),
        ("timm", replace(GIVEN, interpolation="cubic"), "interpolation is 'cubic'; allowed are bilinear"),
        ("timm", replace(GIVEN, std=(0.2, 0.0, 0.2)), "std is 0.0; it must be a number from"),
    ],
)
def test_preprocessing_is_said_once_in_full_and_in_range(
    source: str, given: Given, message: str, tmp_path: Path
) -> None:
    prefix = LAYOUTS[source].prefix
    state = {prefix + name: tensor for name, tensor in empty_resnet18().items()}
    with pytest.raises((ArgumentError, ModelError), match=message):
        import_encoder(saved(state, tmp_path), source, given)


@pytest.mark.parametrize(("safe", "stride"), [(True, 32), (False, 16)])
def test_a_folder_that_timm_saved_says_everything(safe: bool, stride: int, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="needs the extra dev")
    net = shaken(timm.create_model("resnet18", num_classes=5, output_stride=stride))
    timm.models.save_for_hf(net, str(tmp_path / "timm"), safe_serialization=safe)
    encoder = import_encoder(tmp_path / "timm", "timm", Given())
    assert_same_features(encoder.backbone, lambda x: net.forward_head(net.forward_features(x), pre_logits=True))
    said = timm.data.resolve_model_data_config(net)
    pre = encoder.config.preprocessing
    assert (said["input_size"], said["crop_pct"]) == ((3, pre.input_px, pre.input_px), pre.crop_pct)
    assert (said["interpolation"], said["mean"], said["std"]) == (pre.interpolation, pre.mean, pre.std)
    assert encoder.config.output_stride == stride
    with pytest.raises(ArgumentError, match="leave out --input-size, --crop-pct"):
        import_encoder(tmp_path / "timm", "timm", GIVEN)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"architecture": "resnet18d"}, "architecture is 'resnet18d'"),
        ({"architecture": "resnet34"}, "architecture is resnet34, and the tensors are a resnet18"),
        ({"global_pool": "max"}, "model_args has"),
        ({"model_args": {"stem_width": 32, "in_chans": 3}}, "model_args has .'stem_width'"),
        ({"model_args": []}, "model_args is"),
        ({"pretrained_cfg": {}}, "input_size is missing"),
    ],
)
def test_a_timm_folder_of_another_network_is_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = ModelConfig("resnet18", Preprocessing(32)).to_json("MIT")
    (tmp_path / "config.json").write_text(json.dumps(config | changed))
    torch.save(empty_resnet18(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=message):
        import_encoder(tmp_path, "timm", Given())
