"""The log of a run is JSON that any reader takes, and what cannot be written is said in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

import pytest

pytest.importorskip("tensorboard", reason="needs the extra train")

from mixsiam_hub.errors import OutputError
from mixsiam_hub.training.log import finite, write_log, write_scalars


def no_number(word: str) -> NoReturn:
    raise AssertionError(f"{word} is no JSON")


def test_a_number_that_is_not_finite_is_null(tmp_path: Path) -> None:
    line = {"loss": math.nan, "health": {"rank": -math.inf, "knn20": 0.5}, "many": [math.inf, 1, "NaN"], "lr": None}
    write_log(tmp_path, [finite(line), {"epoch": 1}])
    first, second = (tmp_path / "log.jsonl").read_text().splitlines()
    read: dict[str, Any] = json.loads(first, parse_constant=no_number)
    assert read == {"loss": None, "health": {"rank": None, "knn20": 0.5}, "many": [None, 1, "NaN"], "lr": None}
    assert json.loads(second) == {"epoch": 1}


def test_nothing_else_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_log(tmp_path, [{"loss": math.nan}])
    assert list(tmp_path.iterdir()) == []


def test_scalars_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra train")
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(OutputError, match="tensorboard cannot be written"):
        write_scalars(tmp_path, {"epoch": 0, "health": {"rank": 1.0}})
