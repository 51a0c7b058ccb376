"""A folder of shards: what it refuses to become, and what damaged or hostile ones meet."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="needs the extra bulk")
pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra bulk")

from mixsiam_hub.errors import DataError, MissingExtraError, OutputError
from mixsiam_hub.vectors import shard_writer
from mixsiam_hub.vectors.shard_writer import FileState, Row, check_shard_folder, open_shards
from mixsiam_hub.vectors.shards import ShardManifest
from mixsiam_hub.vectors.table import read_vectors

MANIFEST = ShardManifest("ab" * 32, "fp32-exact", "m", 4, "float32")


def fill(folder: Path, keys: str, manifest: ShardManifest = MANIFEST) -> None:
    with open_shards(folder, manifest, by_content=False) as writer:
        for number, key in enumerate(keys):
            state = FileState(1, number, "cd" * 32)
            assert writer.claim(key, state)
            writer.put(key, Row(np.full(4, number, np.float32), 2, 3, state))
        writer.flush()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fill(tmp_path / "v", "abc")
    return tmp_path / "v"


def test_a_claim_is_for_the_first_who_asks(folder: Path) -> None:
    with open_shards(folder, MANIFEST, by_content=False) as writer:
        assert not writer.claim("a", FileState(1, 0, None))
        assert writer.claim("a", FileState(2, 0, None))
        assert not writer.claim("a", FileState(2, 0, None))
        assert writer.claim("d", FileState())
        assert writer.claim("d", FileState())
        assert writer.knows("d")
        assert not writer.knows("e")
    with open_shards(folder, MANIFEST, by_content=True) as writer:
        assert not writer.claim("a", FileState(2, 7, "cd" * 32))
        assert writer.claim("a", FileState(1, 0, "ef" * 32))


def test_a_flush_may_be_repeated(folder: Path) -> None:
    with open_shards(folder, MANIFEST, by_content=False) as writer:
        for key in "bd":
            writer.claim(key, FileState(9, 9))
            writer.put(key, Row(np.full(4, 7, np.float32), 2, 3, FileState(9, 9)))
        pending = dict(writer._pending)
        writer.flush()
        writer._pending = pending  # As an interruption after the rename leaves it.
        writer.flush()
        writer.claim("c", FileState(9, 9))
        writer.put("c", None)
        writer.flush()
    stored = read_vectors(folder)
    assert sorted(stored.ids) == ["a", "b", "d"]
    assert stored.vectors[stored.ids.index("b")].tolist() == [7] * 4


def test_rows_are_written_once_they_are_many_or_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "ROWS", 2)
    with open_shards(tmp_path, MANIFEST, by_content=False) as writer:
        for number, expected in enumerate([0, 2, 2, 4]):
            writer.claim(str(number), FileState())
            writer.put(str(number), Row(np.zeros(4, np.float32), 1, 1, FileState()))
            assert len(read_vectors(tmp_path).ids) == expected
        monkeypatch.setattr(shard_writer, "FLUSH_S", -1.0)
        writer.claim("4", FileState())
        writer.put("4", Row(np.zeros(4, np.float32), 1, 1, FileState()))
        assert len(read_vectors(tmp_path).ids) == 5
    assert [path.name for path in sorted(tmp_path.glob("*.parquet"))] == [f"00000{i}.parquet" for i in (1, 2, 3)]


def test_places_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").touch()
    (tmp_path / "file").touch()
    for name, message in [
        ("photos", "photos holds files and no _manifest.json; give a new or an empty folder"),
        ("file", "file is a file"),
        ("file/v", "cannot be written: Not a directory"),
    ]:
        with pytest.raises(OutputError, match=message):
            check_shard_folder(tmp_path / name)
    check_shard_folder(tmp_path / "new/v")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed/.lock").touch()  # As a run leaves it that was killed at its very start.
    fill(tmp_path / "killed", "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "killed", "photos"]


def test_a_folder_of_something_else_is_no_vectors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no folder of vectors: it has no _manifest\.json; `mixsiam embed"):
        read_vectors(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format_version": 2}, "format_version is 2; allowed are 1"),
        ({"dim": 10**9}, "dim is 1000000000; it must be an integer from 1"),
        ({"dtype": "int8"}, "dtype is 'int8'; allowed are float32, float16"),
        ({"model": 7}, "model is 7; it must be str"),
    ],
)
def test_a_manifest_that_was_changed(folder: Path, changed: dict[str, object], message: str) -> None:
    path = folder / "_manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(DataError, match=rf"_manifest\.json: {message}"):
        read_vectors(folder)


def test_a_damaged_shard_is_named_with_what_mends_it(folder: Path) -> None:
    shard = folder / "000001.parquet"
    content = shard.read_bytes()
    middle = content.index(np.full(4, 2, np.float32).tobytes())
    flipped = content[:middle] + b"\x01" + content[middle + 1 :]
    for damaged in (b"", content[:-9], flipped):
        shard.write_bytes(damaged)
        with pytest.raises(
            DataError, match=r"000001\.parquet is damaged or no shard: .*; remove it, and `mixsiam embed`"
        ):
            read_vectors(folder)
    shard.write_bytes(content[:-9])
    with pytest.raises(DataError, match=r"000001\.parquet is damaged or no shard"):
        fill(folder, "d")
    shard.unlink()
    fill(folder, "abc")
    assert read_vectors(folder).ids == ["a", "b", "c"]


def test_a_shard_of_another_encoder_is_not_read(folder: Path, tmp_path: Path) -> None:
    fill(tmp_path / "other", "d", replace(MANIFEST, fingerprint="cd" * 32))
    (tmp_path / "other/000001.parquet").rename(folder / "000002.parquet")
    with pytest.raises(DataError, match=r"000002\.parquet .*: its vectors are not of the encoder in _manifest\.json"):
        read_vectors(folder)
    with pytest.raises(DataError, match=r"000002\.parquet .*: its columns or their encoder are not those of _manifest"):
        fill(folder, "e")


def test_a_shard_with_other_columns_is_not_added_to(folder: Path) -> None:
    shard = folder / "000001.parquet"
    pq.write_table(pq.read_table(shard).drop(["width"]), shard)
    with pytest.raises(DataError, match=r"its columns or their encoder are not those of"):
        fill(folder, "d")


def test_a_small_shard_is_not_blown_up(folder: Path) -> None:
    shard = folder / "000001.parquet"
    table = pq.read_table(shard).slice(0, 1)
    many = pa.concat_tables([table] * 200_000).combine_chunks()
    pq.write_table(many, shard, compression="zstd")
    assert shard.stat().st_size < 1_000_000
    for action in (lambda: read_vectors(folder), lambda: fill(folder, "d")):
        with pytest.raises(DataError, match="200000 vectors of 4, more than its"):
            action()


@pytest.mark.parametrize("module", ["pyarrow", "filelock"])
def test_without_its_packages(tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{module} is not installed; run: pip install 'mixsiam-hub\[bulk\]'"):
        fill(tmp_path / "v", "a")


def test_reading_without_its_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match="pyarrow is not installed"):
        read_vectors(folder)
