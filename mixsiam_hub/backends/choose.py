"""What runs the network: the interface of a backend, and the choice of one."""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

from mixsiam_hub.errors import BackendError, MixsiamError, missing_extra

if TYPE_CHECKING:  # The command line reads the tuples below before it needs any of these.
    import numpy as np
    from numpy.typing import NDArray

    from mixsiam_hub.model.folder import ModelFolder

_log = logging.getLogger(__name__)

BACKENDS = ("auto", "onnx", "openvino", "torch")
DEVICES = ("auto", "cpu", "cuda", "cuda:N", "mps")
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
AUTO = "auto"
"""As precision: the fastest one that is close enough, which `model.fastest` finds."""
MIN_COSINE = 0.9999
"""To fp32, of vectors that may stand in one store with fp32's: the default of `auto`."""
AUTO_ORDER = ("onnx", "openvino", "torch")
BACKEND_PRECISIONS = {
    "onnx": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
    "torch": ("fp32", "bf16", "fp16"),
}


class Backend(Protocol):
    """A network ready to run. It pickles, survives a fork and may be called from several threads.

    Attributes:
        name: `onnx`, `openvino` or `torch`.
        device: `cpu`, `cuda:N` or `mps`.
        precision: `fp32`, `bf16`, `fp16` or `int8`; what comes out is float32 whatever it is.
    """

    name: str
    device: str
    precision: str

    def embedding(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the head's output, (N, K) float32, not normalised; without a head the pooled features."""

    def pooled(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns pooled features, (N, D) float32, not normalised, of normalised pixels, (N, 3, S, S) float32."""

    def feature_map(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the last feature map, (N, D, h, w) float32, of normalised pixels, (N, 3, S, S) float32."""


@dataclass(frozen=True)
class Choice:
    """A backend, device and precision that can be had here: the words of the API, `auto` replaced."""

    backend: str
    device: str
    precision: str


def choose(backend: str, device: str, precision: str, order: Sequence[str] = AUTO_ORDER) -> Choice:
    """Settles what runs the network; `auto` takes the first of `order` that can do the rest of what was asked.

    Args:
        backend: One of BACKENDS.
        device: One of DEVICES, N a number.
        precision: One of PRECISIONS that the backend has in BACKEND_PRECISIONS.
        order: The backends that can run the model, the preferred one first.

    Raises:
        BackendError: A word that is not known, or something asked for by name that cannot be had here.
        MissingExtraError: The torch backend was asked for by name and torch is not installed.
    """
    for name, value, allowed in (("backend", backend, BACKENDS), ("precision", precision, PRECISIONS)):
        if value not in allowed:
            raise BackendError(f"{name} is {value!r}; allowed are {', '.join(allowed)}")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", device):
        raise BackendError(f"device is {device!r}; allowed are {', '.join(DEVICES)}")
    if backend != "auto":
        return _check(backend, device, precision)
    reasons = []
    for name in order:
        try:
            choice = _check(name, device, precision)
        except MixsiamError as error:
            reasons.append(f"{name}: {error}")
            continue
        _log.info("backend auto is %s; %s", name, ". ".join(reasons) or "it is the first of " + ", ".join(order))
        return choice
    raise BackendError(f"no backend can run on device {device!r} in {precision!r}. " + ". ".join(reasons))


def load(choice: Choice, folder: ModelFolder, threads: int) -> Backend:
    """Returns the chosen backend for a folder, whose files it has checked by then.

    Args:
        choice: From `choose`.
        folder: The model.
        threads: CPU threads for one call, at least 1.

    Raises:
        ModelError: A file of the folder is missing, changed or wrong.
        BackendError: The onnx backend and a plain folder, which has no graph.
    """
    if choice.backend != "torch" and folder.is_plain:
        raise BackendError(
            f"{folder.path} was saved by timm and has no graph for the {choice.backend} backend; give backend='torch', "
            f"or make a folder that has one: mixsiam import {folder.path} FOLDER --from timm --license ID"
        )
    _log.info("backend %s on %s, %s", choice.backend, choice.device, choice.precision)
    if choice.backend != "torch":
        from mixsiam_hub.backends import onnx

        kind = onnx.OnnxBackend if choice.backend == "onnx" else onnx.OpenVinoBackend
        return kind(folder, choice.device, choice.precision, threads)
    backend: Backend = torch_backend().TorchBackend(folder, choice.device, choice.precision, threads)
    return backend


def present_backends() -> tuple[str, ...]:
    """Returns the backends that are installed and run on this machine, in the order of AUTO_ORDER.

    Raises:
        BackendError: OpenVINO's plugin does not fit this onnxruntime.
    """
    from mixsiam_hub.backends import openvino

    present = {
        "onnx": _is_installed("onnxruntime"),
        "openvino": openvino.runs_here(),
        "torch": _is_installed("torch") and _is_installed("torchvision"),
    }
    return tuple(name for name in AUTO_ORDER if present[name])


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def torch_backend() -> ModuleType:
    """Returns the module mixsiam_hub.backends.torch, which imports torch.

    Raises:
        MissingExtraError: torch or torchvision is not installed.
    """
    try:
        from mixsiam_hub.backends import torch as module
    except ImportError as error:
        missing_extra(error.name or "torch", "torch")
    return module


def _check(backend: str, device: str, precision: str) -> Choice:
    if precision not in BACKEND_PRECISIONS[backend]:
        allowed = ", ".join(BACKEND_PRECISIONS[backend])
        raise BackendError(f"precision is {precision!r}; the {backend} backend allows {allowed}")
    if backend == "onnx":
        from mixsiam_hub.backends.onnx import find_device

        return Choice(backend, find_device(device), precision)
    if backend == "openvino":
        from mixsiam_hub.backends import openvino

        return Choice(backend, openvino.find_device(device), precision)
    found: str = torch_backend().find_device(device, precision)
    return Choice(backend, found, precision)
