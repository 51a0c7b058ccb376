"""Commands that train an encoder and measure it: train, evaluate."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from mixsiam_hub.atomic import make_folder
from mixsiam_hub.cli.group import EXIT_COLLAPSED, EXIT_RESUME, PATH, extra, main
from mixsiam_hub.model.files import SHEET_PICTURE


@main.command()
@click.argument("recipe")
@click.option("--data", help="Training images: a folder, Parquet files, or digits; DATA::train is a part of a split.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe.")
@click.option("--resume", is_flag=True, help="Go on with the recipe's newest run, or with the one in run_dir.")
@click.option("--preview", is_flag=True, help="Only draw x1, x2 and x_m of eight images, into preview.png.")
def train(recipe: str, data: str | None, overrides: Sequence[str], resume: bool, preview: bool) -> None:
    """Pretrain an encoder as RECIPE says: a TOML file, or the name of a shipped one, such as digits or folder."""
    with extra("train"):
        from mixsiam_hub.training import loop
        from mixsiam_hub.training.preview import preview as draw_preview
        from mixsiam_hub.training.recipe import load_recipe
    _log_to_stderr()
    chosen = load_recipe(recipe, [*overrides, *([f"data={_toml_string(data)}"] if data else [])])
    if preview:
        click.echo(f"{draw_preview(chosen, Path('preview.png'))}: views and mixtures of eight images")
        return
    outcome = loop.train(chosen, resume=resume)
    if outcome.interrupted:
        if _is_first_process():
            click.echo(f"{outcome.run}: told to stop, with a checkpoint; go on with --resume", err=True)
        sys.exit(EXIT_RESUME)
    if _is_first_process():
        click.echo(f"{outcome.run}: {'' if outcome.finished else 'stopped early; '}{outcome.summary}")
    if outcome.verdict == "collapsed":
        sys.exit(EXIT_COLLAPSED)


@main.command()
@click.argument("model", required=False)
@click.option("--train", "train_data", help="Labelled images: a Parquet set, or a folder a class.")
@click.option("--test", "test_data", help="Labelled images to classify; nothing is tuned on them.")
@click.option("--images", help="In place of these two, images without labels.")
@click.option("--probe", type=click.Choice(("linear", "none")), default="linear", show_default=True)
@click.option("--out", type=PATH, help="Folder for what it writes. Default: the run, or here.")
def evaluate(
    model: str | None,
    train_data: str | None,
    test_data: str | None,
    images: str | None,
    probe: str,
    out: Path | None,
) -> None:
    """Measure MODEL, a run or a model folder, beside raw pixels and random weights.

    With labels: kNN and linear probe, into report.json and report.png. Without: the effective rank of the vectors,
    alignment and uniformity, and neighbours.png to look at.
    """
    if images and not (train_data or test_data):
        _describe(model or "", images, out)
    elif train_data and test_data and not images:
        _classify(model or "", train_data, test_data, probe == "linear", out)
    else:
        raise click.UsageError("give --train and --test, or --images")


def _describe(model: str, images: str, out: Path | None) -> None:
    with extra("train"):
        from mixsiam_hub.training.networks import report_folder
        from mixsiam_hub.training.unlabelled import describe
    folder = out or report_folder(model)
    make_folder(folder)
    rows = describe(model, images, folder / SHEET_PICTURE)
    click.echo(" " * 24 + "".join(f"{title:>16}" for title in ("effective rank", "alignment", "uniformity")))
    for name, row in rows.items():
        click.echo(f"{name:<24}{row.rank:>16.1f}{row.alignment:>16.3f}{row.uniformity:>16.3f}")
    click.echo(f"{folder / SHEET_PICTURE}: eight images and their neighbours")


def _classify(model: str, train_data: str, test_data: str, probe: bool, out: Path | None) -> None:
    with extra("train"):
        from mixsiam_hub.training import evaluate as evaluation
        from mixsiam_hub.training.networks import report_folder
        from mixsiam_hub.training.report import TITLES, Report
    report = Report(out or report_folder(model))
    result = evaluation.evaluate(model, train_data, test_data, probe=probe)
    click.echo(f"{result.test}: {result.n_test} images, {result.n_train} for training, accuracy in %")
    click.echo(" " * 24 + "".join(f"{title:>14}" for title in TITLES.values()))
    for name, accuracy in result.rows.items():
        values = (getattr(accuracy, measure) for measure in TITLES)
        cells = ("-" if value is None else f"{100 * value:.1f}" for value in values)
        click.echo(f"{name:<24}" + "".join(f"{cell:>14}" for cell in cells))
    if not result.clears_raw_pixels:
        click.echo(f"undertrained: kNN (k = 20) is less than 5 points above {result.floor}; draw no comparison from it")
    report.add(result)  # Last: whatever becomes of it, the figures are on the screen.


def _toml_string(text: str) -> str:
    """Returns text as a string of TOML, which is as JSON's, but with DEL escaped and no surrogate pairs."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")


def _log_to_stderr() -> None:
    import logging

    level = logging.INFO if _is_first_process() else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)


def _is_first_process() -> bool:
    """Whether this is the only process, or the first that torchrun started: one speaks for all."""
    return os.environ.get("RANK", "0") == "0"
