"""`mixsiam export` and `mixsiam import`: where they write, and what they leave behind when they do not end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("torch", reason="needs the extra export")
pytest.importorskip("onnxscript", reason="needs the extra export")

from mixsiam_hub.cli import main
from mixsiam_hub.export import bundle, importers, source
from mixsiam_hub.model.known_answers import verify_folder

SLOW_EXPORT = """if True:
    import signal, sys, time
    from mixsiam_hub.cli import main
    from mixsiam_hub.export import bundle, source

    signal.signal(signal.SIGINT, signal.default_int_handler)  # A test run in the background ignores it.

    def write_slowly(encoder, folder, *others):
        (folder / "half").write_bytes(bytes(1000))
        print("writing", flush=True)
        time.sleep(60)

    source.open_encoder = lambda run: None
    bundle._write_files = write_slowly
    main()
"""


def test_the_current_folder_is_a_target_if_it_is_empty(
    compact_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    arguments = ["export", str(compact_folder), ".", "--license", "MIT", "--compact"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert verify_folder(tmp_path / "here").folder.manifest.license == "MIT"
    assert "\n# here\n" in Path("README.md").read_text(encoding="utf-8")
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1
    assert again.stderr == "error: . is a folder with files in it; choose another, or empty it\n"


def test_a_target_that_cannot_be_written_is_told_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: object) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(source, "open_encoder", load)
    monkeypatch.setattr(importers, "import_encoder", load)
    (tmp_path / "file").touch()
    target = str(tmp_path / "file/folder")
    for arguments in (["export", "run", target], ["import", "checkpoint", target, "--from", "timm"]):
        done = CliRunner().invoke(main, [*arguments, "--license", "MIT"])
        assert done.exit_code == 1
        assert done.stderr == f"error: {target} cannot be written: Not a directory\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_export_that_is_stopped_leaves_nothing_behind(number: signal.Signals, code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW_EXPORT, "export", "run", str(tmp_path / "above/model"), "--license", "MIT"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        assert len(list(tmp_path.rglob("half"))) == 1
        os.kill(process.pid, number)
        assert process.wait(60) == code
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(source, "open_encoder", lambda run: None)
    monkeypatch.setattr(bundle, "_write_files", fill)
    done = CliRunner().invoke(main, ["export", "run", str(tmp_path / "model"), "--license", "MIT"])
    assert done.stderr == f"error: {tmp_path / 'model'} cannot be written: No space left on device\n"
    assert list(tmp_path.iterdir()) == []
