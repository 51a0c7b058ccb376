"""report.json: one entry for each encoder and pair of data sets, and nobody else's file is overwritten."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("sklearn", reason="needs the extra train")
pytest.importorskip("matplotlib", reason="needs the extra train")

from mixsiam_hub.cli import main
from mixsiam_hub.errors import DataError, OutputError
from mixsiam_hub.model.figures import Accuracy, Evaluation
from mixsiam_hub.training import evaluate as evaluation
from mixsiam_hub.training.report import Report

ENTRY = Evaluation(
    train="pets/train",
    test="pets/test",
    n_train=90,
    n_test=10,
    classes=3,
    precision="fp32",
    rank=12.5,
    rows={name: Accuracy(0.5, 0.25, 0.75) for name in ("raw pixels", "random weights", "mixsiam")},
    clears_raw_pixels=False,
    command="mixsiam evaluate",
    fingerprint="a" * 64,
    train_digest="1" * 64,
    test_digest="2" * 64,
)


def test_each_encoder_and_data_set_stands_once(tmp_path: Path) -> None:
    others = [
        replace(ENTRY, test_digest="3" * 64),  # Other images in a folder of the same name.
        replace(ENTRY, train_digest="4" * 64),
        replace(ENTRY, fingerprint="b" * 64),  # Another encoder, on the same images.
    ]
    for entry in (ENTRY, *others, replace(ENTRY, n_test=11)):
        Report(tmp_path).add(entry)
    assert Report(tmp_path).evaluations == (*others, replace(ENTRY, n_test=11))
    unprobed = replace(ENTRY, n_test=12, rows={name: replace(row, linear=None) for name, row in ENTRY.rows.items()})
    Report(tmp_path).add(unprobed)  # Its figures of kNN are known already, and what was measured by probes stays.
    assert Report(tmp_path).evaluations == (*others, replace(ENTRY, n_test=11))
    Report(tmp_path).add(replace(unprobed, fingerprint="c" * 64))
    assert Report(tmp_path).evaluations[-1] == replace(unprobed, fingerprint="c" * 64)
    assert (tmp_path / "report.png").stat().st_size > 10_000
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.png"}


@pytest.mark.parametrize("foreign", ["{}x", '{"coverage": 0.9}', '{"evaluations": [{"train": "a"}]}', "[]"])
def test_a_foreign_report_is_an_error_and_stays(tmp_path: Path, foreign: str) -> None:
    (tmp_path / "report.json").write_text(foreign)
    with pytest.raises(DataError, match=r"report\.json.*move it away"):
        Report(tmp_path)
    assert (tmp_path / "report.json").read_text() == foreign


def run_evaluate(folder: Path) -> tuple[int, str]:
    options = ["evaluate", "--train", "pets/train", "--test", "pets/test", "--out", str(folder)]
    outcome = CliRunner().invoke(main, options)
    return outcome.exit_code, outcome.output


def test_a_foreign_report_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "evaluate", lambda *arguments, **options: pytest.fail("the work began"))
    (tmp_path / "report.json").write_text('{"coverage": 0.9}')
    code, output = run_evaluate(tmp_path)
    assert (code, output.count("\n")) == (1, 1)


def test_figures_are_shown_even_if_the_report_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Report, result: Evaluation) -> None:
        raise OutputError("report.json cannot be written: No space left on device")

    monkeypatch.setattr(evaluation, "evaluate", lambda *arguments, **options: ENTRY)
    monkeypatch.setattr(Report, "add", full)
    code, output = run_evaluate(tmp_path)
    assert code == 1
    assert "mixsiam                           50.0          25.0          75.0" in output
    assert "error: report.json cannot be written: No space left on device" in output


HEADED = replace(
    ENTRY,
    rows={
        "embedding": Accuracy(0.5, 0.25, 0.75),
        "first 64 of it": Accuracy(0.5, 0.25),
        "pooled": Accuracy(0.5, 0.25, 0.75),
        "raw pixels": Accuracy(0.5, 0.25, 0.75),
        "raw pixels, whitened": Accuracy(0.5, 0.25),
        "random weights": Accuracy(0.5, 0.25, 0.75),
        "random weights, whitened": Accuracy(0.5, 0.25),
    },
)


def test_a_measure_that_was_not_taken_is_a_dash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "evaluate", lambda *arguments, **options: HEADED)
    code, output = run_evaluate(tmp_path)
    assert code == 0
    assert "embedding                         50.0          25.0          75.0\n" in output
    assert "random weights, whitened          50.0          25.0             -\n" in output
    assert "less than 5 points above raw pixels, whitened;" in output
    assert Report(tmp_path).evaluations == (HEADED,)


def test_the_picture_has_a_panel_for_each_data_set_and_a_bar_for_each_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (drawn.append(figure), save(figure, *a, **k)))
    Report(tmp_path).add(HEADED)
    Report(tmp_path).add(replace(ENTRY, test_digest="3" * 64))
    panels = [[len(bars) for bars in axes.containers] for axes in drawn[-1].axes]
    assert panels == [[3, 2, 3, 3, 2, 3, 2], [3, 3, 3]]
    for axes in drawn[-1].axes:
        edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches)
        assert all(right <= left for (_, right), (left, _) in pairwise(edges))
