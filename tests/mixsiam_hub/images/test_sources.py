"""Files, folders and globs become the files a user means, each once and in order."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixsiam_hub.errors import DataError
from mixsiam_hub.images.sources import expand

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
    return [path.as_posix() for path in expand(inputs)]


def test_a_folder_is_searched_sorted_without_hidden_files(folder: Path) -> None:
    assert names("in") == ["in/a.PNG", "in/b.jpg", "in/sub/c.webp", "in/sub/deep/d.tiff", "in/x[1].jpg"]


def test_a_hidden_folder_given_by_name_is_searched(folder: Path) -> None:
    assert names("in/.cache") == ["in/.cache/e.jpg"]


def test_a_file_is_taken_whatever_its_suffix(folder: Path) -> None:
    assert names("in/notes.txt", "in/.hidden.jpg") == ["in/notes.txt", "in/.hidden.jpg"]


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
            expand([pattern])
    else:
        assert names(pattern) == expected


def test_a_name_that_exists_is_not_a_glob(folder: Path) -> None:
    assert names("in/x[1].jpg") == ["in/x[1].jpg"]


def test_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    assert expand(["~/in/sub"])[0] == folder / "in/sub/c.webp"
    assert expand(["~/in/*.PNG"]) == [folder / "in/a.PNG"]


@pytest.mark.parametrize("given", ["absent.jpg", "absent/", "in/*.gif", "empty"])
def test_an_input_that_matches_nothing_is_named(folder: Path, given: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        expand(["in/b.jpg", given])
    assert repr(given) in str(caught.value)


def test_links_are_followed_once(folder: Path) -> None:
    (folder / "in/sub/loop").symlink_to(folder / "in", target_is_directory=True)
    (folder / "links").mkdir()
    (folder / "links/photos").symlink_to(folder / "in/sub/deep", target_is_directory=True)
    assert names("in") == ["in/a.PNG", "in/b.jpg", "in/sub/c.webp", "in/sub/deep/d.tiff", "in/x[1].jpg"]
    assert names("links") == ["links/photos/d.tiff"]
