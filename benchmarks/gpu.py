"""What a GPU gives: steps by batch size and precision, the loader's rate, and embedding. Offline, on drawn images.

From a plain checkout, nothing installed but torch and what `mixsiam_hub` needs: PYTHONPATH=. python benchmarks/gpu.py
"""

# ruff: noqa: E402 - a plain checkout finds mixsiam_hub.training only after the line that adds it.

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

import mixsiam_hub

mixsiam_hub.__path__.append(str(Path(__file__).resolve().parent.parent))  # Where an installation puts `training`.

from machine import command_and_machine
from steps import our_batches, our_step

from mixsiam_hub import ImageEncoder
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.training.data import open_images
from mixsiam_hub.training.recipe import load_recipe

BATCH_SIZES = (64, 256, 512)
STEPS = 30
IMAGES = 2048


def seconds_of(work: Callable[[], object], times: int) -> float:
    """Returns the median seconds of work, after three times to warm up, the GPU's queue emptied each time."""
    seconds = []
    for _ in range(3 + times):
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:])


def main() -> None:
    """Prints tables in Markdown."""
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU of CUDA here")
    print(f"{command_and_machine()}, {torch.cuda.get_device_name()}\n\n| step | images/s |\n|---|---|")
    recipe = load_recipe("tiny-imagenet", ["workers=8"])
    with tempfile.TemporaryDirectory() as folder:
        for name, image in draw_samples(IMAGES).items():
            image.save(Path(folder) / name)
        images = open_images(folder)
        for size in BATCH_SIZES:
            batch = next(our_batches(images, replace(recipe, batch_size=size)))
            for precision in ("fp32", "bf16"):
                step = our_step(recipe, precision)
                rate = size / seconds_of(lambda step=step, batch=batch: step(batch), STEPS)
                print(f"| {precision}, batch {size} | {rate:.0f} |")
        batches = our_batches(images, replace(recipe, batch_size=256))
        next(batches)
        start = time.perf_counter()
        count = sum(batch.size for batch in islice(batches, 20))
        print(f"\nLoader, {recipe.workers} workers: {count / (time.perf_counter() - start):.0f} images/s")
        paths = sorted(Path(folder).iterdir())
        print("\n| embedding by torch, from files | images/s |\n|---|---|")
        for precision in ("fp32", "fp16", "bf16"):
            encoder = ImageEncoder.from_pretrained(backend="torch", device="cuda", precision=precision)
            seconds = seconds_of(lambda encoder=encoder: encoder.embed(paths, batch_size=256), 3)
            print(f"| {precision} | {len(paths) / seconds:.0f} |")


if __name__ == "__main__":
    main()
