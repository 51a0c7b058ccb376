"""The backbone as an ONNX graph: whole, or with its weights left in model.safetensors."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnxscript.optimizer
import torch
from torch import nn

from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.backends.signature import INPUT, network_signature
from mixsiam_hub.export.weights import Span
from mixsiam_hub.model.config import ModelConfig
from mixsiam_hub.model.files import WEIGHTS_FILE


class _AllOutputs(nn.Module):
    """Gives every output from one pass through the network."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.backbone.outputs(pixel_values)


def full_graph(backbone: Backbone, config: ModelConfig) -> onnx.ModelProto:
    """Exports a self-contained fp32 graph, BatchNorm folded into the convolutions.

    Args:
        backbone: In eval mode, float32, with its head.
        config: The encoder's.

    Returns:
        A graph of `network_signature`, N free; no output is normalised to length 1.
    """
    return _export(backbone, config, fold_batchnorm=True)


def compact_graph(backbone: Backbone, config: ModelConfig, spans: Mapping[str, Span]) -> onnx.ModelProto:
    """Exports the same graph without weights: they are external data, read from model.safetensors beside it.

    BatchNorm stays unfolded, since model.safetensors holds the unfolded weights alone. onnxruntime folds the casts
    and BatchNorm when it opens a session, so that inference costs the same.

    Args:
        backbone: In eval mode, float32, with its head.
        config: The encoder's.
        spans: `tensor_spans` of the model.safetensors that holds this backbone.
    """
    model = _export(backbone, config, fold_batchnorm=False)
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


def _export(backbone: Backbone, config: ModelConfig, *, fold_batchnorm: bool) -> onnx.ModelProto:
    signature = network_signature(config)
    px = config.preprocessing.input_px
    program = torch.onnx.export(
        _AllOutputs(backbone).eval(),
        (torch.zeros(2, 3, px, px),),  # Not 1, which the exporter would take for a constant.
        dynamo=True,
        opset_version=18,
        external_data=False,
        verbose=False,
        optimize=fold_batchnorm,
        input_names=list(signature.inputs),
        output_names=list(signature.outputs),
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
