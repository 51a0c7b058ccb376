"""How close each graph must come to the vectors and pixels of its export, and what a replay of it measured.

The bars are the code's: no folder states its own. Export judges by them, and so does `mixsiam verify`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Bar(NamedTuple):
    """The cosine that vectors must have to those of the exported network.

    Attributes:
        mean: Over all images, at least.
        min: Of the worst image, at least.
    """

    mean: float
    min: float


BARS = {"fp32": Bar(0.9999, 0.9999), "fp16": Bar(0.995, 0.97), "int8": Bar(0.995, 0.97)}
"""Precision -> its bar."""
MAX_LEVELS = 1
"""Grey levels that preprocess.onnx may differ from Pillow by."""
MAX_RELATIVE_ERROR = 1e-4
"""Of an output of an exported graph, over the mean absolute output; on the machine that exports."""
MIN_FILE_COSINE = 0.99999
"""From image file to vector, the graphs against Pillow and torch; on the machine that exports."""


@dataclass(frozen=True)
class VectorCheck:
    """The vectors of a graph, or of the weights in torch, beside those that the folder was exported with.

    Attributes:
        file: The graph or weights.
        backend: `onnx`, `openvino` or `torch`.
        precision: `fp32`, `fp16` or `int8`.
        mean_cosine: Over the known answers; NaN where a vector is zero or not finite.
        min_cosine: Of the worst of them; NaN likewise.
        worst: Name of that image.
        bar: What both must reach.
        forced: mixsiam.json says that the graph was written although it fails the bar.
    """

    file: str
    backend: str
    precision: str
    mean_cosine: float
    min_cosine: float
    worst: str
    bar: Bar
    forced: bool

    @property
    def holds(self) -> bool:
        """Whether the cosines reach the bar."""
        return self.mean_cosine >= self.bar.mean and self.min_cosine >= self.bar.min

    def __str__(self) -> str:
        forced = "" if self.holds or not self.forced else "; it fails them and was forced at export"
        return (
            f"{self.file} by {self.backend}: cosine {self.mean_cosine:.6f} on average and {self.min_cosine:.6f} at "
            f"worst, on {self.worst}; at least {self.bar.mean} and {self.bar.min} are needed{forced}"
        )


@dataclass(frozen=True)
class PixelCheck:
    """The pixels of preprocess.onnx beside those of our own preprocessing.

    Attributes:
        file: The graph.
        max_levels: Largest difference, in grey levels.
        bar: The most that is allowed.
    """

    file: str
    max_levels: int
    bar: int

    @property
    def holds(self) -> bool:
        """Whether the difference is allowed."""
        return self.max_levels <= self.bar

    def __str__(self) -> str:
        return f"{self.file} by onnx: {self.max_levels} grey levels from Pillow at most; {self.bar} is allowed"
