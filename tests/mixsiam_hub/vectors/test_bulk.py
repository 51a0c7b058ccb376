"""A run into a folder of shards: what it writes, what it leaves alone, and what stops it."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="needs the extra bulk")
ds = pytest.importorskip("pyarrow.dataset", reason="needs the extra bulk")
pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra bulk")

from commands import start
from PIL import Image

from mixsiam_hub import ImageEncoder, ImageError
from mixsiam_hub.errors import ArgumentError, DataError, OutputError
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.images.sources import Item
from mixsiam_hub.vectors import shard_writer
from mixsiam_hub.vectors.bulk import Tally, embed_into
from mixsiam_hub.vectors.place import LocalPlace
from mixsiam_hub.vectors.shard_writer import open_shards
from mixsiam_hub.vectors.shards import ERRORS, ShardManifest
from mixsiam_hub.vectors.table import read_vectors

ROWS = 5


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    return ImageEncoder.from_pretrained(threads=1)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "ROWS", ROWS)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Twelve images, of which the first says that it lies on its side."""
    folder = tmp_path / "photos"
    folder.mkdir()
    paths = []
    for name, image in draw_samples(12).items():
        paths.append(folder / name)
        image.save(paths[-1])
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (60, 30), "red").save(paths[0], exif=turned)
    return paths


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "vectors"


def items(paths: list[Path]) -> list[Item]:
    return [Item(str(path), str(path)) for path in paths]


def rows(out: Path) -> dict[str, dict[str, Any]]:
    """The table as a reader finds it that knows nothing of this package."""
    found = ds.dataset(out).to_table().to_pylist()
    assert len({row["path"] for row in found}) == len(found)
    return {row["path"]: row for row in found}


def listed(out: Path) -> dict[str, str]:
    return {entry["key"]: entry["reason"] for entry in map(json.loads, (out / ERRORS).read_text().splitlines())}


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    paths = sorted(path for path in folder.iterdir() if path.name != ".lock")
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def touch(path: Path) -> None:
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))


def test_rows_say_what_was_embedded(encoder: ImageEncoder, photos: list[Path], out: Path) -> None:
    assert embed_into(out, encoder, items(photos), model="a/folder", batch_size=4) == Tally(embedded=12)
    found = rows(out)
    assert set(found) == set(map(str, photos))
    for path in photos:
        row = found[str(path)]
        assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (row["size_bytes"], row["mtime_ns"]) == (path.stat().st_size, path.stat().st_mtime_ns)
        np.testing.assert_allclose(row["vector"], encoder.embed(path)[0], atol=1e-5)
    assert (found[str(photos[0])]["width"], found[str(photos[0])]["height"]) == (30, 60)  # Upright.
    with Image.open(photos[1]) as image:
        assert (found[str(photos[1])]["width"], found[str(photos[1])]["height"]) == image.size
    assert [pq.read_metadata(path).num_rows for path in sorted(out.glob("*.parquet"))] == [5, 5, 2]
    for path in out.glob("*.parquet"):
        labels = {b"fingerprint": encoder.fingerprint, b"variant": encoder.variant, b"model": "a/folder"}
        assert pq.read_schema(path).metadata == {name: value.encode() for name, value in labels.items()}
    manifest = json.loads((out / "_manifest.json").read_text())
    assert manifest["fingerprint"] == encoder.fingerprint
    assert (manifest["dim"], manifest["dtype"]) == (256, "float32")
    assert (out / ERRORS).read_bytes() == b""


def test_read_vectors_takes_a_folder(encoder: ImageEncoder, photos: list[Path], out: Path) -> None:
    for dtype, tolerance in (("float32", 1e-5), ("float16", 1e-3)):
        folder = out.with_name(dtype)
        embed_into(folder, encoder, items(photos), dtype=dtype)
        assert ds.dataset(folder).schema.field("vector").type == pa.list_(pa.type_for_alias(dtype), 256)
        stored = read_vectors(folder)
        assert stored.vectors.dtype == np.float32
        assert sorted(stored.ids) == sorted(map(str, photos))
        np.testing.assert_allclose(stored.vectors, encoder.embed(stored.ids), atol=tolerance)
        assert (stored.fingerprint, stored.variant, stored.model) == (encoder.fingerprint, encoder.variant, "built-in")


def test_no_images_are_an_empty_folder(encoder: ImageEncoder, out: Path) -> None:
    assert embed_into(out, encoder, []) == Tally()
    assert read_vectors(out).vectors.shape == (0, 256)


def test_the_same_command_again_reads_no_image(
    encoder: ImageEncoder, photos: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_into(out, encoder, items(photos))
    before = content(out)
    monkeypatch.setattr("mixsiam_hub.images.stream.load_pixels_and_facts", lambda *_, **__: pytest.fail("it was read"))
    assert embed_into(out, encoder, items(photos)) == Tally(present=12)
    after = content(out)
    assert {name for name in before if before[name] != after[name]} == {ERRORS}


def test_later_runs_embed_new_and_changed_images(encoder: ImageEncoder, photos: list[Path], out: Path) -> None:
    embed_into(out, encoder, items(photos[:7]))
    before = content(out)
    photos[6].write_bytes(photos[8].read_bytes())
    touch(photos[6])
    assert embed_into(out, encoder, items(photos)) == Tally(embedded=6, present=6)
    found = rows(out)
    assert len(found) == 12
    np.testing.assert_allclose(found[str(photos[6])]["vector"], encoder.embed(photos[6])[0], atol=1e-5)
    assert content(out)["000001.parquet"] == before["000001.parquet"]  # It held no changed image, and is full.
    assert [pq.read_metadata(path).num_rows for path in sorted(out.glob("*.parquet"))] == [5, 5, 2]
    assert embed_into(out, encoder, items(photos[3:4])) == Tally(present=1)  # Rows of others stay.
    assert len(rows(out)) == 12


def test_by_content_the_time_of_a_file_says_nothing(encoder: ImageEncoder, photos: list[Path], out: Path) -> None:
    embed_into(out, encoder, items(photos), by_content=True)
    for path in photos:
        touch(path)
    assert embed_into(out, encoder, items(photos), by_content=True) == Tally(present=12)
    stat = photos[3].stat()
    Image.new("RGB", (9, 9), "blue").save(photos[3])
    os.truncate(photos[3], stat.st_size)
    os.utime(photos[3], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with Image.open(photos[3]) as image:
        assert image.size == (9, 9)
    assert embed_into(out, encoder, items(photos), by_content=True) == Tally(embedded=1, present=11)
    assert rows(out)[str(photos[3])]["width"] == 9


def test_images_that_are_no_files_are_told_by_their_content(
    encoder: ImageEncoder, photos: list[Path], out: Path
) -> None:
    given = [Item(f"data#{i}", path.read_bytes()) for i, path in enumerate(photos[:3])]
    assert embed_into(out, encoder, given) == Tally(embedded=3)
    given[1] = Item("data#1", photos[5].read_bytes())
    assert embed_into(out, encoder, given) == Tally(embedded=1, present=2)
    row = rows(out)["data#1"]
    assert row["sha256"] == hashlib.sha256(photos[5].read_bytes()).hexdigest()
    assert row["mtime_ns"] is None


def test_a_stream_is_read_once_and_pixels_have_no_sha256(encoder: ImageEncoder, photos: list[Path], out: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, photos[1].read_bytes())
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe, Image.open(photos[2]) as picture:
        given = [Item("pipe", pipe), Item("picture", picture), Item("array", np.zeros((4, 6, 3), np.uint8))]
        assert embed_into(out, encoder, given) == Tally(embedded=3)
    found = rows(out)
    assert found["pipe"]["sha256"] == hashlib.sha256(photos[1].read_bytes()).hexdigest()
    assert found["array"]["sha256"] is None
    assert (found["array"]["width"], found["array"]["height"]) == (6, 4)
    assert embed_into(out, encoder, given[2:]) == Tally(embedded=1)  # Nothing tells that it is the same.
    assert len(rows(out)) == 3


def test_a_name_that_comes_twice_has_one_row(encoder: ImageEncoder, photos: list[Path], out: Path) -> None:
    twice = [*items(photos), *items(photos)]
    assert embed_into(out, encoder, twice, batch_size=4) == Tally(embedded=12, present=12)
    others = [Item("a", photos[1].read_bytes()), Item("a", photos[2].read_bytes()), Item("a", b"")]
    embed_into(out, encoder, others[:2])
    assert rows(out)["a"]["sha256"] == hashlib.sha256(photos[2].read_bytes()).hexdigest()
    assert embed_into(out, encoder, others) == Tally(embedded=2, errors=1)
    assert len(rows(out)) == 12


def test_bad_images_are_listed_and_tried_again(encoder: ImageEncoder, photos: list[Path], out: Path) -> None:
    cut, zeros, absent = photos[4], photos[7], photos[9]
    whole = cut.read_bytes()
    embed_into(out, encoder, items(photos))
    cut.write_bytes(whole[: len(whole) // 2])
    zeros.write_bytes(b"")
    absent.unlink()
    tally = embed_into(out, encoder, items(photos), batch_size=3)
    assert tally == Tally(present=9, errors=3)
    assert set(listed(out)) == {str(cut), str(zeros), str(absent)}
    assert listed(out)[str(absent)] == f"{absent}: no such file"
    assert set(rows(out)) == set(map(str, photos)) - {str(cut), str(zeros)}  # No vector stands for what is bad.
    assert embed_into(out, encoder, items(photos)) == Tally(present=9, errors=3)
    cut.write_bytes(whole)
    assert embed_into(out, encoder, items(photos[:5])) == Tally(embedded=1, present=4)
    assert (out / ERRORS).read_bytes() == b""


def test_images_that_cannot_be_reached_keep_their_rows(
    encoder: ImageEncoder, photos: list[Path], out: Path, tmp_path: Path
) -> None:
    folder = photos[0].parent
    embed_into(out, encoder, items(photos))
    before = rows(out)
    away = folder.rename(tmp_path / "away")
    assert embed_into(out, encoder, items(photos)) == Tally(errors=12)
    assert set(listed(out)) == set(map(str, photos))
    assert set(rows(out)) == set(before)
    away.rename(folder)
    assert embed_into(out, encoder, items(photos)) == Tally(present=12)


def test_another_dtype_is_refused_before_any_work(encoder: ImageEncoder, out: Path) -> None:
    with pytest.raises(ArgumentError, match="dtype is 'int8'; allowed are float32, float16"):
        embed_into(out, encoder, [], dtype="int8")
    assert not out.exists()


def test_strict_stops_at_a_bad_image_and_keeps_those_before(
    encoder: ImageEncoder, photos: list[Path], out: Path
) -> None:
    photos[8].write_bytes(b"no image")
    with pytest.raises(ImageError, match=photos[8].name):
        embed_into(out, encoder, items(photos), strict=True, batch_size=2)
    assert set(rows(out)) == set(map(str, photos[:8]))


def test_a_name_that_is_no_unicode_is_a_bad_image(encoder: ImageEncoder, photos: list[Path], out: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    given = [*items(photos[:2]), Item(name, photos[2].read_bytes()), Item("a\0b", photos[3].read_bytes())]
    assert embed_into(out, encoder, given) == Tally(embedded=2, errors=2)
    assert set(listed(out)) == {name, "a\0b"}
    assert "rename the file" in listed(out)[name]


@pytest.mark.parametrize("change", [{"fingerprint": "ab" * 32}, {"variant": "int8-exact"}, {"dtype": "float16"}])
def test_vectors_of_another_kind_are_refused_before_any_work(
    encoder: ImageEncoder, photos: list[Path], out: Path, change: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = ShardManifest(encoder.fingerprint, encoder.variant, "org/name@1", 256, "float32")
    with open_shards(out, replace(manifest, **change), by_content=False):
        pass
    (out / ".lock").unlink()
    before = content(out)
    monkeypatch.setattr(ImageEncoder, "embed_stream", lambda *_, **__: pytest.fail("the work began"))
    ((name, value),) = change.items()
    with pytest.raises(DataError, match=rf"holds vectors of {name} {value} \(model org/name@1\), not .*another folder"):
        embed_into(out, encoder, items(photos))
    assert content(out) == before
    assert not (out / ".lock").exists()


def test_two_runs_at_once(encoder: ImageEncoder, photos: list[Path], out: Path) -> None:
    def source() -> Iterator[Item]:
        yield from items(photos[:3])
        with pytest.raises(OutputError, match=r"another run is writing to .*vectors; wait"):
            embed_into(out, encoder, items(photos))
        yield from items(photos[3:])

    assert embed_into(out, encoder, source(), batch_size=2) == Tally(embedded=12)
    assert len(rows(out)) == 12


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
