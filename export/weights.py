"""The backbone's tensors as model.safetensors, the one file of weights that every torch loader of the folder reads."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from mixsiam_hub.backends.backbone import Backbone


@dataclass(frozen=True)
class Span:
    """Where one tensor's bytes lie in a safetensors file.

    Attributes:
        dtype: As safetensors writes it: `F32`, `F16`, `I64`.
        offset: From the start of the file, in bytes.
        length: In bytes.
    """

    dtype: str
    offset: int
    length: int


def round_convolutions(backbone: Backbone) -> Backbone:
    """Returns a float32 copy of a backbone whose convolution weights are all values that fp16 holds exactly."""
    rounded = deepcopy(backbone)
    with torch.no_grad():
        for tensor in rounded.parameters():
            if _is_convolution(tensor):
                tensor.copy_(tensor.half())
    return rounded


def write_weights(backbone: Backbone, path: Path, *, half: bool) -> None:
    """Writes a backbone's state dict as safetensors that transformers accepts and every user of the machine may read.

    Args:
        backbone: In float32; with `half`, one from `round_convolutions`, so that nothing is lost.
        path: File to write.
        half: Store convolution weights as fp16; BatchNorm's tensors stay float32.
    """
    state = {name: tensor.contiguous() for name, tensor in backbone.state_dict().items()}
    if half:
        state = {name: tensor.half() if _is_convolution(tensor) else tensor for name, tensor in state.items()}
    path.write_bytes(safetensors.torch.save(state, metadata={"format": "pt"}))


def write_dense(head: nn.Linear, path: Path) -> None:
    """Writes a head as sentence-transformers' Dense has it."""
    state = {f"linear.{name}": tensor.contiguous() for name, tensor in head.state_dict().items()}
    path.write_bytes(safetensors.torch.save(state, metadata={"format": "pt"}))


def tensor_spans(path: Path) -> dict[str, Span]:
    """Reads where each tensor of a safetensors file lies.

    The file begins with the header's length (8 bytes, little-endian) and the header; the tensors' offsets count from
    the header's end.
    """
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
    spans = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            spans[name] = Span(entry["dtype"], 8 + header_bytes + begin, end - begin)
    return spans


def _is_convolution(tensor: torch.Tensor) -> bool:
    return tensor.ndim == 4
