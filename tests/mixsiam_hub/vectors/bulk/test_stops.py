"""A run into a folder of shards that ends early, of itself or killed: what is done is kept, the next one goes on."""

from __future__ import annotations

import errno
import io
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra bulk")

from bulk_runs import ROWS, items, listed, rows, touch
from commands import start

from mixsiam_hub import ImageEncoder
from mixsiam_hub.errors import OutputError
from mixsiam_hub.vectors.bulk import Tally, embed_into
from mixsiam_hub.vectors.place import LocalPlace


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, ConnectionError])
def test_what_is_done_is_kept_when_a_run_ends_early(
    encoder: ImageEncoder, photos: list[Path], out: Path, stop: type[BaseException]
) -> None:
    bad = [photos[1].with_name("absent.png"), *photos]

    def count(tally: Tally) -> None:
        if tally.embedded >= 6:
            raise stop

    with pytest.raises(stop):
        embed_into(out, encoder, items(bad), batch_size=2, progress=count)
    assert set(rows(out)) == set(map(str, photos[:7]))
    assert set(listed(out)) == {str(bad[0])}
    assert embed_into(out, encoder, items(photos)) == Tally(embedded=5, present=7)


def test_a_signal_once_a_shard_is_written_is_not_told_as_another_run(
    encoder: ImageEncoder, photos: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replacing = LocalPlace.replacing

    @contextmanager
    def interrupted(place: LocalPlace, name: str) -> Iterator[BinaryIO]:
        with replacing(place, name) as file:
            yield file
        if name == "000001.parquet":
            monkeypatch.setattr(LocalPlace, "replacing", replacing)
            raise KeyboardInterrupt

    monkeypatch.setattr(LocalPlace, "replacing", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embed_into(out, encoder, items(photos), batch_size=1)
    assert set(rows(out)) == set(map(str, photos[:ROWS]))
    assert embed_into(out, encoder, items(photos)) == Tally(embedded=12 - ROWS, present=ROWS)


def test_a_full_disk_is_an_error_and_leaves_the_shards_whole(
    encoder: ImageEncoder, photos: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table = pq.write_table

    def full(table: Any, file: io.BufferedWriter, **options: Any) -> None:
        if "000002" in file.name:
            file.write(b"PAR1 and no more")
            raise OSError(errno.ENOSPC, "No space left on device")
        write_table(table, file, **options)

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OutputError, match=r"000002\.parquet cannot be written: No space left on device"):
        embed_into(out, encoder, items(photos), batch_size=2)
    monkeypatch.undo()
    assert not list(out.glob("*.tmp"))
    assert not list(out.glob(".*.tmp"))
    done = len(rows(out))
    assert done >= ROWS
    assert embed_into(out, encoder, items(photos)) == Tally(embedded=12 - done, present=done)
    assert len(rows(out)) == 12


SMALL_STEPS = f"""
from mixsiam_hub.vectors import shard_writer
shard_writer.ROWS, shard_writer.FLUSH_S = {ROWS}, 0.0
"""
DIES = """
import os, signal, threading
from pathlib import Path
replace, left = Path.replace, {renames}
def renamed(path, target):
    global left
    left -= 1
    if left == 0 and {before}:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(path, target)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
Path.replace = renamed
"""


def run_until_it_dies(photos: Path, out: Path, code: str = "", kill_after_s: float = 60) -> str:
    """Runs the command; returns what it printed, or nothing of one that was killed."""
    process = start("embed", photos, "--out", out, "--batch-size", "2", "--threads", "1", code=SMALL_STEPS + code)
    try:
        output, errors = process.communicate(timeout=kill_after_s)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors
    return output.decode()


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_run_that_is_killed_anywhere_goes_on(encoder: ImageEncoder, photos: list[Path], out: Path) -> None:
    rng = random.Random(7)
    folder, done = photos[0].parent, 0
    for _ in range(4):  # Before or after the rename of the manifest, of the first shard, or of the second.
        dies = DIES.format(renames=rng.randint(1, 3), before=rng.random() < 0.5)
        assert run_until_it_dies(folder, out, dies) == ""
        found = len(rows(out)) if (out / "_manifest.json").exists() else 0
        assert found >= done
        done = found
    assert 0 < done < 12
    assert f"{12 - done} images embedded; already there: {done};" in run_until_it_dies(folder, out)
    assert set(rows(out)) == set(map(str, photos))
    assert not list(out.glob(".*.tmp"))
    for path in photos[::2]:
        path.write_bytes(photos[1].read_bytes())
        touch(path)
    for renames in (1, 2):
        assert run_until_it_dies(folder, out, DIES.format(renames=renames, before=rng.random() < 0.5)) == ""
        assert len(rows(out)) == 12  # A changed image is replaced: its row is there at every moment.
    run_until_it_dies(folder, out, kill_after_s=rng.uniform(0.3, 0.8))
    assert len(rows(out)) == 12
    run_until_it_dies(folder, out)
    found = rows(out)
    assert len(found) == 12
    for path in photos:
        np.testing.assert_allclose(found[str(path)]["vector"], encoder.embed(path)[0], atol=1e-5)
