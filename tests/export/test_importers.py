"""Others' checkpoints: the backbone is theirs to the last bit, every other tensor is a head they are known to write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch", reason="needs the extra export")
pytest.importorskip("onnxscript", reason="needs the extra export")

from foreign_checkpoints import (
    MAKERS,
    assert_same_features,
    empty_resnet18,
    lightly_file,
    resnet18,
    saved,
    shaken,
    torchvision_file,
)
from torch import nn
from torchvision import models

from mixsiam_hub import ImageEncoder
from mixsiam_hub.cli import main
from mixsiam_hub.errors import ArgumentError, ModelError
from mixsiam_hub.export.import_preprocessing import Given
from mixsiam_hub.export.importers import import_encoder
from mixsiam_hub.export.layouts import LAYOUTS
from mixsiam_hub.images.preprocess import preprocess
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model.config import ModelConfig, Preprocessing
from mixsiam_hub.untrusted import read_json

GIVEN = Given(None, 32, 0.875, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


@pytest.mark.parametrize("source", LAYOUTS)
def test_the_backbone_is_theirs_and_exactly_the_heads_are_dropped(source: str, tmp_path: Path) -> None:
    theirs = MAKERS[source](tmp_path)
    encoder = import_encoder(theirs.path, source, GIVEN)
    assert_same_features(encoder.backbone, theirs.features)
    assert encoder.provenance["dropped"] == sorted(theirs.heads)
    assert (encoder.method, encoder.provenance["file"]) == (f"imported from {source}", theirs.path.name)
    expected = Preprocessing(32, 0.875, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    assert encoder.config == ModelConfig("resnet18", expected)
    assert not encoder.backbone.training


def test_lightly_backbones_may_keep_torchvisions_names(tmp_path: Path) -> None:
    theirs = lightly_file(tmp_path, numbered=False)
    assert_same_features(import_encoder(theirs.path, "lightly", GIVEN).backbone, theirs.features)


@pytest.mark.parametrize("architecture", ["resnet34", "resnet50"])
def test_the_architecture_is_told_from_the_tensors(architecture: str, tmp_path: Path) -> None:
    net = shaken(getattr(models, architecture)(weights=None))
    encoder = import_encoder(saved(net.state_dict(), tmp_path), "torchvision", GIVEN)
    net.fc = nn.Identity()
    assert encoder.config.architecture == architecture
    assert_same_features(encoder.backbone, net)


def test_files_from_before_batchnorm_counted_its_steps_are_whole(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in empty_resnet18().items() if not name.endswith("num_batches_tracked")}
    assert import_encoder(saved(state, tmp_path), "torchvision", GIVEN).provenance["dropped"] == []


@pytest.mark.parametrize(
    ("source", "extra", "named"),
    [
        ("torchvision", {"fc2.weight": (2,)}, "fc2.weight"),
        ("torchvision", {"layer3.6.conv1.weight": (2,)}, "layer3.6.conv1.weight"),
        ("torchvision", {"fc.running_mean": (2,)}, "fc.running_mean"),
        ("torchvision", {"fc.bias": (2,)}, "fc.bias"),
        ("torchvision", {"0.weight": (64, 3, 7, 7)}, "0.weight"),
        ("simsiam", {}, "bn1.bias, bn1.num_batches_tracked, bn1.running_mean and "),
        ("solo-learn", {}, "bn1.bias"),
    ],
    ids=[
        "unknown head",
        "a longer network",
        "odd layer",
        "half a layer",
        "twice",
        "wrong source",
        "another wrong source",
    ],
)
def test_what_is_neither_backbone_nor_known_head_is_refused(
    source: str, extra: dict[str, tuple[int, ...]], named: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="check --from") as caught:
        import_encoder(saved(empty_resnet18(**extra), tmp_path), source, GIVEN)
    assert f"weights.pth: {named}" in str(caught.value)


def test_a_second_network_is_not_chosen_between(tmp_path: Path) -> None:
    """Momentum methods save two backbones; which of them to ship is not for us to guess."""
    state = empty_resnet18()
    both = {
        f"{prefix}.{name}": tensor for name, tensor in state.items() for prefix in ("backbone", "momentum_backbone")
    }
    with pytest.raises(ModelError, match=r"momentum_backbone\.bn1\.bias"):
        import_encoder(saved(both, tmp_path), "solo-learn", GIVEN)


def test_a_missing_tensor_is_named_as_the_checkpoint_would_name_it(tmp_path: Path) -> None:
    state = {f"backbone.{name}": tensor for name, tensor in empty_resnet18().items()}
    del state["backbone.layer2.0.bn1.running_var"]
    with pytest.raises(ModelError, match=r"backbone\.layer2\.0\.bn1\.running_var: missing from the backbone"):
        import_encoder(saved(state, tmp_path), "solo-learn", GIVEN)


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    state = empty_resnet18(**{"layer4.1.conv2.weight": (512, 256, 3, 3)})
    with pytest.raises(
        ModelError, match=r"layer4\.1\.conv2\.weight is \(512, 256, 3, 3\), a resnet18 has \(512, 512, "
    ):
        import_encoder(saved(state, tmp_path), "torchvision", GIVEN)


def test_lightlys_own_resnet_for_small_images_is_refused_by_its_stem(tmp_path: Path) -> None:
    lightly = pytest.importorskip("lightly.models", reason="needs the extra dev")
    net = nn.Module()
    net.backbone = nn.Sequential(*list(lightly.ResNetGenerator("resnet-18").children())[:-1])
    with pytest.raises(ModelError, match="first convolution is 3 x 3"):
        import_encoder(saved(net.state_dict(), tmp_path), "lightly", GIVEN)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    path = saved({"state_dict": empty_resnet18(), "hyper_parameters": Malicious()}, tmp_path)
    with pytest.raises(ModelError, match=r"run any code.* save its tensors alone"):
        import_encoder(path, "torchvision", GIVEN)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [{}, [1, 2], {"state_dict": [1]}, {"epoch": 3}, {0: torch.zeros(1)}])
def test_what_holds_no_state_dict_is_refused(content: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="state dict"):
        import_encoder(saved(content, tmp_path), "torchvision", GIVEN)


def test_checkpoints_that_are_something_else_are_called_so(tmp_path: Path) -> None:
    contents = {
        "is a Git-LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 46830571\n",
        "is a web page": b"\n\n<!DOCTYPE html>\n<html><body>Sign in</body></html>",
        "is a web page, not": b"\xef\xbb\xbf<?xml version='1.0'?><Error/>",
        "is empty": b"",
    }
    for reason, content in contents.items():
        for name in ("weights.pth", "weights.safetensors"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ModelError, match=f"{name} {reason}"):
                import_encoder(tmp_path / name, "torchvision", GIVEN)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_as_that(value: float, tmp_path: Path) -> None:
    state = resnet18().state_dict()
    state["layer2.0.conv1.weight"][0, 0, 0, :2] = value
    message = r"layer2\.0\.conv1\.weight has 2 of 73728 values that are NaN or infinite"
    with pytest.raises(ModelError, match=message):
        import_encoder(saved(state, tmp_path), "torchvision", GIVEN)


def test_what_was_unwrapped_is_told_and_the_heads_go_by_their_names_in_the_file(tmp_path: Path) -> None:
    names = empty_resnet18(**{"fc.weight": (5, 512), "fc.bias": (5,)})
    state = {f"_orig_mod.model.{name}": tensor for name, tensor in names.items()}
    encoder = import_encoder(saved({"model_ema": state, "model": names}, tmp_path), "torchvision", GIVEN)
    assert encoder.provenance["unwrapped"] == ["model_ema, not model", "_orig_mod.", "model."]
    assert encoder.provenance["dropped"] == ["_orig_mod.model.fc.bias", "_orig_mod.model.fc.weight"]


@pytest.mark.parametrize("name", ["absent.pth", "text.pth", "text.safetensors", "."])
def test_what_is_no_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    for text in ("text.pth", "text.safetensors"):
        (tmp_path / text).write_text("not weights")
    for source in ("torchvision", "timm"):
        with pytest.raises(ModelError, match=r"is no checkpoint|cannot be (read|opened)|has neither|is a folder"):
            import_encoder(tmp_path / name, source, GIVEN)


def test_an_unknown_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="allowed are simsiam, lightly, solo-learn, torchvision, timm"):
        import_encoder(saved(empty_resnet18(), tmp_path), "moco", GIVEN)


@pytest.mark.slow
def test_the_command_makes_a_verified_folder_and_shows_what_it_dropped(tmp_path: Path) -> None:
    theirs = torchvision_file(tmp_path)
    folder = tmp_path / "imported"
    options = "--input-size 32 --crop-pct 0.875 --interpolation bicubic --mean 0.5 0.4 0.3 --std 0.2 0.25 0.3"
    arguments = ["import", str(theirs.path), str(folder), "--from", "torchvision", "--license", "BSD-3-Clause"]
    result = CliRunner().invoke(main, [*arguments, *options.split()])
    assert result.exit_code == 0, result.output
    assert "unwrapped: nothing" in result.output
    assert "dropped, as heads of torchvision: fc.bias, fc.weight" in result.output

    images = list(draw_samples(3).values())
    encoder = ImageEncoder.from_pretrained(folder)
    pre = ModelConfig.from_json(read_json(folder / "config.json")).preprocessing
    pixels = torch.from_numpy(np.stack([preprocess(image, pre) for image in images]))
    with torch.no_grad():
        expected = theirs.features(pixels).numpy()
    got = encoder.embed(images, normalize=False)
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).mean()

    training = read_json(folder / "mixsiam.json")["training"]
    assert (training["imported_from"], training["preprocessing"]) == ("torchvision", "options of the import")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "An image encoder imported from torchvision: resnet18" in card
    assert f"the file `resnet18.pth`\n(sha256 `{training['sha256']}`)" in card
    assert "that were dropped: 2;" in card
    assert "kept as they came" in card
    assert "without labels" not in card
    assert "self-supervised" not in card
