"""Run by the Python of an environment with fastembed: FOLDER MODEL_FILE IMAGE... OUT, an .npy file."""

from __future__ import annotations

import sys

import numpy as np
from fastembed import ImageEmbedding
from fastembed.common.model_description import DenseModelDescription, ModelSource
from fastembed.image.onnx_embedding import supported_onnx_models

NAME = "local/encoder"

folder, model_file, *files, out = sys.argv[1:]
# ImageEmbedding has no add_custom_model, as TextEmbedding has: this list is how its users add a model. Nothing is
# downloaded, and of the description only the file's name is used.
description = DenseModelDescription(
    NAME, ModelSource(hf=NAME), model_file, description="", license="", size_in_GB=0, dim=0
)
supported_onnx_models.append(description)
model = ImageEmbedding(NAME, specific_model_path=folder)
np.save(out, np.stack(list(model.embed(files))))
