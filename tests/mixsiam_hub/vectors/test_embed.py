"""Images to vectors: names, labels and what could not be read."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mixsiam_hub import BUILTIN, ImageEncoder, ImageError
from mixsiam_hub.errors import OutputError
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.images.sources import Item
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.vectors.embed import embed_files, errors_path, write_errors
from mixsiam_hub.vectors.search import search


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    return ImageEncoder.from_pretrained(threads=1)


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return [Item(f"set#{name}", image) for name, image in draw_samples(7).items()]


def test_items_keep_their_keys_and_bad_ones_their_reasons(encoder: ImageEncoder, items: list[Item]) -> None:
    done: list[int] = []
    given = [*items[:4], Item("set#bad", b"no image"), *items[4:]]
    stored, bad = embed_files(encoder, iter(given), batch_size=3, progress=done.append)
    assert stored.ids == [item.key for item in items]
    np.testing.assert_allclose(stored.vectors, encoder.embed(items), atol=1e-5)
    assert list(bad) == ["set#bad"]
    assert bad["set#bad"].startswith("set#bad: ")
    assert done == [3, 3, 2]


def test_strict_stops_at_a_bad_image(encoder: ImageEncoder, items: list[Item]) -> None:
    with pytest.raises(ImageError, match="set#bad"):
        embed_files(encoder, [*items, Item("set#bad", b"")], strict=True)


def test_none_are_no_vectors_of_the_right_length(encoder: ImageEncoder) -> None:
    assert embed_files(encoder, [])[0].vectors.shape == (0, 512)


def test_live_images_are_named_by_their_places(encoder: ImageEncoder) -> None:
    def frames() -> Iterator[np.ndarray]:
        frame = np.zeros((40, 40, 3), np.uint8)
        for level in (0, 90, 250):
            frame[:20] = level
            yield frame

    stored, _ = embed_files(encoder, frames())
    assert stored.ids == ["image 0", "image 1", "image 2"]
    assert len(np.unique(stored.vectors[:, :4].round(4), axis=0)) == 3
    query = io.BytesIO()
    draw_samples(1)["disc_00.png"].save(query, "PNG")
    assert [row.query for row in search(encoder, stored, [query.getvalue()], 2)] == ["image 0"]


def test_the_label_opens_the_same_encoder_again(encoder: ImageEncoder) -> None:
    assert embed_files(encoder, [])[0].model == "built-in"
    assert embed_files(encoder, [], model="a/folder@1")[0].model == "a/folder@1"
    # As of a repository on the Hub, whose main branch may be another one tomorrow.
    commit = "0123456789" * 4
    pulled = ImageEncoder(ModelFolder.open(BUILTIN, revision=commit), encoder._backend, 1)
    for name in ("org/name", "org/name@main"):
        assert embed_files(pulled, [], model=name)[0].model == f"org/name@{commit}"


def test_the_list_of_errors_is_json_lines_and_goes_when_all_are_good(tmp_path: Path) -> None:
    out = tmp_path / "v.tar.npz"
    write_errors(out, {"caf\udce9.jpg": "two\nlines", "📷": "x"})
    assert errors_path(out) == tmp_path / "v.tar.npz.errors.jsonl"
    lines = errors_path(out).read_bytes().splitlines()
    assert lines[0] == rb'{"key": "caf\udce9.jpg", "reason": "two\nlines"}'
    assert len(lines) == 2
    write_errors(out, {})
    assert not list(tmp_path.iterdir())
    write_errors(out, {})


def test_a_list_that_cannot_be_written_is_an_error_of_the_output(tmp_path: Path) -> None:
    errors_path(tmp_path / "v.npz").mkdir()
    with pytest.raises(OutputError, match=r"v\.npz\.errors\.jsonl cannot be written: it is a folder"):
        write_errors(tmp_path / "v.npz", {"a": "b"})
