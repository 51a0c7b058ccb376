"""preprocess.onnx against Pillow, on noise, which is the hardest picture to round alike."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("onnxscript", reason="needs the extra export")

import onnx
import onnxruntime

from mixsiam_hub.errors import ModelError, RecipeError
from mixsiam_hub.export.preprocess_graph import preprocess_graph
from mixsiam_hub.images.preprocess import preprocess, resize_and_crop
from mixsiam_hub.model.config import INTERPOLATIONS, Preprocessing
from mixsiam_hub.training.recipe import Recipe

SIZES = (
    *((1, 1), (1, 2), (7, 3), (31, 33), (64, 64), (65, 64), (97, 101), (225, 223), (480, 641), (641, 479)),
    *((1001, 1500), (1500, 1001), (3, 200)),
    *((301, 64), (640, 97), (900, 100)),  # More than twice as tall as wide: Pillow takes the height first.
)
"""(height, width)."""


@functools.cache
def session(pre: Preprocessing) -> onnxruntime.InferenceSession:
    graph = preprocess_graph(pre)
    onnx.checker.check_model(graph, full_check=True)
    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def levels(image: NDArray[np.uint8], pre: Preprocessing) -> NDArray[np.int64]:
    """The graph's (S, S, 3) grey levels for an image, (H, W, 3)."""
    pixel_values = session(pre).run(["pixel_values"], {"image": image[None]})[0]
    assert pixel_values.shape == (1, 3, pre.input_px, pre.input_px)
    exact = (pixel_values[0].transpose(1, 2, 0) * np.array(pre.std) + np.array(pre.mean)) * 255
    assert np.abs(exact - np.rint(exact)).max() < 1e-3
    return np.rint(exact).astype(np.int64)


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * 10_000 + width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
@pytest.mark.parametrize("input_px", [32, 64, 224])
def test_within_one_level_of_pillow(input_px: int, crop_pct: float, interpolation: str) -> None:
    pre = Preprocessing(input_px, crop_pct, interpolation)
    off = []
    for size in SIZES:
        image = noise(*size)
        difference = np.abs(levels(image, pre) - resize_and_crop(Image.fromarray(image), pre))
        assert difference.max() <= 1, f"{size}: {difference.max()} levels"
        off.append(difference.ravel())
    share = np.concatenate(off).mean()
    assert share < 1e-5, f"{share:.1e} of the values are one level off"


def test_normalised_as_ours() -> None:
    pre = Preprocessing(32, mean=(0.1, 0.5, 0.9), std=(0.2, 0.5, 1.5))
    image = noise(32, 32)
    got = session(pre).run(None, {"image": image[None]})[0][0]
    assert np.abs(got - preprocess(Image.fromarray(image), pre)).max() < 2e-6


def test_grey_stays_grey() -> None:
    pre = Preprocessing(64)
    image = np.repeat(noise(201, 133)[:, :, :1], 3, axis=2)
    got = levels(image, pre)
    assert (got == got[:, :, :1]).all()


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_plain_image_stays_plain(value: int) -> None:
    pre = Preprocessing(64, 0.875)
    assert (levels(np.full((301, 77, 3), value, np.uint8), pre) == value).all()


def test_the_crop_rounds_half_to_even() -> None:
    pre = Preprocessing(4)
    for width, first in ((5, 0), (7, 2), (9, 2)):  # Margins of 0.5, 1.5 and 2.5 columns.
        image = np.zeros((4, width, 3), np.uint8)
        image[:] = 10 * np.arange(width)[None, :, None]
        assert levels(image, pre)[0, :, 0].tolist() == [10 * (first + i) for i in range(4)]


def test_only_plain_operators_that_other_runtimes_have() -> None:
    graph = preprocess_graph(Preprocessing(32)).graph
    branches = [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    nodes = [*graph.node, *(node for branch in branches for node in branch.node)]
    assert {node.domain for node in nodes} == {""}
    assert not {node.op_type for node in nodes} & {"Resize", "Loop", "Scan"}


def test_another_filter_is_refused() -> None:
    with pytest.raises(ModelError, match=r"'hamming'; preprocess\.onnx can be built for bilinear, bicubic, lanczos"):
        preprocess_graph(Preprocessing(32, interpolation="hamming"))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_recipe_takes_the_interpolations_that_can_be_exported(interpolation: str) -> None:
    try:
        preprocess_graph(Preprocessing(8, interpolation=interpolation))
    except ModelError:
        with pytest.raises(RecipeError, match="interpolation"):
            Recipe(interpolation=interpolation)
    else:
        assert Recipe(interpolation=interpolation).interpolation == interpolation
