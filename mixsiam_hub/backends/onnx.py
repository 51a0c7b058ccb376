"""The network in onnxruntime: the default backend, on CPU or through CUDA, by the graph of the precision asked for."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.backends.signature import FEATURE_MAP, INPUT, POOLED, Signature, check_signature, network_signature
from mixsiam_hub.errors import BackendError, ModelError
from mixsiam_hub.model.files import COMPACT_ONNX_FILE, VARIANT_FILES, WEIGHTS_FILE
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.per_process import PerProcess
from mixsiam_hub.untrusted import one_line

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

CUDA_PROVIDER = "CUDAExecutionProvider"
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

    name = "onnx"

    def __init__(self, folder: ModelFolder, device: str, precision: str, threads: int) -> None:
        """Checks the folder's files; the session is made at the first call.

        Args:
            folder: The model.
            device: From `find_device`.
            precision: `fp32`, which every folder has; `fp16` or `int8`, where it was exported with it.
            threads: CPU threads that one call uses.

        Raises:
            ModelError: A file is missing or was changed, or the folder has no graph of that precision.
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
        graph = folder.file(name)
        # A compact folder's graph has its weights outside itself.
        weights = folder.file(WEIGHTS_FILE) if name == COMPACT_ONNX_FILE else None
        self._graph = graph
        self._signature = network_signature(folder.config)
        self._session = PerProcess(lambda: _open_session(graph, weights, self._signature, device, threads))

    def __reduce__(self) -> tuple[Any, ...]:
        return OnnxBackend, self._arguments

    def pooled(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """As Backend.pooled."""
        return self._run(POOLED, pixels)

    def feature_map(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """As Backend.feature_map."""
        return self._run(FEATURE_MAP, pixels)

    def _run(self, output: str, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        session = self._session.get()
        try:
            result: NDArray[np.float32] = session.run([output], {INPUT: pixels})[0]
        except Exception as error:  # onnxruntime's errors share no root below Exception.
            raise ModelError(f"{self._graph} cannot be run on {self.device}: {one_line(error)}") from error
        expected = (len(pixels), *self._signature.outputs[output].shape[1:])
        if result.shape != expected:  # onnxruntime does not hold a graph to what it declares.
            given = f"{output} of shape {result.shape} for {len(pixels)} images"
            raise ModelError(f"{self._graph} gives {given}; it must be {expected}")
        return result


def _open_session(
    graph: Path, weights: Path | None, signature: Signature, device: str, threads: int
) -> InferenceSession:
    """Returns a session on a graph whose inputs and outputs were checked."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # Errors only: what concerns a user is raised.
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.startswith("cuda"):
        providers.insert(0, (CUDA_PROVIDER, {"device_id": int(device.partition(":")[2])}))
    if weights:
        # From memory: in the Hub's cache the two files are links into different folders, and onnxruntime opens no
        # data outside the graph's own.
        data = weights.read_bytes()
        options.add_external_initializers_from_files_in_memory([WEIGHTS_FILE], [data], [len(data)])
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=providers, enable_fallback=0)
    except Exception as error:
        raise ModelError(f"{graph} cannot be run on {device}: {one_line(error)}") from error
    # onnxruntime falls back to the CPU without an error when CUDA's libraries are not found.
    if device.startswith("cuda") and CUDA_PROVIDER not in session.get_providers():
        raise BackendError(f"onnxruntime could not use {device}; install CUDA's libraries, or give device='cpu'")
    check_signature(session, graph, signature)
    return session
