"""A linear probe: multinomial logistic regression on frozen features, on all cores or the GPU."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from mixsiam_hub.training.machine import pick_device

C = 1.0
"""Weight of the images' losses beside half the squared weights, as scikit-learn's LogisticRegression has it."""
ITERATIONS = 1000
TOLERANCE = 1e-4
"""Of the mean loss's gradient, the largest of its numbers: there accuracies no longer move by tenths of a point."""
_MEMORY = 10
"""Pairs of steps and gradients from which L-BFGS guesses the curvature."""


def probe_accuracy(
    train: NDArray[np.float32],
    train_labels: NDArray[np.int64],
    test: NDArray[np.float32],
    test_labels: NDArray[np.int64],
) -> float:
    """Fits the probe to standardised training features by L-BFGS and classifies the test features.

    Args:
        train: (M, D).
        train_labels: (M,) classes, from 0.
        test: (N, D).
        test_labels: (N,) classes.

    Returns:
        Accuracy in [0, 1].
    """
    device = pick_device()
    mean, std = train.mean(axis=0), train.std(axis=0)
    std[std == 0] = 1
    x, queries = (torch.from_numpy((part - mean) / std).to(device) for part in (train, test))
    labels = torch.from_numpy(train_labels).to(device)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    weight = torch.zeros(classes, x.shape[1], device=device, requires_grad=True)
    bias = torch.zeros(classes, device=device, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias],
        max_iter=ITERATIONS,
        max_eval=2 * ITERATIONS,
        tolerance_grad=TOLERANCE,
        tolerance_change=0,
        history_size=_MEMORY,
        line_search_fn="strong_wolfe",
    )

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        penalty = weight.square().sum() / (2 * C * len(x))
        value = functional.cross_entropy(functional.linear(x, weight, bias), labels) + penalty  # (M, classes) -> scalar
        torch.autograd.backward(value)
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        predicted = functional.linear(queries, weight, bias).argmax(dim=1).cpu().numpy()  # (N, classes) -> (N,)
    return float((predicted == test_labels).mean())
