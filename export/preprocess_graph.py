# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"
# onnxscript reads a function's annotations as tensor types, so the graph's functions cannot carry mypy's.
"""Preprocessing as an ONNX graph, for runtimes whose own resize differs from Pillow's: JavaScript, OpenVINO.

Pillow resizes in two passes, along the rows and along the columns, each a weighted sum with the weights of one filter,
rounded to grey levels. Here each pass is a matrix product whose weights are computed from the image's size, for the
part that the crop keeps.

Pillow works its weights out in float64, rounds them to multiples of 2**-22 and sums in integers; many sums fall on the
border between two grey levels, so the last bit counts. Here too the weights are float64. For the sums each of them is
split into two whole numbers of at most 12 bits, whose products with bytes float32 adds exactly. In onnxruntime the
levels are Pillow's own; a runtime that lowers float64 to float32, as OpenVINO does, can be one level off.
"""

from __future__ import annotations

import math
from typing import Any

import onnx
import onnxscript.optimizer
from onnxscript import FLOAT, UINT8, opset18, script

from mixsiam_hub.errors import ModelError
from mixsiam_hub.model.config import Preprocessing

op: Any = opset18

_FLOAT, _DOUBLE, _INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.INT64
_PI = onnx.helper.make_tensor("pi", _DOUBLE, [], [math.pi])
"""A plain number would enter the graph as float32."""


# The kernels take u, the distance in source pixels (resized pixels when shrinking), clipped to [tiny, support]:
# each is 0 at its support, so the clipping makes it 0 beyond, and tiny keeps the division at the centre defined.
@script(default_opset=op)
def _bilinear(u):
    return 1.0 - u


@script(default_opset=op)
def _bicubic(u):
    """Keys' cubic with a = -0.5, Pillow's."""
    near = (1.5 * u - 2.5) * u * u + 1.0
    far = ((-0.5 * u + 2.5) * u - 4.0) * u + 2.0
    return op.Where(u < 1.0, near, far)


@script(default_opset=op)
def _lanczos(u):
    """sinc(u) sinc(u / 3)."""
    x = u * op.Constant(value=_PI)
    return op.Sin(x) * op.Sin(x / 3.0) * 3.0 / (x * x)


_KERNELS = {"bilinear": (_bilinear, 1.0), "bicubic": (_bicubic, 2.0), "lanczos": (_lanczos, 3.0)}
"""Interpolation -> kernel and its support."""


def preprocess_graph(pre: Preprocessing) -> onnx.ModelProto:
    """Builds the graph from an upright RGB image to the network's input.

    Args:
        pre: What to build; `interpolation` is one of bilinear, bicubic, lanczos.

    Returns:
        A graph from image, (1, H, W, 3) uint8 RGB with H and W free, to pixel_values, (1, 3, S, S) float32 normalised,
        within one grey level of `mixsiam_hub.images.preprocess.preprocess`, and equal to it in onnxruntime.

    Raises:
        ModelError: Another interpolation.
    """
    if pre.interpolation not in _KERNELS:
        allowed = ", ".join(_KERNELS)
        raise ModelError(f"interpolation is {pre.interpolation!r}; preprocess.onnx can be built for {allowed}")
    kernel, support = _KERNELS[pre.interpolation]
    input_px, resize_px = pre.input_px, pre.resize_px
    scale = [1 / (255 * std) for std in pre.std]
    shift = [mean / std for mean, std in zip(pre.mean, pre.std, strict=True)]

    @script(default_opset=op)
    def weights(length, resized):
        """(2, 1, S, length) float32: how much each pixel of a line counts in each kept resized pixel.

        Whole numbers: units of 2**-11, and the rest in units of 2**-22.
        """
        # Round is half to even, as torchvision's crop.
        margin = op.Cast(op.Round(op.Cast(resized - input_px, to=_FLOAT) / 2.0), to=_INT64)
        kept = op.Unsqueeze(op.Range(0, input_px, 1) + margin, [1])
        pixels = op.Range(0, op.Squeeze(length), 1)
        # Distance of the centres, times 2 * resized.
        distance = (2 * kept + 1) * length - (2 * pixels + 1) * resized
        unit = 2 * op.Max(length, resized)
        u = op.Abs(op.Cast(distance, to=_DOUBLE) / op.Cast(unit, to=_DOUBLE))
        weight = kernel(op.Clip(u, 1e-6, support))
        weight = weight / op.ReduceSum(weight, [1])
        coarse = op.Round(weight * 2048.0)
        fine = op.Round(weight * 4194304.0) - coarse * 2048.0
        both = op.Concat(op.Unsqueeze(coarse, [0]), op.Unsqueeze(fine, [0]), axis=0)
        return op.Cast(op.Unsqueeze(both, [1]), to=_FLOAT)

    @script(default_opset=op)
    def levels(sums):
        """(1, 3, ...) of (2, 3, ...): to the nearest grey level, halves up."""
        coarse, fine = op.Split(sums, num_outputs=2, axis=0)
        level = coarse / 2048.0 + 0.5
        whole = op.Floor(level)
        rest = level - whole + fine / 4194304.0
        return op.Clip(whole + op.Floor(rest), 0.0, 255.0)

    @script(default_opset=op)
    def preprocess(image):
        height = op.Shape(image, start=1, end=2)
        width = op.Shape(image, start=2, end=3)
        short = op.Min(height, width)
        new_height = resize_px * height / short
        new_width = resize_px * width / short
        rows = weights(height, new_height)
        columns = op.Transpose(weights(width, new_width), perm=[0, 1, 3, 2])
        channels = op.Cast(op.Transpose(image, perm=[0, 3, 1, 2]), to=_FLOAT)
        # Pillow 13 takes the height first where it shrinks by much more than the width, on images over twice as tall as
        # wide; older releases never do.
        lost = height - new_height
        height_first = op.And(lost > 0, lost > 2 * (width - new_width))
        if op.Squeeze(height_first):
            square = levels(op.MatMul(levels(op.MatMul(rows, channels)), columns))
        else:
            square = levels(op.MatMul(rows, levels(op.MatMul(channels, columns))))
        factor = op.Reshape(op.Constant(value_floats=scale), [3, 1, 1])
        pixel_values = square * factor - op.Reshape(op.Constant(value_floats=shift), [3, 1, 1])
        return pixel_values

    model = preprocess.to_model_proto(
        input_types=[UINT8[1, "height", "width", 3]], output_types=[FLOAT[1, 3, input_px, input_px]]
    )
    optimised: onnx.ModelProto = onnxscript.optimizer.optimize(model)
    return optimised
