"""Commands run as a user runs them: in this process where that will do, else in one of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from mixsiam_hub.cli.group import main


def run(*arguments: object) -> Result:
    """Runs `mixsiam` with these arguments in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_one_error_line(result: Result, *words: str) -> None:
    """The command ended with exit code 1 and one line that holds the words."""
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert all(word in lines[-1] for word in words), lines[-1]


def start(
    *arguments: str | bytes | Path, code: str = "", environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts `mixsiam` in a process of its own, its output to be read as bytes.

    Args:
        arguments: Of the command.
        code: Python to run before, in that process.
        environment: Variables to set.
    """
    script = f"{code}\nfrom mixsiam_hub.cli import main\nmain(prog_name='mixsiam')"
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | (environment or {}),
    )
