"""Checkpoints as others save them: with the networks behind them, to compare what an import makes of them.

torchvision's, timm's and lightly's files are made with those packages. SimSiam's authors and solo-learn publish no
package that could be installed here: their networks are built layer by layer under the names of their code.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
from torch import nn
from torchvision import models

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
