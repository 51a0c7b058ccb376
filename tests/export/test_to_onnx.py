"""The graphs: what goes in and out, at any batch, with BatchNorm gone once a session is open."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra export")
onnx = pytest.importorskip("onnx", reason="needs the extra export")

import onnxruntime

from mixsiam_hub.export.parity import run
from mixsiam_hub.export.weights import round_convolutions, tensor_spans
from mixsiam_hub.training.checkpoint import TrainedEncoder

GRAPHS = {"model_folder": "onnx/model.onnx", "compact_folder": "model.onnx"}


@pytest.fixture(params=list(GRAPHS))
def graph(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder / GRAPHS[request.param]


def session(path: Path, **options: Any) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    for name, value in options.items():
        setattr(settings, name, value)
    return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def test_inputs_and_outputs_are_named_and_ordered_as_loaders_expect(graph: Path) -> None:
    opened = session(graph)
    assert [(node.name, node.shape, node.type) for node in opened.get_inputs()] == [
        ("pixel_values", ["batch", 3, 32, 32], "tensor(float)")
    ]
    assert [(node.name, node.shape) for node in opened.get_outputs()] == [
        ("pooler_output", ["batch", 512]),
        ("last_hidden_state", ["batch", 512, 2, 2]),
    ]


def test_the_graph_is_valid_of_opset_18_and_self_contained_or_beside_its_weights(graph: Path) -> None:
    onnx.checker.check_model(str(graph))
    model = onnx.load(graph, load_external_data=False)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    places = {entry.value for t in model.graph.initializer for entry in t.external_data if entry.key == "location"}
    assert places == (set() if graph.parent.name == "onnx" else {"model.safetensors"})


def test_the_graph_tells_nothing_of_the_machine_that_wrote_it(graph: Path) -> None:
    content = graph.read_bytes()
    assert b"site-packages" not in content
    assert b'File "' not in content


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch_gives_the_networks_features(graph: Path, batch: int, trained_encoder: TrainedEncoder) -> None:
    backbone = trained_encoder.backbone
    if graph.parent.name != "onnx":
        backbone = round_convolutions(backbone)
    pixels = np.random.default_rng(batch).standard_normal((batch, 3, 32, 32), np.float32)
    outputs = session(graph).run(None, {"pixel_values": pixels})
    for got, expected in zip(outputs, run(backbone, pixels)[1:], strict=True):
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).mean()


def test_onnxruntime_fuses_casts_and_batchnorm_away_so_that_both_forms_run_the_same(
    graph: Path, tmp_path: Path
) -> None:
    optimised = tmp_path / "optimised.onnx"
    extended = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session(graph, optimized_model_filepath=str(optimised), graph_optimization_level=extended)
    operators = Counter(node.op_type for node in onnx.load(optimised).graph.node)
    assert operators["Conv"] + operators["FusedConv"] == 20
    assert operators["BatchNormalization"] == operators["Cast"] == 0


def test_spans_point_at_the_tensors_bytes(compact_folder: Path, trained_encoder: TrainedEncoder) -> None:
    path = compact_folder / "model.safetensors"
    spans = tensor_spans(path)
    state = trained_encoder.backbone.state_dict()
    assert set(spans) == set(state)
    content = path.read_bytes()
    for name, dtype in (("conv1.weight", np.float16), ("layer3.1.bn2.running_var", np.float32)):
        span = spans[name]
        stored = np.frombuffer(content[span.offset : span.offset + span.length], dtype).reshape(state[name].shape)
        assert np.array_equal(stored, state[name].numpy().astype(dtype))


def test_rounding_changes_convolutions_only_and_only_once(trained_encoder: TrainedEncoder) -> None:
    original = trained_encoder.backbone.state_dict()
    once = round_convolutions(trained_encoder.backbone)
    twice = round_convolutions(once).state_dict()
    for name, tensor in once.state_dict().items():
        assert tensor.equal(twice[name])
        assert tensor.equal(original[name]) == (tensor.ndim != 4), name
