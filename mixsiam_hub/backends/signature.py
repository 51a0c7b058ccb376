"""What a graph takes and gives: names, types and sizes, and the check that a session on one has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mixsiam_hub.errors import ModelError
from mixsiam_hub.model.config import ModelConfig
from mixsiam_hub.model.files import CONFIG_FILE

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

INPUT = "pixel_values"
EMBEDDING, POOLED, FEATURE_MAP = "image_embeds", "pooler_output", "last_hidden_state"
FEATURE_MAP_BESIDE_HEAD = "feature_map"
"""The feature map's name in a graph with a head: transformers.js's pipeline would return a last_hidden_state first."""
IMAGE = "image"


class Tensor(NamedTuple):
    """Type and shape of an input or output; a name in the shape stands for a size that must be free."""

    kind: str
    shape: tuple[int | str, ...]


class Signature(NamedTuple):
    """The inputs and outputs of a graph by name, in their order."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


def network_signature(config: ModelConfig) -> Signature:
    """Returns the signature of every graph of the network: float32 on both sides, whatever is between.

    The embedding is the first output, which fastembed and others take without asking for its name.
    """
    px, dim = config.preprocessing.input_px, config.features_dim
    cells = -(-px // config.output_stride)
    pooled, feature_map = _floats("batch", dim), _floats("batch", dim, cells, cells)
    outputs = {POOLED: pooled, FEATURE_MAP: feature_map}
    if config.head_dim:
        outputs = {EMBEDDING: _floats("batch", config.head_dim), POOLED: pooled, FEATURE_MAP_BESIDE_HEAD: feature_map}
    return Signature({INPUT: _floats("batch", 3, px, px)}, outputs)


def preprocess_signature(config: ModelConfig) -> Signature:
    """Returns the signature of preprocess.onnx: one RGB image of any size to the network's input."""
    px = config.preprocessing.input_px
    return Signature({IMAGE: Tensor("tensor(uint8)", (1, "height", "width", 3))}, {INPUT: _floats(1, 3, px, px)})


def check_signature(session: InferenceSession, graph: Path, expected: Signature) -> None:
    """Compares what a graph says that it takes and gives with what it must.

    Args:
        session: On the graph.
        graph: Its file, for the message.
        expected: What config.json asks for.

    Raises:
        ModelError: Another name, order, type or size, or a fixed size that must be free; the message says both.
    """
    ends = (session.get_inputs(), session.get_outputs())
    found = [{node.name: Tensor(node.type, tuple(node.shape)) for node in nodes} for nodes in ends]
    for verb, got, want in zip(("takes", "gives"), found, expected, strict=True):
        if list(got) != list(want):
            raise ModelError(f"{graph} {verb} {', '.join(got) or 'nothing'}; it must be {', '.join(want)}")
        for name, tensor in want.items():
            if got[name].kind != tensor.kind:
                raise ModelError(f"{graph} {verb} {name} as {got[name].kind}; it must be {tensor.kind}")
            if _fixed(got[name].shape) != _fixed(tensor.shape):
                shapes = f"{_listed(got[name].shape)}; it must be {_listed(tensor.shape)}"
                raise ModelError(f"{graph} {verb} {name} of shape {shapes}, as {CONFIG_FILE} asks, the names free")


def _floats(*shape: int | str) -> Tensor:
    return Tensor("tensor(float)", shape)


def _fixed(shape: Sequence[int | str | None]) -> list[int | None]:
    return [size if isinstance(size, int) else None for size in shape]


def _listed(shape: Sequence[int | str | None]) -> str:
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"
