"""How close to the exported network's vectors and pixels each graph must come; a folder's own word is not asked.

Export judges by these before it writes a graph, and `mixsiam verify` whenever it replays one.
"""

from __future__ import annotations

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
