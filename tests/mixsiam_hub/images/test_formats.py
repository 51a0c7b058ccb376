"""TIFF and PNG files packed by hand come out as the formats define them, or are refused with the reason."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from packing import packed_rows, png, tiff
from PIL import Image

from mixsiam_hub.errors import ImageError
from mixsiam_hub.images.load import load_image

WIDTH, HEIGHT = 37, 23
ORDERS = pytest.mark.parametrize("order", ["<", ">"])
ZIPPED = pytest.mark.parametrize("zipped", [False, True], ids=["raw", "zipped"])
PLANES = pytest.mark.parametrize("planes", [1, 2], ids=["together", "separate"])


def samples(channels: int, bits: int) -> np.ndarray:
    """(23, 37, channels) integers from 0 to the largest, no two channels alike and none symmetrical."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 1
    ramps = [x / WIDTH, y / HEIGHT, (x + 2 * y) / (WIDTH + 2 * HEIGHT), 0.2 + 0.8 * (x + y) / (WIDTH + HEIGHT)]
    return np.round(np.stack(ramps[:channels], -1) * (2**bits - 1)).astype(np.int64)


def eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    return values >> bits - 8 if bits >= 8 else values * 255 // (2**bits - 1)


def loaded(data: bytes) -> np.ndarray:
    return np.asarray(load_image(data)).astype(int)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", [1, 3])
def test_a_raw_tiff_is_turned_alike_by_path_bytes_and_pil(channels: int, orientation: int, tmp_path: Path) -> None:
    """By path, Pillow maps one strip of grey into memory and shears it where it is turned by a quarter."""
    grey = samples(channels, 8)
    stored = tmp_path / "turned.tif"
    stored.write_bytes(tiff(grey, {258: [8], 262: [1 if channels == 1 else 2], 274: [orientation]}))
    across = grey.transpose(1, 0, 2)
    upright = [grey, grey[:, ::-1], grey[::-1, ::-1], grey[::-1]]
    upright += [across, across[:, ::-1], across[::-1, ::-1], across[::-1]]
    expected = np.broadcast_to(upright[orientation - 1], (*upright[orientation - 1].shape[:2], 3))
    for source in (stored, stored.read_bytes(), Image.open(stored)):
        np.testing.assert_array_equal(np.asarray(load_image(source)), expected)


@ORDERS
@ZIPPED
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_grey_tiff(bits: int, white_is_zero: bool, zipped: bool, order: str) -> None:
    grey = samples(1, bits)
    data = tiff(grey, {258: [bits], 262: [0 if white_is_zero else 1]}, order=order, zipped=zipped)
    if (bits == 12 and (white_is_zero or order == ">")) or (bits == 16 and white_is_zero and order == ">"):
        with pytest.raises(ImageError, match="is a TIFF of a kind that Pillow cannot read; save it as 8-bit"):
            load_image(data)
        return
    expected = eight_bits(grey, bits)
    np.testing.assert_array_equal(loaded(data)[..., :1], 255 - expected if white_is_zero else expected)


@ORDERS
@ZIPPED
@PLANES
@pytest.mark.parametrize("bits", [8, 16])
def test_rgb_tiff(bits: int, planes: int, zipped: bool, order: str) -> None:
    rgb = samples(3, bits)
    data = tiff(rgb, {258: [bits], 262: [2], 284: [planes]}, order=order, zipped=zipped)
    if bits == 16 and planes == 2 and not zipped:
        with pytest.raises(ImageError, match=r"separate planes of 16 bits without compression.*8-bit grey or RGB"):
            load_image(data)
    else:
        np.testing.assert_array_equal(loaded(data), rgb >> bits - 8)


@ZIPPED
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("extra", "planes"), [(0, 1), (1, 1), (1, 2), (2, 1), (2, 2)])
def test_a_fourth_sample_of_an_rgb_tiff(extra: int, bits: int, planes: int, zipped: bool) -> None:
    """Associated alpha: the colours are multiplied by it already, so white is added to what lies there."""
    most = 2**bits - 1
    rgba = samples(4, bits)
    colour, alpha = rgba[..., :3] / most, rgba[..., 3:] / most
    stored = np.concatenate([colour * alpha * most if extra == 1 else rgba[..., :3], rgba[..., 3:]], -1)
    data = tiff(np.round(stored).astype(np.int64), {258: [bits], 262: [2], 284: [planes], 338: [extra]}, zipped=zipped)
    expected = colour if extra == 0 else colour * alpha + 1 - alpha
    if planes == 2 and not zipped and (bits == 16 or extra == 1):
        with pytest.raises(ImageError, match=r"separate planes|unknown raw mode"):
            load_image(data)
        return
    np.testing.assert_allclose(loaded(data), expected * 255, atol=2.5)


@PLANES
def test_a_fourth_plane_without_a_meaning(planes: int) -> None:
    rgba = samples(4, 8)
    data = tiff(rgba, {258: [8], 262: [2], 284: [planes]}, zipped=True)
    if planes == 2:
        with pytest.raises(ImageError, match="a fourth plane and does not say what it holds"):
            load_image(data)
    else:  # Taken for alpha, as by most readers.
        alpha = rgba[..., 3:] / 255
        np.testing.assert_allclose(loaded(data), rgba[..., :3] * alpha + 255 * (1 - alpha), atol=1)


@ORDERS
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_tiff(bits: int, order: str) -> None:
    index = samples(1, bits)
    count = 2**bits
    colours = np.stack([np.linspace(0, 65535, count), np.linspace(65535, 0, count), np.linspace(500, 40000, count)])
    colours = colours.astype(int)  # (3, count)
    tags = {258: [bits], 262: [3]}
    expected = (colours >> 8).T[index[..., 0]]
    np.testing.assert_array_equal(loaded(tiff(index, {**tags, 320: colours.ravel().tolist()}, order=order)), expected)
    with pytest.raises(ImageError, match="its colour map has 8 bits, where a TIFF's has 16"):
        load_image(tiff(index, {**tags, 320: (colours >> 8).ravel().tolist()}, order=order))
    with pytest.raises(ImageError, match=f"its colour map holds 3 numbers, where {bits} bits need {3 * count}"):
        load_image(tiff(index, {**tags, 320: [1, 2, 65535]}, order=order))


@ZIPPED
@PLANES
@pytest.mark.parametrize("bits", [8, 16])
def test_cmyk_tiff(bits: int, planes: int, zipped: bool) -> None:
    inks = samples(4, bits)
    tags = {258: [bits], 262: [5], 284: [planes]}
    data = tiff(inks, tags, zipped=zipped)
    with pytest.raises(ImageError, match=r"its inks are others than cyan|separate planes of 16 bits"):
        load_image(tiff(inks, {**tags, 332: [2]}, zipped=zipped))
    if bits == 16 and planes == 2 and not zipped:
        with pytest.raises(ImageError, match="separate planes of 16 bits"):
            load_image(data)
        return
    parts = (inks >> bits - 8) / 255
    np.testing.assert_allclose(loaded(data), 255 * (1 - parts[..., :3]) * (1 - parts[..., 3:]), atol=1.5)


def ycbcr_as_rgb(ycbcr: np.ndarray) -> np.ndarray:
    y, cb, cr = np.moveaxis(ycbcr - np.array([0.0, 128, 128]), -1, 0)
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1)
    return np.clip(rgb, 0, 255)


def test_ycbcr_tiff() -> None:
    ycbcr = samples(3, 8)
    tags = {258: [8], 262: [6], 530: [1, 1]}
    np.testing.assert_allclose(loaded(tiff(ycbcr, tags, zipped=True)), ycbcr_as_rgb(ycbcr), atol=1.5)
    with pytest.raises(ImageError, match="fewer colour than brightness samples"):
        load_image(tiff(ycbcr, {258: [8], 262: [6]}))
    studio = [15, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1]
    with pytest.raises(ImageError, match="YCbCr of another range or other coefficients"):
        load_image(tiff(ycbcr, {**tags, 532: studio}))
    bt709 = [2125, 10000, 7154, 10000, 721, 10000]
    with pytest.raises(ImageError, match="YCbCr of another range or other coefficients"):
        load_image(tiff(ycbcr, {**tags, 529: bt709}))


def lab_as_rgb(lab: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of white D50 to sRGB, by Bradford's adaptation to D65."""
    fy = (lab[..., 0] + 16) / 116
    f = np.stack([fy + lab[..., 1] / 500, fy, fy - lab[..., 2] / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * np.array([0.9642, 1, 0.8249])
    matrix = np.array([[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]])
    linear = np.clip(xyz @ matrix.T, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@ZIPPED
@ORDERS
def test_lab_tiff(zipped: bool, order: str) -> None:
    lightness, a, b = np.moveaxis(samples(3, 8), -1, 0)
    stored = np.stack([lightness, a // 5 - 25, b // 5 - 25], -1)  # In the gamut of sRGB but for a few dark pixels.
    lab = stored * np.array([100 / 255, 1, 1])
    tags = {258: [8], 262: [8]}
    data = tiff(stored & 255, tags, zipped=zipped, order=order)
    expected = lab_as_rgb(lab)
    inside = (expected.min(-1) > 1) & (expected.max(-1) < 254)
    assert inside.mean() > 0.7
    np.testing.assert_allclose(loaded(data)[inside], expected[inside], atol=2)
    with pytest.raises(ImageError, match="its white point is not D50"):
        load_image(tiff(stored & 255, {**tags, 318: [3127, 10000, 3290, 10000]}))
    with pytest.raises(ImageError, match="its L, a and b are separate planes"):
        load_image(tiff(stored & 255, {**tags, 284: [2]}, zipped=zipped))


def test_lab_of_grey_is_grey() -> None:
    ramp = np.zeros((1, 256, 3), np.int64)
    ramp[..., 0] = np.arange(256)
    grey = loaded(tiff(ramp, {258: [8], 262: [8]}))
    np.testing.assert_allclose(grey, lab_as_rgb(ramp * np.array([100 / 255, 1, 1])), atol=1)
    assert grey[0, 255].tolist() == [255, 255, 255]


@pytest.mark.parametrize("bits", [8, 16])
def test_signed_numbers_are_refused(bits: int) -> None:
    with pytest.raises(ImageError, match=r"its pixels are signed numbers|mode I has no fixed range"):
        load_image(tiff(samples(1, bits), {258: [bits], 262: [1], 339: [2]}))


def test_grey_with_alpha_tiff() -> None:
    grey, alpha = np.moveaxis(samples(4, 8)[..., [0, 3]], -1, 0)
    expected = grey * (alpha / 255) + 255 - alpha
    plain = tiff(np.stack([grey, alpha], -1), {258: [8], 262: [1], 338: [2]})
    np.testing.assert_allclose(loaded(plain)[..., 0], expected, atol=1)


def test_tifffile_reads_the_packed_files_alike() -> None:
    """What the other tests expect is what another reader finds in the files, not only what packed them."""
    tifffile = pytest.importorskip("tifffile", reason="needs the extra test")
    for bits, channels, kind in [(8, 1, 1), (16, 1, 1), (8, 3, 2), (16, 3, 2), (8, 4, 5)]:
        values = samples(channels, bits)
        for order in "<>":
            read = tifffile.imread(io.BytesIO(tiff(values, {258: [bits], 262: [kind]}, order=order)))
            np.testing.assert_array_equal(read.reshape(values.shape), values)


@pytest.mark.parametrize(
    ("colour", "depth"), [(0, 1), (0, 2), (0, 4), *((colour, depth) for colour in (0, 2, 4, 6) for depth in (8, 16))]
)
def test_png_of_each_depth(colour: int, depth: int) -> None:
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    values = samples(4, depth)[..., {1: [0], 2: [0, 3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[channels]]
    narrow = eight_bits(values, depth)
    expected = narrow[..., : channels - 1 if colour in (4, 6) else channels]
    if colour in (4, 6):
        alpha = narrow[..., -1:] / 255
        expected = expected * alpha + 255 * (1 - alpha)
    data = png(packed_rows(values, depth), (WIDTH, HEIGHT), depth, colour)
    np.testing.assert_allclose(loaded(data), np.broadcast_to(expected, (HEIGHT, WIDTH, 3)), atol=0.5 + (colour > 3))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_grey_of_a_png(depth: int) -> None:
    """Of 2 and 4 bits Pillow scales the pixels and not the value that they are compared with."""
    grey = samples(1, depth)
    grey[5:9, 3:8] = key = 1 if depth < 16 else 300
    grey[5, 3] = 0
    chunk = (b"tRNS", key.to_bytes(2, "big"))
    data = png(packed_rows(grey, depth), (WIDTH, HEIGHT), depth, 0, [chunk])
    expected = np.where(grey == key, 255, eight_bits(grey, depth))
    np.testing.assert_array_equal(loaded(data)[..., :1], expected)


def test_the_transparent_colour_of_a_png() -> None:
    colours = samples(3, 8)
    colours[5:9, 3:8] = key = [1, 2, 3]
    rows = packed_rows(colours, 8)
    data = png(rows, (WIDTH, HEIGHT), 8, 2, [(b"tRNS", bytes([9, 1, 0, 2, 0, 3]))])  # Only the low 8 bits count.
    expected = np.where((colours == key).all(-1, keepdims=True), 255, colours)
    np.testing.assert_array_equal(loaded(data), expected)
    wide = packed_rows(samples(3, 16), 16)
    with pytest.raises(ImageError, match=r"its transparent colour has 16 bits.*save it with 8 bits"):
        load_image(png(wide, (WIDTH, HEIGHT), 16, 2, [(b"tRNS", bytes(6))]))


def long_metadata() -> list[tuple[bytes, bytes]]:
    megabytes = np.random.default_rng(0).bytes(1_500_000)
    return [
        (b"iCCP", b"profile\0\0" + zlib.compress(megabytes)),
        (b"zTXt", b"Comment\0\0" + zlib.compress(megabytes)),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(megabytes)),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(megabytes)),
    ]


@pytest.mark.parametrize("chunk", long_metadata(), ids=["iCCP", "zTXt", "iTXt", "exif"])
def test_a_png_with_long_metadata_is_read(chunk: tuple[bytes, bytes]) -> None:
    colours = samples(3, 8)
    data = png(packed_rows(colours, 8), (WIDTH, HEIGHT), 8, 2, [chunk])
    np.testing.assert_array_equal(loaded(data), colours)


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize(
    "chunk",
    [
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)),
        (b"eXIf", bytes.fromhex("4d4d002a00000008000101120003000000010006000000000000")),
    ],
    ids=["text", "zipped", "exif"],
)
def test_a_png_says_in_its_metadata_how_it_is_turned(chunk: tuple[bytes, bytes]) -> None:
    colours = samples(3, 8)
    data = png(packed_rows(colours, 8), (WIDTH, HEIGHT), 8, 2, [chunk])
    np.testing.assert_array_equal(loaded(data), colours.transpose(1, 0, 2)[:, ::-1])


@pytest.mark.parametrize("most", [1000, 65535])
def test_pgm_of_16_bits(most: int) -> None:
    grey = samples(1, 16) * most // 65535
    data = b"P5 %d %d %d\n" % (WIDTH, HEIGHT, most) + grey.astype(">u2").tobytes()
    np.testing.assert_allclose(loaded(data)[..., :1], grey * 255 / most, atol=1)
