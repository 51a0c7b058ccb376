"""How long a start takes: imports against `import numpy, PIL.Image`; one image from file to vector, also by fastembed.

Each run is a process of its own, and the measurements take turns, so that a slow spell of the machine hits all alike.
Python keeps compiled modules, as it does by default: the first run, which is not counted, writes what an editable
installation lacks.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from machine import command_and_machine

from mixsiam_hub.images.samples import draw_samples

BASELINE = "import numpy, PIL.Image"
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
BY_FASTEMBED = Path(__file__).parents[1] / "tests" / "loaders" / "by_fastembed.py"
IMPORTS = (BASELINE, "import mixsiam_hub", "from mixsiam_hub import ImageEncoder")


def import_seconds(statement: str) -> float:
    """Returns the seconds that an import takes in a fresh interpreter, without the interpreter's own start."""
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    return float(_run([sys.executable, "-c", code]))


def command_seconds(image: Path, model: str | None) -> float:
    """Returns the wall seconds of `mixsiam embed` on one image, from start to exit."""
    script = Path(sys.executable).with_name("mixsiam")
    command = [script, "embed", image, "--out", image.with_suffix(".npz"), *(["--model", model] if model else [])]
    return _wall_seconds(command)


def fastembed_seconds(image: Path, model: Path, python: str) -> float:
    """Returns the wall seconds of a script that embeds one image with fastembed, from start to exit."""
    command = [python, str(BY_FASTEMBED), model / "onnx", "model.onnx", image, image.with_suffix(".npy")]
    return _wall_seconds(command)


def _wall_seconds(command: Sequence[str | Path]) -> float:
    start = time.perf_counter()
    _run(command)
    return time.perf_counter() - start


def _run(command: Sequence[str | Path]) -> str:
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout


def measure(tasks: dict[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """Runs all tasks in turn, `runs` times after one warm-up, and returns their seconds."""
    for task in tasks.values():
        task()
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(runs):
        for name, task in tasks.items():
            seconds[name].append(task())
    return seconds


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="model folder; default: the built-in encoder")
    parser.add_argument("--fastembed", metavar="PYTHON", help="of an environment with fastembed; needs a full --model")
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "one.jpg"
        next(iter(draw_samples(1).values())).save(image)
        tasks: dict[str, Callable[[], float]] = {s: partial(import_seconds, s) for s in IMPORTS}
        tasks["mixsiam embed one.jpg"] = lambda: command_seconds(image, arguments.model)
        if arguments.fastembed:
            peer = Path(arguments.model), arguments.fastembed
            tasks["the same by fastembed"] = lambda: fastembed_seconds(image, *peer)
        seconds = measure(tasks, arguments.runs)
    base = statistics.median(seconds[BASELINE])
    print(command_and_machine())
    print(
        f"\n| what | median s of {arguments.runs} | fastest s | slowest s | ratio to the first |\n|---|---|---|---|---|"
    )
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"| `{name}` | {median:.3f} | {min(values):.3f} | {max(values):.3f} | {median / base:.2f} |")


if __name__ == "__main__":
    main()
