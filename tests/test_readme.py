"""README names what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(("walk", "folder"), [("One image", "mixsiam_hub"), ("One training step", "training")])
def test_a_walk_names_files_that_exist_each_once(walk: str, folder: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"- \*\*{walk}\*\*, `mixsiam [^`]*`: (.*?), all in `{folder}/`", text, re.DOTALL)
    assert found
    names = re.findall("`([^`]+)`", found[1])
    assert len(names) == len(set(names)) > 5
    assert [name for name in names if not (ROOT / folder / f"{name}.py").is_file()] == []
