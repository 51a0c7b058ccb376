"""precision="auto": the fastest way to run an encoder on this machine whose vectors are close enough to fp32's.

Which one that is differs by more than tenfold between CPUs: so each candidate is loaded, replays the folder's known
answers and is timed. The choice is kept in the user's cache folder, by encoder, CPU and versions.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import platform
import statistics
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.atomic import make_folder, write_text
from mixsiam_hub.backends import choose as backends
from mixsiam_hub.backends.choose import BACKEND_PRECISIONS, Backend, Choice
from mixsiam_hub.errors import BackendError, MixsiamError
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.model.known_answers import read_answers
from mixsiam_hub.user_cache import cache_folder
from mixsiam_hub.vectors.cosine import row_cosines

BATCH_SIZE = 32
ROUNDS = 5
"""Timed runs of each candidate, in turns, so that a slow moment of the machine hits all alike."""
FIRST_RUNS_S = 2.0
"""A candidate that takes longer for one batch is not timed again."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """One way to run an encoder.

    Attributes:
        choice: What it is.
        cosine: Of its vectors to the known answers, the smallest.
        images_per_second: By the network alone, in batches of BATCH_SIZE.
    """

    choice: Choice
    cosine: float
    images_per_second: float


def load_fastest(folder: ModelFolder, backend: str, device: str, min_cosine: float, threads: int) -> Backend:
    """Loads the fastest candidate whose vectors are close enough.

    Args:
        folder: The model.
        backend: One of BACKENDS; `auto` tries all that are installed.
        device: As `choose` takes it.
        min_cosine: The smallest cosine to fp32 that is close enough, of any known answer.
        threads: CPU threads for one call.

    Raises:
        BackendError: Nothing can run it here, nothing is close enough, or a plain folder, which has no known answers.
        ModelError: The known answers cannot be read.
    """
    if folder.is_plain:
        raise BackendError(f"{folder.path} was saved by timm, so that no candidate can be checked; give a precision")
    place = _place(folder, backend, device, min_cosine, threads)
    with suppress(MixsiamError, OSError, ValueError, TypeError, KeyError):
        choice = Choice(**json.loads(place.read_text(encoding="utf-8"))["choice"])
        loaded = backends.load(choice, folder, threads)
        _log.info("precision auto is %s by %s, as measured before", choice.precision, choice.backend)
        return loaded
    names = list(backends.present_backends()) if backend == "auto" else [backend]
    measured = list(_measure(folder, names, device, threads))
    if not measured:
        raise BackendError(f"no backend of {', '.join(names)} can run {folder.path} on device {device!r}")
    admitted = [(found, network) for found, network in measured if found.cosine >= min_cosine]
    if not admitted:
        best = max(found.cosine for found, _ in measured)
        raise BackendError(f"no precision reaches a cosine of {min_cosine}; the best one has {best:.6f}")
    found, network = max(admitted, key=lambda one: one[0].images_per_second)
    for other, _ in measured:
        _log.info(
            "%s by %s: %.0f images/s, cosine %.6f%s",
            other.choice.precision,
            other.choice.backend,
            other.images_per_second,
            other.cosine,
            "" if other.cosine >= min_cosine else ", too far",
        )
    _log.info("precision auto is %s by %s", found.choice.precision, found.choice.backend)
    with suppress(MixsiamError):
        make_folder(place.parent)
        write_text(place, json.dumps(asdict(found)))
    return network


def _measure(folder: ModelFolder, names: list[str], device: str, threads: int) -> Iterator[tuple[Measured, Backend]]:
    """Yields what can run here, with its figures."""
    _, pixels, expected = read_answers(folder)
    batch = np.resize(pixels, (BATCH_SIZE, *pixels.shape[1:]))
    networks: dict[Choice, Backend] = {}
    cosines: dict[Choice, float] = {}
    seconds: dict[Choice, list[float]] = {}
    for choice in _candidates(names, device):
        with suppress(MixsiamError):  # No graph of that precision, or no such runtime.
            network = backends.load(choice, folder, threads)
            vectors = network.embedding(pixels)
            cosines[choice] = float(row_cosines(vectors, expected).min())
            networks[choice] = network
            seconds[choice] = [_seconds(network, batch)]
    for _ in range(ROUNDS):
        for choice, network in networks.items():
            if seconds[choice][0] < FIRST_RUNS_S:
                seconds[choice].append(_seconds(network, batch))
    for choice, network in networks.items():
        rate = BATCH_SIZE / statistics.median(seconds[choice][1:] or seconds[choice])
        yield Measured(choice, cosines[choice], rate), network


def _candidates(names: list[str], device: str) -> Iterator[Choice]:
    for name in names:
        for precision in BACKEND_PRECISIONS[name]:
            with suppress(MixsiamError):
                yield backends.choose(name, device, precision)


def _seconds(network: Backend, batch: NDArray[np.float32]) -> float:
    start = time.perf_counter()
    network.embedding(batch)
    return time.perf_counter() - start


def _place(folder: ModelFolder, backend: str, device: str, min_cosine: float, threads: int) -> Path:
    """Returns where the choice is kept; its name is of all that it hangs on."""
    versions = []
    for package in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-openvino", "torch"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    key = [folder.manifest.fingerprint, sorted(folder.manifest.files.items()), _cpu(), versions]
    text = json.dumps([*key, backend, device, min_cosine, threads])
    return cache_folder() / "fastest" / f"{hashlib.sha256(text.encode()).hexdigest()}.json"


def _cpu() -> str:
    """Returns what tells one CPU from another: the model and its flags on Linux."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return "\n".join(line for line in dict.fromkeys(lines) if line.startswith(("model name", "flags", "Features")))
    return f"{platform.machine()} {platform.processor()}"
