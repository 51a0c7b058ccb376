"""A run into a folder of shards: what it writes, and what it leaves alone."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="needs the extra bulk")
ds = pytest.importorskip("pyarrow.dataset", reason="needs the extra bulk")
pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra bulk")

from bulk_runs import content, items, listed, rows, touch
from PIL import Image

from mixsiam_hub import ImageEncoder, ImageError
from mixsiam_hub.errors import ArgumentError, DataError, OutputError
from mixsiam_hub.images.sources import Item
from mixsiam_hub.vectors.bulk import Tally, embed_into
from mixsiam_hub.vectors.shard_writer import open_shards
from mixsiam_hub.vectors.shards import ERRORS, ShardManifest
from mixsiam_hub.vectors.table import read_vectors


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
    assert (manifest["dim"], manifest["dtype"]) == (512, "float32")
    assert (out / ERRORS).read_bytes() == b""


def test_read_vectors_takes_a_folder(encoder: ImageEncoder, photos: list[Path], out: Path) -> None:
    for dtype, tolerance in (("float32", 1e-5), ("float16", 1e-3)):
        folder = out.with_name(dtype)
        embed_into(folder, encoder, items(photos), dtype=dtype)
        assert ds.dataset(folder).schema.field("vector").type == pa.list_(pa.type_for_alias(dtype), 512)
        stored = read_vectors(folder)
        assert stored.vectors.dtype == np.float32
        assert sorted(stored.ids) == sorted(map(str, photos))
        np.testing.assert_allclose(stored.vectors, encoder.embed(stored.ids), atol=tolerance)
        assert (stored.fingerprint, stored.variant, stored.model) == (encoder.fingerprint, encoder.variant, "built-in")


def test_no_images_are_an_empty_folder(encoder: ImageEncoder, out: Path) -> None:
    assert embed_into(out, encoder, []) == Tally()
    assert read_vectors(out).vectors.shape == (0, 512)


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
    manifest = ShardManifest(encoder.fingerprint, encoder.variant, "org/name@1", 512, "float32")
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
