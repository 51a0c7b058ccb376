"""Run folders: a new one belongs to one run only; an earlier one is resumed with the same recipe and the same data."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from mixsiam_hub.atomic import write_text
from mixsiam_hub.errors import DataError, OutputError, RecipeError
from mixsiam_hub.images.sources import ImageSet
from mixsiam_hub.training.checkpoint import RECIPE_FILE, run_recipe
from mixsiam_hub.training.recipe import OF_INIT, OF_INIT_KEYS, Recipe

RUNS = Path("runs")
CAN_CHANGE = {"workers", "checkpoint_minutes", "run_dir", "stop_after", "data_terms"}
"""Recipe keys that a resume may change: they do not touch the result."""


@contextmanager
def new_run(recipe: Recipe) -> Iterator[Path]:
    """Makes the folder of a new run and writes the recipe into it; both go again if the body fails.

    The folder is `run_dir`, or runs/NAME-DATE, with -2, -3 and so on behind it where runs start in the same second.

    Args:
        recipe: The run's.

    Raises:
        DataError: `run_dir` holds files already.
        OutputError: The folder cannot be made or written.
    """
    is_ours = True
    if recipe.run_dir:
        run = Path(recipe.run_dir)
        is_ours = _make(run)
    else:
        run = next(path for path in _numbered(f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}") if _make(path))
    _check_empty(run)
    with _output_errors(run):
        (run / RECIPE_FILE).touch(exist_ok=False)  # Another run may have found the same folder empty.
    try:
        write_text(run / RECIPE_FILE, recipe.to_toml())
        yield run
    except BaseException:
        with suppress(OSError):
            (run / RECIPE_FILE).unlink(missing_ok=True)
            if is_ours:
                run.rmdir()
            if not recipe.run_dir:
                RUNS.rmdir()  # Only where it is empty.
        raise


def find_run(recipe: Recipe) -> Path:
    """Returns the folder of the run to resume: `run_dir`, or the newest of the recipe's name.

    Args:
        recipe: As the run was started with, but for the keys in CAN_CHANGE.

    Raises:
        DataError: There is no such run.
        RecipeError: It was started with another recipe.
    """
    runs = [Path(recipe.run_dir)] if recipe.run_dir else _runs_of(recipe.name)
    runs = [run for run in runs if _has_recipe(run)]
    if not runs:
        raise DataError(f"no run of {recipe.name} to resume; leave --resume out, or --set run_dir=FOLDER")
    run = runs[-1]
    stored, given = asdict(run_recipe(run)), asdict(recipe)
    given["epochs"] = given["epochs"] or stored["epochs"]
    if recipe.backbone == OF_INIT:
        given |= {key: stored[key] for key in OF_INIT_KEYS}
    if different := sorted(key for key in given if key not in CAN_CHANGE and given[key] != stored[key]):
        raise RecipeError(f"{run} was started with another {', '.join(different)}; see its {RECIPE_FILE}")
    return run


def data_identity(train: ImageSet, val: ImageSet | None) -> dict[str, Any]:
    """Returns which images a run works on: of `data` and `val_data` their number, and a sha256 of names and sizes."""
    sets = {"data": train} | ({"val_data": val} if val is not None else {})
    return {key: {"images": len(images), "sha256": images.identity} for key, images in sets.items()}


def check_data(run: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Checks that a run goes on with the images that it started with: epochs and schedule hang on their number.

    Args:
        run: The run's folder.
        before: From its checkpoint.
        now: As `data_identity` returns it.

    Raises:
        DataError: They differ; says how, and how training goes on.
    """
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        raise DataError(
            f"{run} was started with {key} of {_images(old)}, and now there are {_images(new)}; bring the first ones "
            f"back, or go on in a new run: mixsiam export {run} FOLDER --license ID, then mixsiam train with --set "
            "init=FOLDER"
        )


def _images(identity: dict[str, Any] | None) -> str:
    if identity is None:
        return "no labelled images"
    return f"{identity['images']} images (names and sizes: sha256 {identity['sha256'][:12]})"


def _runs_of(name: str) -> list[Path]:
    """Returns the run folders of a recipe, the oldest first; runs/NAME-long-DATE is another recipe's."""
    pattern = re.compile(re.escape(name) + r"-(\d{8}-\d{6})(?:-(\d+))?")
    found = [(match, path) for path in RUNS.glob("*") if (match := pattern.fullmatch(path.name))]
    return [path for match, path in sorted(found, key=lambda one: (one[0][1], int(one[0][2] or 1)))]


def _has_recipe(run: Path) -> bool:
    """False too where the run was killed in the very moment of writing its recipe."""
    try:
        return os.path.getsize(run / RECIPE_FILE) > 0
    except OSError:
        return False


def _numbered(name: str) -> Iterator[Path]:
    yield RUNS / name
    for number in count(2):
        yield RUNS / f"{name}-{number}"


def _make(run: Path) -> bool:
    """Makes a folder and those above it; False where something of that name exists."""
    with _output_errors(run):
        try:
            run.mkdir(parents=True)
        except FileExistsError:
            return False
    return True


def _check_empty(run: Path) -> None:
    with _output_errors(run):
        if any(run.iterdir()):
            raise FileExistsError


@contextmanager
def _output_errors(run: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise DataError(f"{run} is not empty; add --resume to go on with it, or choose another run_dir") from None
    except OSError as error:
        raise OutputError(f"{run} cannot be a run's folder: {error.strerror}; set run_dir to another") from error
