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

from machine import command_and_machine
from PIL import Image

from mixsiam_hub import ImageEncoder
from mixsiam_hub.cpus import available_cpus
from mixsiam_hub.errors import MixsiamError
from mixsiam_hub.images.preprocess import DECODES, normalise
from mixsiam_hub.images.sources import open_source
from mixsiam_hub.images.stream import decode_batches
from mixsiam_hub.model.hub import resolve
from mixsiam_hub.model.known_answers import read_answers
from mixsiam_hub.vectors.cosine import row_cosines

BATCH_SIZE = 32
LARGE_PX = (4000, 3000)
"""12 megapixels, as phones take them."""
WAYS = (("onnx", "fp32"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "bf16"), ("torch", "bf16"))
MIN_COSINES = (0.9999, 0.999)
"""To fp32, of `precision="auto"`: the default, and one that admits int8."""
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
        limits: Each the names of tasks whose seconds add up to a limit; the fastest of them counts.
        seconds: Of each run.
    """

    name: str
    run: Callable[[], object]
    limits: tuple[tuple[str, ...], ...] = ()
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
    folder = resolve(model)
    _, pixels, expected = read_answers(folder)
    cosines: dict[str, float] = {}
    for backend, precision in WAYS:
        with suppress(MixsiamError):  # It cannot be had here, or of this model.
            options = {"backend": backend, "precision": precision, "threads": threads}
            exact, fast = (ImageEncoder.from_pretrained(model, decode=decode, **options) for decode in DECODES)
            name = f"{precision} by {backend}"
            network = exact._backend
            cosines[name] = float(row_cosines(network.embedding(pixels), expected).min())
            yield Task(f"network alone, {name}", lambda network=network: [network.embedding(a) for a in arrays])
            for encoder, decode in ((exact, "exact"), (fast, "fast")):
                yield _embedding(f"{name}, {decode}", encoder, files, [_limit(decode, name)])
    for least in MIN_COSINES:
        auto = ImageEncoder.from_pretrained(model, precision="auto", min_cosine=least, threads=threads)
        decodes = DECODES if folder.manifest.admits_fast_decoding(least) else DECODES[:1]
        limits = [_limit(decode, name) for name, cosine in cosines.items() if cosine >= least for decode in decodes]
        yield _embedding(f"auto, cosine of {least}: {auto.variant} by {auto.backend}", auto, files, limits)


def _limit(decode: str, network: str) -> tuple[str, str]:
    return f"decoding alone, {decode}", f"network alone, {network}"


def _embedding(name: str, encoder: ImageEncoder, files: list[str], limits: list[tuple[str, str]]) -> Task:
    return Task(name, lambda: encoder.embed(files, batch_size=BATCH_SIZE), tuple(limits))


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
        limits = [sum(medians[part] for part in limit) for limit in task.limits]
        limit = f"{min(limits) / task.median:.2f}" if limits else ""
        ratio = f"{peer / task.median:.2f}" if peer and limits else ""
        print(f"| {task.name} | {images / task.median:.1f} | {spread} | {limit} | {ratio} |")


if __name__ == "__main__":
    main()
