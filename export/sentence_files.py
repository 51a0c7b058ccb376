"""The files by which sentence-transformers reads a model folder as an image encoder with vectors of length 1."""

from __future__ import annotations

from typing import Any

_MODULES = "sentence_transformers.base.modules"


def sentence_transformers_files() -> dict[str, Any]:
    """Returns path in the folder -> JSON content; both are the same for every encoder.

    Its Transformer runs transformers' TimmWrapper on images and takes the pooled output; its Normalize scales that to
    length 1. The length of a vector is num_features of config.json.
    """
    return {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": f"{_MODULES}.transformer.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Normalize", "type": f"{_MODULES}.normalize.Normalize"},
        ],
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": {"image": {"method": "forward", "method_output_name": "pooler_output"}},
            "module_output_name": "sentence_embedding",
        },
    }
