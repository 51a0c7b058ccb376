"""How good are the features? kNN and linear probe on labelled images, beside the floors that a figure needs.

The test images choose nothing: k, the probe's regularisation and the preprocessing are fixed beforehand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mixsiam_hub.atomic import replacing, write_text
from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.backends.torch import load_backbone
from mixsiam_hub.errors import DataError
from mixsiam_hub.model.config import ModelConfig, Preprocessing
from mixsiam_hub.model.files import REPORT_PICTURE
from mixsiam_hub.model.hub import resolve
from mixsiam_hub.model.tensors import fingerprint
from mixsiam_hub.training.checkpoint import RECIPE_FILE, REPORT_FILE, TrainedEncoder, load_encoder
from mixsiam_hub.training.data import class_numbers, common_classes, open_images
from mixsiam_hub.training.features import clean_statistics, extract, read_batches, use_statistics
from mixsiam_hub.training.knn import knn_accuracy
from mixsiam_hub.training.loop import pick_device, pick_precision
from mixsiam_hub.training.monitor import effective_rank, raw_pixels
from mixsiam_hub.training.recipe import data_name

RAW = "raw pixels"
RANDOM = "random weights"
CLEARS_BY = 0.05
"""An encoder whose kNN is not this far above raw pixels is undertrained, and no comparison is drawn from it."""
PROBE_ITERATIONS = 1000
PROBE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Features:
    """Features of the two parts of one evaluation, with their classes.

    Attributes:
        train: (M, D) float32.
        train_labels: (M,) int64.
        test: (N, D) float32.
        test_labels: (N,) int64.
    """

    train: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test: NDArray[np.float32]
    test_labels: NDArray[np.int64]


def evaluate(model: str, train: str, test: str, out: Path | None = None) -> dict[str, Any]:
    """Evaluates an encoder and its floors, and adds the result to report.json and report.png.

    Args:
        model: A run folder, a model folder, a Hub id, or "" for the built-in encoder.
        train: Labelled images for the neighbours and the probe, as `data.open_images` reads them.
        test: Labelled images that are classified.
        out: Folder of the report; by default the run itself, or the current folder for anything else. An earlier
            result of the same `train` and `test` there is replaced, others are kept.

    Returns:
        The evaluation: sizes, the precision of the features (bf16 where the hardware computes it), and for raw pixels,
        random weights and the encoder the accuracies in [0, 1] of kNN (k = 20 and 200) and linear probe.

    Raises:
        DataError: Images without labels, or no common class.
        ModelError: No such model.
    """
    train_images, test_images = (_labelled(spec) for spec in (train, test))
    encoder, folder = _load(model)
    backbone, config, method = encoder.backbone, encoder.config, encoder.method
    rows = {
        RAW: _score(_raw(train_images, test_images, config.preprocessing)),
        RANDOM: _score(_deep(_random(config, train_images), train_images, test_images, config.preprocessing)),
    }
    before = _identity(backbone, config)
    features = _deep(backbone, train_images, test_images, config.preprocessing)
    rows[method] = _score(features)
    if _identity(backbone, config) != before:
        raise AssertionError("the evaluation changed the backbone")
    result = {
        "train": data_name(train),
        "test": data_name(test),
        "n_train": len(features.train),
        "n_test": len(features.test),
        "classes": int(features.train_labels.max()) + 1,
        "precision": _precision(),
        "rank": effective_rank(features.test[:1024]),
        "rows": rows,
        "clears_raw_pixels": rows[method]["knn20"] - rows[RAW]["knn20"] >= CLEARS_BY,
        "command": " ".join(
            [
                "mixsiam evaluate",
                *filter(None, [data_name(model)]),
                "--train",
                data_name(train),
                "--test",
                data_name(test),
            ]
        ),
        "fingerprint": before,
        "steps": encoder.provenance.get("steps"),
    }
    write_report(result, out or folder)
    return result


def write_report(result: dict[str, Any], folder: Path) -> None:
    """Puts a result into report.json, in place of an earlier one of the same data, and draws report.png anew."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / REPORT_FILE
    report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"evaluations": []}
    same = (result["train"], result["test"])
    kept = [entry for entry in report["evaluations"] if (entry["train"], entry["test"]) != same]
    report["evaluations"] = [*kept, result]
    write_text(path, json.dumps(report, indent=2) + "\n")
    _draw(report["evaluations"], folder / REPORT_PICTURE)


def linear_probe(features: Features) -> float:
    """Accuracy in [0, 1] of multinomial logistic regression on frozen, standardised features (L2, C = 1)."""
    scaler = StandardScaler().fit(features.train)
    probe = LogisticRegression(C=1.0, max_iter=PROBE_ITERATIONS, tol=PROBE_TOLERANCE)
    probe.fit(scaler.transform(features.train), features.train_labels)
    return float(probe.score(scaler.transform(features.test), features.test_labels))


def _score(features: Features) -> dict[str, float]:
    knn = knn_accuracy(features.train, features.train_labels, features.test, features.test_labels)
    return {"knn20": knn[20], "knn200": knn[200], "linear": linear_probe(features)}


def _deep(backbone: Backbone, train: ImageSet, test: ImageSet, pre: Preprocessing) -> Features:
    backbone = backbone.to(memory_format=torch.channels_last).to(pick_device())
    precision = _precision()
    return Features(
        *labelled_features(backbone, train, pre, precision), *labelled_features(backbone, test, pre, precision)
    )


def _precision() -> str:
    return pick_precision("auto", pick_device())


def _raw(train: ImageSet, test: ImageSet, pre: Preprocessing) -> Features:
    parts: list[NDArray[Any]] = []
    for images in (train, test):
        assert images.labels is not None
        batches = [(raw_pixels(pixels), positions) for pixels, positions in clean_batches(images, pre)]
        parts += [np.concatenate([b for b, _ in batches]), images.labels[np.concatenate([p for _, p in batches])]]
    return Features(*parts)


def _random(config: ModelConfig, train: ImageSet) -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone(config.architecture, config.output_stride)
    estimate_statistics(backbone, train, config.preprocessing)
    return backbone.eval()


def _load(model: str) -> tuple[TrainedEncoder, Path]:
    """Returns the encoder, and the folder that its report goes to unless another is named."""
    run = Path(model)
    if model and (run / RECIPE_FILE).is_file():
        return load_encoder(run), run
    folder = resolve(model or None)
    manifest = folder.manifest
    return TrainedEncoder(load_backbone(folder), folder.config, manifest.method, manifest.training), Path()


def _labelled(spec: str) -> ImageSet:
    images = open_images(spec)
    if images.labels is None:
        raise DataError(f"{spec} has no labels; evaluation needs a Parquet column 'label' or one sub-folder a class")
    return images


def _identity(backbone: Backbone, config: ModelConfig) -> str:
    return fingerprint({name: tensor.cpu().numpy() for name, tensor in backbone.state_dict().items()}, config)


def _draw(evaluations: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(evaluations), 3.6), layout="constrained")
    for axes, entry in zip(np.atleast_1d(figure.subplots(1, len(evaluations))), evaluations, strict=True):
        measures = ["knn20", "knn200", "linear"]
        for offset, (row, scores) in enumerate(entry["rows"].items()):
            heights = [100 * scores[measure] for measure in measures]
            bars = axes.bar(np.arange(3) + 0.27 * (offset - 1), heights, 0.25, label=row)
            axes.bar_label(bars, fmt="%.1f", fontsize=7)
        axes.set_xticks(range(3), ["kNN, k = 20", "kNN, k = 200", "linear probe"])
        axes.set_ylabel("accuracy, %")
        axes.set_title(f"{entry['test']} ({entry['n_test']:,} images)", fontsize=10)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    with replacing(path) as file:
        figure.savefig(file, dpi=150, format="png")
