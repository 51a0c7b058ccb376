"""A linear probe: multinomial logistic regression on frozen features, on all cores or the GPU."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from mixsiam_hub.training.machine import pick_device

CHOICES_OF_C = (1.0, 0.1, 0.01, 0.001)
"""Weight of the images' losses beside half the squared weights, as scikit-learn's LogisticRegression has it. Many
features and few images of a class want a small one: else the probe learns its training images by heart."""
HELD_OUT = 0.1
"""Share of the training images that chooses among them."""
ITERATIONS = 1000
TOLERANCE = 5e-4
"""Of the mean loss's gradient as L-BFGS sees it, the largest of its numbers: there accuracies no longer move by tenths
of a point."""
_MEMORY = 10
"""Pairs of steps and gradients from which L-BFGS guesses the curvature."""


def probe_accuracy(
    train: NDArray[np.float32],
    train_labels: NDArray[np.int64],
    test: NDArray[np.float32],
    test_labels: NDArray[np.int64],
) -> float:
    """Fits the probe to standardised training features by L-BFGS and classifies the test features.

    Its regularisation is the best of CHOICES_OF_C on a random tenth of the training images, by a probe of the others.

    Args:
        train: (M, D).
        train_labels: (M,) classes, from 0.
        test: (N, D).
        test_labels: (N,) classes.

    Returns:
        Accuracy in [0, 1].
    """
    order = np.random.default_rng(0).permutation(len(train))
    held_out, rest = np.split(order, [int(HELD_OUT * len(order))])
    part = train[rest], train_labels[rest], train[held_out], train_labels[held_out]
    best = max(CHOICES_OF_C, key=lambda c: hits(*part, c)) if len(held_out) else CHOICES_OF_C[0]
    return hits(train, train_labels, test, test_labels, best) / len(test)


def hits(
    train: NDArray[np.float32],
    train_labels: NDArray[np.int64],
    test: NDArray[np.float32],
    test_labels: NDArray[np.int64],
    c: float,
) -> int:
    """Returns how many test features, as in `probe_accuracy`, a probe with this C classifies rightly."""
    device = pick_device()
    mean, std = train.mean(axis=0), train.std(axis=0)
    std[std == 0] = 1
    x, queries = (_with_ones(torch.from_numpy((part - mean) / std).to(device)) for part in (train, test))
    labels = torch.from_numpy(train_labels).to(device)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    penalty = torch.full(x.shape[1:], 1 / (c * len(x)), device=device)  # (D + 1,)
    penalty[-1] = 0  # That of the bias.
    scale = _inverse_root(x.T @ x / len(x) / classes + penalty.diag())
    scaled = torch.zeros(classes, x.shape[1], device=device, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [scaled],
        max_iter=ITERATIONS,
        max_eval=2 * ITERATIONS,
        tolerance_grad=TOLERANCE,
        tolerance_change=0,
        history_size=_MEMORY,
        line_search_fn="strong_wolfe",
    )

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        weight = scaled @ scale  # (classes, D + 1)
        value = functional.cross_entropy(x @ weight.T, labels) + (penalty * weight.square()).sum() / 2
        torch.autograd.backward(value)
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        predicted = (queries @ scale @ scaled.T).argmax(dim=1).cpu().numpy()  # (N, classes) -> (N,)
    return int((predicted == test_labels).sum())


def _with_ones(features: torch.Tensor) -> torch.Tensor:
    """Returns (N, D + 1): the last weight of a class is its bias."""
    return functional.pad(features, (0, 1), value=1.0)


def _inverse_root(hessian: torch.Tensor) -> torch.Tensor:
    """Returns hessian^-1/2, (D, D): weights are this times what L-BFGS moves, which makes the problem round for it.

    `hessian` holds the loss's second derivatives for the weights of one class, where all weights are 0. Features that
    go together stretch it, and L-BFGS would take more steps; the minimum stays where it is.
    """
    values, vectors = torch.linalg.eigh(hessian.double())
    values.clamp_(min=float(values.max()) * torch.finfo(hessian.dtype).eps)  # Rounding can leave the smallest below 0.
    root: torch.Tensor = (vectors * values.rsqrt()) @ vectors.T
    return root.to(hessian.dtype)
