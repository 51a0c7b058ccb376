"""Planning a push of a finished folder needs no torch, no onnx and no runtime."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jinja2", reason="needs the extra export")

from mixsiam_hub.model.hub import BUILTIN

HEAVY = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "timm")
OFFLINE = """if True:
    from mixsiam_hub.cli import main
    from mixsiam_hub.export import push
    push.HfApi.whoami = lambda self: {"name": "alice"}
    push._look = lambda repo, branch: push.Remote()
    push.check_card = lambda path, text: None
    main()
"""
"""The command, at a Hub that holds nothing yet."""


@pytest.fixture
def tripwire(tmp_path: Path) -> Path:
    """A folder for the import path whose heavy packages fail, with an error `except ImportError` lets by."""
    for name in HEAVY:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise RuntimeError('{name} was imported')")
    return tmp_path


def run(code: str, *arguments: object, path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(path)}, timeout=120
    )


def test_a_dry_run_imports_nothing_heavy(tripwire: Path) -> None:
    done = run(OFFLINE, "push", BUILTIN, "lab/encoder", "--dry-run", path=tripwire)
    assert done.returncode == 0, done.stderr
    assert "lab/encoder is not there yet: it will be made" in done.stdout
    assert "model.safetensors" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((BUILTIN, "encoder"), "repo is 'encoder'"),
        ((BUILTIN, "lab/encoder", "--create-pr", "--tag", "v1"), "tag is 'v1' and create_pr is set"),
        (("missing", "lab/encoder"), "missing is no folder"),
    ],
)
def test_so_do_its_refusals(tripwire: Path, arguments: tuple[object, ...], reason: str) -> None:
    done = run(OFFLINE, "push", *arguments, "--dry-run", path=tripwire)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert reason in done.stderr


@pytest.mark.parametrize("name", HEAVY)
def test_the_tripwire_trips(tripwire: Path, name: str) -> None:
    assert f"{name} was imported" in run(f"import {name}", path=tripwire).stderr
