"""Vector files come back as they went, whole or not at all, and never unpickle."""

from __future__ import annotations

import errno
import io
import os
import sys
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mixsiam_hub.errors import DataError, MissingExtraError, OutputError
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


def test_npz_is_plain_numpy(tmp_path: Path) -> None:
    write_vectors(tmp_path / "v.npz", make())
    with np.load(tmp_path / "v.npz", allow_pickle=False) as archive:
        assert archive["ids"].dtype.kind == "U"
        assert archive["ids"][2] == "über/ß.png"
        assert archive["vectors"].shape == (5, 4)
        assert str(archive["model"]) == "org/name@1"


def test_parquet_has_typed_columns_and_metadata(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs the extra bulk")
    pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra bulk")
    write_vectors(tmp_path / "v.parquet", make())
    schema = pq.read_schema(tmp_path / "v.parquet")
    assert schema.field("vector").type == pa.list_(pa.float32(), 4)
    assert schema.field("path").type == pa.string()
    assert schema.metadata[b"fingerprint"] == b"ab" * 32


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


def write_npz(path: Path, compression: int = zipfile.ZIP_STORED, **members: object) -> None:
    """Writes a vector file with some of its arrays replaced: by an array, or by an .npy file's bytes."""
    arrays = {"vectors": np.ones((2, 2), np.float32), "ids": np.array(["a", "b"])}
    labels = {name: np.array("x") for name in ("fingerprint", "variant", "model")}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, value in (arrays | labels | members).items():
            if not isinstance(value, bytes):
                buffer = io.BytesIO()
                np.save(buffer, value)
                value = buffer.getvalue()
            archive.writestr(f"{name}.npy", value)


def npy(shape: object, descr: str = "<f4", content: bytes = b"") -> bytes:
    """An .npy file whose header says what it likes."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


def test_the_hostile_files_are_made_as_the_good_one_is(tmp_path: Path) -> None:
    write_npz(tmp_path / "v.npz", vectors=npy((2, 1), content=bytes(8)))
    assert read_vectors(tmp_path / "v.npz").ids == ["a", "b"]


@pytest.mark.parametrize(
    "members",
    [
        {"vectors": npy((10**9, 10**6))},
        {"vectors": npy((10**30, 2))},
        {"vectors": npy((10**12, 0))},
        {"vectors": npy((-1, -2), content=bytes(8))},
        {"vectors": npy((2, 1), content=bytes(12))},
        {"vectors": npy("(" * 5000)},
        {"vectors": b"\x93NUMPY\x01\x00\xff\xff"},
        {"vectors": npy((2, 1), "|O", bytes(16))},
        {"ids": npy((10**12,), "<U0")},
        {"ids": npy((2,), "<U1000000000")},
        {"ids": npy((2,), "<U1", b"\xff" * 8)},
        {"ids": np.array([1, 2])},
        {"ids": np.array([b"a", b"b"])},
        {"ids": np.array([["a", "b"]])},
        {"ids": npy((2,), "<U3", "a\0bc\0d".encode("utf-32-le"))},
        {"model": npy((), "<U1000000000")},
        {"model": np.array(["x"])},
        {"model": np.array(7)},
        {"vectors": np.array([[1, np.nan], [1, 1]], np.float32)},
        {"vectors": np.array([[1, 1], [-np.inf, 1]], np.float32)},
        {"vectors": np.ones((2, 2), ">f4")},
        {"vectors": np.ones((2, 2, 1), np.float32)},
    ],
)
def test_an_absurd_npz_is_refused_before_anything_is_allocated(tmp_path: Path, members: dict[str, object]) -> None:
    path = tmp_path / "v.npz"
    write_npz(path, **members)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"v\.npz is no vector file: ") as caught:
        read_vectors(path)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4_000_000
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_a_compressed_npz_is_not_inflated(tmp_path: Path) -> None:
    path = tmp_path / "v.npz"
    write_npz(path, zipfile.ZIP_DEFLATED, vectors=np.zeros((100, 50_000), np.float32))
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match="is compressed; it must be stored as it is"):
        read_vectors(path)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (pytest.fail, ("unpickled",))

    labels = {"fingerprint": "f", "variant": "v", "model": "m"}
    ids = np.array([Bomb()], dtype=object)
    np.savez(tmp_path / "v.npz", vectors=np.ones((1, 2), np.float32), ids=ids, **labels)
    with pytest.raises(DataError, match="is no vector file"):
        read_vectors(tmp_path / "v.npz")
    np.save((tmp_path / "array.npz").open("wb"), ids, allow_pickle=True)
    with pytest.raises(DataError, match="is no vector file"):
        read_vectors(tmp_path / "array.npz")


def test_missing_and_ill_typed_arrays(tmp_path: Path) -> None:
    labels = {"fingerprint": "f", "variant": "v", "model": "m"}
    np.savez(tmp_path / "v.npz", vectors=np.ones((2, 2), np.float32), ids=np.array(["a", "b"]))
    with pytest.raises(DataError, match=r"no array fingerprint; `mixsiam embed` writes one"):
        read_vectors(tmp_path / "v.npz")
    np.savez(tmp_path / "v.npz", vectors=np.ones((2, 2)), ids=np.array(["a", "b"]), **labels)
    with pytest.raises(DataError, match="dtype float64"):
        read_vectors(tmp_path / "v.npz")
    np.savez(tmp_path / "v.npz", vectors=np.ones((2, 2), np.float32), ids=np.array(["a"]), **labels)
    with pytest.raises(DataError, match="ids are 1"):
        read_vectors(tmp_path / "v.npz")
    np.save((tmp_path / "array.npz").open("wb"), np.ones(3))
    with pytest.raises(DataError, match="is no vector file"):
        read_vectors(tmp_path / "array.npz")


def test_another_parquet_file(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs the extra bulk")
    pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra bulk")
    path = tmp_path / "v.parquet"
    pq.write_table(pa.table({"path": ["a"]}), path)
    with pytest.raises(DataError, match="it has no vector, fingerprint, variant, model, sha256, which `mixsiam embed`"):
        read_vectors(path)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("path", [1, 2], "column path is .*int64.*; it must be string"),
        ("path", [None, "a"], "is no vector file"),
        ("path", ["a", "c"], "does not fit its sha256"),
        ("vector", [1.0, 2.0], "column vector is .*double; it must be a fixed-size list of float32"),
    ],
)
def test_a_parquet_file_that_was_changed(tmp_path: Path, column: str, values: list[object], message: str) -> None:
    path = target(tmp_path, ".parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_vectors(path, VectorFile(np.ones((2, 2), np.float32), ["a", "b"], "f", "v", "m"))
    table = pq.read_table(path)
    changed = table.set_column(table.column_names.index(column), column, pa.array(values))
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(DataError, match=message):
        read_vectors(path)


def test_a_small_parquet_file_is_not_blown_up(tmp_path: Path) -> None:
    path = target(tmp_path, ".parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_vectors(path, make())
    schema = pq.read_schema(path)
    zeros = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4_000_000, np.float32)), 4)
    pq.write_table(pa.table([pa.array(["a"] * len(zeros)), zeros], schema=schema), path)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(DataError, match="1000000 vectors of 4, more than its"):
        read_vectors(path)
    names = pa.DictionaryArray.from_arrays(np.zeros(20_000, np.int32), ["n" * 100_000])  # 2 GB, written out.
    ones = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(80_000, np.float32)), 4)
    pq.write_table(pa.table([names, ones], names=["path", "vector"]).replace_schema_metadata(schema.metadata), path)
    tracemalloc.start()
    with pytest.raises(DataError, match="is no vector file"):
        read_vectors(path)
    peak_bytes = tracemalloc.get_traced_memory()[1] + pa.default_memory_pool().max_memory()
    tracemalloc.stop()
    assert peak_bytes < 500_000_000


def test_parquet_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mixsiam-hub\[bulk\]'"):
        write_vectors(tmp_path / "v.parquet", make())
    assert not list(tmp_path.iterdir())


def test_shapes_are_checked_when_made() -> None:
    with pytest.raises(DataError, match=r"\(N, D\) float32"):
        VectorFile(np.ones(3, np.float32), ["a", "b", "c"], "f", "v", "m")
