"""An encoder's tensors: read from safetensors, and hashed into its fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.errors import ModelError
from mixsiam_hub.model.config import ModelConfig


def fingerprint(tensors: Mapping[str, NDArray[Any]], config: ModelConfig) -> str:
    """Identity of an encoder: the same hash means the same vectors, up to the runtime's rounding.

    Args:
        tensors: Backbone tensors by name, hashed as little-endian float32; BatchNorm's step counters are left out.
        config: Architecture, stride and preprocessing, which are part of the identity.

    Returns:
        A sha256 in hex.
    """
    digest = hashlib.sha256(config.digest.encode())
    for name in sorted(tensors):
        if name.endswith("num_batches_tracked"):
            continue
        tensor = np.ascontiguousarray(tensors[name], dtype="<f4")
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Reads every tensor of a safetensors file.

    Raises:
        ModelError: It is none, or has a type of tensor that NumPy lacks.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors: dict[str, NDArray[Any]] = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path} is no safetensors file: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:  # What looking a type up in NumPy can raise.
        raise ModelError(f"{path} has tensors of a type that NumPy lacks: {error}; save them as float32") from error
    return tensors
