"""The files by which sentence-transformers reads a model folder as an image encoder with vectors of length 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch

from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.model.files import DENSE

_MODULES = "sentence_transformers.base.modules"


def write_sentence_transformers(backbone: Backbone, folder: Path) -> None:
    """Writes them into a model folder.

    Their Transformer runs transformers' TimmWrapper on images and takes the pooled output, whose length is num_features
    of config.json; a Dense is the head, where there is one; Normalize scales the result to length 1.

    Args:
        backbone: With its head.
        folder: The model folder.
    """
    modules = ["transformer.Transformer", "normalize.Normalize"]
    paths = ["", "1_Normalize"]
    if backbone.fc is not None:
        modules.insert(1, "dense.Dense")
        paths[1:] = [DENSE, "2_Normalize"]
        _write_dense(backbone.fc.weight.shape, backbone.fc.state_dict(), folder / DENSE)
    entries = [
        {"idx": index, "name": str(index), "path": path, "type": f"{_MODULES}.{module}"}
        for index, (module, path) in enumerate(zip(modules, paths, strict=True))
    ]
    _write_json(folder / "modules.json", entries)
    config = {
        "transformer_task": "feature-extraction",
        "modality_config": {"image": {"method": "forward", "method_output_name": "pooler_output"}},
        "module_output_name": "sentence_embedding",
    }
    _write_json(folder / "sentence_bert_config.json", config)


def _write_dense(shape: tuple[int, ...], state: dict[str, Any], folder: Path) -> None:
    """Writes the head as a Dense: its own copy of the weights, (K, D) and (K,)."""
    folder.mkdir()
    config = {
        "in_features": shape[1],
        "out_features": shape[0],
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    _write_json(folder / "config.json", config)
    tensors = {f"linear.{name}": tensor.contiguous() for name, tensor in state.items()}
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
