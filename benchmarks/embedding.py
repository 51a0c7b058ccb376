"""How fast images become vectors, beside what decoding and the network alone allow, and beside fastembed.

All measurements take turns, so that a slow spell of the machine hits all alike. A variant's limit is the rate of
decoding and of its network, each alone on all threads, one after the other: sharing the CPUs cannot be faster.

    python benchmarks/embedding.py photos/ --model FOLDER --fastembed PYTHON

PYTHON is that of an environment with fastembed, which needs another huggingface-hub; FOLDER is a full model folder.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from machine import command_and_machine
from PIL import Image

from mixsiam_hub import ImageEncoder
from mixsiam_hub.cpus import available_cpus
from mixsiam_hub.errors import MixsiamError
from mixsiam_hub.images.preprocess import DECODES, normalise
from mixsiam_hub.images.sources import open_source
from mixsiam_hub.images.stream import decode_batches
from mixsiam_hub.model.hub import resolve

BATCH_SIZE = 32
LARGE_PX = (4000, 3000)
"""12 megapixels, as phones take them."""
FASTEMBED = """
import sys

import fastembed
from fastembed.common.model_description import DenseModelDescription, ModelSource
from fastembed.image.onnx_embedding import supported_onnx_models
folder, threads, *files = sys.argv[1:]
supported_onnx_models.append(
    DenseModelDescription("local/it", ModelSource(hf="local/it"), "model.onnx", description="", license="",
                          size_in_GB=0, dim=0))
model = fastembed.ImageEmbedding("local/it", specific_model_path=folder, threads=int(threads))
for _ in sys.stdin:
    list(model.embed(files, batch_size=32))
    print("done", flush=True)
"""


@dataclass
class Task:
    """Something that is timed.

    Attributes:
        name: What it is.
        run: Does it once.
        parts: Names of the tasks whose seconds add up to its limit.
        seconds: Of each run.
    """

    name: str
    run: Callable[[], object]
    parts: tuple[str, ...] = ()
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of the seconds."""
        return statistics.median(self.seconds)


def tasks_of(model: str | None, files: list[str], threads: int) -> Iterator[Task]:
    """Yields decoding alone, each network alone, and each variant that can be had here."""
    pre = resolve(model).config.preprocessing
    batches = list(decode_batches(files, pre, batch_size=BATCH_SIZE, workers=threads))
    arrays = [normalise(batch.pixels, pre) for batch in batches]
    for decode in DECODES:

        def run(decode: str = decode) -> None:
            for _ in decode_batches(files, pre, batch_size=BATCH_SIZE, workers=threads, decode=decode):
                pass

        yield Task(f"decoding alone, {decode}", run)
    for backend, precision in (("onnx", "fp32"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "bf16")):
        with suppress(MixsiamError):  # It cannot be had here, or of this model.
            options = {"backend": backend, "precision": precision, "threads": threads}
            exact, fast = (ImageEncoder.from_pretrained(model, decode=decode, **options) for decode in DECODES)
            name = f"{precision} by {backend}"
            network = exact._backend
            yield Task(f"network alone, {name}", lambda network=network: [network.embedding(a) for a in arrays])
            for encoder, decode in ((exact, "exact"), (fast, "fast")):
                parts = (f"decoding alone, {decode}", f"network alone, {name}")
                yield Task(
                    f"{name}, {decode}", lambda encoder=encoder: encoder.embed(files, batch_size=BATCH_SIZE), parts
                )


@contextmanager
def fastembed_task(python: str, folder: Path, files: list[str], threads: int) -> Iterator[Task]:
    """Starts fastembed in its own environment, ready to embed the files again and again."""
    arguments = [python, "-c", FASTEMBED, str(folder / "onnx"), str(threads), *files]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def run() -> None:
            stdin.write("\n")
            stdin.flush()
            if stdout.readline() != "done\n":
                raise SystemExit("fastembed failed; its error is above")

        yield Task("fastembed", run)
        stdin.close()


def enlarged(files: list[str], folder: Path) -> list[str]:
    """Writes the photos as JPEGs of LARGE_PX."""
    paths = []
    for number, file in enumerate(files):
        with Image.open(file) as image:
            image.convert("RGB").resize(LARGE_PX, Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
        paths.append(str(folder / f"{number}.jpg"))
    return paths


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="a folder of photos")
    parser.add_argument("--model", help="model folder; default: the built-in encoder, which fastembed cannot load")
    parser.add_argument("--fastembed", metavar="PYTHON", help="of an environment with fastembed; needs --model")
    parser.add_argument("--large", action="store_true", help="the photos enlarged to 12 megapixels")
    parser.add_argument("--repeat", type=int, default=1, help="each photo so many times")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    threads = available_cpus()
    found = [str(item.source) for item in open_source(arguments.photos)]
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        files = (enlarged(found, Path(scratch)) if arguments.large else found) * arguments.repeat
        tasks = list(tasks_of(arguments.model, files, threads))
        if arguments.fastembed:
            peer = fastembed_task(arguments.fastembed, Path(arguments.model), files, threads)
            tasks.append(stack.enter_context(peer))
        for task in tasks:
            task.run()
        for _ in range(arguments.rounds):
            for task in tasks:
                start = time.perf_counter()
                task.run()
                task.seconds.append(time.perf_counter() - start)
    print(command_and_machine())
    print(f"\n{len(files)} images, {threads} threads; medians of {arguments.rounds} rounds that take turns\n")
    _print_table(tasks, len(files))


def _print_table(tasks: list[Task], images: int) -> None:
    medians = {task.name: task.median for task in tasks}
    peer = medians.get("fastembed")
    print("| what | images/s | slowest and fastest round | of its limit | to fastembed |\n|---|---|---|---|---|")
    for task in tasks:
        spread = f"{images / max(task.seconds):.1f} to {images / min(task.seconds):.1f}"
        limit = f"{np.sum([medians[part] for part in task.parts]) / task.median:.2f}" if task.parts else ""
        ratio = f"{peer / task.median:.2f}" if peer and task.parts else ""
        print(f"| {task.name} | {images / task.median:.1f} | {spread} | {limit} | {ratio} |")


if __name__ == "__main__":
    main()
