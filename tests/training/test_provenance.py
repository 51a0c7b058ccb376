"""What a run says about the machine and the source it ran from."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from needs import need

torch = pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("torchvision", reason="needs the extra train")

from mixsiam_hub.training.provenance import core_hours, provenance, source_commit


def test_the_commit_is_that_of_the_tree_which_tracks_the_file(tmp_path: Path) -> None:
    need(None if shutil.which("git") else "needs git")

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        return subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    file = tmp_path / "code.py"
    file.write_text("x = 1\n")
    git("init", "--quiet")
    assert source_commit(file) is None
    git("add", "code.py")
    git("commit", "--quiet", "-m", "one")
    commit = git("rev-parse", "HEAD").strip()
    assert source_commit(file) == commit
    file.write_text("x = 2\n")
    assert source_commit(file) == f"{commit}+"


def test_a_file_outside_any_repository_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert source_commit(tmp_path / "missing" / "code.py") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert source_commit() is None


def test_it_names_machine_and_software() -> None:
    found = provenance("fp32", torch.device("cpu"))
    assert found["versions"]["torch"] == torch.__version__
    assert "CPUs" in found["hardware"]
    assert (found["precision"], found["device"]) == ("fp32", "cpu")


@pytest.mark.parametrize(
    ("training", "hours"),
    [
        ({"device": "cpu", "seconds": 1800, "threads": 4, "processes": 2}, 4.0),
        ({"device": "cpu", "seconds": 3600, "threads": 2}, 2.0),
        ({"device": "cuda:0", "seconds": 3600, "threads": 2}, None),
        ({"device": "cpu", "seconds": "long", "threads": 2}, None),
        ({}, None),
    ],
)
def test_core_hours_are_those_of_cpus_alone(training: dict[str, object], hours: float | None) -> None:
    assert core_hours(training) == hours
