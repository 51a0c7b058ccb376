"""report.json and report.png: what was measured of encoders in this folder, each on each data set once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mixsiam_hub.atomic import make_folder, replacing, write_text
from mixsiam_hub.model.figures import Evaluation, evaluations_to_json
from mixsiam_hub.model.files import REPORT_PICTURE
from mixsiam_hub.training.checkpoint import REPORT_FILE, read_report

TITLES = {"knn20": "kNN, k = 20", "knn200": "kNN, k = 200", "linear": "linear probe"}
"""Measure -> how tables and pictures call it."""


class Report:
    """The evaluations in a folder."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder, and reads what was measured before.

        Args:
            folder: Of report.json and report.png.

        Raises:
            DataError: A report.json is there, and mixsiam did not write it.
            OutputError: The folder cannot be made.
        """
        make_folder(folder)
        self.folder = folder
        self.evaluations = read_report(folder)

    def add(self, result: Evaluation) -> None:
        """Puts a result into report.json, in place of one of the same encoder and data, and draws report.png anew.

        One without linear probes takes no place of one that has them.

        Raises:
            OutputError: A file cannot be written.
        """
        same = (result.fingerprint, result.train_digest, result.test_digest)
        others = [e for e in self.evaluations if (e.fingerprint, e.train_digest, e.test_digest) != same]
        replaced = [e for e in self.evaluations if e not in others and _has_probes(e) and not _has_probes(result)]
        self.evaluations = (*others, *(replaced or [result]))
        report = json.dumps(evaluations_to_json(self.evaluations), indent=2, allow_nan=False)
        write_text(self.folder / REPORT_FILE, f"{report}\n")
        _draw(self.evaluations, self.folder / REPORT_PICTURE)


def _has_probes(evaluation: Evaluation) -> bool:
    return any(row.linear is not None for row in evaluation.rows.values())


def _draw(evaluations: Sequence[Evaluation], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2 * len(evaluations)), layout="constrained")
    axes_of = np.atleast_1d(figure.subplots(len(evaluations)))
    for axes, evaluation in zip(axes_of, evaluations, strict=True):
        step = 0.9 / len(evaluation.rows)  # Between the bars of one measure.
        for position, (row, accuracy) in enumerate(evaluation.rows.items()):
            values = [getattr(accuracy, measure) for measure in TITLES]
            shift = step * (position - (len(evaluation.rows) - 1) / 2)
            places = [measure + shift for measure, value in enumerate(values) if value is not None]
            heights = [100 * value for value in values if value is not None]
            bars = axes.bar(places, heights, 0.92 * step, label=row)
            axes.bar_label(bars, fmt="%.1f", fontsize=7)
        axes.set_xticks(range(len(TITLES)), TITLES.values())
        axes.set_ylabel("accuracy, %")
        axes.set_title(f"{evaluation.test} ({evaluation.n_test:,} images)", fontsize=10)
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    with replacing(path) as file:
        figure.savefig(file, dpi=150, format="png")
