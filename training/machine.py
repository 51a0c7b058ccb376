"""What this machine computes training with: its device, and the precision that is fastest there."""

from __future__ import annotations

import os

import torch


def pick_device() -> torch.device:
    """The best device here: cuda (of several, this process's own), mps or cpu. Only cpu has been run."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_precision(asked: str, device: torch.device) -> str:
    """Resolves `auto`: bf16 on a GPU that computes it and on a CPU with AMX, else fp32.

    A CPU with bf16 instructions but without AMX trains slower in bf16 than in fp32; `benchmarks/training.py` shows it.
    """
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and has_amx() else "fp32"


def memory_format(precision: str, device: torch.device) -> torch.memory_format:
    """Returns the layout of maps and 4D weights that trains fastest: on a CPU in fp32 NCHW, else channels_last.

    `benchmarks/training.py` shows it.
    """
    return torch.contiguous_format if (precision, device.type) == ("fp32", "cpu") else torch.channels_last


def has_amx() -> bool:
    """Whether this CPU has AMX, Intel's matrix unit, and the system lets it be used."""
    return torch.cpu._is_amx_tile_supported()
