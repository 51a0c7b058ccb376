"""Randomness as a function: every draw is determined by what it is for, never by what was drawn before.

So the data do not depend on the number of workers or processes, a resume can start in the middle of an epoch, and
switching the mixture off leaves the views as they were.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Purpose(IntEnum):
    """What a stream is drawn for; part of its key, so two purposes never share numbers."""

    ORDER = 0
    VIEW_1 = 1
    VIEW_2 = 2
    MIXTURE = 3
    SPLIT = 4
    SAMPLE = 5
    MORE_VIEWS = 6
    LOCAL_VIEWS = 7
    BUFFER = 8


def stream(seed: int, purpose: Purpose, epoch: int = 0, index: int = 0, number: int = 0) -> np.random.Generator:
    """Returns the generator of one (seed, purpose, epoch, image index, number).

    Philox is counter-based: the key and counter name a stream of 2**64 numbers, and making one costs microseconds.

    Args:
        seed: Of the run, 0 or more.
        purpose: What the numbers decide.
        epoch: From 0.
        index: Of the image in its data set.
        number: Of the view or mixture, where an image has several for the same purpose.
    """
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, number, index, epoch]))


def permutation(n: int, seed: int, purpose: Purpose, epoch: int = 0) -> NDArray[np.int64]:
    """Returns the order of n images as a pure function of (seed, purpose, epoch), (n,)."""
    return stream(seed, purpose, epoch).permutation(n)
