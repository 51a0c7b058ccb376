"""Files, folders and globs become the images a user means, each once, in order, and under a name of its own."""

from __future__ import annotations

import io
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mixsiam_hub.errors import DataError
from mixsiam_hub.images.sources import Item, open_source

FILES = ["b.jpg", "a.PNG", "notes.txt", "sub/c.webp", "sub/deep/d.tiff", ".hidden.jpg", ".cache/e.jpg", "x[1].jpg"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in FILES:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*inputs: str) -> list[str]:
    return [item.key for item in open_source(inputs)]


def test_a_folder_is_searched_sorted_without_hidden_files(folder: Path) -> None:
    assert names("in") == ["in/a.PNG", "in/b.jpg", "in/sub/c.webp", "in/sub/deep/d.tiff", "in/x[1].jpg"]


def test_a_hidden_folder_given_by_name_is_searched(folder: Path) -> None:
    assert names("in/.cache") == ["in/.cache/e.jpg"]


def test_a_file_is_taken_whatever_its_suffix(folder: Path) -> None:
    (folder / "in/scan.dat").touch()
    assert names("in/scan.dat", "in/.hidden.jpg") == ["in/scan.dat", "in/.hidden.jpg"]


def test_order_is_kept_and_duplicates_dropped(folder: Path) -> None:
    assert names("in/sub", "in/b.jpg", "./in/sub/c.webp", "in/a.PNG", str(folder / "in/b.jpg")) == [
        "in/sub/c.webp",
        "in/sub/deep/d.tiff",
        "in/b.jpg",
        "in/a.PNG",
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in/*.jpg", ["in/b.jpg", "in/x[1].jpg"]),
        ("in/[ab].*", ["in/a.PNG", "in/b.jpg"]),
        ("in/*.txt", None),
        ("in/**/*.t*", ["in/sub/deep/d.tiff"]),
        ("in/s*", ["in/sub/c.webp", "in/sub/deep/d.tiff"]),
        ("in/**", ["in/a.PNG", "in/b.jpg", "in/sub/c.webp", "in/sub/deep/d.tiff", "in/x[1].jpg"]),
    ],
)
def test_globs(folder: Path, pattern: str, expected: list[str] | None) -> None:
    if expected is None:
        with pytest.raises(DataError, match="matches no image"):
            open_source(pattern)
    else:
        assert names(pattern) == expected


def test_a_name_that_exists_is_not_a_glob(folder: Path) -> None:
    assert names("in/x[1].jpg") == ["in/x[1].jpg"]


def test_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    assert names("~/in/sub")[0] == str(folder / "in/sub/c.webp")
    assert names("~/in/*.PNG") == [str(folder / "in/a.PNG")]
    (folder / "~tilde.png").touch()
    assert names("~tilde.png") == ["~tilde.png"]
    with pytest.raises(DataError, match=r"'~nobody/x\.png' matches no image"):
        open_source("~nobody/x.png")


@pytest.mark.parametrize("given", ["absent.jpg", "absent/", "in/*.gif", "empty"])
def test_an_input_that_matches_nothing_is_named(folder: Path, given: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        open_source(["in/b.jpg", given])
    assert repr(given) in str(caught.value)


def test_links_are_followed_once(folder: Path) -> None:
    (folder / "in/sub/loop").symlink_to(folder / "in", target_is_directory=True)
    (folder / "links").mkdir()
    (folder / "links/photos").symlink_to(folder / "in/sub/deep", target_is_directory=True)
    assert names("in") == ["in/a.PNG", "in/b.jpg", "in/sub/c.webp", "in/sub/deep/d.tiff", "in/x[1].jpg"]
    assert names("links") == ["links/photos/d.tiff"]


def test_a_folder_with_special_characters_is_not_a_glob(folder: Path) -> None:
    (folder / "in [x]").mkdir()
    (folder / "in [x]/a.png").touch()
    assert names("in [x]") == ["in [x]/a.png"]


def test_files_that_are_no_images_are_counted(folder: Path) -> None:
    (folder / "in/sub/notes.md").touch()
    assert open_source("in").left_out == 2
    assert open_source("in/sub").left_out == 1
    assert open_source(["in/sub/notes.md", "in/b.jpg"]).left_out == 0


def locked(name: str) -> Callable[..., object]:
    """`os.scandir`, but for one folder, as it is for those who may not read that one: root may read any."""
    scandir = os.scandir

    def scan(path: str) -> object:
        if os.path.basename(path) == name:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    return scan


def test_a_folder_that_cannot_be_searched_is_recorded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "scandir", locked("deep"))
    images = open_source("in")
    assert [item.key for item in images] == ["in/a.PNG", "in/b.jpg", "in/sub/c.webp", "in/x[1].jpg"]
    assert images.unreadable == {os.path.join("in", "sub", "deep"): "Permission denied"}
    with pytest.raises(DataError, match="in/sub/deep cannot be searched: Permission denied"):
        open_source("in/sub/deep")


def test_a_single_folder_of_folders_has_classes(folder: Path) -> None:
    for name in ("train/dog/a.png", "train/cat/b.png", "train/cat/deep/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    images = open_source("train")
    assert images.labels == ["cat", "cat", "dog"]
    assert list(images) == [
        Item("train/cat/b.png", "train/cat/b.png", "cat"),
        Item("train/cat/deep/c.png", "train/cat/deep/c.png", "cat"),
        Item("train/dog/a.png", "train/dog/a.png", "dog"),
    ]
    assert open_source(["train/dog", "train/cat"]).labels is None
    assert open_source("train/cat").labels is None
    (folder / "train/loose.png").touch()
    assert open_source("train").labels is None


def test_parts_of_a_set(folder: Path) -> None:
    images = open_source("in")
    assert [item.key for item in images[1:3]] == ["in/b.jpg", "in/sub/c.webp"]
    assert [item.key for item in images.take(np.array([4, 0]))] == ["in/x[1].jpg", "in/a.PNG"]
    assert images[-1] == images[4]
    assert len(images.take(np.array([], np.int64))) == 0
    assert [item.key for item in pickle.loads(pickle.dumps(images))] == [item.key for item in images]


def test_the_identity_tells_sets_apart(folder: Path) -> None:
    identity = open_source("in").identity
    assert open_source(str(folder / "in")).identity == identity
    assert open_source("in")[1:].identity != identity
    (folder / "in/b.jpg").write_bytes(b"longer")
    longer = open_source("in").identity
    assert longer != identity
    (folder / "in/b.jpg").rename(folder / "in/c.jpg")
    assert len({identity, longer, open_source("in").identity}) == 3


def test_a_pipe_among_the_images_is_listed_not_opened(folder: Path) -> None:
    os.mkfifo(folder / "in/cam.jpg")
    assert "in/cam.jpg" in names("in")


def test_links_that_lead_nowhere_do_not_hide_a_folder(folder: Path) -> None:
    (folder / "in/sub/self").symlink_to("self")
    (folder / "in/sub/gone.png").symlink_to("absent.png")
    assert names("in/sub") == ["in/sub/c.webp", "in/sub/deep/d.tiff", "in/sub/gone.png"]


def test_folders_stand_among_the_files_of_their_folder(folder: Path) -> None:
    for name in ("a.b/x.png", "a/b.png", "a/b/c.png", "a-b/q.jpg", "B.png", "é.png", "\udcff.png", "\uffee.png"):
        (folder / "t" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "t" / name).touch()
    assert names("t") == [str(path) for path in sorted(Path("t").rglob("*.*g"))]
    assert names("t") == names("t/**/*.*g")


def test_a_list_names_files_one_a_line(folder: Path) -> None:
    (folder / "list.txt").write_bytes(b"in/b.jpg\r\n\nin/sub/gone.jpg\nin/ b .dat\nin/b.jpg\n")
    assert names("list.txt") == ["in/b.jpg", "in/sub/gone.jpg", "in/ b .dat"]
    assert names("in/b.jpg", "list.txt", "in/a.PNG") == ["in/b.jpg", "in/sub/gone.jpg", "in/ b .dat", "in/a.PNG"]
    assert open_source("list.txt").labels is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", r"list\.txt names no image"), (b"a" * 2**17, "line 1: is no path"), (b"a.jpg\n\0", "line 2: is no path")],
)
def test_a_text_that_is_no_list(folder: Path, content: bytes, reason: str) -> None:
    (folder / "list.txt").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        open_source("list.txt")


def test_standard_input_is_a_list(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"in/b.jpg\nin/a.PNG\n")))
    assert names("-") == ["in/b.jpg", "in/a.PNG"]


def test_a_column_needs_parquet(folder: Path) -> None:
    with pytest.raises(DataError, match="in: no Parquet file, so that there is no column 'scan'"):
        open_source("in", "scan")
