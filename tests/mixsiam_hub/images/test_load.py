"""Every mode and container becomes the right upright RGB pixels."""

from __future__ import annotations

import io
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from encoding import encoded, photo
from PIL import Image, ImageOps

from mixsiam_hub.errors import ImageError
from mixsiam_hub.images import load as images
from mixsiam_hub.images.kinds import ImageSource, is_image_path
from mixsiam_hub.images.load import load_image

ORIENTATION = 0x0112


def pixel(source: ImageSource) -> tuple[int, ...]:
    loaded = load_image(source)
    assert loaded.mode == "RGB"
    return loaded.getpixel((0, 0))


def test_every_source_gives_the_same_pixels(tmp_path: Path) -> None:
    image = photo()
    path = tmp_path / "photo.png"
    image.save(path)
    data = path.read_bytes()
    with path.open("rb") as file:
        sources = [path, str(path), data, io.BytesIO(data), file, image, np.asarray(image), Image.open(path)]
        for source in sources:
            loaded = load_image(source)
            assert loaded.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(loaded), np.asarray(image))
        assert not file.closed


def test_a_file_object_is_read_from_its_start() -> None:
    buffer = io.BytesIO()
    photo().save(buffer, "PNG")
    np.testing.assert_array_equal(np.asarray(load_image(buffer)), np.asarray(photo()))
    np.testing.assert_array_equal(np.asarray(load_image(buffer)), np.asarray(photo()))


def test_an_unseekable_file_object() -> None:
    class Stream(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: int) -> int:
            raise io.UnsupportedOperation

    np.testing.assert_array_equal(np.asarray(load_image(Stream(encoded(photo())))), np.asarray(photo()))


def test_arrays_of_each_shape() -> None:
    grey = np.array([[0, 200]], np.uint8)
    assert load_image(grey).getpixel((1, 0)) == (200, 200, 200)
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)
    assert np.asarray(load_image(rgba)).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    strided = np.asarray(photo())[::-2, ::3]
    np.testing.assert_array_equal(np.asarray(load_image(strided)), strided)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("1", 0, (0, 0, 0)),
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 255), (77, 77, 77)),
        ("LA", (77, 0), (255, 255, 255)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (200, 100, 0, 255), (200, 100, 0)),
        ("RGBA", (200, 100, 0, 0), (255, 255, 255)),
        ("RGBA", (200, 100, 0, 51), (244, 224, 204)),  # a fifth of the colour, four fifths of white
        ("LA", (0, 51), (204, 204, 204)),
        ("RGBa", (40, 20, 0, 51), (244, 224, 204)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
        ("YCbCr", (128, 128, 128), (128, 128, 128)),
        ("HSV", (0, 0, 90), (90, 90, 90)),
    ],
)
def test_each_mode_has_the_right_colour(mode: str, colour: object, expected: tuple[int, ...]) -> None:
    for size in [(1, 1), (5, 3)]:
        assert pixel(Image.new(mode, size, colour)) == expected


def test_palette_without_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([9, 8, 7, 250, 240, 230])
    image.putpixel((1, 0), 1)
    assert np.asarray(load_image(encoded(image))).tolist() == [[[9, 8, 7], [250, 240, 230]]]


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"], ids=["index", "table"])
@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_transparency_is_composited_on_white(transparency: int | bytes, kind: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([9, 8, 7, 0, 0, 0])
    image.putpixel((1, 0), 1)
    if kind == "GIF" and isinstance(transparency, bytes):
        transparency = 1  # a GIF holds an index only
    data = encoded(image, kind, transparency=transparency)
    assert np.asarray(load_image(data)).tolist() == [[[9, 8, 7], [255, 255, 255]]]


def test_half_transparent_palette() -> None:
    image = Image.new("P", (1, 1))
    image.putpalette([200, 100, 0])
    assert pixel(encoded(image, transparency=bytes([51]))) == (244, 224, 204)


@pytest.mark.parametrize(("mode", "key", "colour"), [("L", 7, 7), ("RGB", (1, 2, 3), (1, 2, 3)), ("1", 0, 0)])
def test_a_png_colour_key_is_composited_on_white(mode: str, key: object, colour: object) -> None:
    assert pixel(encoded(Image.new(mode, (2, 2), colour), transparency=key)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_16_bit_grey_is_scaled_in_every_byte_order(mode: str) -> None:
    values = np.array([[0, 255, 256, 0x1234, 0x8000, 65535]], np.uint16)
    order = {"I;16B": ">u2", "I;16N": "=u2"}.get(mode, "<u2")
    image = Image.frombytes(mode, (6, 1), values.astype(order).tobytes())
    assert np.asarray(load_image(image))[0, :, 1].tolist() == [0, 0, 1, 0x12, 0x80, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_files_are_scaled_not_clipped(kind: str) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    loaded = np.asarray(load_image(encoded(Image.fromarray(ramp), kind)))
    np.testing.assert_array_equal(loaded, np.repeat((ramp >> 8)[..., None], 3, axis=-1))


def test_big_endian_16_bit_tiff() -> None:
    """A two-pixel TIFF written by hand: Pillow writes little-endian ones only."""
    tags = [(256, 2), (257, 1), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 4)]
    entries = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    body = struct.pack(">HH", 0x1234, 0xFFFF) + struct.pack(">H", len(tags)) + entries + b"\0\0\0\0"
    data = b"MM\0*" + struct.pack(">I", 12) + body
    assert np.asarray(load_image(data))[0, :, 0].tolist() == [0x12, 255]


def test_a_transparent_grey_of_16_bits_is_white() -> None:
    image = Image.fromarray(np.array([[1000, 40000]], np.uint16))
    assert np.asarray(load_image(encoded(image, transparency=1000)))[0, :, 0].tolist() == [255, 40000 >> 8]


def test_cmyk_jpeg_is_near_its_rgb() -> None:
    image = photo()
    loaded = np.asarray(load_image(encoded(image.convert("CMYK"), "JPEG", quality=95))).astype(int)
    assert np.abs(loaded - np.asarray(image)).mean() < 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_several(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.allclose(pixel(data), (255, 0, 0), atol=10)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_tiny_images(size: tuple[int, int], kind: str) -> None:
    loaded = load_image(encoded(Image.new("RGB", size, "red"), kind))
    assert loaded.size == size
    assert loaded.getpixel((0, 0))[0] > 245


def turned(image: Image.Image, orientation: int) -> np.ndarray:
    """The upright pixels of an image stored under an EXIF orientation, spelled out with array operations."""
    a = np.asarray(image)
    transposed = a.transpose(1, 0, 2)
    return {
        1: a,
        2: a[:, ::-1],
        3: a[::-1, ::-1],
        4: a[::-1],
        5: transposed,
        6: transposed[:, ::-1],
        7: transposed[::-1, ::-1],
        8: transposed[::-1],
    }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(photo(), kind, exif=exif)
    stored = load_image(encoded(photo(), kind))
    loaded = load_image(data)
    np.testing.assert_array_equal(np.asarray(loaded), turned(stored, orientation))
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
    np.testing.assert_array_equal(np.asarray(load_image(loaded)), np.asarray(loaded))  # and only once


@pytest.mark.parametrize("mode", ["L", "P", "LA", "I;16"])
def test_orientation_of_other_modes(mode: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    if mode == "I;16":
        image = Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000)
    else:
        image = photo(4, 3).convert(mode)
    upright = load_image(encoded(image, exif=exif))
    np.testing.assert_array_equal(np.asarray(upright), turned(load_image(encoded(image)), 6))


def test_a_pil_image_is_not_changed() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    image = Image.open(io.BytesIO(encoded(photo().convert("RGBA"), exif=exif)))
    load_image(image)
    assert (image.mode, image.size) == ("RGBA", photo().size)
    assert image.getexif()[ORIENTATION] == 8


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage here", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
def test_broken_exif_does_not_cost_the_image(exif: bytes) -> None:
    assert load_image(encoded(photo(), "JPEG", exif=exif)).size == photo().size


def test_heic_opens_with_its_package() -> None:
    heif = pytest.importorskip("pillow_heif", reason="needs the extra heic")
    buffer = io.BytesIO()
    heif.from_pillow(photo(64, 48)).save(buffer, quality=90)
    images._register_heif.cache_clear()
    loaded = np.asarray(load_image(buffer)).astype(int)
    assert np.abs(loaded - np.asarray(photo(64, 48))).mean() < 6


def test_an_rgb_jpeg_decodes_once_and_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(photo(), "JPEG")
    for method in ("copy", "convert", "transpose"):
        monkeypatch.setattr(Image.Image, method, lambda *_, **__: pytest.fail("copied"))
    assert load_image(data).mode == "RGB"
    image = Image.new("RGB", (4, 4))
    assert load_image(image) is image


@pytest.mark.filterwarnings("error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files under /proc")
def test_no_file_handle_stays_open(tmp_path: Path) -> None:
    frames = [photo(), photo().transpose(Image.Transpose.ROTATE_180)]
    kept = []
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "MPO"):
        path = tmp_path / f"a.{kind.lower()}"
        frames[0].save(path, kind, **({} if kind == "JPEG" else {"save_all": True, "append_images": frames[1:]}))
        kept.append(path)
    (tmp_path / "bad.png").write_bytes(encoded(photo())[:60])
    before = len(list(Path("/proc/self/fd").iterdir()))
    loaded = [load_image(path) for path in kept]
    with pytest.raises(ImageError):
        load_image(tmp_path / "bad.png")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert all(image.resize((8, 8)).getextrema() for image in loaded)  # usable though their files are closed


def test_threads_may_share_sources(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    photo(300, 200).save(path)
    for _ in range(5):
        lazy = Image.open(path)  # decodes on first use
        with ThreadPoolExecutor(8) as pool:
            for loaded in pool.map(load_image, [lazy, path] * 8):
                np.testing.assert_array_equal(np.asarray(loaded), np.asarray(photo(300, 200)))


def test_suffixes() -> None:
    assert all(map(is_image_path, ["a.jpg", "b.JPEG", Path("x/y.TiFF"), "c.heic"]))
    assert not any(map(is_image_path, ["a.txt", "jpg", ".jpg", "a.jpg.zip", "a."]))
