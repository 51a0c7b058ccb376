"""Rows of Parquet files are images with classes, each under its file's name and its row's number."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from encoding import encoded
from needs import FORK, NAMED_PIPES
from PIL import Image

from mixsiam_hub.errors import DataError, ImageError
from mixsiam_hub.images import parquet
from mixsiam_hub.images.load import load_image
from mixsiam_hub.images.sources import open_source

pa = pytest.importorskip("pyarrow", reason="needs the extra bulk")
pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra bulk")


def picture(level: int) -> bytes:
    return encoded(Image.new("L", (4, 3), level))


def write(path: Path, levels: list[int], labels: object = None, names: list[str] | None = None) -> str:
    """A file as the `datasets` library writes it: a struct of bytes and path, perhaps a label with named classes."""
    path.parent.mkdir(exist_ok=True)
    columns = {"image": pa.array([{"bytes": picture(level), "path": f"{level}.png"} for level in levels])}
    if labels is not None:
        columns["label"] = labels if isinstance(labels, pa.Array) else pa.array(labels)
    table = pa.table(columns)
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=2)
    return str(path)


def levels(spec: str | list[str]) -> list[int]:
    return [load_image(item.source).getpixel((0, 0))[0] for item in open_source(spec)]


def test_keys_are_file_and_row(tmp_path: Path) -> None:
    first, second = write(tmp_path / "d/0.parquet", [1, 2, 3]), write(tmp_path / "d/1.parquet", [4, 5])
    images = open_source(str(tmp_path / "d"))
    keys = [f"{first}#0", f"{first}#1", f"{first}#2", f"{second}#0", f"{second}#1"]
    assert [item.key for item in images] == keys
    assert levels(str(tmp_path / "d")) == [1, 2, 3, 4, 5]
    assert [item.key for item in pickle.loads(pickle.dumps(images[2:4]))] == keys[2:4]
    assert open_source(first).labels is None


def test_a_column_of_plain_bytes(tmp_path: Path) -> None:
    path = tmp_path / "plain.parquet"
    pq.write_table(pa.table({"image": [picture(7), picture(8)], "other": [1, 2]}), path)
    assert levels(str(path)) == [7, 8]


def test_classes_of_files_that_number_them_differently_go_by_name(tmp_path: Path) -> None:
    first = write(tmp_path / "d/0.parquet", [1, 2], [0, 1], ["cat", "dog"])
    write(tmp_path / "d/1.parquet", [3, 4, 5], [0, 1, 2], ["dog", "cat", "owl"])
    assert open_source(str(tmp_path / "d")).labels == ["cat", "dog", "dog", "cat", "owl"]
    unnamed = write(tmp_path / "2.parquet", [6], [0])
    assert open_source([first, unnamed]).labels is None


@pytest.mark.parametrize("name", ["in [x]/a.parquet", "a[1].parquet", "star*.parquet"])
def test_a_name_with_brackets_is_read_as_it_stands(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, [1, 2])
    write(tmp_path / "a1.parquet", [9])
    assert [item.key for item in open_source(path)] == [f"{path}#0", f"{path}#1"]
    if "/" in name:
        assert levels(str(path.rpartition("/")[0])) == [1, 2]


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (["dog", "cat", "dog"], None, ["dog", "cat", "dog"]),
        (pa.array(["dog", "cat", "dog"]).dictionary_encode(), None, ["dog", "cat", "dog"]),
        (pa.array(["dog", "cat", "dog"], pa.large_string()), None, ["dog", "cat", "dog"]),
        ([1, 0, 1], ["cat", "dog"], ["dog", "cat", "dog"]),
        ([1, 0, 1], None, ["1", "0", "1"]),
        (pa.array([7, 0, 1], pa.uint8()), None, ["7", "0", "1"]),
        ([1, -1, 1], ["cat", "dog"], None),
        ([1, 2, 1], ["cat", "dog"], None),
        (["dog", None, "dog"], None, None),
        ([0.5, 1.0, 2.0], None, None),
    ],
)
def test_classes_go_by_name(
    labels: object, names: list[str] | None, expected: list[str] | None, tmp_path: Path
) -> None:
    images = open_source(write(tmp_path / "a.parquet", [1, 2, 3], labels, names))
    assert images.labels == expected
    assert [item.label for item in images] == (expected or [None] * 3)


def test_files_and_parquet_together_have_no_classes(tmp_path: Path) -> None:
    parquet = write(tmp_path / "a.parquet", [1, 2], ["x", "y"])
    photo = tmp_path / "b.png"
    photo.write_bytes(picture(3))
    images = open_source([str(photo), parquet])
    assert [item.key for item in images] == [str(photo), f"{parquet}#0", f"{parquet}#1"]
    assert images.labels is None
    assert levels([str(photo), parquet]) == [3, 1, 2]


def test_hidden_files_of_a_folder_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "d/a.parquet", [1])
    (tmp_path / "d/._a.parquet").write_bytes(b"what macOS leaves beside it")
    assert levels(str(tmp_path / "d")) == [1]


def test_the_identity_tells_files_apart(tmp_path: Path) -> None:
    first = open_source(write(tmp_path / "x/a.parquet", [1, 2])).identity
    assert open_source(write(tmp_path / "y/a.parquet", [1, 2])).identity == first
    assert open_source(write(tmp_path / "y/a.parquet", [1, 3])).identity != first
    assert open_source(write(tmp_path / "x/b.parquet", [1, 2])).identity != first


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    good, junk, cut = write(tmp_path / "good.parquet", [1, 2]), tmp_path / "junk.parquet", tmp_path / "cut.parquet"
    junk.write_bytes(b"no Parquet at all")
    cut.write_bytes(Path(good).read_bytes()[:-20])
    for path in (junk, cut):
        with pytest.raises(DataError, match=rf"{path.name} cannot be read as Parquet: "):
            open_source([good, str(path)])
    for name, column in [("text", pa.array(["a"])), ("numbers", pa.array([1])), ("struct", pa.array([{"path": "a"}]))]:
        pq.write_table(pa.table({"image": column}), tmp_path / f"{name}.parquet")
        with pytest.raises(DataError, match=rf"{name}\.parquet: column 'image' (holds|has no field 'bytes')"):
            open_source(str(tmp_path / f"{name}.parquet"))
    pq.write_table(pa.table({"picture": [b""], "label": [1]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"other\.parquet: no column 'image'; it has picture, label"):
        open_source(str(tmp_path / "other.parquet"))


def test_a_row_without_an_image_is_a_bad_image(tmp_path: Path) -> None:
    path = tmp_path / "gap.parquet"
    pq.write_table(pa.table({"image": pa.array([picture(1), None], pa.binary())}), path)
    assert open_source(str(path))[1].source == b""


@NAMED_PIPES
def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet is a pipe"):
        open_source(str(tmp_path / "a.parquet"))


def test_images_keep_their_order_over_row_groups(tmp_path: Path) -> None:
    path = write(tmp_path / "many.parquet", list(range(50)))
    order = np.random.default_rng(0).permutation(50)
    images = open_source(path).take(order)
    assert [load_image(item.source).getpixel((0, 0))[0] for item in images] == order.tolist()
    assert images[3].key == f"{path}#{order[3]}"


def test_any_column_of_images(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    scans = [{"bytes": picture(level), "path": "x"} for level in (1, 2, 3)]
    pq.write_table(pa.table({"scan.left": scans, "image": [picture(9)] * 3, "label": ["x", "y", "x"]}), path)
    images = open_source(path, "scan.left")
    assert [load_image(item.source).getpixel((0, 0))[0] for item in images] == [1, 2, 3]
    assert images.labels == ["x", "y", "x"]
    assert [item.key for item in pickle.loads(pickle.dumps(images))] == [f"{path}#{row}" for row in range(3)]
    assert levels(path) == [9, 9, 9]
    with pytest.raises(
        DataError, match=r"no column 'photo'; it has scan\.left, image, label; embed takes another one by --column"
    ):
        open_source(path, "photo")


@pytest.mark.parametrize(("cache", "piece"), [(1, 1), (300, 100), (2**30, 2**26)])
def test_any_order_in_any_memory(cache: int, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "CACHE_BYTES", cache)
    monkeypatch.setattr(parquet, "PIECE_BYTES", piece)
    for name in "ab":
        rows = [{"bytes": picture(level), "path": ""} for level in range(20)]
        pq.write_table(pa.table({"image": rows, "label": [name] * 20}), tmp_path / f"{name}.parquet", row_group_size=12)
    images = open_source(str(tmp_path))
    images.store.preload()
    order = np.random.default_rng(0).integers(0, 40, 100)
    got = [load_image(item.source).getpixel((0, 0))[0] for item in images.take(order)]
    assert got == (order % 20).tolist()
    kept = images.store._kept.values()
    assert sum(array.get_total_buffer_size() for array in kept) == images.store._kept_bytes
    assert images.store._kept_bytes <= cache or len(kept) == 1


def test_labels_are_read_without_the_images(tmp_path: Path) -> None:
    images = open_source(write(tmp_path / "a.parquet", [1, 2, 3], ["x", "y", "x"]))
    assert images.labels == ["x", "y", "x"]
    assert not images.store._kept


@FORK
@pytest.mark.parametrize("preloaded", [True, False])
def test_forked_processes_read_too(preloaded: bool, tmp_path: Path) -> None:
    images = open_source(write(tmp_path / "a.parquet", list(range(20))))
    if preloaded:
        images.store.preload()
        (tmp_path / "a.parquet").unlink()
    images[9]  # The parent has the file open, and stands in it.
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    child = fork.Process(target=lambda: theirs.send([item.source for item in images]), daemon=True)
    child.start()
    assert ours.poll(60)
    assert [load_image(source).getpixel((0, 0))[0] for source in ours.recv()] == list(range(20))
    child.join()


def test_threads_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "CACHE_BYTES", 300)
    images = open_source(write(tmp_path / "a.parquet", list(range(50))))
    order = [int(row) for row in np.random.default_rng(0).permutation(50)] * 4
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(images.__getitem__, order))
    assert [load_image(item.source).getpixel((0, 0))[0] for item in found] == order


def test_a_damaged_row_group_is_bad_images_and_the_others_are_good(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.parquet", [1, 2, 3, 4], [0, 0, 0, 0]))
    second = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = second.dictionary_page_offset or second.data_page_offset
    data[start : start + second.total_compressed_size] = b"\xff" * second.total_compressed_size
    path.write_bytes(data)
    images = open_source(str(path))
    assert [load_image(images[row].source).getpixel((0, 0))[0] for row in (0, 1)] == [1, 2]
    for row in (2, 3, 2):
        with pytest.raises(ImageError, match=rf"a\.parquet#{row}: .*a\.parquet cannot be read as Parquet"):
            load_image(images[row].source, name=images[row].key)
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as Parquet"):
        images.store.preload()


def test_a_file_that_is_another_by_now_is_bad_images(tmp_path: Path) -> None:
    images = open_source(write(tmp_path / "a.parquet", [1, 2, 3, 4, 5]))
    write(tmp_path / "a.parquet", [1])
    with pytest.raises(ImageError, match="has other rows than when the file was opened"):
        load_image(images[0].source)
    with pytest.raises(ImageError, match=r"a\.parquet cannot be read as Parquet"):
        load_image(images[4].source)


def test_files_that_do_not_fit_together_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [1], ["x"])
    write(tmp_path / "b.parquet", [1], [1])
    with pytest.raises(DataError, match=r"b\.parquet and .*a\.parquet do not fit together: the one has image: struct"):
        open_source(str(tmp_path))
