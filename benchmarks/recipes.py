r"""What learns fastest: recipes trained for equal core time on training images, compared by kNN on held-out parts.

Each candidate is the recipe with some keys changed, and learns for the same core-seconds in one process of one thread,
its data included; its learning rate follows a cosine of the time, so that none is compared half-way. Rows are added to
a file as they are measured, and what stands there is not measured again: more minutes for the best are a second call.

    python benchmarks/recipes.py tiny-imagenet --data DATA --also cifar10/train.parquet --minutes 10 \
        --rows runs/recipes.jsonl "" "views=4" "views=4 view_size=48"
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import command_and_machine
from numpy.typing import NDArray
from steps import our_batches
from tqdm import tqdm

from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.images.sources import ImageSet
from mixsiam_hub.model.config import Preprocessing
from mixsiam_hub.training.data import class_numbers, common_classes, open_images, sample
from mixsiam_hub.training.features import clean_statistics, extract, in_batches, read_batches, use_statistics
from mixsiam_hub.training.head import MAX_DIM, behind, moments_of, whitening
from mixsiam_hub.training.init import load_init, with_shape_of_init
from mixsiam_hub.training.knn import knn_accuracy
from mixsiam_hub.training.machine import pick_precision
from mixsiam_hub.training.monitor import effective_rank, raw_pixels
from mixsiam_hub.training.recipe import Recipe, data_name, load_recipe
from mixsiam_hub.training.step import HEADS_FIRST, Step, cosine_lr, make_model, make_optimiser

BANK_IMAGES = 10_000
QUERY_IMAGES = 4_000
NEIGHBOURS = 20
FLOOR = "raw pixels"

Row = dict[str, Any]


class Judge:
    """kNN accuracy, plain and whitened, on the held-out part of one labelled training set."""

    def __init__(self, data: str, pre: Preprocessing) -> None:
        """Decodes random images of `data`::train, the neighbours, and of `data`::val, to be classified."""
        self.name, self.pre = data_name(data), pre
        bank = sample(open_images(f"{data}::train"), BANK_IMAGES)
        queries = sample(open_images(f"{data}::val"), QUERY_IMAGES)
        classes = common_classes(bank, queries)
        self._labels = [class_numbers(images, classes) for images in (bank, queries)]
        self._pixels = [np.concatenate([batch.pixels for batch in read_batches(part, pre)]) for part in (bank, queries)]

    def floor(self) -> Row:
        """Returns the accuracies of raw pixels."""
        return self._accuracies([raw_pixels(part) for part in self._pixels])

    def judge(self, backbone: Backbone, precision: str) -> Row:
        """Returns the accuracies of an encoder, and the effective rank of its features."""
        features = [extract(backbone, in_batches(part), self.pre, precision) for part in self._pixels]
        return self._accuracies(features) | {"rank": effective_rank(features[1][:1024])}

    def _accuracies(self, features: Sequence[NDArray[np.float32]]) -> Row:
        head = whitening(moments_of(features[0]), min(MAX_DIM, features[0].shape[1]))
        return {"plain": self._knn(features), "whitened": self._knn([behind(head, part) for part in features])}

    def _knn(self, features: Sequence[NDArray[np.float32]]) -> float:
        bank, queries = features
        return knn_accuracy(bank, self._labels[0], queries, self._labels[1], [NEIGHBOURS])[NEIGHBOURS]


def learn(recipe: Recipe, images: ImageSet, seconds: float, precision: str) -> tuple[Backbone, Row]:
    """Trains for so many core-seconds; returns the backbone as it would be shipped, and what was seen."""
    model = make_model(recipe)
    if recipe.init:
        load_init(model.backbone, recipe)
    step = Step(recipe, model, make_optimiser(model, recipe), precision)
    started, seen, loss = time.process_time(), 0, 0.0
    with tqdm(total=round(seconds), unit="core-s", desc=recipe.name, disable=None) as bar:
        for batch in our_batches(images, recipe):
            used = time.process_time() - started
            if used >= seconds:
                break
            is_for_heads = bool(recipe.init) and seen < HEADS_FIRST * batch.size and used < seconds / 5
            if (out := step(batch, cosine_lr(used, seconds, recipe.peak_lr), heads_alone=is_for_heads)) is not None:
                seen, loss = seen + batch.size, float(out.loss.detach())
            bar.update(round(used) - bar.n)
    use_statistics(model.backbone, clean_statistics(model.backbone, images, recipe.model_config.preprocessing))
    return model.backbone, {"images": seen, "loss": loss}


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yields a row for each candidate that the file has none of yet."""
    known = {(row["candidate"], row["minutes"]) for row in _rows(arguments.rows)}
    judges: list[Judge] = []
    for candidate in [FLOOR, *arguments.candidates]:
        minutes = 0 if candidate == FLOOR else arguments.minutes
        if (candidate, minutes) in known:
            continue
        changed = [] if candidate == FLOOR else shlex.split(candidate)
        recipe = with_shape_of_init(load_recipe(arguments.recipe, [f"data={arguments.data}", *changed]))
        pre = recipe.model_config.preprocessing
        if not judges or judges[0].pre != pre:
            judges = [Judge(data, pre) for data in (arguments.data, *arguments.also)]
        row: Row = {"candidate": candidate, "minutes": minutes, "images": 0}
        if candidate == FLOOR:
            yield row | {judge.name: judge.floor() for judge in judges}
            continue
        recipe = replace(recipe, name=candidate.replace("/", " ") or "as it is", workers=0)
        precision = pick_precision(recipe.precision, torch.device("cpu"))
        backbone, seen = learn(recipe, open_images(f"{arguments.data}::train"), 60 * minutes, precision)
        yield row | seen | {judge.name: judge.judge(backbone, precision) for judge in judges}


def _rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yields the lines of a table in Markdown, the best of each length first."""
    sets = [key for key, value in rows[0].items() if isinstance(value, dict)]
    columns = [f"{name}, {kind}" for name in sets for kind in ("plain", "whitened")]
    yield f"| core-minutes | images | {' | '.join(columns)} | rank | candidate |"
    yield "|---" * (len(columns) + 4) + "|"
    for row in sorted(rows, key=lambda row: (row["minutes"], -sum(row[name]["whitened"] for name in sets))):
        figures = [f"{100 * row[name][kind]:.1f}" for name in sets for kind in ("plain", "whitened")]
        rank = f"{row[sets[0]]['rank']:.0f}" if "rank" in row[sets[0]] else ""
        name = row["candidate"] if row["candidate"] == FLOOR else f"`{row['candidate'] or 'as it is'}`"
        yield f"| {row['minutes']:g} | {row['images']:,} | {' | '.join(figures)} | {rank} | {name} |"


def main() -> None:
    """Measures what is missing and prints the table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="to start from")
    parser.add_argument("candidates", nargs="*", help='keys to change, "views=4 lr=0.1"; "" for none')
    parser.add_argument("--data", required=True, help="labelled training images, as mixsiam train takes them")
    parser.add_argument("--also", action="append", default=[], help="another set to measure the kNN on")
    parser.add_argument("--minutes", type=float, default=10, help="core-minutes of each")
    parser.add_argument("--rows", type=Path, required=True, help="file of what was measured, .jsonl")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    arguments.rows.parent.mkdir(parents=True, exist_ok=True)
    for row in measure(arguments):
        with arguments.rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    print(command_and_machine(), "\n")
    print("\n".join(table(_rows(arguments.rows))))


if __name__ == "__main__":
    main()
