"""How many images a second the loader gives from tars far away: read in sequence, as training does, and one by one.

The same tars here stand beside them. Far ones are indexed before anything is timed.
"""

from __future__ import annotations

import argparse
import statistics
import time

from machine import command_and_machine

from mixsiam_hub.images.sources import ImageSet
from mixsiam_hub.training.augment import Augmentation
from mixsiam_hub.training.data import open_images
from mixsiam_hub.training.order import Order
from mixsiam_hub.training.shards import ShardReader, lanes_of
from mixsiam_hub.training.views import ViewPlan, Views, make_loader

BATCH = 100
PLAN = ViewPlan(Augmentation(32))


def rate(images: ImageSet, count: int, workers: int, *, in_sequence: bool) -> float:
    """Returns the images/s of the first so many, from the start of the workers on."""
    lanes = lanes_of(images, BATCH, 0, 1, max(1, workers)) if in_sequence else None
    order = Order(len(images), BATCH, 1, 0, arrangement=lanes)
    reader = ShardReader(images, order) if lanes else None
    start, done = time.perf_counter(), 0
    for batch in make_loader(Views(images, PLAN, 0, reader), order, workers):
        done += batch.size
        if done >= count:
            break
    return done / (time.perf_counter() - start)


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("here", help="a folder of tars, or a glob")
    parser.add_argument("far", help="the same by address, as s3://bucket/*.tar")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--one-by-one", type=int, default=300, help="images of the slow way")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    here, far = open_images(arguments.here), open_images(arguments.far)
    ways = {
        "tars here": (here, arguments.images, False),
        "far away, in sequence": (far, arguments.images, True),
        "far away, one by one": (far, arguments.one_by_one, False),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, (images, count, in_sequence) in ways.items():
            rates[name].append(rate(images, count, arguments.workers, in_sequence=in_sequence))
    print(f"{command_and_machine()}\n\n| two 32 px views | images/s | slowest and fastest round |\n|---|---|---|")
    for name, found in rates.items():
        print(f"| {name} | {statistics.median(found):.0f} | {min(found):.0f} to {max(found):.0f} |")


if __name__ == "__main__":
    main()
