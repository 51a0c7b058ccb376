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
from mixsiam_hub.untrusted import one_line, parsing


def fingerprint(tensors: Mapping[str, NDArray[Any]], config: ModelConfig) -> str:
    """Identity of an encoder: the same hash means the same vectors, up to the runtime's rounding.

    Args:
        tensors: Of backbone and head by name, hashed as little-endian float32; BatchNorm's step counters are left out.
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


def read_tensors(data: bytes, source: str | Path) -> dict[str, NDArray[Any]]:
    """Reads every tensor of a safetensors file.

    Args:
        data: The file's bytes.
        source: What to call the file in errors.

    Raises:
        ModelError: It is none, has a type of tensor that NumPy lacks, or a value that is NaN or infinite.
    """
    from safetensors.numpy import load

    with parsing(source, form="safetensors"):
        tensors: dict[str, NDArray[Any]] = load(data)
        if bad := next((name for name, tensor in tensors.items() if not np.isfinite(tensor).all()), None):
            raise not_finite(source, bad)
    return tensors


def not_finite(source: str | Path, name: str) -> ModelError:
    """Returns the error for a tensor with NaN or infinite values, which come from damage or from training that failed.

    Args:
        source: The file.
        name: The tensor's.
    """
    return ModelError(f"{source}: tensor {one_line(name)} has NaN or infinite values; use weights of another run")
