"""Small sound ONNX graphs that are not the ones a folder was exported with, and the way to put one into a folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from manifests import edit_manifest


def foreign_network(
    px: int = 32,
    dim: int = 512,
    cells: int = 2,
    batch: int | str = "batch",
    outputs: Sequence[str] = ("pooler_output", "last_hidden_state"),
    image: str = "pixel_values",
    *,
    one_row: bool = False,
    weight: float | None = None,
) -> bytes:
    """A network of one convolution with random weights; as it stands, it has the signature of the test encoder's.

    Args:
        px: Edge of the input, in pixels.
        dim: Features.
        cells: Edge of the feature map.
        batch: Size of a batch, or the name of one that is free.
        outputs: Names of the pooled vector and the feature map, in their order.
        image: Name of the input.
        one_row: Give the first image's vector alone, against what the graph declares.
        weight: Every weight; None for random ones.
    """
    onnx = pytest.importorskip("onnx", reason="needs the extra export")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    step = px // cells
    weights = np.random.default_rng(0).standard_normal((dim, 3, step, step)).astype(np.float32)
    if weight is not None:
        weights[:] = weight
    pooled, feature_map = outputs
    nodes = [
        helper.make_node("Conv", [image, "w"], [feature_map], strides=[step, step]),
        helper.make_node("ReduceMean", [feature_map, "axes"], ["mean"], keepdims=0),
        helper.make_node("Compress", ["mean", "rows"], [pooled], axis=0)
        if one_row
        else helper.make_node("Identity", ["mean"], [pooled]),
    ]
    constants = {"w": weights, "axes": np.array([2, 3])} | ({"rows": np.array([True])} if one_row else {})

    def floats(name: str, *shape: int | str) -> object:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "foreign",
        [floats(image, batch, 3, px, px)],
        [floats(pooled, batch, dim), floats(feature_map, batch, dim, cells, cells)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return _model(graph)


def foreign_preprocess(px: int = 32) -> bytes:
    """From an image of any size to its pixels, resized by ONNX's own filter and not normalised."""
    onnx = pytest.importorskip("onnx", reason="needs the extra export")
    helper = onnx.helper
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Resize", ["planes", "", "", "sizes"], ["pixel_values"], mode="linear"),
    ]
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, (1, "height", "width", 3))],
        [helper.make_tensor_value_info("pixel_values", onnx.TensorProto.FLOAT, (1, 3, px, px))],
        [onnx.numpy_helper.from_array(np.array([1, 3, px, px]), "sizes")],
    )
    return _model(graph)


def _model(graph: Any) -> bytes:
    import onnx

    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def with_file(folder: Path, name: str, content: bytes, to: Path) -> Path:
    """Copies a model folder to `to` and gives it one file, new or changed, as mixsiam.json lists it then."""
    shutil.copytree(folder, to, copy_function=os.link)
    (to / name).unlink(missing_ok=True)
    (to / name).write_bytes(content)
    edit_manifest(to, name)
    return to
