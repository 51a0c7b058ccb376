"""Vector files come back as they went, whole or not at all, and never unpickle."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from mixsiam_hub.errors import DataError, MissingExtraError, OutputError
from mixsiam_hub.vectors.table import VectorFile, read_vectors, write_vectors

SUFFIXES = [".npz", ".parquet"]


def make(n: int = 5, dim: int = 4) -> VectorFile:
    vectors = np.random.default_rng(0).standard_normal((n, dim)).astype(np.float32)
    vectors[1:2] = np.nan
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


def test_names_that_are_no_unicode_do_not_cost_the_file(tmp_path: Path) -> None:
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    data = VectorFile(np.ones((1, 2), np.float32), [name], "f", "v", "m")
    write_vectors(tmp_path / "v.npz", data)
    assert read_vectors(tmp_path / "v.npz").ids == [name]
    path = target(tmp_path, ".parquet")
    write_vectors(path, data)
    assert read_vectors(path).ids == [r"caf\udce9.jpg"]


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
    with pytest.raises(DataError, match=r"absent/v\.npz cannot be written"):
        write_vectors(tmp_path / "absent/v.npz", make())


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


def test_a_damaged_npz_is_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "v.npz"
    write_vectors(path, make())
    data = bytearray(path.read_bytes())
    data[150] ^= 0xFF  # inside the vectors: the archive's checksum tells
    path.write_bytes(data)
    with pytest.raises(DataError, match="is no vector file"):
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
    with pytest.raises(DataError, match=r"not written by `mixsiam embed`: fingerprint"):
        read_vectors(tmp_path / "v.npz")
    np.savez(tmp_path / "v.npz", vectors=np.ones((2, 2)), ids=np.array(["a", "b"]), **labels)
    with pytest.raises(DataError, match="dtype float64"):
        read_vectors(tmp_path / "v.npz")
    np.savez(tmp_path / "v.npz", vectors=np.ones((2, 2), np.float32), ids=np.array(["a"]), **labels)
    with pytest.raises(DataError, match="ids are 1"):
        read_vectors(tmp_path / "v.npz")
    np.save((tmp_path / "array.npz").open("wb"), np.ones(3))
    with pytest.raises(DataError, match="single array"):
        read_vectors(tmp_path / "array.npz")


def test_another_parquet_file(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs the extra bulk")
    pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra bulk")
    path = tmp_path / "v.parquet"
    pq.write_table(pa.table({"path": ["a"]}), path)
    with pytest.raises(DataError, match=r"not written by `mixsiam embed`: .*vector"):
        read_vectors(path)
    pq.write_table(pa.table({"path": ["a"], "vector": [1.0]}), path)
    with pytest.raises(DataError, match="fixed-size list"):
        read_vectors(path)


def test_parquet_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mixsiam-hub\[bulk\]'"):
        write_vectors(tmp_path / "v.parquet", make())
    assert not list(tmp_path.iterdir())


def test_shapes_are_checked_when_made() -> None:
    with pytest.raises(DataError, match=r"\(N, D\) float32"):
        VectorFile(np.ones(3, np.float32), ["a", "b", "c"], "f", "v", "m")
