"""What stands beside every figure: the command, the machine and the versions."""

from __future__ import annotations

import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

from mixsiam_hub.cpus import available_cpus
from mixsiam_hub.training.recipe import data_name

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")
"""What a CPU may have that changes speed, and the last bits of int8."""


def command_and_machine() -> str:
    """Returns this command, paths without this machine's folders, and what it runs on, in one line of Markdown."""
    command = shlex.join(data_name(word) if "/" in word else word for word in sys.argv[1:])
    packages = ("numpy", "pillow", "onnxruntime", "torch")
    versions = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
    return (
        f"`python benchmarks/{Path(sys.argv[0]).name} {command}`: {platform.machine()}, {available_cpus()} CPUs "
        f"({' '.join(_cpu_flags()) or 'flags unknown'}), {platform.system()}, {', '.join(versions)}"
    )


def _cpu_flags() -> list[str]:
    """Returns those of FLAGS that the CPU has; none where the system does not list them in /proc/cpuinfo."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return []
    return [flag for flag in FLAGS if flag in words]
