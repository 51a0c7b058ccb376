"""Folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from mixsiam_hub.atomic import check_new_folder, new_folder, replacing
from mixsiam_hub.errors import OutputError


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("path", ["new", "above/and/new", "new/", "empty", ".", "empty/../other"])
def test_what_was_built_is_there_whole(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here/empty").mkdir(parents=True)
    where = tmp_path / ("here/empty" if path == "." else "here")
    monkeypatch.chdir(where)
    with new_folder(path) as built:
        (built / "part").mkdir()
        (built / "part/one.txt").write_text("1")
        (built / "two.txt").write_text("2")
    assert names(Path(path)) == {"part", "part/one.txt", "two.txt"}
    assert [name for name in names(tmp_path) if "mixsiam" in name] == []
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o777 & ~umask


def test_a_shell_that_is_in_the_folder_sees_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = os.stat(".").st_ino
    with new_folder(Path()) as built:
        (built / "file").touch()
    assert os.listdir() == ["file"]
    assert os.stat(".").st_ino == before


@pytest.mark.parametrize("path", ["new", "above/new", "empty"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_stays_of_what_failed(path: str, error: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    def fail() -> None:
        with new_folder(tmp_path / path) as built:
            (built / "file").touch()
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == {"empty"}


def test_a_place_that_is_taken_or_cannot_be_written_is_refused_before_and_at_the_work(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in ("full", "full/file", "full/file/new", "loop", "n" * 300 + "/new", "null\0"):
        for attempt in (check_new_folder, lambda path: new_folder(path).__enter__()):
            with pytest.raises(OutputError) as caught:
                attempt(tmp_path / path)
            assert str(caught.value).startswith(str(tmp_path / path))
    assert names(tmp_path) == {"full", "full/file", "loop"}


@pytest.mark.parametrize("name", [".", "/"])
def test_a_folder_is_no_name_of_a_file(name: str) -> None:
    with pytest.raises(OutputError, match="it is a folder"), replacing(name):
        pass


def test_a_working_directory_that_is_gone_is_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for path in (".", "new"):
        with pytest.raises(OutputError, match="cannot be written"):
            check_new_folder(path)


def test_to_check_leaves_nothing_behind(tmp_path: Path) -> None:
    check_new_folder(tmp_path / "above/new")
    check_new_folder(tmp_path)
    assert names(tmp_path) == set()


def test_a_full_disk_is_told_of_the_folder_and_another_files_error_passes(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"new cannot be written: No space left"), new_folder(tmp_path / "new"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "new"):
        Path("/missing").read_bytes()
    assert names(tmp_path) == set()
