"""The backbone as torch runs it: torchvision's ResNet without classifier, with timm's dilation for small inputs."""

from __future__ import annotations

import torch
from torch import nn
from torchvision import models
from torchvision.models.resnet import Bottleneck, ResNet

from mixsiam_hub.errors import ModelError
from mixsiam_hub.model.config import ARCHITECTURES, ModelConfig
from mixsiam_hub.model.tensors import fingerprint


class Backbone(nn.Module):
    """A ResNet that ends at its pooled features, with the head that maps them to the embedding where there is one.

    Its state dict has the names that torchvision and timm share (conv1.weight, layer1.0.bn1.running_mean, ...).

    Attributes:
        dim: Number of pooled features.
        fc: The head: from pooled features, (N, dim), to the embedding, (N, K); None without one.
    """

    conv1: nn.Module
    bn1: nn.Module
    relu: nn.Module
    maxpool: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module
    fc: nn.Linear | None

    def __init__(self, architecture: str, output_stride: int = 32, head_dim: int | None = None) -> None:
        """Builds the network with PyTorch's default initialisation, the last BatchNorm of every residual block at zero.

        Args:
            architecture: A key of ARCHITECTURES.
            output_stride: 32, 16 or 8; below 32 the last stages dilate instead of striding.
            head_dim: Width of the head's output; None for no head.

        Raises:
            ModelError: Another architecture or stride.
        """
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise ModelError(f"architecture is {architecture!r}; allowed are {', '.join(ARCHITECTURES)}")
        if output_stride not in (32, 16, 8):
            raise ModelError(f"output_stride is {output_stride}; allowed are 32, 16 and 8")
        net: ResNet = getattr(models, architecture)(weights=None, zero_init_residual=True)
        _dilate(net, output_stride)
        del net.avgpool, net.fc
        self.dim = ARCHITECTURES[architecture]
        for name, child in net.named_children():
            self.add_module(name, child)
        self.fc = nn.Linear(self.dim, head_dim) if head_dim else None

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the last feature map, (N, dim, ceil(H / stride), ceil(W / stride)), of normalised x, (N, 3, H, W)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        features: torch.Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns pooled features, (N, dim), not normalised, of normalised x, (N, 3, H, W)."""
        return pool(self.features(x))

    def outputs(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns what a graph of this network gives for normalised x, (N, 3, H, W), the embedding first.

        That is the head's output, (N, K), pooled features, (N, dim), and the feature map, (N, dim, h, w); without a
        head only the latter two.
        """
        features = self.features(x)
        pooled = pool(features)
        return (pooled, features) if self.fc is None else (self.fc(pooled), pooled, features)


def pool(feature_map: torch.Tensor) -> torch.Tensor:
    """Returns the mean over the cells of a feature map, (N, D) of (N, D, h, w): the vector, not normalised."""
    return feature_map.mean((2, 3))


def backbone_fingerprint(backbone: Backbone, config: ModelConfig) -> str:
    """Returns the fingerprint of a backbone in memory with its preprocessing, a sha256 in hex."""
    return fingerprint({name: tensor.cpu().numpy() for name, tensor in backbone.state_dict().items()}, config)


def _dilate(net: ResNet, output_stride: int) -> None:
    """Trades the strides beyond `output_stride` for dilation, in place, as timm's `make_blocks` places them.

    Of each stage that loses its stride the first 3x3 convolution keeps the dilation of the stage before it.
    torchvision's own switch does this for bottleneck blocks only.
    """
    reached, dilation, previous = 4, 1, 1
    for stage in (net.layer2, net.layer3, net.layer4):
        if reached < output_stride:
            reached *= 2
            continue
        dilation *= 2
        stage[0].downsample[0].stride = (1, 1)
        for block in stage:
            first = block.conv2 if isinstance(block, Bottleneck) else block.conv1
            first.stride = (1, 1)
            first.dilation = first.padding = (previous, previous)
            if not isinstance(block, Bottleneck):
                block.conv2.dilation = block.conv2.padding = (dilation, dilation)
            previous = dilation
