"""The backbone as an ONNX graph: whole, or with its weights left in model.safetensors."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnxscript.optimizer
import torch
from torch import nn

from mixsiam_hub.backends.backbone import Backbone, pool
from mixsiam_hub.backends.signature import FEATURE_MAP, INPUT, POOLED
from mixsiam_hub.export.weights import Span
from mixsiam_hub.model.files import WEIGHTS_FILE


class _PooledAndMap(nn.Module):
    """Gives both outputs from one pass through the network."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.backbone.features(pixel_values)
        return pool(features), features


def full_graph(backbone: Backbone, input_px: int) -> onnx.ModelProto:
    """Exports a self-contained fp32 graph, BatchNorm folded into the convolutions.

    Args:
        backbone: In eval mode, float32.
        input_px: Edge of the square input, in pixels.

    Returns:
        A graph from pixel_values, (N, 3, input_px, input_px) float32 normalised, with N free, to pooler_output,
        (N, dim) not normalised, and last_hidden_state, (N, dim, h, w): in this order, since transformers.js and
        fastembed take the first.
    """
    return _export(backbone, input_px, fold_batchnorm=True)


def compact_graph(backbone: Backbone, input_px: int, spans: Mapping[str, Span]) -> onnx.ModelProto:
    """Exports the same graph without weights: they are external data, read from model.safetensors beside it.

    BatchNorm stays unfolded, since model.safetensors holds the unfolded weights alone. onnxruntime folds the casts
    and BatchNorm when it opens a session, so that inference costs the same.

    Args:
        backbone: In eval mode, float32.
        input_px: Edge of the square input, in pixels.
        spans: `tensor_spans` of the model.safetensors that holds this backbone.
    """
    model = _export(backbone, input_px, fold_batchnorm=False)
    casts = []
    for tensor in model.graph.initializer:
        span = spans.get(tensor.name.removeprefix("backbone."))
        if span is None:
            continue  # One of the exporter's own constants, a few bytes.
        if span.dtype == "F16":
            stored = f"{tensor.name}.fp16"
            casts.append(onnx.helper.make_node("Cast", [stored], [tensor.name], to=onnx.TensorProto.FLOAT))
            tensor.name, tensor.data_type = stored, onnx.TensorProto.FLOAT16
        _point_at(tensor, span)
    nodes = [*casts, *model.graph.node]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    return model


def _export(backbone: Backbone, input_px: int, *, fold_batchnorm: bool) -> onnx.ModelProto:
    program = torch.onnx.export(
        _PooledAndMap(backbone).eval(),
        (torch.zeros(2, 3, input_px, input_px),),  # Not 1, which the exporter would take for a constant.
        dynamo=True,
        opset_version=18,
        external_data=False,
        verbose=False,
        optimize=fold_batchnorm,
        input_names=[INPUT],
        output_names=[POOLED, FEATURE_MAP],
        dynamic_shapes={INPUT: {0: torch.export.Dim("batch", min=1)}},
    )
    assert program is not None
    if not fold_batchnorm:
        # The exporter works out each convolution's zero bias within the graph; left so, it would keep onnxruntime from
        # fusing BatchNorm, and cost a third of the speed.
        onnxscript.optimizer.fold_constants_ir(program.model)
        onnxscript.optimizer.remove_unused_nodes(program.model)
    model: onnx.ModelProto = program.model_proto
    _strip_traces(model)
    return model


def _strip_traces(model: onnx.ModelProto) -> None:
    """Removes the exporter's notes: they hold stack traces with the file paths of the exporting machine."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _point_at(tensor: onnx.TensorProto, span: Span) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", WEIGHTS_FILE), ("offset", span.offset), ("length", span.length)):
        tensor.external_data.add(key=key, value=str(value))
