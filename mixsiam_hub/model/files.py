"""The name of every file of a model folder."""

from __future__ import annotations

CONFIG_FILE = "config.json"
MANIFEST_FILE = "mixsiam.json"
WEIGHTS_FILE = "model.safetensors"
ONNX_FILE = "onnx/model.onnx"
FP16_ONNX_FILE = "onnx/model_fp16.onnx"
INT8_ONNX_FILE = "onnx/model_quantized.onnx"
VARIANT_FILES = {"fp16": FP16_ONNX_FILE, "int8": INT8_ONNX_FILE}
"""Precision -> the graph that has it, in folders that were exported with it. Inputs and outputs are float32 in each."""
COMPACT_ONNX_FILE = "model.onnx"
"""A compact folder's graph: it stands beside model.safetensors and reads its weights from there, because onnxruntime
refuses external data outside the graph's own folder."""
PREPROCESS_FILE = "onnx/preprocess.onnx"
PREPROCESSOR_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"
FASTEMBED_FILE = "onnx/preprocessor_config.json"
"""Beside the graphs, so that no other loader takes it for its own."""
DENSE = "1_Dense"
DENSE_FILE = f"{DENSE}/model.safetensors"
"""sentence-transformers' copy of the head: `linear.weight` and `linear.bias`."""
ANSWERS = "known_answers"
ANSWERS_FILE = f"{ANSWERS}/vectors.json"
CARD_FILE = "README.md"
SHEET_PICTURE = "neighbours.png"
REPORT_PICTURE = "report.png"
CURVES_PICTURE = "training.png"
