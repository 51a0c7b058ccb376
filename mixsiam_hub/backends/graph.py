"""One ONNX graph of a folder in onnxruntime, held to its signature when it is opened and whenever it is run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.backends.openvino import use_openvino
from mixsiam_hub.backends.signature import Signature, check_signature
from mixsiam_hub.errors import BackendError, ModelError
from mixsiam_hub.model.files import COMPACT_ONNX_FILE, WEIGHTS_FILE
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.per_process import PerProcess
from mixsiam_hub.untrusted import one_line, parsing

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

CUDA_PROVIDER = "CUDAExecutionProvider"


class Graph:
    """A graph of one input, ready to run; it survives a fork."""

    def __init__(
        self,
        folder: ModelFolder,
        name: str,
        signature: Signature,
        device: str,
        threads: int,
        openvino: str | None = None,
    ) -> None:
        """Opens the session, so that what is wrong with the file is said now; a forked child opens its own.

        Args:
            folder: The model.
            name: The graph's path within the folder.
            signature: What the graph must take and give.
            device: `cpu` or `cuda:N`.
            threads: CPU threads that one call uses.
            openvino: The precision in which OpenVINO runs it; None for onnxruntime's own kernels.

        Raises:
            ModelError: The file is missing, was changed, is no graph, or has another signature.
            BackendError: onnxruntime cannot use the device.
        """
        self.path = path = folder.path / name
        self._signature = signature
        self._device = device

        def open_session() -> InferenceSession:  # It does not hold self: a session is freed with its last user.
            session = _open_session(folder, name, device, threads, openvino)
            check_signature(session, path, signature)
            return session

        self._session = PerProcess(open_session)
        self._session.get()

    def run(self, output: str, value: NDArray[Any]) -> NDArray[np.float32]:
        """Returns one of the outputs.

        Args:
            output: Its name.
            value: The input, of the signature's type and shape; its first size is the output's where that is free.

        Raises:
            ModelError: The graph cannot be run, or gives another shape than it declares.
        """
        (name,) = self._signature.inputs
        session = self._session.get()
        try:
            result: NDArray[np.float32] = session.run([output], {name: value})[0]
        except Exception as error:  # onnxruntime's errors share no root below Exception.
            raise ModelError(f"{self.path} cannot be run on {self._device}: {one_line(error)}") from error
        first, *rest = self._signature.outputs[output].shape
        expected = (first if isinstance(first, int) else len(value), *rest)
        if result.shape != expected:  # onnxruntime does not hold a graph to what it declares.
            raise ModelError(
                f"{self.path} gives {output} of shape {result.shape} for {name} of {value.shape}; it must be {expected}"
            )
        return result


def _open_session(folder: ModelFolder, name: str, device: str, threads: int, openvino: str | None) -> InferenceSession:
    """Returns a session on the bytes that were checked: the file is never read again."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # Errors only: what concerns a user is raised.
    # Threads that wait leave their CPUs to decoding.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = ["CPUExecutionProvider"]
    if openvino is not None:
        use_openvino(options, openvino, threads)
        providers = []  # The options name it.
    elif device.startswith("cuda"):
        providers = [(CUDA_PROVIDER, {"device_id": int(device.partition(":")[2])}), *providers]
    # Else a graph could take its weights from any file of the working directory.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    if name == COMPACT_ONNX_FILE:  # Its weights are outside itself.
        weights = folder.read(WEIGHTS_FILE)
        options.add_external_initializers_from_files_in_memory([WEIGHTS_FILE], [weights], [len(weights)])
    data = folder.read(name)
    with parsing(folder.path / name, form="a graph"):
        session = onnxruntime.InferenceSession(data, options, providers=providers, enable_fallback=0)
    # onnxruntime falls back to the CPU without an error when CUDA's libraries are not found.
    if device.startswith("cuda") and CUDA_PROVIDER not in session.get_providers():
        raise BackendError(f"onnxruntime could not use {device}; install CUDA's libraries, or give device='cpu'")
    return session
