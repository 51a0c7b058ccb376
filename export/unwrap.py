"""What training scripts wrap around a network's tensors, taken off by three rules, and told.

1. A dictionary that is no state dict is opened at the first of NESTS that it has, again and again.
2. WRAPPERS are taken out of names wherever they stand: torch.compile and the data-parallel modules write them.
3. While the layout's first convolution is not in its place, and all names begin with the same one of ROOTS, that one
   is taken off.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from mixsiam_hub.errors import ModelError
from mixsiam_hub.untrusted import quote

NESTS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema"),
    *("state_dict", "model_state_dict", "model_state", "model", "network", "net", "module", "shadow", "weights"),
)
"""Keys that hold a state dict, or a dictionary that does. Averaged weights (EMA) come first, as in timm: where a
checkpoint has them too, they are what its authors evaluate."""
WRAPPERS = ("_orig_mod", "module")
ROOTS = ("model.", "encoder.")
AVERAGE_COUNT = "n_averaged"
"""How many networks torch's AveragedModel has averaged: the one tensor of a wrapper's own."""


@dataclass(frozen=True)
class Unwrapped:
    """A state dict without its wrappings.

    Attributes:
        tensors: Name -> tensor.
        names: Name -> the name in the checkpoint.
        steps: What was taken off, in order, in words.
        dropped: Names in the checkpoint of the wrappers' own tensors.
    """

    tensors: dict[str, torch.Tensor]
    names: dict[str, str]
    steps: list[str]
    dropped: list[str]


def unwrap(content: object, prefix: str, path: Path) -> Unwrapped:
    """Takes a checkpoint's wrappings off.

    Args:
        content: As it was read.
        prefix: That the source's layout has before the backbone's own names.
        path: The file, for errors.

    Raises:
        ModelError: There is no state dict in it, or two names become the same.
    """
    tensors, steps = _state_dict(content, path)
    names: dict[str, str] = {}
    for name in tensors:
        short = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if short in names:
            both = f"{quote(names[short])} and {quote(name)}"
            raise ModelError(f"{path}: without their wrappers {both} have the same name; save one of them")
        names[short] = name
    steps += [f"{w}." for w in WRAPPERS if any(w in name.split(".") for name in tensors)]
    count = names.pop(AVERAGE_COUNT, None)
    while root := _root(names, prefix):
        names = {name.removeprefix(root): original for name, original in names.items()}
        steps.append(root)
    return Unwrapped({name: tensors[names[name]] for name in names}, names, steps, [count] if count else [])


def _state_dict(content: object, path: Path) -> tuple[Mapping[str, torch.Tensor], list[str]]:
    """Returns the state dict in a checkpoint, and the keys that led to it."""
    steps: list[str] = []
    while isinstance(content, Mapping) and content:
        if not any(isinstance(value, Mapping) for value in content.values()) and _holds_tensors(content):
            return _checked(content, path), steps
        nests = [key for key in NESTS if isinstance(content.get(key), Mapping)]
        if not nests:
            break
        others = f", not {' or '.join(nests[1:])}" if nests[1:] else ""
        steps.append(f"{nests[0]}{others}")
        content = content[nests[0]]
    raise ModelError(f"{path} holds no state dict, neither itself nor as one of {', '.join(NESTS)}; save one")


def _holds_tensors(content: Mapping[object, object]) -> bool:
    return any(isinstance(value, torch.Tensor) for value in content.values())


def _checked(content: Mapping[object, object], path: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ModelError(
                f"{path} holds {quote(name)}, which is no tensor, where its state dict should be; save that alone"
            )
        tensors[name] = value
    return tensors


def _root(names: Collection[str], prefix: str) -> str | None:
    """Returns the root that all names have, where the first convolution is not in its place."""
    if any(f"{prefix}{first}.weight" in names for first in ("conv1", "0")):
        return None
    return next((root for root in ROOTS if names and all(name.startswith(root) for name in names)), None)
