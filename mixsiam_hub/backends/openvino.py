"""OpenVINO, as a plugin of onnxruntime: the same graphs, and bf16 on a CPU that computes it. It takes Intel's alone."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from typing import TYPE_CHECKING, Any

from mixsiam_hub.errors import BackendError, missing_extra

if TYPE_CHECKING:
    from onnxruntime import SessionOptions

_PLUGIN = "onnxruntime_ep_openvino"
_REGISTERED_AS = "mixsiam-openvino"
_TYPES = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""Precision -> what OpenVINO computes in that is not quantised in the graph. It would choose bf16 by itself."""


def runs_here() -> bool:
    """Tells whether the plugin is installed and takes this CPU.

    Raises:
        BackendError: The plugin does not fit this onnxruntime.
    """
    return importlib.util.find_spec(_PLUGIN) is not None and bool(_devices()[1])


def find_device(device: str) -> str:
    """Returns the device that OpenVINO will use: `cpu`.

    Args:
        device: As `choose` takes it.

    Raises:
        BackendError: Another device, or the plugin does not fit this onnxruntime or this machine.
        MissingExtraError: The plugin is not installed.
    """
    if device not in ("auto", "cpu"):
        raise BackendError(f"device {device!r} is not for openvino here; give device='cpu', or another backend")
    _cpu()
    return "cpu"


def use_openvino(options: SessionOptions, precision: str, threads: int) -> None:
    """Lets a session run its whole graph by OpenVINO.

    Args:
        options: Changed in place.
        precision: `fp32`, `bf16`, or `int8` for a quantised graph.
        threads: CPU threads that one call uses.

    Raises:
        BackendError: As `find_device`.
        MissingExtraError: Likewise.
    """
    process, devices = _cpu()
    if process != os.getpid():  # A session would wait for ever.
        raise BackendError(
            "OpenVINO's threads do not survive a fork; start processes by multiprocessing's spawn, or give "
            "backend='onnx'"
        )
    config = {"INFERENCE_PRECISION_HINT": _TYPES[precision], "INFERENCE_NUM_THREADS": str(threads)}
    options.add_provider_for_devices(devices, {"load_config": json.dumps({"CPU": config})})


def _cpu() -> tuple[int, list[Any]]:
    """Returns what `_devices` does, of a CPU that the plugin takes."""
    process, devices = _devices()
    if not devices:
        raise BackendError("OpenVINO's plugin of onnxruntime takes Intel's CPUs alone; give another backend")
    return process, devices


@functools.cache
def _devices() -> tuple[int, list[Any]]:
    """Returns the process that loaded OpenVINO, once, and onnxruntime's handles of the CPU if it takes it."""
    try:
        plugin = importlib.import_module(_PLUGIN)
    except ImportError:
        missing_extra("onnxruntime-ep-openvino", "openvino")
    try:
        runtime = importlib.import_module("onnxruntime")
        if all(device.ep_name != plugin.get_ep_name() for device in runtime.get_ep_devices()):
            runtime.register_execution_provider_library(_REGISTERED_AS, plugin.get_library_path())
        found = [device for device in runtime.get_ep_devices() if device.ep_name == plugin.get_ep_name()]
    except Exception as error:  # onnxruntime's errors share no root below Exception.
        raise BackendError(f"onnxruntime cannot load OpenVINO: {error}; upgrade onnxruntime") from None
    return os.getpid(), [device for device in found if device.ep_metadata.get("ov_device") == "CPU"]
