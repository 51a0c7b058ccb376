"""Vector files come back as they went, whole or not at all, and never unpickle."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mixsiam_hub.errors import DataError, OutputError
from mixsiam_hub.vectors.table import VectorFile, read_vectors, vector_writer, write_vectors

SUFFIXES = [".npz", ".parquet"]


def make(n: int = 5, dim: int = 4) -> VectorFile:
    vectors = np.random.default_rng(0).standard_normal((n, dim)).astype(np.float32)
    names = ["photos/a.jpg", "photos/b.jpg", "über/ß.png", "日本/写真.jpg", ""]
    return VectorFile(vectors, [names[i % 5] for i in range(n)], "ab" * 32, "onnx-fp32-exact", "org/name@1")


def target(tmp_path: Path, suffix: str) -> Path:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="needs the extra bulk")
    return tmp_path / f"v{suffix}"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("n", [0, 1, 5])
def test_round_trip(tmp_path: Path, suffix: str, n: int) -> None:
    path, data = target(tmp_path, suffix), make(n)
    write_vectors(path, data)
    back = read_vectors(str(path))
    np.testing.assert_array_equal(back.vectors, data.vectors)
    assert back.vectors.dtype == np.float32
    assert (back.ids, back.fingerprint, back.variant, back.model) == (
        data.ids,
        data.fingerprint,
        data.variant,
        data.model,
    )
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_that_are_no_unicode_come_back(tmp_path: Path, suffix: str) -> None:
    names = [os.fsdecode(b"caf\xe9.jpg"), r"caf\udce9.jpg", "\ud800", "日本/写真.jpg"]
    path = target(tmp_path, suffix)
    write_vectors(path, VectorFile(np.ones((4, 2), np.float32), names, "f", "v", "m"))
    assert read_vectors(path).ids == names


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = target(tmp_path, suffix)
    write_vectors(path, make(3))

    def full(_: Path, __: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match=rf"v\{suffix} cannot be written: No space left"):
        write_vectors(path, make(5))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert len(read_vectors(path).ids) == 3


def test_a_missing_folder_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"absent/v\.npz cannot be written: No such file or directory"):
        write_vectors(tmp_path / "absent/v.npz", make())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_place_is_tried_before_the_vectors_are_there(tmp_path: Path, suffix: str) -> None:
    path = target(tmp_path, suffix)
    path.mkdir()
    with pytest.raises(OutputError, match="it is a folder"), vector_writer(path):
        pytest.fail("the work began")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_an_error_of_the_output(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = target(tmp_path, suffix)
    monkeypatch.setattr(np, "savez", full)
    if suffix == ".parquet":
        monkeypatch.setattr("pyarrow.parquet.write_table", full)
    with pytest.raises(OutputError, match=rf"v\{suffix} cannot be written: No space left on device"):
        write_vectors(path, make())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["v.csv", "v", "v.npy"])
def test_another_suffix_is_refused(tmp_path: Path, name: str) -> None:
    for action in (lambda: write_vectors(tmp_path / name, make()), lambda: read_vectors(tmp_path / name)):
        with pytest.raises(DataError, match=r"must end in \.npz or \.parquet"):
            action()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off", b"PAR1 and no more PAR1"])
def test_other_files_are_data_errors(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = target(tmp_path, suffix)
    with pytest.raises(DataError, match=rf"v\{suffix}: no such file"):
        read_vectors(path)
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"v\{suffix} is no vector file"):
        read_vectors(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_flipped_bit_is_read_as_something_else(tmp_path: Path, suffix: str) -> None:
    path, data = target(tmp_path, suffix), make()
    write_vectors(path, data)
    content = path.read_bytes()
    refusals = []
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            back = read_vectors(path)
        except DataError as error:
            refusals.append(str(error))
            continue
        np.testing.assert_array_equal(back.vectors, data.vectors)
        assert replace(back, vectors=data.vectors).__dict__ == data.__dict__
    assert all(map(str.isprintable, refusals))
    assert len(refusals) > len(content) / 2  # What is left names fields that nothing reads, such as an archive's dates.


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_cut_anywhere_is_a_data_error(tmp_path: Path, suffix: str) -> None:
    path = target(tmp_path, suffix)
    write_vectors(path, make())
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=rf"v\{suffix} is no vector file"):
            read_vectors(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_named_pipe_is_refused_at_once(tmp_path: Path, suffix: str) -> None:
    path = target(tmp_path, suffix)
    os.mkfifo(path)
    with pytest.raises(DataError, match="must be a regular file"):
        read_vectors(path)


def test_shapes_are_checked_when_made() -> None:
    with pytest.raises(DataError, match=r"\(N, D\) float32"):
        VectorFile(np.ones(3, np.float32), ["a", "b", "c"], "f", "v", "m")
