"""What is no image, or one too large, cut or damaged, is an ImageError that names it and says why."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from encoding import encoded, photo
from PIL import Image

from mixsiam_hub.errors import ImageError
from mixsiam_hub.images import load as images
from mixsiam_hub.images.load import load_image


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), bool),
        np.zeros((4, 4, 1), np.uint8),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_another_array_is_refused_with_what_is_allowed(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"image from an array: .*must be uint8 of shape \(H, W\), \(H, W, 3\) or"):
        load_image(array)


def test_another_type_is_refused() -> None:
    with pytest.raises(ImageError, match="it is a int; an image must be a path, bytes"):
        load_image(5)
    with pytest.raises(ImageError, match=r"must hold .*'bytes' or its 'path'; its keys are \['image'\]"):
        load_image({"image": b"abc"})
    with pytest.raises(ImageError, match="mode 'rb'"):
        load_image(io.StringIO("text"))


def advised(error: ImageError, a: np.ndarray) -> np.ndarray:
    """The array that an error's advice makes of `a`."""
    return eval(str(error)[str(error).index("np.uint8(") :], {"np": np, "a": a})


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_mode_without_a_fixed_range_is_refused_with_the_formula_that_scales_it(mode: str) -> None:
    image = Image.fromarray(np.array([[-30000, 10000, 50000]], {"I": np.int32, "F": np.float32}[mode]))
    with pytest.raises(ImageError, match=f"mode {mode} has no fixed range") as caught:
        load_image(image)
    assert load_image(advised(caught.value, np.asarray(image))).getpixel((1, 0)) == (127, 127, 127)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float16, np.float64])
def test_an_array_of_other_numbers_is_refused_with_the_formula_that_scales_it(dtype: type) -> None:
    array = np.array([[0, 30000, 60000]]).astype(dtype)
    with pytest.raises(ImageError, match=f"dtype {np.dtype(dtype)}") as caught:
        load_image(array)
    assert np.asarray(load_image(advised(caught.value, array)))[0, :, 0].tolist() == [0, 127, 255]


def test_no_pixels_at_all() -> None:
    with pytest.raises(ImageError, match="PIL image: it has no pixels: 0x5"):
        load_image(Image.new("RGB", (0, 5)))


def test_the_size_is_checked_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "wide.png"
    Image.new("RGB", (101, 10)).save(path)
    monkeypatch.setattr(images, "MAX_PIXELS", 1010)
    assert load_image(path).size == (101, 10)
    monkeypatch.setattr(images, "MAX_PIXELS", 1009)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=r"wide\.png: 101x10 is 1010 pixels, more than 1009; shrink it first"):
        load_image(path)


@pytest.mark.filterwarnings("error")
def test_pillows_own_limits_become_image_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("RGB", (20, 10)))
    for limit in (150, 50):  # Pillow warns above its limit and raises above twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ImageError, match=r"image from bytes: .*PIL\.Image\.MAX_IMAGE_PIXELS"):
            load_image(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("keep", [0.3, 0.8])
def test_truncated_files(kind: str, keep: float, tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ImageError, match=r"cut\.img: (cannot be decoded: |is not an image)"):
        load_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_corrupt_bytes_raise_image_errors_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 10**6)
    rng = np.random.default_rng(0)
    failures = 0
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        data = np.frombuffer(encoded(photo(), kind), np.uint8)
        for _ in range(40):
            damaged = data.copy()
            damaged[rng.integers(0, len(damaged), 8)] = rng.integers(0, 256, 8)
            try:
                load_image(damaged.tobytes())
            except ImageError:
                failures += 1
    assert failures > 20


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.png").write_text("not an image at all")
    for name, reason in [
        ("empty.png", "the file is empty"),
        ("notes.png", "is not an image that Pillow can read"),
        ("absent.png", "no such file"),
    ]:
        with pytest.raises(ImageError, match=f"{name}: {reason}"):
            load_image(tmp_path / name)
    with pytest.raises(ImageError, match=f"{tmp_path.name}: is a folder"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="image from bytes: the file is empty"):
        load_image(b"")


def test_heic_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Image, "OPEN", {k: v for k, v in Image.OPEN.items() if k not in ("HEIF", "HEIC")})
    monkeypatch.setattr(Image, "ID", [k for k in Image.ID if k not in ("HEIF", "HEIC")])
    images._register_heif.cache_clear()
    with pytest.raises(ImageError, match=r"image from bytes: .*pip install 'mixsiam-hub\[heic\]'"):
        load_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")


def test_eps_is_never_run() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "EPS")
    with pytest.raises(ImageError, match="EPS is a program"):
        load_image(buffer.getvalue())
