"""The network in onnxruntime: the default backend, on CPU or through CUDA, by the graph of the precision asked for."""

from __future__ import annotations

import importlib
import logging
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.backends.graph import CUDA_PROVIDER, Graph
from mixsiam_hub.backends.signature import POOLED, network_signature
from mixsiam_hub.errors import BackendError, ModelError
from mixsiam_hub.model.files import VARIANT_FILES
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.untrusted import one_line

_IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e74697479120167"
    "5a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02080142040a00100d"
)
"""A graph that hands on one float: the least that a session can be made of."""

_log = logging.getLogger(__name__)


def find_device(device: str) -> str:
    """Returns the device that onnxruntime will use: `cpu` or `cuda:N`.

    Args:
        device: As `choose` takes it.

    Raises:
        BackendError: onnxruntime is not installed, or cannot use that device.
    """
    runtime = _onnxruntime()
    if device == "cpu":
        return device
    if device == "mps":
        raise BackendError("device 'mps' needs backend='torch'")
    number = int(device.partition(":")[2] or 0)
    obstacle = _cuda_obstacle(runtime, number)
    if device == "auto":
        device = "cpu" if obstacle else "cuda"
        _log.info("device auto is %s; %s", device, obstacle or "onnxruntime can use CUDA")
    elif obstacle:
        raise BackendError(f"device is {device!r} and {obstacle}; or give device='cpu', or backend='torch'")
    return f"cuda:{number}" if device.startswith("cuda") else device


def _cuda_obstacle(runtime: ModuleType, number: int) -> str:
    """Returns why onnxruntime cannot use a CUDA device, and the fix; empty where it can.

    The providers that it lists are those of its build. Whether the machine has the GPU, its driver and the libraries
    shows only in a session, which falls back to the CPU without an error where a library is missing.
    """
    if CUDA_PROVIDER not in runtime.get_available_providers():
        return f"this onnxruntime has no {CUDA_PROVIDER}: pip uninstall onnxruntime, then pip install onnxruntime-gpu"
    fix = "check that nvidia-smi lists it and that the CUDA and cuDNN that onnxruntime-gpu asks for are installed"
    providers = [(CUDA_PROVIDER, {"device_id": number})]
    try:
        session = runtime.InferenceSession(_IDENTITY, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's errors share no root below Exception.
        return f"onnxruntime cannot use CUDA device {number}, {one_line(error)}: {fix}"
    return "" if CUDA_PROVIDER in session.get_providers() else f"onnxruntime cannot use CUDA device {number}: {fix}"


def _onnxruntime() -> ModuleType:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise BackendError(f"onnxruntime cannot be imported: {error}; run: pip install onnxruntime") from None


class OnnxBackend:
    """onnxruntime on one of a folder's graphs. CUDA has not been tried on a GPU yet."""

    name: str = "onnx"

    def __init__(self, folder: ModelFolder, device: str, precision: str, threads: int) -> None:
        """Opens the session, so that what is wrong with the folder's files is said now.

        A forked child opens its own, from files that are read and checked again.

        Args:
            folder: The model.
            device: From `find_device`.
            precision: `fp32`, which every folder has; `fp16` or `int8`, where it was exported with it. OpenVINO takes
                `bf16` from the graph of fp32.
            threads: CPU threads that one call uses.

        Raises:
            ModelError: A file is missing, was changed or cannot be run, or the folder has no graph of that precision.
            BackendError: onnxruntime cannot use the device.
        """
        self.device = device
        self.precision = precision
        self._arguments = (folder, device, precision, threads)
        name = VARIANT_FILES.get(precision, folder.manifest.onnx_file)
        if precision in VARIANT_FILES and name not in folder.manifest.files:
            source = "ORG/NAME" if folder.revision else folder.path  # A snapshot in the cache is no whole folder.
            raise ModelError(
                f"{folder.path} has no {name}, the graph of precision {precision!r}; give precision='fp32' or another "
                f"backend, or make a folder that has it: mixsiam export {source} FOLDER --license ID --calibration DATA"
            )
        signature = network_signature(folder.config)
        self._embedding, *_, self._feature_map = signature.outputs
        self._graph = Graph(folder, name, signature, device, threads, precision if self.name == "openvino" else None)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def embedding(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """As Backend.embedding."""
        return self._graph.run(self._embedding, pixels)

    def pooled(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """As Backend.pooled."""
        return self._graph.run(POOLED, pixels)

    def feature_map(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """As Backend.feature_map."""
        return self._graph.run(self._feature_map, pixels)


class OpenVinoBackend(OnnxBackend):
    """The same graphs, run by OpenVINO."""

    name = "openvino"
