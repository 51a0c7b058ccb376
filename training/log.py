"""log.jsonl and TensorBoard: what a run says of each epoch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixsiam_hub.atomic import write_text
from mixsiam_hub.errors import OutputError

LOG_FILE = "log.jsonl"
TENSORBOARD = "tensorboard"


def write_log(run: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Writes log.jsonl anew, one line an epoch.

    Args:
        run: The run folder.
        lines: Of plain values, as `finite` returns them.

    Raises:
        OutputError: It cannot be written.
    """
    write_text(run / LOG_FILE, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


def finite(value: Any) -> Any:
    """Returns plain values with None for each number that is NaN or infinite: JSON has no word for these."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    return [finite(entry) for entry in value] if isinstance(value, list | tuple) else value


def write_scalars(run: Path, line: Mapping[str, Any]) -> None:
    """Adds one epoch's numbers to TensorBoard's, in place of what an earlier session wrote from that epoch on.

    Args:
        run: The run folder.
        line: Of the log; numbers at its top level and under `health`.

    Raises:
        OutputError: They cannot be written.
    """
    from torch.utils.tensorboard import SummaryWriter

    values = {k: v for k, v in {**line, **line["health"]}.items() if isinstance(v, int | float)}
    folder = run / TENSORBOARD
    try:
        with SummaryWriter(str(folder), purge_step=line["epoch"]) as writer:
            for key, value in values.items():
                writer.add_scalar(key, value, line["epoch"])
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error
