"""A graph's two smaller forms: fp16 by conversion, int8 by calibration."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from mixsiam_hub.backends.signature import INPUT

_EXACT = ("Gemm", "MatMul")
"""The head, which amplifies small differences and costs next to nothing."""


def write_fp16(graph: Path, out: Path) -> None:
    """Writes a graph whose weights and arithmetic are fp16, and whose input and outputs stay float32.

    Args:
        graph: The fp32 graph, self-contained.
        out: Where to.
    """
    model = convert_float_to_float16(onnx.load(graph), keep_io_types=True)
    # The converter appends the input's cast, and ONNX wants each node behind those that feed it.
    nodes = sorted(model.graph.node, key=lambda node: INPUT not in node.input)
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    onnx.save(model, out)


def write_int8(graph: Path, out: Path, batches: Iterable[NDArray[np.float32]]) -> None:
    """Writes a static int8 graph: QDQ, activations uint8 by MinMax, weights int8 of 7 bits per channel.

    Pooling, the head and all outputs stay float32. The eighth bit of the weights is left unused so that every CPU
    computes the same vectors: without VNNI, x86 adds two products of uint8 and int8 in a saturating int16, which 8-bit
    weights overflow (2 * 255 * 127) and 7-bit ones do not (2 * 255 * 64). Cosine of the pooled features to fp32's,
    mean (min), on 200 drawn images other than the calibration's:

    | encoder | 8 bits, VNNI | 8 bits, AVX2 | 7 bits, either |
    |---|---|---|---|
    | built-in, 64 px | 0.9998 (0.9994) | 0.948 (0.780) | 0.9996 (0.9992) |
    | the tests', 32 px | 0.9995 (0.9990) | 0.986 (0.921) | 0.9991 (0.9983) |

    Args:
        graph: The fp32 graph, self-contained.
        out: Where to.
        batches: (n, 3, S, S) float32 normalised: the images that set the activations' ranges.
    """
    with TemporaryDirectory() as temporary:
        # Shapes only: what the optimiser writes depends on the machine.
        shaped = Path(temporary) / graph.name
        quant_pre_process(graph, shaped, skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            shaped,
            out,
            _Reader(batches),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,
            nodes_to_exclude=[node.name for node in onnx.load(shaped).graph.node if node.op_type in _EXACT],
            calibrate_method=CalibrationMethod.MinMax,
        )


class _Reader:
    """Hands batches over one by one, as the calibrator asks for them."""

    def __init__(self, batches: Iterable[NDArray[np.float32]]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}
