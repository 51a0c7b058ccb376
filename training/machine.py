"""What this machine computes training with: its device, and the precision that is fastest there."""

from __future__ import annotations

import functools
import os
import time

import torch

from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.training.convolution import use_matmul

_TIMED_SHAPE = (16, 3, 64, 64)
_ROUNDS = 3


def pick_device() -> torch.device:
    """The best device here: cuda (of several, this process's own), mps or cpu. Only cpu has been run."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_precision(asked: str, device: torch.device) -> str:
    """Resolves `auto`: bf16 on a GPU that computes it and on a CPU that trains faster in it, else fp32.

    With AMX a CPU does; of those that have AVX-512's bf16 instructions alone some do, so that it is timed.
    """
    if asked != "auto":
        return asked
    if has_fast_bf16(device):
        return "bf16"
    return "bf16" if device.type == "cpu" and has_bf16() and bf16_trains_faster() else "fp32"


def has_fast_bf16(device: torch.device) -> bool:
    """Whether a GPU computes bf16, or a CPU has AMX, Intel's matrix unit, and the system lets it be used."""
    if device.type == "cuda":
        computes: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return computes
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


def has_bf16() -> bool:
    """Whether this CPU computes bf16 in hardware, by AMX or by AVX-512."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


@functools.cache
def bf16_trains_faster() -> bool:
    """Times a ResNet-18's forward and backward pass on this CPU in fp32 and in bf16, in turns: a second or two."""
    cpu = torch.device("cpu")
    seconds: dict[str, list[float]] = {"fp32": [], "bf16": []}
    with torch.random.fork_rng(devices=[]):
        networks = {
            precision: Backbone("resnet18", output_stride=16).to(memory_format=memory_format(precision, cpu))
            for precision in seconds
        }
        x = torch.rand(_TIMED_SHAPE)
    use_matmul(networks["bf16"])
    for _ in range(_ROUNDS):
        for precision, network in networks.items():
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                features = network(x.contiguous(memory_format=memory_format(precision, cpu)))  # (16, 512)
            torch.autograd.backward(features.float().mean())
            seconds[precision].append(time.perf_counter() - began)
    return min(seconds["bf16"]) < min(seconds["fp32"])


def memory_format(precision: str, device: torch.device) -> torch.memory_format:
    """Returns the layout of maps and 4D weights that trains fastest: on a CPU in fp32 NCHW, else channels_last.

    `benchmarks/training.py` shows it.
    """
    return torch.contiguous_format if (precision, device.type) == ("fp32", "cpu") else torch.channels_last
