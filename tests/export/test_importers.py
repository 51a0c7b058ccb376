"""Others' checkpoints: the backbone is theirs to the last bit, every other tensor is a head they are known to write.

torchvision's, timm's and lightly's files are made with those packages. SimSiam's authors and solo-learn publish no
package that could be installed here: their networks are built below, layer by layer under the names of their code.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch", reason="needs the extra export")
pytest.importorskip("onnxscript", reason="needs the extra export")

import safetensors.torch
from torch import nn
from torchvision import models

from mixsiam_hub import ImageEncoder
from mixsiam_hub.cli import main
from mixsiam_hub.errors import ArgumentError, ModelError
from mixsiam_hub.export.import_preprocessing import Given, choose_config
from mixsiam_hub.export.importers import import_encoder
from mixsiam_hub.export.layouts import LAYOUTS
from mixsiam_hub.images.preprocess import preprocess
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model.config import ModelConfig, Preprocessing
from mixsiam_hub.untrusted import read_json

GIVEN = Given(None, 32, 0.875, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

Network = Callable[[Any], Any]


class Theirs(NamedTuple):
    """A checkpoint as its source saves it, the network behind it, and the tensors that are no backbone."""

    path: Path
    features: Network
    heads: set[str]


def shaken(net: Any) -> Any:
    """Gives every BatchNorm weights and statistics of its own: fresh ones could be swapped without a trace."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
    return net.eval()


def resnet18() -> Any:
    net = models.resnet18(weights=None)
    net.fc = nn.Identity()
    return net


def mlp(dims: list[int]) -> list[nn.Module]:
    """Returns the layers before the last of SimSiam's heads: linear without bias, BatchNorm, ReLU, in turn."""
    layers: list[nn.Module] = []
    for before, after in pairwise(dims):
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
    return layers


def torchvision_file(folder: Path) -> Theirs:
    net = shaken(models.resnet18(weights=None, num_classes=5))
    path = folder / "resnet18.pth"
    torch.save(net.state_dict(), path)
    net.fc = nn.Identity()
    return Theirs(path, net, {"fc.weight", "fc.bias"})


def timm_file(folder: Path) -> Theirs:
    timm = pytest.importorskip("timm", reason="needs the extra dev")
    net = shaken(timm.create_model("resnet18", num_classes=5))
    path = folder / "resnet18.safetensors"
    safetensors.torch.save_file(net.state_dict(), path)
    return Theirs(path, lambda x: net.forward_head(net.forward_features(x), pre_logits=True), {"fc.weight", "fc.bias"})


def lightly_file(folder: Path, *, numbered: bool = True) -> Theirs:
    heads = pytest.importorskip("lightly.models.modules.heads", reason="needs the extra dev")
    net = nn.Module()
    children = [*list(resnet18().children())[:-1], nn.Flatten()]
    net.backbone = nn.Sequential(*children) if numbered else resnet18()
    net.projection_head = heads.SimSiamProjectionHead(512, 16, 16)
    net.prediction_head = heads.SimSiamPredictionHead(16, 8, 16)
    shaken(net)
    path = folder / "lightly.ckpt"
    torch.save({"epoch": 1, "state_dict": net.state_dict()}, path)
    return Theirs(path, net.backbone, {name for name in net.state_dict() if "_head" in name})


def simsiam_file(folder: Path) -> Theirs:
    net = nn.Module()
    net.encoder = models.resnet18(weights=None, num_classes=16)
    net.encoder.fc = nn.Sequential(*mlp([512, 512, 512]), net.encoder.fc, nn.BatchNorm1d(16, affine=False))
    net.predictor = nn.Sequential(*mlp([16, 8]), nn.Linear(8, 16))
    wrapped = nn.Module()
    wrapped.module = shaken(net)
    path = folder / "checkpoint_0099.pth.tar"
    momentum = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    state = {"epoch": 100, "arch": "resnet18", "state_dict": wrapped.state_dict(), "optimizer": momentum}
    torch.save(state, path)
    net.encoder.fc = nn.Identity()
    projector = {f"fc.{layer}.{kind}" for layer in (1, 4) for kind in NORM}
    projector |= {f"fc.{layer}.weight" for layer in (0, 3, 6)} | {"fc.6.bias"} | {f"fc.7.{kind}" for kind in NORM[2:]}
    predictor = {"0.weight", "3.weight", "3.bias"} | {f"1.{kind}" for kind in NORM}
    heads = {f"module.encoder.{name}" for name in projector} | {f"module.predictor.{name}" for name in predictor}
    return Theirs(path, net.encoder, heads)


def solo_learn_file(folder: Path) -> Theirs:
    net = nn.Module()
    net.backbone = resnet18()
    net.classifier = nn.Linear(512, 10)
    net.projector = nn.Sequential(*mlp([512, 16, 16]), nn.Linear(16, 16), nn.BatchNorm1d(16, affine=False))
    net.predictor = nn.Sequential(*mlp([16, 8]), nn.Linear(8, 16))
    shaken(net)
    path = folder / "simsiam-ep=999.ckpt"
    lightning = {"pytorch-lightning_version": "2.0.2", "global_step": 9, "loops": {}, "hyper_parameters": {"lr": 0.5}}
    torch.save(lightning | {"state_dict": OrderedDict(net.state_dict())}, path)
    return Theirs(path, net.backbone, {name for name in net.state_dict() if not name.startswith("backbone.")})


MAKERS = {
    "simsiam": simsiam_file,
    "lightly": lightly_file,
    "solo-learn": solo_learn_file,
    "torchvision": torchvision_file,
    "timm": timm_file,
}


def empty_resnet18(**others: tuple[int, ...]) -> dict[str, Any]:
    """Returns a plain state dict of the right shapes that takes next to no room on the disk, and other tensors."""
    shapes = {name: tuple(tensor.shape) for name, tensor in resnet18().state_dict().items()} | others
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def saved(content: Any, folder: Path) -> Path:
    path = folder / "weights.pth"
    torch.save(content, path)
    return path


def assert_same_features(net: Network, theirs: Network) -> None:
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert (net(x) - theirs(x)).abs().max() == 0


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
