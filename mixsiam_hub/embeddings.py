"""What an encoder returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.errors import ImageError


@dataclass(frozen=True, eq=False)
class Batch:
    """Vectors of consecutive images of a stream.

    Attributes:
        indices: (n,) int64, which images these are, counted from 0 over the whole stream. Bad ones are left out.
        vectors: (n, D) float32.
        errors: Index of each bad image -> what is wrong with it; empty unless on_error is `skip`.
    """

    indices: NDArray[np.int64]
    vectors: NDArray[np.float32]
    errors: dict[int, ImageError] = field(default_factory=dict)


class Embeddings(np.ndarray[tuple[int, int], np.dtype[np.float32]]):
    """An (N, D) float32 array, and why rows are NaN where they are.

    Attributes:
        errors: Row of each bad image -> what is wrong with it; empty unless on_error is `skip`. Arrays made from this
            one (slices, copies, sums) have other rows, so theirs are empty.
    """

    errors: dict[int, ImageError]

    @classmethod
    def of(cls, vectors: NDArray[np.float32], errors: dict[int, ImageError]) -> Embeddings:
        """Returns a view of vectors, (N, D) float32, with these errors."""
        result = vectors.view(cls)
        result.errors = errors
        return result

    def __array_finalize__(self, source: object) -> None:
        self.errors = {}

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return np.asarray(array)[()] if return_scalar else np.asarray(array)  # Results of arithmetic are plain arrays.

    def __reduce__(self) -> tuple[Any, ...]:
        return Embeddings.of, (np.asarray(self), self.errors)
