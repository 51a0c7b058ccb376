"""MixSiam, whole: backbone, projector, predictor, and the objective as one forward. SimSiam is the same with w = 0."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.training.losses import coding_rate, discriminative_target, negative_cosine
from mixsiam_hub.training.mixing import mix, pick
from mixsiam_hub.training.processes import rows_of_all

_BatchNorm = nn.modules.batchnorm._BatchNorm


class Inputs(NamedTuple):
    """What one step shows of N images, on one device.

    Attributes:
        views: K random views of each image, (N, 3, H, W) each, normalised.
        local_views: V smaller ones, (N, 3, h, w) each; they predict targets and are none.
        lams: Weight of the first view in each of M mixtures, (N, 1, 1, 1) or (N, 1, H, W) each.
        pairs: Numbers of the two views that are mixed, (N, 2) int64 each.
    """

    views: Sequence[torch.Tensor]
    local_views: Sequence[torch.Tensor]
    lams: Sequence[torch.Tensor]
    pairs: Sequence[torch.Tensor]


class Objective(NamedTuple):
    """One step's loss and what the monitor reads of it.

    Attributes:
        loss: L = L_sim + w L_mix, less the weighted coding rate where there is that term; scalar float32 with gradient.
        loss_sim: L_sim, detached.
        loss_mix: L_mix, detached; 0 where w = 0.
        z1: Projections of the first view, (N, D) float32, detached.
        target: What the mixtures' predictions are drawn to, (N, D) float32, detached; None where w = 0.
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

    Beyond the paper: more than two views, each drawn to the mean of the others, are FastSiam's (Pototzky et al. 2022);
    smaller local views SwAV's multi-crop (arXiv 2006.09882), a predictor of their own for these and for mixtures after
    arXiv 2602.05845; targets from a moving average BYOL's (arXiv 2006.07733); the coding rate as a term EMP-SSL's
    (arXiv 2304.03977). More than one mixture is ours.
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
        predictors: str = "shared",
        momentum_target: float = 0.0,
        coding_rate: float = 0.0,
    ) -> None:
        """Builds the heads around a backbone.

        Args:
            backbone: Gives (N, backbone.dim) features.
            projector_layers: 3 in SimSiam for ImageNet, 2 for CIFAR-10.
            projector_dim: Hidden and output width of the projector.
            predictor_dim: Hidden width of the predictor, a bottleneck.
            w: Weight of the mixture term; 0 is SimSiam, and no pass of a mixture is paid.
            target: One of losses.TARGETS.
            predictors: `shared`, or `own`: mixtures and local views have a predictor of their own.
            momentum_target: Share of the past that the moving average keeps at each step; 0 has none, and targets come
                from the encoder itself.
            coding_rate: Weight of the projections' coding rate, which is subtracted from the loss; 0 has no such term.
        """
        super().__init__()
        self.backbone = backbone
        self.projector = make_projector(backbone.dim, projector_dim, projector_layers)
        self.predictor = make_predictor(projector_dim, predictor_dim)
        self.own_predictor = make_predictor(projector_dim, predictor_dim) if predictors == "own" else None
        self.momentum_target = momentum_target
        self.average = None
        if momentum_target:
            self.average = copy.deepcopy(nn.Sequential(self.backbone, self.projector)).requires_grad_(False)
        self.w = w
        self.target = target
        self.coding_rate = coding_rate

    def forward(self, inputs: Inputs) -> Objective:
        """Computes the objective; all passes happen here, once, so that it can be wrapped for several processes."""
        views = inputs.views
        zs = [self._f(x) for x in views]  # (N, 3, H, W) -> (N, D), each its own batch in every BatchNorm
        ps = [self.predictor(z) for z in zs]  # (N, D)
        targets = self._targets(views, zs)
        terms = [negative_cosine(p, _mean([z for j, z in enumerate(targets) if j != k])) for k, p in enumerate(ps)]
        aside = self.predictor if self.own_predictor is None else self.own_predictor
        with _statistics_left_alone(self):
            for x in inputs.local_views:
                terms.append(negative_cosine(aside(self._f(x)), _mean(targets)))
            loss = loss_sim = sum(terms[1:], start=terms[0]) / len(terms)
            loss_mix, target = torch.zeros_like(loss_sim), None
            if self.w:
                target = discriminative_target(targets, self.target)
                mixtures = [
                    mix(pick(views, pair[:, 0]), pick(views, pair[:, 1]), lam)
                    for lam, pair in zip(inputs.lams, inputs.pairs, strict=True)
                ]
                drawn = [negative_cosine(aside(self._f(x_m)), target) for x_m in mixtures]
                loss_mix = sum(drawn[1:], start=drawn[0]) / len(drawn)
                loss = loss_sim + self.w * loss_mix
        if self.coding_rate:
            rates = [coding_rate(z) for z in rows_of_all(torch.cat(zs, dim=1).float()).chunk(len(zs), dim=1)]
            loss = loss - self.coding_rate * sum(rates[1:], start=rates[0]) / len(rates)
        return Objective(loss, loss_sim.detach(), loss_mix.detach(), zs[0].detach().float(), target)

    def restart_average(self) -> None:
        """Makes the average that gives the targets the encoder itself; call it where weights were put into that."""
        if self.average is not None:
            self.average.load_state_dict(nn.Sequential(self.backbone, self.projector).state_dict())

    @torch.no_grad()
    def update_average(self) -> None:
        """Moves the average that gives the targets towards the encoder; call it after each step of the optimiser."""
        if self.average is None:
            return
        encoder = nn.Sequential(self.backbone, self.projector)
        torch._foreach_lerp_(list(self.average.parameters()), list(encoder.parameters()), 1 - self.momentum_target)

    @torch.no_grad()
    def _targets(self, views: Sequence[torch.Tensor], zs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if self.average is None:
            return [z.detach() for z in zs]
        return [self.average(x) for x in views]

    def _f(self, x: torch.Tensor) -> torch.Tensor:
        z: torch.Tensor = self.projector(self.backbone(x))  # (N, 3, H, W) -> (N, C) -> (N, D)
        return z


def _mean(zs: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([z.float() for z in zs]).mean(dim=0)


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
