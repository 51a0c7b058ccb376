"""A checkpoint is whole or the one before it; one that does not fit is named."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")

from mixsiam_hub import atomic
from mixsiam_hub.errors import DataError, OutputError
from mixsiam_hub.training.checkpoint import (
    CHECKPOINT_FILE,
    Progress,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)


def network(width: int = 500) -> tuple[Any, Any]:
    model = torch.nn.Linear(width, width)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


class FullDisk(io.FileIO):
    """A file on a disk that has room for 100 kB more."""

    room = 100_000

    def write(self, content: Any) -> int:
        self.room -= len(content)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(content)


def test_a_full_disk_keeps_the_checkpoint_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, *network(), Progress(step=7))
    before = (tmp_path / CHECKPOINT_FILE).read_bytes()
    monkeypatch.setattr(atomic, "open", lambda path, mode: FullDisk(path, mode), raising=False)
    with pytest.raises(OutputError, match=r"checkpoint\.pt cannot be written: No space left on device"):
        save_checkpoint(tmp_path, *network(), Progress(step=8))
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_FILE]
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == before


def test_progress_comes_back(tmp_path: Path) -> None:
    progress = Progress(
        step=3,
        seconds=1.5,
        sums={"loss": -1.0, "skipped": 2},
        log=[{"epoch": 0, "health": {"rank_z": None}}],
        data={"data": {"images": 2, "sha256": "ab"}},
        unreadable={"a.png": "a.png cannot be read"},
    )
    model, optimiser = network(3)
    save_checkpoint(tmp_path, model, optimiser, progress)
    other, its_optimiser = network(3)
    assert load_checkpoint(tmp_path, other, its_optimiser) == progress
    assert torch.equal(other.weight, model.weight)


def test_weights_of_another_network_are_one_line(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, *network(3), Progress())
    with pytest.raises(DataError, match=r"checkpoint\.pt cannot be read as a checkpoint of recipe\.toml") as told:
        load_checkpoint(tmp_path, *network(4))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04"], ids=["empty", "text", "cut"])
def test_what_is_no_checkpoint_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CHECKPOINT_FILE).write_bytes(content)
    with pytest.raises(DataError, match=r"checkpoint\.pt cannot be read") as told:
        read_checkpoint(tmp_path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("state", [{"model": {}}, [1, 2]])
def test_a_checkpoint_of_something_else_is_named(tmp_path: Path, state: object) -> None:
    torch.save(state, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(DataError, match="no checkpoint of this version"):
        read_checkpoint(tmp_path)
