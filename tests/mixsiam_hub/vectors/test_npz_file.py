"""Vectors as .npz: plain numpy, and what hostile archives meet."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mixsiam_hub.errors import DataError
from mixsiam_hub.vectors.table import VectorFile, read_vectors, write_vectors

GOOD = VectorFile(np.eye(2, 4, dtype=np.float32), ["a.jpg", "über/ß.png"], "f", "v", "org/name@1")


def test_npz_is_plain_numpy(tmp_path: Path) -> None:
    write_vectors(tmp_path / "v.npz", GOOD)
    with np.load(tmp_path / "v.npz", allow_pickle=False) as archive:
        assert archive["ids"].dtype.kind == "U"
        assert archive["ids"][1] == "über/ß.png"
        assert archive["vectors"].shape == (2, 4)
        assert str(archive["model"]) == "org/name@1"


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
