"""A bare matrix and the list of its keys."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mixsiam_hub.errors import DataError, OutputError
from mixsiam_hub.vectors.npy_file import matrix_writer
from mixsiam_hub.vectors.table import VectorFile

VECTORS = np.eye(3, 4, dtype=np.float32)


def make(*keys: str) -> VectorFile:
    return VectorFile(VECTORS, list(keys), "f", "v", "m")


def test_a_line_of_keys_for_each_row(tmp_path: Path) -> None:
    with matrix_writer(tmp_path / "my.v.npy") as write:
        write(make("a b.jpg", "日本/写真.jpg", os.fsdecode(b"caf\xe9.jpg")))
    np.testing.assert_array_equal(np.load(tmp_path / "my.v.npy", allow_pickle=False), VECTORS)
    assert (tmp_path / "my.v.keys.txt").read_bytes() == "a b.jpg\n日本/写真.jpg\n".encode() + b"caf\xe9.jpg\n"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_key_that_is_no_line_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'b\\n.jpg' has a line break"), matrix_writer(tmp_path / "v.npy") as write:
        write(make("a", "b\n.jpg", "c"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("taken", ["v.npy", "v.keys.txt"])
def test_a_place_is_tried_before_the_work(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).mkdir()
    with (
        pytest.raises(OutputError, match=f"{taken} cannot be written: it is a folder"),
        matrix_writer(tmp_path / "v.npy"),
    ):
        pytest.fail("the work began")
    assert [path.name for path in tmp_path.iterdir()] == [taken]
