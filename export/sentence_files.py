"""The JSON files by which sentence-transformers reads a model folder as an image encoder with vectors of length 1."""

from __future__ import annotations

from typing import Any

from mixsiam_hub.model.config import ModelConfig
from mixsiam_hub.model.files import DENSE, DENSE_CONFIG_FILE
from mixsiam_hub.model.processors import dense_json

_MODULES = "sentence_transformers.base.modules"


def sentence_transformers_files(config: ModelConfig) -> dict[str, Any]:
    """Returns path in the folder -> JSON content.

    Its Transformer runs transformers' TimmWrapper on images and takes the pooled output, whose length is num_features
    of config.json; a Dense is the head, where there is one; Normalize scales the result to length 1.
    """
    modules = {"": "transformer.Transformer", "1_Normalize": "normalize.Normalize"}
    dense = {}
    if config.head_dim:
        modules = {"": "transformer.Transformer", DENSE: "dense.Dense", "2_Normalize": "normalize.Normalize"}
        dense[DENSE_CONFIG_FILE] = dense_json(config)
    return dense | {
        "modules.json": [
            {"idx": index, "name": str(index), "path": path, "type": f"{_MODULES}.{module}"}
            for index, (path, module) in enumerate(modules.items())
        ],
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": {"image": {"method": "forward", "method_output_name": "pooler_output"}},
            "module_output_name": "sentence_embedding",
        },
    }
