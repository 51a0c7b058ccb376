"""The network in onnxruntime: the default backend, on CPU or through CUDA, by the graph of the precision asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.errors import BackendError, ModelError
from mixsiam_hub.model.files import COMPACT_ONNX_FILE, VARIANT_FILES, WEIGHTS_FILE
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.per_process import PerProcess
from mixsiam_hub.untrusted import parsing

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

INPUT = "pixel_values"
POOLED, FEATURE_MAP = "pooler_output", "last_hidden_state"
CUDA_PROVIDER = "CUDAExecutionProvider"
_NO_CUDA = "pip uninstall onnxruntime, then pip install onnxruntime-gpu; or use the torch backend on a torch with CUDA"


def find_device(device: str) -> str:
    """Returns the device that onnxruntime will use: `cpu` or `cuda:N`.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        BackendError: onnxruntime is not installed, or has no such device.
    """
    try:
        import onnxruntime
    except ImportError:
        raise BackendError("onnxruntime is not installed; run: pip install onnxruntime") from None
    has_cuda = CUDA_PROVIDER in onnxruntime.get_available_providers()
    if device == "mps":
        raise BackendError("device 'mps' needs backend='torch'")
    if device.startswith("cuda") and not has_cuda:
        raise BackendError(f"device is {device!r} and this onnxruntime has no {CUDA_PROVIDER}; {_NO_CUDA}")
    if device == "auto":
        device = "cuda" if has_cuda else "cpu"
    return "cuda:0" if device == "cuda" else device


class OnnxBackend:
    """onnxruntime on one of a folder's graphs. CUDA has not been tried on a GPU yet."""

    name = "onnx"

    def __init__(self, folder: ModelFolder, device: str, precision: str, threads: int) -> None:
        """Opens the session, so that what is wrong with the folder's files is said now.

        A forked child opens its own, from files that are read and checked again.

        Args:
            folder: The model.
            device: From `find_device`.
            precision: `fp32`, which every folder has; `fp16` or `int8`, where it was exported with it.
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
        self._session = PerProcess(lambda: _open_session(folder, name, device, threads))
        self._session.get()

    def __reduce__(self) -> tuple[Any, ...]:
        return OnnxBackend, self._arguments

    def pooled(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """As Backend.pooled."""
        return self._run(POOLED, pixels)

    def feature_map(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """As Backend.feature_map."""
        return self._run(FEATURE_MAP, pixels)

    def _run(self, output: str, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = self._session.get().run([output], {INPUT: pixels})[0]
        return result


def _open_session(folder: ModelFolder, name: str, device: str, threads: int) -> InferenceSession:
    """Returns a session on one of a folder's graphs, from the bytes that were checked, never from the file again."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # Errors only: what concerns a user is raised.
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.startswith("cuda"):
        providers.insert(0, (CUDA_PROVIDER, {"device_id": int(device.partition(":")[2])}))
    # Else a graph could take its weights from any file of the working directory.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    if name == COMPACT_ONNX_FILE:  # Its weights are outside itself.
        weights = folder.read(WEIGHTS_FILE)
        options.add_external_initializers_from_files_in_memory([WEIGHTS_FILE], [weights], [len(weights)])
    graph = folder.path / name
    data = folder.read(name)
    with parsing(graph, form="a graph"):
        session = onnxruntime.InferenceSession(data, options, providers=providers)
    # onnxruntime falls back to the CPU without an error when CUDA's libraries are not found.
    if device.startswith("cuda") and CUDA_PROVIDER not in session.get_providers():
        raise BackendError(f"onnxruntime could not use {device}; install CUDA's libraries, or give device='cpu'")
    _check_graph(session, graph, folder.config.dim)
    return session


def _check_graph(session: InferenceSession, graph: Path, dim: int) -> None:
    inputs = [node.name for node in session.get_inputs()]
    outputs = [node.name for node in session.get_outputs()]
    if inputs != [INPUT] or outputs != [POOLED, FEATURE_MAP]:
        raise ModelError(f"{graph} maps {inputs} to {outputs}; it must map [{INPUT}] to [{POOLED}, {FEATURE_MAP}]")
    if odd := {node.type for node in (*session.get_inputs(), *session.get_outputs())} - {"tensor(float)"}:
        raise ModelError(f"{graph} takes or gives {odd.pop()}; whatever its precision, both must be tensor(float)")
    if (width := session.get_outputs()[0].shape[-1]) != dim:
        raise ModelError(f"{graph} gives {width} features; config.json's architecture gives {dim}")
