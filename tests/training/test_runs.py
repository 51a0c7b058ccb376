"""A run folder belongs to one run, is found again by name and date, and goes on with its own images only."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra train")

from mixsiam_hub.errors import DataError, MixsiamError, OutputError, RecipeError
from mixsiam_hub.images.sources import open_source
from mixsiam_hub.training import runs
from mixsiam_hub.training.recipe import Recipe
from mixsiam_hub.training.runs import check_data, data_identity, find_run, new_run

RECIPE = Recipe(name="photos", epochs=3)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def frozen(_: str) -> str:
    """Stands in for time.strftime: every run starts in the same second."""
    return "20260102-030405"


def start(recipe: Recipe = RECIPE) -> Path:
    with new_run(recipe) as run:
        return run


def test_a_run_is_named_after_recipe_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", frozen)
    run = start()
    assert run == Path("runs/photos-20260102-030405")
    assert [path.name for path in run.iterdir()] == ["recipe.toml"]


def test_runs_of_one_second_have_a_folder_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", frozen)
    at_once = threading.Barrier(8)

    def begin(number: int) -> Path:
        at_once.wait(60)
        return start(replace(RECIPE, seed=number))

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(begin, range(8)))
    stem = "photos-20260102-030405"
    assert sorted(run.name for run in made) == [stem, *(f"{stem}-{i}" for i in range(2, 9))]
    for number, run in enumerate(made):
        assert f"seed = {number}\n" in (run / "recipe.toml").read_text()


def _begin_in_process(folder: str, results: Any) -> None:
    os.chdir(folder)
    try:
        results.put(str(start(replace(RECIPE, run_dir="mine"))))
    except DataError as error:
        results.put(str(error))


def test_two_processes_do_not_share_a_run_dir(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_begin_in_process, args=(str(tmp_path), results)) for _ in range(2)]
    for process in processes:
        process.start()
    told = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    assert told[0] == "mine"
    assert "mine is not empty" in told[1]


def test_the_newest_run_of_exactly_this_name_is_resumed() -> None:
    names = [
        "photos-20260102-030405",
        "photos-20260102-030405-2",
        "photos-20260102-030405-10",
        "photos-20251231-235959",
    ]
    others = ["photos-long-20270101-000000", "photos-20270101-000000-old", "photos-backup"]
    for name in names + others:
        start(replace(RECIPE, run_dir=f"runs/{name}"))
    Path("runs/photos-20270101-000000").mkdir()  # Of a run that was killed before it had written anything.
    assert find_run(RECIPE) == Path("runs/photos-20260102-030405-10")


def test_a_run_folder_that_two_find_empty_goes_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have looked before either writes."""
    Path("mine").mkdir()
    both_looked = threading.Barrier(2)
    check = runs._check_empty

    def check_together(run: Path) -> None:
        check(run)
        both_looked.wait(60)

    monkeypatch.setattr(runs, "_check_empty", check_together)

    def begin(number: int) -> str:
        try:
            return str(start(replace(RECIPE, run_dir="mine", seed=number)))
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        told = sorted(pool.map(begin, range(2)))
    assert told[0] == "mine"
    assert "mine is not empty" in told[1]
    assert Path("mine/recipe.toml").is_file()


def test_only_runs_of_other_names_are_none() -> None:
    start(replace(RECIPE, name="photos-long"))
    with pytest.raises(DataError, match="no run of photos to resume"):
        find_run(RECIPE)


def test_special_letters_in_a_name_are_letters() -> None:
    name = "a+b [1] (x)"
    run = start(replace(RECIPE, name=name))
    assert find_run(replace(RECIPE, name=name)) == run


def test_another_recipe_is_refused() -> None:
    start()
    with pytest.raises(RecipeError, match="another lr"):
        find_run(replace(RECIPE, lr=0.5))
    assert find_run(replace(RECIPE, epochs=0, workers=7)).name.startswith("photos-")


@pytest.mark.parametrize("error", [DataError("no images"), KeyboardInterrupt()])
def test_what_fails_before_the_first_step_leaves_no_folder(error: BaseException) -> None:
    with pytest.raises(type(error)), new_run(RECIPE):
        raise error
    assert list(Path().iterdir()) == []


def test_what_fails_leaves_other_runs_alone() -> None:
    other = start()
    with pytest.raises(DataError, match="no images"), new_run(RECIPE):
        raise DataError("no images")
    assert list(Path("runs").iterdir()) == [other]


def test_a_folder_that_was_there_stays_when_the_run_fails() -> None:
    Path("mine").mkdir()
    with pytest.raises(DataError, match="no images"), new_run(replace(RECIPE, run_dir="mine")):
        raise DataError("no images")
    assert list(Path("mine").iterdir()) == []


def test_a_folder_in_use_is_refused_and_left_alone() -> None:
    run = start(replace(RECIPE, run_dir="mine"))
    before = (run / "recipe.toml").read_text()
    with pytest.raises(DataError, match="mine is not empty; add --resume"):
        start(replace(RECIPE, run_dir="mine", lr=0.5))
    assert (run / "recipe.toml").read_text() == before


def _file_in_the_way(monkeypatch: pytest.MonkeyPatch) -> str:
    Path("file").write_text("in the way")
    return "file/run"


def _is_a_file(monkeypatch: pytest.MonkeyPatch) -> str:
    Path("file").write_text("in the way")
    return "file"


def _long_name(monkeypatch: pytest.MonkeyPatch) -> str:
    return "x" * 300


def _read_only(monkeypatch: pytest.MonkeyPatch) -> str:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    return ""


@pytest.mark.parametrize("place", [_file_in_the_way, _is_a_file, _long_name, _read_only])
def test_a_place_that_cannot_be_written_is_one_line(
    place: Callable[[pytest.MonkeyPatch], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, run_dir=place(monkeypatch))
    manager: AbstractContextManager[Path] = new_run(recipe)
    with pytest.raises(OutputError) as told, manager:
        pytest.fail("the run was started")
    assert "\n" not in str(told.value)
    assert (recipe.run_dir.partition("/")[0] or "runs") in str(told.value)


def images(folder: Path, sizes: dict[str, int]) -> dict[str, Any]:
    folder.mkdir()
    for name, size in sizes.items():
        (folder / name).write_bytes(b"x" * size)
    return data_identity(open_source(str(folder)), None)


def test_the_same_images_elsewhere_are_the_same(tmp_path: Path) -> None:
    before = images(tmp_path / "here", {"a.png": 3, "b.png": 4})
    check_data(Path("run"), before, images(tmp_path / "there", {"a.png": 3, "b.png": 4}))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"a.png": 3, "b.png": 4, "c.png": 5}, r"data of 2 images .*now there are 3 images .*--set init=FOLDER"),
        ({"a.png": 3}, "now there are 1 images"),
        ({"a.png": 3, "b.png": 5}, r"2 images \(.*sha256 \w{12}\), and now there are 2 images"),
        ({"a.png": 3, "d.png": 4}, "now there are 2 images"),
    ],
)
def test_other_images_are_refused(tmp_path: Path, changed: dict[str, int], said: str) -> None:
    before = images(tmp_path / "before", {"a.png": 3, "b.png": 4})
    with pytest.raises(MixsiamError, match=said):
        check_data(Path("run"), before, images(tmp_path / "now", changed))


def test_validation_images_count_too(tmp_path: Path) -> None:
    images(tmp_path / "train", {"a.png": 3})
    images(tmp_path / "val", {"b.png": 3})
    train, val = open_source(str(tmp_path / "train")), open_source(str(tmp_path / "val"))
    with pytest.raises(DataError, match="val_data of no labelled images, and now there are 1 images"):
        check_data(Path("run"), data_identity(train, None), data_identity(train, val))
