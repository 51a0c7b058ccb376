"""Inputs of the objective as the paper has them."""

from __future__ import annotations

import torch

from mixsiam_hub.training.model import Inputs


def paper_inputs(x1: torch.Tensor, x2: torch.Tensor, lam: torch.Tensor) -> Inputs:
    """Two views, (N, 3, H, W) each, and the mixture of the first with the second, lam (N, 1, 1, 1)."""
    return Inputs([x1, x2], [], [lam], [torch.tensor([0, 1]).expand(len(x1), 2)])
