"""Folders of shards at an address: the same rows as here, and what no lock and no rename can give is noticed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the extra bulk")
fsspec = pytest.importorskip("fsspec", reason="needs the extra bulk")

from commands import run

from mixsiam_hub import ImageEncoder
from mixsiam_hub.errors import DataError, OutputError
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.images.sources import Item
from mixsiam_hub.vectors import shard_writer
from mixsiam_hub.vectors.bulk import Tally, embed_into
from mixsiam_hub.vectors.index import open_index
from mixsiam_hub.vectors.place import Place, place_of
from mixsiam_hub.vectors.shard_writer import FileState, Row, ShardWriter, open_shards
from mixsiam_hub.vectors.shards import ERRORS, MANIFEST, ShardFolder, ShardManifest
from mixsiam_hub.vectors.table import read_vectors

MANIFEST_OF_TWO = ShardManifest("f" * 64, "fp32-exact", "built-in", 2, "float32")


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    return ImageEncoder.from_pretrained(threads=1)


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address of fsspec's file system in memory, and shards of five rows."""
    monkeypatch.setattr(shard_writer, "ROWS", 5)
    yield "memory://bucket/vectors"
    system = fsspec.filesystem("memory")
    for path in [path for path in system.store if path.startswith("/bucket/")]:
        system.rm_file(path)


def images(count: int) -> list[Item]:
    return [Item(name, np.asarray(image)) for name, image in draw_samples(count).items()]


def files() -> dict[str, bytes]:
    system = fsspec.filesystem("memory")
    return {path.rpartition("/")[2]: system.cat(path) for path in system.ls("/bucket/vectors", detail=False)}


def put(shards: ShardWriter, key: str) -> None:
    assert shards.claim(key, FileState())
    shards.put(key, Row(np.ones(2, np.float32), 4, 6, FileState()))
    shards.flush()


def stop_halfway(place: Place) -> None:
    with place.replacing("a") as file:
        file.write(b"part")
        raise RuntimeError


def test_the_rows_are_those_of_a_folder_here(encoder: ImageEncoder, far: str, tmp_path: Path) -> None:
    bad = Item("bad", b"no image")
    for folder in (far, tmp_path / "here"):
        assert embed_into(folder, encoder, [*images(12), bad]) == Tally(embedded=12, errors=1)
    here, there = read_vectors(tmp_path / "here"), read_vectors(far)
    assert there.ids == here.ids
    np.testing.assert_array_equal(there.vectors, here.vectors)
    assert (there.fingerprint, there.variant) == (encoder.fingerprint, encoder.variant)
    assert sorted(files()) == ["000001.parquet", "000002.parquet", "000003.parquet", ERRORS, MANIFEST]
    assert json.loads(files()[ERRORS])["key"] == "bad"


def test_the_same_command_again_embeds_only_what_is_new(far: str, tmp_path: Path) -> None:
    for name, image in draw_samples(7).items():
        image.save(tmp_path / name)
    first, *others = sorted(tmp_path.iterdir())
    assert "6 images embedded; already there: 0" in run("embed", *others, "--out", far).stdout
    before = files()
    assert "1 images embedded; already there: 6" in run("embed", tmp_path, "--out", f"{far}/").stdout
    assert files()["000001.parquet"] == before["000001.parquet"]
    found = run("search", far, first, "-k", 1).stdout.splitlines()
    assert found[1].split() == ["1.000", str(first)]


def test_vectors_of_another_kind_are_refused(far: str) -> None:
    with open_shards(far, MANIFEST_OF_TWO, by_content=False) as shards:
        put(shards, "a")
    before = files()
    other = replace(MANIFEST_OF_TWO, variant="int8-exact")
    with (
        pytest.raises(DataError, match="memory://bucket/vectors holds vectors of variant fp32-exact"),
        open_shards(far, other, by_content=False),
    ):
        pytest.fail("it was opened")
    assert files() == before


def test_a_second_run_is_noticed_before_it_is_overwritten(far: str) -> None:
    with (
        open_shards(far, MANIFEST_OF_TWO, by_content=False) as first,
        open_shards(far, MANIFEST_OF_TWO, by_content=False) as second,
    ):
        put(second, "b")
        with pytest.raises(OutputError, match=r"another run has written memory://bucket/vectors/000001\.parquet"):
            put(first, "a")
    assert read_vectors(far).ids == ["b"]


def test_a_folder_that_changes_while_it_is_read_is_refused(far: str) -> None:
    with open_shards(far, MANIFEST_OF_TWO, by_content=False) as shards:
        put(shards, "a")
        folder = ShardFolder.open(far)
        put(shards, "b")
    with pytest.raises(DataError, match="000001"):
        list(folder.blocks())


def test_what_cannot_be_sent_leaves_what_was_there(far: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = place_of(far)
    with place.replacing("a") as file:
        file.write(b"whole")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("no access")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.open", refuse)
    with (
        pytest.raises(OutputError, match="memory://bucket/vectors/a cannot be written: no access"),
        place.replacing("a") as file,
    ):
        file.write(b"part")
    monkeypatch.undo()
    with pytest.raises(RuntimeError):
        stop_halfway(place)
    assert files() == {"a": b"whole"}


def test_what_needs_the_files_here_says_so(far: str) -> None:
    with open_shards(far, MANIFEST_OF_TWO, by_content=False):
        pass
    with pytest.raises(DataError, match="copy the folder here"):
        open_index(ShardFolder.open(far))


def test_an_address_of_an_unknown_kind_is_named(tmp_path: Path) -> None:
    result = run("embed", tmp_path, "--out", "nowhere://a/b")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: nowhere://a/b cannot be read: Protocol not known")


def test_other_files_are_not_taken_for_vectors(far: str) -> None:
    fsspec.filesystem("memory").pipe("/bucket/vectors/notes.txt", b"mine")
    with pytest.raises(OutputError, match=f"{far} holds files and no {MANIFEST}"):
        shard_writer.check_shard_folder(far)
    with pytest.raises(DataError, match=f"{far} is no folder of vectors"):
        read_vectors(far)
