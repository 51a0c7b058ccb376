"""Does MixSiam improve SimSiam? Both trained on CIFAR-10 alike, several seeds, then measured once on its test images.

    python benchmarks/mixsiam_vs_simsiam.py DATA --epochs 30          # for days; stopped, the same command goes on
    python benchmarks/mixsiam_vs_simsiam.py DATA --epochs 30 --test   # when all choices are made

DATA holds train.parquet and test.parquet. Without `--test` no test image is read: the log of each run has kNN on a
tenth of the training images that it does not learn from. `--test` measures each finished run once, prints the table and
draws it by epoch and by minute.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from machine import command_and_machine
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from mixsiam_hub.atomic import replacing
from mixsiam_hub.images.sources import ImageSet
from mixsiam_hub.model.config import Preprocessing
from mixsiam_hub.training.data import class_numbers, common_classes, open_images
from mixsiam_hub.training.evaluate import evaluate
from mixsiam_hub.training.features import extract, in_batches, read_batches
from mixsiam_hub.training.head import behind
from mixsiam_hub.training.knn import knn_accuracy
from mixsiam_hub.training.loop import train
from mixsiam_hub.training.networks import evaluation_precision, find_encoder, on_device
from mixsiam_hub.training.recipe import load_recipe

BETTER = ("coding_rate=0.25", "batch_size=128", "lr=1.2", "weight_decay=1e-4")
"""What learned fastest from random weights in 15 minutes of one core: benchmarks/training.md has the others."""
COMPARED: Mapping[str, tuple[str, ...]] = {
    "SimSiam": ("method=simsiam",),
    "SimSiam, as long as MixSiam": ("method=simsiam",),
    "MixSiam": (),
    "SimSiam, better recipe": ("method=simsiam", *BETTER),
    "SimSiam, better recipe, as long as MixSiam": ("method=simsiam", *BETTER),
    "MixSiam, better recipe": BETTER,
}
ABLATIONS: Mapping[str, tuple[str, ...]] = {
    "MixSiam, target max-centred": ("target=max-centred",),
    "MixSiam, target mean": ("target=mean",),
    "MixSiam, w = 0.5": ("w=0.5",),
    "MixSiam, w = 2": ("w=2",),
    "MixSiam, cutmix": ("mixture=cutmix",),
    "MixSiam, own predictor": ("predictors=own",),
}
"""Of one seed."""
EVERY = (*COMPARED, *ABLATIONS)
MIXSIAM_COST = 1.5
"""Time of a step of MixSiam over SimSiam's: three forward passes over two. Longer runs have so many more epochs."""
K = 20

Pixels = NDArray[np.uint8]
Row = dict[str, Any]


def each_image(change: Callable[[Image.Image], Image.Image]) -> Callable[[Pixels], Pixels]:
    """Returns what changes each of (N, S, S, 3) pixels as `change` does."""
    return lambda pixels: np.stack([np.asarray(change(Image.fromarray(image))) for image in pixels])


def noisy(pixels: Pixels) -> Pixels:
    """Adds Gaussian noise of 25 grey levels."""
    noise = np.random.default_rng(0).normal(0, 25, pixels.shape)
    return (pixels + noise).clip(0, 255).round().astype(np.uint8)


def compressed(image: Image.Image) -> Image.Image:
    """Returns the image after JPEG of quality 10."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=10)
    return Image.open(file).convert("RGB")


DISTORTIONS: Mapping[str, Callable[[Pixels], Pixels]] = {
    "clean": lambda pixels: pixels,
    "noise": noisy,
    "blur": each_image(lambda image: image.filter(ImageFilter.GaussianBlur(2))),
    "contrast": each_image(lambda image: ImageEnhance.Contrast(image).enhance(0.4)),
    "JPEG": each_image(compressed),
}


def chosen(arguments: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """Returns those of the names that `--only` leaves, in their order."""
    return [name for name in names if name in arguments.only]


def plan(arguments: argparse.Namespace) -> Iterator[tuple[str, int, list[str]]]:
    """Yields name, seed and overrides of every run, the first seed of all before the second of any."""
    for seed in range(arguments.seeds):
        for name in chosen(arguments, COMPARED):
            longer = MIXSIAM_COST if name.endswith("as long as MixSiam") else 1
            yield name, seed, [*COMPARED[name], f"epochs={round(arguments.epochs * longer)}"]
    for name in chosen(arguments, ABLATIONS):
        yield name, 0, [*ABLATIONS[name], f"epochs={arguments.epochs}"]


def folder_of(arguments: argparse.Namespace, name: str, seed: int) -> Path:
    """Returns the folder of a run."""
    words = "".join(letter if letter.isalnum() else " " for letter in name.lower()).split()
    return Path(arguments.runs, f"{'-'.join(words)}-seed{seed}")


def log_of(run: Path) -> list[Row]:
    """Returns the lines of a run's log; none before it has begun."""
    path = run / "log.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def learn(arguments: argparse.Namespace) -> bool:
    """Trains every run to its end; returns False where it was told to stop."""
    for name, seed, keys in plan(arguments):
        run = folder_of(arguments, name, seed)
        data = f"{arguments.data}/train.parquet"
        own = [f"data={data}::train", f"val_data={data}::val", f"seed={seed}", f"run_dir={run}", "stop_after=0"]
        recipe = load_recipe("cifar10", [*arguments.set, *keys, *own])
        lines = log_of(run)
        if lines and lines[-1]["epoch"] == recipe.epochs:
            continue
        print(f"{run}: {name}, seed {seed}, {recipe.epochs} epochs", flush=True)
        if train(recipe, resume=run.exists()).interrupted:
            return False
    return True


def measured(arguments: argparse.Namespace) -> list[Row]:
    """Returns what the test images say of each run; what the file of rows has is not measured again."""
    path = Path(arguments.runs, "rows.jsonl")
    rows: list[Row] = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    train_data, test_data = (f"{arguments.data}/{part}.parquet" for part in ("train", "test"))
    robust = None
    for name, seed, _ in plan(arguments):
        run = folder_of(arguments, name, seed)
        if any(row["run"] == run.name for row in rows):
            continue
        robust = robust or Robustness(open_images(train_data), open_images(test_data))
        found = evaluate(str(run), train_data, test_data).to_json()
        rows.append({"run": run.name, "name": name, "seed": seed, "rows": found["rows"], "robust": robust.of(run)})
        with replacing(path) as file:
            file.write("".join(f"{json.dumps(row)}\n" for row in rows).encode())
    return rows


class Robustness:
    """kNN accuracy of distorted test images among clean training images."""

    def __init__(self, train_images: ImageSet, test_images: ImageSet) -> None:
        """Takes the two sets; they are decoded for the first run that is measured."""
        classes = common_classes(train_images, test_images)
        self._sets = train_images, test_images
        self._labels = [class_numbers(images, classes) for images in self._sets]
        self._pixels: list[Pixels] = []

    def of(self, run: Path) -> dict[str, dict[str, float]]:
        """Returns distortion -> accuracy by the pooled features and, as `embedding`, behind the head."""
        encoder = find_encoder(str(run))
        backbone, pre = on_device(encoder.backbone), encoder.config.preprocessing
        self._pixels = self._pixels or [_decoded(images, pre) for images in self._sets]
        bank = extract(backbone, in_batches(self._pixels[0]), pre, evaluation_precision())
        accuracies: dict[str, dict[str, float]] = {}
        for name, distort in DISTORTIONS.items():
            queries = extract(backbone, in_batches(distort(self._pixels[1])), pre, evaluation_precision())
            pairs = {"pooled": (bank, queries)}
            if backbone.fc is not None:
                pairs["embedding"] = (behind(backbone.fc, bank), behind(backbone.fc, queries))
            accuracies[name] = {
                which: knn_accuracy(a, self._labels[0], b, self._labels[1], [K])[K] for which, (a, b) in pairs.items()
            }
        return accuracies


def _decoded(images: ImageSet, pre: Preprocessing) -> Pixels:
    return np.concatenate([batch.pixels for batch in read_batches(images, pre)])


def table(arguments: argparse.Namespace, rows: list[Row]) -> Iterator[str]:
    """Yields the tables as Markdown: accuracies in %, the mean over seeds and, behind ±, their standard deviation."""
    columns = [(row, measure) for row in ("pooled", "embedding") for measure in ("knn20", "knn200", "linear")]
    yield f"| | minutes | {' | '.join(' '.join(column) for column in columns)} |"
    yield "|---" * (len(columns) + 2) + "|"
    for name in chosen(arguments, EVERY):
        mine = [row for row in rows if row["name"] == name]
        minutes = [log_of(Path(arguments.runs, row["run"]))[-1]["seconds"] / 60 for row in mine]
        cells = [_spread([row["rows"].get(which, {}).get(measure) for row in mine]) for which, measure in columns]
        yield f"| {name} | {statistics.mean(minutes):.0f} | {' | '.join(cells)} |"
    for floor in ("raw pixels", "raw pixels, whitened", "random weights", "random weights, whitened"):
        found = rows[0]["rows"].get(floor, {})
        cells = ["" if (value := found.get(measure)) is None else f"{100 * value:.1f}" for _, measure in columns[:3]]
        yield f"| {floor} | 0 | {' | '.join(cells)} | | | |"
    yield ""
    yield f"| kNN, k = {K}, behind the head | {' | '.join(DISTORTIONS)} |"
    yield "|---" * (len(DISTORTIONS) + 1) + "|"
    for name in chosen(arguments, EVERY):
        mine = [row["robust"] for row in rows if row["name"] == name]
        cells = [_spread([robust[kind].get("embedding") for robust in mine]) for kind in DISTORTIONS]
        yield f"| {name} | {' | '.join(cells)} |"


def _spread(found: list[float | None]) -> str:
    """Returns the mean and the spread; nothing where a value is missing, as of an encoder without a head."""
    values = [value for value in found if value is not None]
    if len(values) < len(found):
        return ""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def draw(arguments: argparse.Namespace, path: Path) -> None:
    """Draws kNN on the held-out tenth by epoch and by minute: the mean over seeds, their spread, and raw pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for name in chosen(arguments, COMPARED):
        logs = [log_of(folder_of(arguments, name, seed)) for seed in range(arguments.seeds)]
        curves = np.array([[line["health"][f"knn{K}"] for line in log[1:]] for log in logs])
        minutes = np.array([[line["seconds"] / 60 for line in log[1:]] for log in logs]).mean(axis=0)
        for axis, x in zip(axes, (np.arange(1, curves.shape[1] + 1), minutes), strict=True):
            axis.plot(x, 100 * curves.mean(axis=0), label=name)
            axis.fill_between(x, 100 * curves.min(axis=0), 100 * curves.max(axis=0), alpha=0.2)
    floor = 100 * logs[0][0]["raw_pixel_knn"][str(K)]
    for axis, label in zip(axes, ("epochs", "minutes"), strict=True):
        axis.axhline(floor, color="grey", linestyle=":", label="raw pixels")
        axis.set_xlabel(label)
    axes[0].set_ylabel(f"kNN (k = {K}) on held-out training images, %")
    axes[0].legend(fontsize=7)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)


def main() -> None:
    """Trains what is not trained yet, and with `--test` measures it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the folder of CIFAR-10's train.parquet and test.parquet")
    parser.add_argument("--runs", default="runs/compare", help="where the runs are kept")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of every run, as view_size=32")
    parser.add_argument("--only", action="append", choices=EVERY, help="of all runs; for one on each core, say")
    parser.add_argument("--test", action="store_true", help="measure on the test images, once all choices are made")
    arguments = parser.parse_args()
    arguments.only = arguments.only or EVERY
    if not learn(arguments):
        raise SystemExit(75)
    if arguments.test:
        print(f"{command_and_machine()}\n", *table(arguments, measured(arguments)), sep="\n")
        if chosen(arguments, COMPARED):
            picture = Path(arguments.runs, "compare.png")
            draw(arguments, picture)
            print(f"\n{picture}")


if __name__ == "__main__":
    main()
