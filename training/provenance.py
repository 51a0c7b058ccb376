"""Where and with what a run computes: the part of a model card that nobody remembers later."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixsiam_hub import __version__
from mixsiam_hub.cpus import available_cpus


@dataclass(frozen=True)
class Origin:
    """Whose weights a run started from; it travels with the weights, so it names no folder of this machine.

    Attributes:
        name: `org/name` on the Hub, or a folder's own name.
        revision: The commit on the Hub; None for a folder.
        fingerprint: Of weights and preprocessing.
        core_hours: That it took itself, and what it began with before; None where that is not known.
    """

    name: str
    revision: str | None
    fingerprint: str
    core_hours: float | None = None


def provenance(
    precision: str, device: torch.device, processes: int = 1, origin: Origin | None = None
) -> dict[str, Any]:
    """Returns the machine and the software of a run, for its log and mixsiam.json.

    Args:
        precision: `fp32` or `bf16`.
        device: Where it is trained.
        processes: How many train together.
        origin: What it starts from; None for random weights, and then there is no `init`.

    Returns:
        Plain values by name; `commit`, of the source tree, is None where unknown.
    """
    return ({"init": asdict(origin)} if origin else {}) | {
        "precision": precision,
        "device": str(device),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "hardware": f"{platform.machine()}, {available_cpus()} CPUs",
        "commit": source_commit(),
        "versions": {
            "mixsiam-hub": __version__,
            "torch": torch.__version__,
            "torchvision": version("torchvision"),
            "python": platform.python_version(),
        },
    }


def core_hours(training: Mapping[str, Any]) -> float | None:
    """Returns what a run took on CPUs: wall time x the threads and processes that it began with, in hours.

    Args:
        training: As `provenance` returns it, with `seconds`; of a model folder anything may stand there.

    Returns:
        None on another device, and where it is not known.
    """
    # `processes` was not recorded before there could be several.
    factors = [training.get("seconds"), training.get("threads"), training.get("processes", 1)]
    if training.get("device") != "cpu" or not all(isinstance(factor, int | float) for factor in factors):
        return None
    return float(np.prod(np.array(factors, np.float64))) / 3600


def source_commit(file: Path = Path(__file__)) -> str | None:
    """Returns the git commit of the source tree that holds a file, with `+` where tracked files differ from it.

    None where git does not track the file, as in an installed wheel: there the version says what ran.
    """
    try:
        _git(file, "ls-files", "--error-unmatch", file.name)
        return _git(file, "rev-parse", "HEAD") + ("+" if _git(file, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(file: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=file.parent, check=True, capture_output=True, text=True
    ).stdout.strip()
