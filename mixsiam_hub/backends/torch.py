"""The network in torch: for GPUs, lower precision and fine-tuning."""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load

from mixsiam_hub.backends.backbone import Backbone, pool
from mixsiam_hub.errors import BackendError, ModelError
from mixsiam_hub.model.files import CONFIG_FILE, WEIGHTS_FILE
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.model.plain import without_head
from mixsiam_hub.model.tensors import not_finite
from mixsiam_hub.per_process import PerProcess
from mixsiam_hub.untrusted import one_line, parsing

_log = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_ALLOWED = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "bf16", "fp16"), "mps": ("fp32",)}


def find_device(device: str, precision: str) -> str:
    """Returns the device that torch will use: `cpu`, `cuda:N` or `mps`.

    Args:
        device: As `choose` takes it.
        precision: `fp32`, `bf16` or `fp16`.

    Raises:
        BackendError: This torch has no such device, or the device does not run that precision.
    """
    cuda, mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    if device == "auto":
        device = "cuda" if cuda else "mps" if mps else "cpu"
        _log.info(
            "device auto is %s; this torch sees %d CUDA devices and %s Metal", device, cuda, "has" if mps else "no"
        )
    kind, _, number = device.partition(":")
    if kind == "cuda" and int(number or 0) >= cuda:
        raise BackendError(f"device is {device!r} and this torch sees {cuda} CUDA devices; install a torch with CUDA")
    if kind == "mps" and not mps:
        raise BackendError("device is 'mps' and this torch has no Metal; use device='cpu'")
    if precision not in _ALLOWED[kind]:
        raise BackendError(f"precision is {precision!r}; torch on {kind} allows {', '.join(_ALLOWED[kind])}")
    return f"cuda:{number or 0}" if kind == "cuda" else device


def load_backbone(folder: ModelFolder, *, with_head: bool = True) -> Backbone:
    """Returns the network with the folder's weights: float32, on the CPU, in training mode, every parameter trainable.

    Args:
        folder: The model.
        with_head: False leaves its head out, for training, which changes what the head was fitted to.

    Raises:
        ModelError: model.safetensors is missing, changed, no safetensors file, has NaN or infinite values, or its
            tensors are not exactly the architecture's, but for the classifier that timm saves with it.
    """
    path = folder.path / WEIGHTS_FILE
    data = folder.read(WEIGHTS_FILE)
    with parsing(path, form="safetensors"):
        tensors = load(data)
    if folder.is_plain:
        tensors = without_head(tensors)
    net = Backbone(folder.config.architecture, folder.config.output_stride, folder.config.head_dim)
    expected = net.state_dict()
    if odd := sorted(set(tensors) ^ set(expected)):
        state = "missing" if odd[0] in expected else "not of this architecture"
        raise ModelError(
            f"{path}: tensor {one_line(odd[0])} is {state}; {folder.config.architecture} has {len(expected)}"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            want = tuple(expected[name].shape)
            raise ModelError(
                f"{path}: tensor {name} is {tuple(tensor.shape)}; it must be {want}, as {CONFIG_FILE} says"
            )
        if not torch.isfinite(tensor).all():
            raise not_finite(path, name)
    net.load_state_dict(tensors)  # Copies into float32, from float16 too.
    if not with_head:
        net.fc = None
    return net


class TorchBackend:
    """torch in inference mode, channels last. CUDA and Metal have not been tried on a GPU yet."""

    name = "torch"

    def __init__(self, folder: ModelFolder, device: str, precision: str, threads: int) -> None:
        """Loads the weights, so that what is wrong with them is said now.

        Args:
            folder: The model.
            device: From `find_device`.
            precision: `fp32`, `bf16` or `fp16`; below fp32 by autocast.
            threads: CPU threads. torch has one such setting a process, so this can lower it and never raises it.

        Raises:
            ModelError: The weights are missing, changed or wrong.
        """
        self.device = device
        self.precision = precision
        self._arguments = (folder, device, precision, threads)
        self._home = os.getpid()
        net = load_backbone(folder).eval().requires_grad_(False)
        self._net = PerProcess(lambda: self._place(net, threads))

    def __reduce__(self) -> tuple[Any, ...]:
        return TorchBackend, self._arguments

    def embedding(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """As Backend.embedding."""
        with torch.inference_mode():
            pooled = pool(self._features(pixels))
            head = self._net.get().fc
            result: NDArray[np.float32] = (pooled if head is None else head(pooled)).cpu().numpy()
        return result

    def pooled(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """As Backend.pooled."""
        with torch.inference_mode():
            result: NDArray[np.float32] = pool(self._features(pixels)).cpu().numpy()
        return result

    def feature_map(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """As Backend.feature_map."""
        with torch.inference_mode():
            result: NDArray[np.float32] = self._features(pixels).contiguous().cpu().numpy()
        return result

    def _features(self, pixels: NDArray[np.float32]) -> torch.Tensor:
        x = torch.from_numpy(pixels).to(self.device, memory_format=torch.channels_last)
        low = self.precision != "fp32"
        with torch.autocast(self.device.partition(":")[0], dtype=_DTYPES[self.precision], enabled=low):
            features = self._net.get().features(x)
        return features.float()  # Before pooling: the mean over cells is taken in float32.

    def _place(self, net: Backbone, threads: int) -> Backbone:
        # OpenMP's threads do not survive a fork, and a child that asks for them can hang: it gets one.
        threads = threads if os.getpid() == self._home else 1
        if threads < torch.get_num_threads():
            torch.set_num_threads(threads)
        return net.to(self.device).to(memory_format=torch.channels_last)
