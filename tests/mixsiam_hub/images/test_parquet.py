"""Rows of Parquet files are images with classes, each under its file's name and its row's number."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from encoding import encoded
from PIL import Image

from mixsiam_hub.errors import DataError
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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
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
