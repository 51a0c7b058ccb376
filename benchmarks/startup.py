"""How long a start takes: imports against `import numpy, PIL.Image`, and one image from file to vector.

Each run is a process of its own, and the measurements take turns, so that a slow spell of the machine hits all alike.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mixsiam_hub.images.samples import draw_samples

BASELINE = "import numpy, PIL.Image"
IMPORTS = (BASELINE, "import mixsiam_hub", "from mixsiam_hub import ImageEncoder")


def import_seconds(statement: str) -> float:
    """Returns the seconds that an import takes in a fresh interpreter, without the interpreter's own start."""
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def command_seconds(image: Path, model: str | None) -> float:
    """Returns the wall seconds of `mixsiam embed` on one image, from start to exit."""
    script = Path(sys.executable).with_name("mixsiam")
    command = [script, "embed", image, "--out", image.with_suffix(".npz"), *(["--model", model] if model else [])]
    start = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - start


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
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "one.jpg"
        next(iter(draw_samples(1).values())).save(image)
        tasks: dict[str, Callable[[], float]] = {s: partial(import_seconds, s) for s in IMPORTS}
        tasks["mixsiam embed one.jpg"] = lambda: command_seconds(image, arguments.model)
        seconds = measure(tasks, arguments.runs)
    base = statistics.median(seconds[BASELINE])
    print(
        f"`python {' '.join(sys.argv)}`: {platform.platform()}, {os.cpu_count()} CPUs, Python {sys.version.split()[0]}"
    )
    print(
        f"\n| what | median s of {arguments.runs} | fastest s | slowest s | ratio to the first |\n|---|---|---|---|---|"
    )
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"| `{name}` | {median:.3f} | {min(values):.3f} | {max(values):.3f} | {median / base:.2f} |")


if __name__ == "__main__":
    main()
