"""The wheel carries exactly the tracked files of the three packages."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from needs import need

ROOT = Path(__file__).parents[1]
MOVED = {"training/": "mixsiam_hub/training/", "export/": "mixsiam_hub/export/"}


@pytest.mark.slow
def test_wheel_holds_the_tracked_files(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    need("needs a git checkout to know which files are tracked" if listed.returncode else None)
    tracked = {name for name in listed.stdout.splitlines() if name.startswith(("mixsiam_hub/", *MOVED))}
    expected = {
        next((new + name.removeprefix(old) for old, new in MOVED.items() if name.startswith(old)), name)
        for name in tracked
    }
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == expected
    assert wheel.stat().st_size < 25 * 2**20
