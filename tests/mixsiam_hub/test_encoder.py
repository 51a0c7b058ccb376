from __future__ import annotations

import gc
import io
import multiprocessing
import pickle
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from needs import FORK
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from mixsiam_hub import ImageEncoder, ImageError
from mixsiam_hub.backends import graph
from mixsiam_hub.errors import ArgumentError
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.images.stream import as_iterable
from mixsiam_hub.vectors.cosine import unit_length


@pytest.fixture(scope="module")
def encoder(model_folder: Path) -> ImageEncoder:
    return ImageEncoder.from_pretrained(model_folder, backend="onnx", threads=2)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return list(draw_samples(64).values())


def _cosines(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_every_kind_of_source_gives_the_same_vector_in_its_place(
    encoder: ImageEncoder, pictures: list[Image.Image], tmp_path: Path
) -> None:
    picture, other = pictures[:2]
    path = tmp_path / "picture.png"
    picture.save(path)
    data = path.read_bytes()
    mixed = [path, other, str(path), data, io.BytesIO(data), picture, np.asarray(picture), other]
    vectors = encoder.embed(mixed, batch_size=3)
    assert vectors.shape == (8, encoder.dim)
    assert vectors.dtype == np.float32
    expected = encoder.embed([picture, other])
    rows = [0, 1, 0, 0, 0, 0, 0, 1]
    np.testing.assert_allclose(vectors, np.asarray(expected)[rows], atol=1e-5)
    assert _cosines(expected[:1], expected[1:])[0] < 0.999  # Else the order would not be tested.


def test_each_frame_of_an_animation_gives_its_own_vector(encoder: ImageEncoder, pictures: list[Image.Image]) -> None:
    frames = [picture.resize((64, 48)) for picture in pictures[:12]]
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    vectors = encoder.embed(ImageSequence.Iterator(Image.open(file)), batch_size=4)
    np.testing.assert_allclose(vectors, encoder.embed(frames), atol=1e-5)


def test_one_image_gives_one_row_and_none_gives_none(encoder: ImageEncoder, pictures: list[Image.Image]) -> None:
    array = np.asarray(pictures[0])
    for single in (pictures[0], array, array[..., 0]):
        assert encoder.embed(single).shape == (1, encoder.dim)
    for empty in ([], iter(()), np.empty((0, 5, 5, 3), np.uint8)):
        assert encoder.embed(empty).shape == (0, encoder.dim)
    assert encoder.features([]).shape == (0, *encoder.features(array).shape[1:])


def test_array_of_four_dimensions_is_a_batch(encoder: ImageEncoder) -> None:
    batch = np.random.default_rng(0).integers(0, 256, (3, 40, 41, 3), dtype=np.uint8)
    np.testing.assert_array_equal(encoder.embed(batch), encoder.embed(list(batch)))


def test_half_transparent_array_is_seen_on_white(encoder: ImageEncoder) -> None:
    clear = np.zeros((20, 20, 4), np.uint8)
    white = np.full((20, 20, 3), 255, np.uint8)
    np.testing.assert_allclose(encoder.embed(clear), encoder.embed(white), atol=1e-6)


def test_text_is_one_path_and_a_list_is_many() -> None:
    assert list(as_iterable("a.png")) == ["a.png"]
    assert list(as_iterable(["a.png", "b.png"])) == ["a.png", "b.png"]
    assert list(as_iterable(b"abc")) == [b"abc"]


def test_vectors_have_length_one_unless_asked_otherwise(encoder: ImageEncoder, pictures: list[Image.Image]) -> None:
    unit = encoder.embed(pictures[:5])
    raw = encoder.embed(pictures[:5], normalize=False)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).min() > 1e-3
    np.testing.assert_allclose(_cosines(unit, raw), 1, atol=1e-6)


def test_zero_vector_stays_zero() -> None:
    result = unit_length(np.array([[0, 0], [3, 4]], np.float32))
    np.testing.assert_allclose(result, [[0, 0], [0.6, 0.8]], rtol=1e-6)
    assert result.dtype == np.float32


def test_vector_does_not_depend_on_its_batch_mates(encoder: ImageEncoder, pictures: list[Image.Image]) -> None:
    together = encoder.embed(pictures, batch_size=64)
    alone = encoder.embed(pictures, batch_size=1)
    assert _cosines(together, alone).min() > 0.99999


def test_number_of_threads_changes_nothing(model_folder: Path, pictures: list[Image.Image]) -> None:
    one, four = (ImageEncoder.from_pretrained(model_folder, backend="onnx", threads=n).embed(pictures) for n in (1, 4))
    assert _cosines(one, four).min() > 0.99999


def test_skipped_images_leave_their_rows_as_nan_with_the_reason(
    encoder: ImageEncoder, pictures: list[Image.Image], tmp_path: Path
) -> None:
    missing = tmp_path / "missing.png"
    errors: dict[int, ImageError] = {}
    images = [pictures[0], missing, b"no image", pictures[1]]
    vectors = encoder.embed(images, on_error="skip", errors=errors, batch_size=2)
    assert type(vectors) is np.ndarray
    assert np.isnan(vectors).all(axis=1).tolist() == [False, True, True, False]
    assert sorted(errors) == [1, 2]
    assert str(missing) in str(errors[1])
    assert "image 2" in str(errors[2])
    np.testing.assert_allclose(vectors[[0, 3]], encoder.embed(pictures[:2]), atol=1e-5)


def test_batch_of_bad_images_only(encoder: ImageEncoder) -> None:
    vectors = encoder.embed([b"x", b"y"], on_error="skip")
    assert np.isnan(vectors).all()
    assert vectors.shape == (2, encoder.dim)


def test_first_bad_image_raises_and_is_named(encoder: ImageEncoder, pictures: list[Image.Image]) -> None:
    with pytest.raises(ImageError, match="image 1"):
        encoder.embed([pictures[0], b"bad", pictures[1], b"worse"])
    with pytest.raises(ImageError, match=r"absent\.jpg"):
        encoder.embed("absent.jpg")


def test_stream_yields_batches_in_order_with_indices(encoder: ImageEncoder, pictures: list[Image.Image]) -> None:
    images = [*pictures[:3], b"bad", *pictures[3:6]]
    batches = list(encoder.embed_stream(iter(images), batch_size=3, on_error="skip"))
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2], [4, 5], [6]]
    assert [sorted(batch.errors) for batch in batches] == [[], [3], []]
    together = np.concatenate([batch.vectors for batch in batches])
    np.testing.assert_allclose(together, encoder.embed(pictures[:6]), atol=1e-5)


def test_stream_holds_a_bounded_number_of_images(encoder: ImageEncoder, pictures: list[Image.Image]) -> None:
    taken = 0

    def endless() -> Iterator[Image.Image]:
        nonlocal taken
        while True:
            taken += 1
            yield pictures[taken % len(pictures)]

    seen = 0
    stream = encoder.embed_stream(endless(), batch_size=4)
    for _ in range(10):
        seen += len(next(stream).indices)
        assert taken - seen <= 4
    assert seen == 40


def test_stream_passes_on_what_its_source_raises(encoder: ImageEncoder, pictures: list[Image.Image]) -> None:
    def broken() -> Iterator[Image.Image]:
        yield pictures[0]
        raise KeyError("source")

    with pytest.raises(KeyError, match="source"):
        list(encoder.embed_stream(broken()))


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"on_error": "ignore"}])
def test_arguments_are_checked_before_the_first_image_is_taken(encoder: ImageEncoder, arguments: Any) -> None:
    def untouched() -> Iterator[bytes]:
        raise AssertionError("an image was taken")
        yield b""

    with pytest.raises(ArgumentError, match=next(iter(arguments))):
        encoder.embed_stream(untouched(), **arguments)


def test_threads_below_one_are_refused(model_folder: Path) -> None:
    with pytest.raises(ArgumentError, match="threads"):
        ImageEncoder.from_pretrained(model_folder, threads=0)


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_mean_of_the_feature_map_is_the_raw_vector(
    model_folder: Path, pictures: list[Image.Image], backend: str
) -> None:
    encoder = ImageEncoder.from_pretrained(model_folder, backend=backend)
    maps = encoder.features(pictures[:3], batch_size=2)
    assert maps.shape == (3, encoder.dim, 2, 2)
    raw = encoder.embed(pictures[:3], normalize=False)
    np.testing.assert_allclose(maps.mean((2, 3)), raw, atol=1e-5 * np.abs(raw).max())


def test_properties_say_what_runs(encoder: ImageEncoder) -> None:
    assert encoder.dim == 512
    assert encoder.input_size == (32, 32)
    assert (encoder.backend, encoder.device, encoder.precision) == ("onnx", "cpu", "fp32")
    assert encoder.variant == "fp32-exact"
    assert encoder.revision is None
    assert len(encoder.fingerprint) == 64
    assert "resnet18" in repr(encoder)


def test_to_torch_gives_a_trainable_copy(encoder: ImageEncoder, pictures: list[Image.Image]) -> None:
    torch = pytest.importorskip("torch")
    from mixsiam_hub.images.preprocess import preprocess
    from mixsiam_hub.model.config import Preprocessing

    net = encoder.to_torch()
    assert net.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in net.parameters())
    x = torch.from_numpy(np.stack([preprocess(picture, Preprocessing(32)) for picture in pictures[:4]]))
    net(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    with torch.no_grad():
        vectors = encoder.to_torch().eval()(x).numpy()
    assert _cosines(vectors, encoder.embed(pictures[:4])).min() > 0.99999


@pytest.mark.parametrize("backend", ["onnx", "torch"])
@pytest.mark.parametrize("used", [False, True])
def test_pickles_before_and_after_use(
    model_folder: Path, pictures: list[Image.Image], backend: str, used: bool
) -> None:
    encoder = ImageEncoder.from_pretrained(model_folder, backend=backend, threads=1)
    if used:
        encoder.embed(pictures[:2])
    data = pickle.dumps(encoder)
    assert len(data) < 100_000  # A recipe for the session, not its weights.
    copy = pickle.loads(data)
    np.testing.assert_allclose(copy.embed(pictures[:2]), encoder.embed(pictures[:2]), atol=1e-6)


def test_session_is_freed_with_its_encoder(
    model_folder: Path, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions: list[weakref.ref[Any]] = []
    original = graph._open_session

    def watched(*arguments: Any) -> Any:
        session = original(*arguments)
        sessions.append(weakref.ref(session))
        return session

    monkeypatch.setattr(graph, "_open_session", watched)
    gc.disable()
    try:
        encoder = ImageEncoder.from_pretrained(model_folder, backend="onnx", threads=1)
        encoder.embed(pictures[:2])
        assert [session() is None for session in sessions] == [False]
        del encoder
        assert [session() is None for session in sessions] == [True]
    finally:
        gc.enable()


def test_many_threads_share_one_session(
    model_folder: Path, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    original = graph._open_session

    def counting(*arguments: Any) -> Any:
        opened.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(graph, "_open_session", counting)
    encoder = ImageEncoder.from_pretrained(model_folder, backend="onnx", threads=1)
    assert len(opened) == 1
    expected = encoder.embed(pictures)
    start = threading.Barrier(4)
    results: dict[int, NDArray[Any]] = {}

    def work(number: int) -> None:
        start.wait()
        results[number] = encoder.embed(pictures, batch_size=8)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(opened) == 1
    assert len(results) == 4
    assert all(_cosines(result, expected).min() > 0.99999 for result in results.values())


def _embed_in_child(encoder: ImageEncoder, pictures: list[Image.Image], results: Any) -> None:
    results.put(np.asarray(encoder.embed(pictures)))


@FORK
@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_survives_a_fork_after_use(model_folder: Path, pictures: list[Image.Image], backend: str) -> None:
    encoder = ImageEncoder.from_pretrained(model_folder, backend=backend, threads=2)
    before = encoder.embed(pictures[:8])
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    child = context.Process(target=_embed_in_child, args=(encoder, pictures[:8], results))
    child.start()
    inside = results.get(timeout=60)
    child.join(timeout=60)
    assert child.exitcode == 0
    assert _cosines(inside, before).min() > 0.99999
    np.testing.assert_allclose(encoder.embed(pictures[:8]), before, atol=1e-6)
