"""The objective's parts, as functions of projections z and predictions p, both (N, D).

From the paper's abstract (arXiv 2111.02679): the target is the element-wise maximum of the two views' representations,
the mixture is of two views of one instance, and both stand beside the siamese loss. Ours, since neither the abstract
nor any released code fixes it: the maximum is taken of the projector's outputs before any L2 normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from mixsiam_hub.training.processes import rows_of_all

TARGETS = ("max", "mean", "max-centred")
CODING_DISTORTION = 0.2
"""Squared error that the coding rate allows a unit vector."""


def negative_cosine(p: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """D(p, z) = - mean over n of cos(p_n, z_n) (SimSiam, arXiv 2011.10566, equation 1), in float32, in [-1, 1].

    The stop-gradient stands at the call: pass z detached.
    """
    return -functional.cosine_similarity(p.float(), z.float(), dim=1).mean()  # (N, D) -> (N,) -> scalar


def discriminative_target(zs: Sequence[torch.Tensor], kind: str = "max") -> torch.Tensor:
    """Combines the projections of an image's views into the mixture's target, (N, D) float32.

    Args:
        zs: K projections, (N, D) each; the paper has two.
        kind: `max`, the paper's; two ablations: `mean`, and `max-centred`, the maximum minus its mean over the batch
            of all processes. The maximum of zero-mean vectors is not zero-mean: a bias of the predictor alone can win
            part of the loss.
    """
    stacked = torch.stack([z.float() for z in zs])  # (K, N, D)
    if kind == "mean":
        return stacked.mean(dim=0)
    z_max = stacked.amax(dim=0)
    return z_max - rows_of_all(z_max).mean(dim=0, keepdim=True) if kind == "max-centred" else z_max


def coding_rate(z: torch.Tensor) -> torch.Tensor:
    """Rate in nats an image of coding normalised projections: large where they spread evenly over many directions.

    It is 1 / (2 N) logdet(I + D / (N 0.2) Z Z^T) of the (N, D) matrix Z of unit rows (Yu et al. 2020, arXiv 2006.08558,
    as a term of self-supervision in EMP-SSL, arXiv 2304.03977), in float32, with gradient.
    """
    n, dim = z.shape
    unit = functional.normalize(z.float(), dim=1)  # (N, D)
    with torch.autocast(z.device.type, enabled=False):  # Rounded to bf16, the matrix may not be positive definite.
        gram = torch.eye(n, device=z.device) + dim / (n * CODING_DISTORTION) * unit @ unit.T  # (N, N)
    halved: torch.Tensor = torch.linalg.cholesky(gram).diagonal().log().sum()  # logdet / 2
    return halved / n
