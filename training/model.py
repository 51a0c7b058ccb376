"""MixSiam, whole: backbone, projector, predictor, and the objective as one forward. SimSiam is the same with w = 0."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.training.losses import discriminative_target, negative_cosine
from mixsiam_hub.training.mixing import mix

_BatchNorm = nn.modules.batchnorm._BatchNorm


class Objective(NamedTuple):
    """One step's loss and what the monitor reads of it.

    Attributes:
        loss: L = L_sim + w L_mix, scalar float32 with gradient.
        loss_sim: L_sim, detached.
        loss_mix: L_mix, detached; 0 where w = 0.
        z1: Projections of x1, (N, D) float32, detached.
        target: What the mixture's predictions are drawn to, (N, D) float32, detached; None where w = 0.
    """

    loss: torch.Tensor
    loss_sim: torch.Tensor
    loss_mix: torch.Tensor
    z1: torch.Tensor
    target: torch.Tensor | None


class MixSiam(nn.Module):
    """The method of arXiv 2111.02679 over the SimSiam baseline, arXiv 2011.10566.

    The siamese term, the element-wise maximum as target and the mixture of two views of one instance are the paper's;
    that the terms are summed with w = 1, and that the mixture is its own batch in every BatchNorm, are our choices.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        projector_layers: int = 3,
        projector_dim: int = 2048,
        predictor_dim: int = 512,
        w: float = 1.0,
        target: str = "max",
    ) -> None:
        """Builds the heads around a backbone.

        Args:
            backbone: Gives (N, backbone.dim) features.
            projector_layers: 3 in SimSiam for ImageNet, 2 for CIFAR-10.
            projector_dim: Hidden and output width of the projector.
            predictor_dim: Hidden width of the predictor, a bottleneck.
            w: Weight of the mixture term; 0 is SimSiam, and no third pass is paid.
            target: One of losses.TARGETS.
        """
        super().__init__()
        self.backbone = backbone
        self.projector = make_projector(backbone.dim, projector_dim, projector_layers)
        self.predictor = make_predictor(projector_dim, predictor_dim)
        self.w = w
        self.target = target

    def forward(self, x1: torch.Tensor, x2: torch.Tensor, lam: torch.Tensor) -> Objective:
        """Computes the objective; all three passes happen here, once, so that it can be wrapped for several processes.

        Args:
            x1: First views, (N, 3, H, W), normalised.
            x2: Second views of the same images.
            lam: Weight of x1 in the mixture, (N, 1, 1, 1) or (N, 1, H, W); unused where w = 0.
        """
        z1, z2 = self._f(x1), self._f(x2)  # (N, 3, H, W) -> (N, D)
        p1, p2 = self.predictor(z1), self.predictor(z2)  # (N, D)
        loss = loss_sim = (negative_cosine(p1, z2.detach()) + negative_cosine(p2, z1.detach())) / 2
        loss_mix, target = torch.zeros_like(loss_sim), None
        if self.w:
            with _statistics_left_alone(self):
                p_m = self.predictor(self._f(mix(x1, x2, lam)))  # (N, 3, H, W) -> (N, D)
            target = discriminative_target(z1.detach(), z2.detach(), self.target)
            loss_mix = negative_cosine(p_m, target)
            loss = loss_sim + self.w * loss_mix
        return Objective(loss, loss_sim.detach(), loss_mix.detach(), z1.detach().float(), target)

    def _f(self, x: torch.Tensor) -> torch.Tensor:
        z: torch.Tensor = self.projector(self.backbone(x))  # (N, 3, H, W) -> (N, C) -> (N, D)
        return z


def make_projector(in_dim: int, dim: int, layers: int) -> nn.Sequential:
    """The projection MLP (SimSiam, section 3): BatchNorm after each layer, ReLU on the hidden ones.

    The last BatchNorm has no affine, as in its authors' code.
    """
    hidden: list[nn.Module] = []
    for _ in range(layers - 1):
        hidden += [nn.Linear(in_dim, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU(inplace=True)]
        in_dim = dim
    return nn.Sequential(*hidden, nn.Linear(in_dim, dim, bias=False), nn.BatchNorm1d(dim, affine=False))


def make_predictor(dim: int, hidden_dim: int) -> nn.Sequential:
    """The prediction MLP (SimSiam, section 3): a bottleneck, BatchNorm and ReLU on its hidden layer alone."""
    return nn.Sequential(
        nn.Linear(dim, hidden_dim, bias=False),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, dim),
    )


@contextmanager
def _statistics_left_alone(module: nn.Module) -> Iterator[None]:
    """Normalises by the batch without recording it: the shipped statistics are of views, never of mixtures."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
