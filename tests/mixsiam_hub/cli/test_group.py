"""What every command shares: how it ends by an error, by a signal, and with a terminal that is not there."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from commands import assert_one_error_line, run, start

from mixsiam_hub.cli.group import EXIT_SKIPPED, main
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model import facts
from mixsiam_hub.vectors.table import read_vectors

HANGS = """
import signal, time
from mixsiam_hub.images import stream
signal.signal(signal.SIGINT, signal.default_int_handler)  # A test run in the background ignores it.
def load_pixels(*_, **__):
    print("decoding", flush=True)
    time.sleep(600)
stream.load_pixels_and_facts = load_pixels
"""
BAD_NAME = b"caf\xe9.png"


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image in an otherwise empty working directory."""
    monkeypatch.chdir(tmp_path)
    draw_samples(1)["disc_00.png"].save("disc.png")
    return Path("disc.png")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_hanging_run_and_leaves_nothing(image: Path, name: str) -> None:
    number = signal.Signals[name]
    process = start("embed", image, "--out", "v.npz", code=HANGS)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"decoding\n"
        assert len(os.listdir()) == 2  # The image, and the file that is to be v.npz.
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert b"Traceback" not in errors
    assert os.listdir() == [str(image)]


def test_signals_are_as_they_were_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(facts, "facts_of", lambda _: seen.append(signal.getsignal(signal.SIGHUP)) or {"a": "b"})
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    assert run("info").exit_code == 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # As nohup does.
    try:
        assert run("info").exit_code == 0
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert callable(seen[0])
    assert seen[1] is signal.SIG_IGN


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device; free some space"),
        (OSError(errno.EACCES, "Permission denied", "a\x1b/b"), r"error: a\x1b/b: Permission denied; change its perm"),
        (OSError("no number\nno end"), "error: no number no end"),
    ],
)
def test_an_operating_system_error_is_one_line(error: OSError, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(facts, "facts_of", fail)
    result = run("info")
    assert_one_error_line(result, line)
    assert result.stderr.count("\n") == 1


def test_a_tilde_may_begin_a_name(image: Path) -> None:
    shutil.copy(image, "~tilde.png")
    assert run("embed", "~tilde.png", "--out", "v.npz").exit_code == 0
    assert read_vectors("v.npz").ids == ["~tilde.png"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("~absent.png", "matches no image"),
        (f"{'n' * 300}.png", "File name too long"),
        ("disc.png/x.png", "Not a directory"),
        ("loop/x.png", "Too many levels of symbolic links"),
    ],
)
def test_an_input_that_cannot_be_is_one_line(image: Path, name: str, reason: str) -> None:
    Path("loop").symlink_to("loop")
    assert_one_error_line(run("embed", name, "--out", "v.npz"), name, reason)
    assert_one_error_line(run("demo", name), name, reason)
    assert not list(Path().glob("*.npz"))


def test_an_input_that_links_to_itself_is_a_bad_image(image: Path) -> None:
    Path("loop.png").symlink_to("loop.png")
    result = run("embed", "loop.png", image, "--out", "v.npz")
    assert result.exit_code == EXIT_SKIPPED
    assert read_vectors("v.npz").ids == [str(image)]


@pytest.mark.parametrize(
    "arguments", [("embed", "x.png", "--out", "v.npz"), ("demo",), ("embed", ".", "--out", "v.npz")]
)
def test_a_working_directory_that_is_gone_is_one_line(image: Path, arguments: tuple[str, ...]) -> None:
    gone = Path("gone").absolute()
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    assert_one_error_line(run(*arguments), "the working directory was removed: change to another")


def test_a_full_disk_leaves_nothing(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert_one_error_line(run("embed", image, "--out", "v.npz"), "v.npz cannot be written: No space left on device")
    assert os.listdir() == [str(image)]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are Unicode")
def test_names_that_are_no_unicode_are_printed_as_they_are(image: Path) -> None:
    os.rename(os.fsencode(image), BAD_NAME)
    strict = {"PYTHONIOENCODING": "utf-8:strict", "PYTHONUTF8": "1"}  # As in a terminal under en_US.UTF-8.
    for arguments in [("embed", BAD_NAME, "--out", BAD_NAME + b".npz"), ("search", BAD_NAME + b".npz", BAD_NAME)]:
        process = start(*arguments, environment=strict)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert BAD_NAME in output
    assert output == BAD_NAME + b"\n   1.000  " + BAD_NAME + b"\n"
    assert read_vectors(os.fsdecode(BAD_NAME + b".npz")).ids == [os.fsdecode(BAD_NAME)]


def test_an_output_that_does_not_know_a_letter_gets_it_escaped(image: Path) -> None:
    image.rename("📷.png")
    result = CliRunner(charset="latin-1").invoke(main, ["embed", "📷.png", "--out", "📷.npz"])
    assert result.exit_code == 0
    assert result.stdout.startswith(r"\U0001f4f7.npz: 1 vectors of 512")


def test_a_reader_that_went_away_is_no_error() -> None:
    process = start("info")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=120) == 1
    assert process.stderr is not None
    assert process.stderr.read() == b""


@pytest.mark.parametrize("streams", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_closed_streams_are_no_error(image: Path, streams: str) -> None:
    command = f'exec "{sys.executable}" -m mixsiam_hub embed {image} --out v.npz {streams}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert read_vectors("v.npz").ids == [str(image)]


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "mixsiam_hub", "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: mixsiam [OPTIONS] COMMAND")
