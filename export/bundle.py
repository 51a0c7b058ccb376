"""From a trained encoder to one model folder: built aside, verified, then moved into place."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from mixsiam_hub.config import (
    COMPACT_ONNX_FILE,
    CONFIG_FILE,
    MANIFEST_FILE,
    ONNX_FILE,
    WEIGHTS_FILE,
    Manifest,
    fingerprint,
    sha256_file,
)
from mixsiam_hub.errors import ModelError
from mixsiam_hub.export.answers import write_answers
from mixsiam_hub.export.card import CARD_FILE, render_card
from mixsiam_hub.export.preprocess_graph import PREPROCESS_FILE, preprocess_graph
from mixsiam_hub.export.to_onnx import compact_graph, full_graph
from mixsiam_hub.export.verify import measure_parity, min_cosine, run
from mixsiam_hub.export.weights import round_convolutions, tensor_spans, write_weights
from mixsiam_hub.folder import ModelFolder
from mixsiam_hub.images import load_image
from mixsiam_hub.known_answers import verify_folder
from mixsiam_hub.preprocess import preprocess
from mixsiam_hub.processors import PREPROCESSOR_FILE, PROCESSOR_FILE, preprocessor_json, processor_json
from mixsiam_hub.training.checkpoint import TrainedEncoder


def export_folder(encoder: TrainedEncoder, folder: Path, license_id: str, *, compact: bool = False) -> Manifest:
    """Writes a model folder that every runtime loads with the same vectors, or writes nothing.

    Args:
        encoder: What to export; its backbone is on the CPU and stays as it is.
        folder: Where; must not exist, or be empty.
        license_id: SPDX identifier of the weights' licence, such as `Apache-2.0`; never guessed.
        compact: Half the size, as the wheel ships it: convolution weights are rounded to fp16, the rounded weights are
            the model, and one copy of them serves torch and ONNX. Vectors are still computed in float32. There is no
            onnx/ in it, so JavaScript and fastembed do not load it.

    Returns:
        The folder's mixsiam.json.

    Raises:
        ModelError: The licence is not given, the target is taken, or a runtime's vectors differ by more than allowed.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", license_id):
        raise ModelError(f"license is {license_id!r}; give an SPDX identifier, such as Apache-2.0 or CC-BY-NC-4.0")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ModelError(f"{folder} exists and is not an empty folder; choose another or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        built = Path(temporary) / folder.name
        built.mkdir()
        manifest = _build(encoder, built, license_id, compact)
        if folder.exists():
            folder.rmdir()
        built.rename(folder)
    return manifest


def _build(encoder: TrainedEncoder, folder: Path, license_id: str, compact: bool) -> Manifest:
    original = encoder.backbone
    if compact:
        encoder = replace(encoder, backbone=round_convolutions(original))
    backbone, config = encoder.backbone, encoder.config
    _write_json(folder / CONFIG_FILE, config.to_json(license_id))
    _write_json(folder / PREPROCESSOR_FILE, preprocessor_json(config))
    _write_json(folder / PROCESSOR_FILE, processor_json(config, license_id))
    write_weights(backbone, folder / WEIGHTS_FILE, half=compact)
    _write_graphs(encoder, folder, compact)
    images = write_answers(backbone, config.preprocessing, folder)
    manifest = Manifest(
        license=license_id,
        fingerprint=fingerprint({k: v.numpy() for k, v in backbone.state_dict().items()}, config),
        config_digest=config.digest,
        files={path.relative_to(folder).as_posix(): sha256_file(path) for path in _files(folder)},
        method=encoder.method,
        weights="fp16" if compact else "fp32",
        training=encoder.provenance,
        quality=encoder.quality,
    )
    _write_json(folder / MANIFEST_FILE, manifest.to_json())
    parity = measure_parity(backbone, ModelFolder.open(folder), images)
    if compact:
        pixels = np.stack([preprocess(load_image(image), config.preprocessing) for image in images])
        rounding = min_cosine(run(original, pixels)[0], run(backbone, pixels)[0])
        parity["fp16_weights_min_cosine"] = round(rounding, 8)
    manifest = replace(manifest, parity=parity)
    _write_json(folder / MANIFEST_FILE, manifest.to_json())
    (folder / CARD_FILE).write_text(render_card(folder.name, config, manifest), encoding="utf-8")
    verify_folder(folder)
    return manifest


def _write_graphs(encoder: TrainedEncoder, folder: Path, compact: bool) -> None:
    pre = encoder.config.preprocessing
    if compact:
        graph = compact_graph(encoder.backbone, pre.input_px, tensor_spans(folder / WEIGHTS_FILE))
        (folder / COMPACT_ONNX_FILE).write_bytes(graph.SerializeToString())
        return
    (folder / ONNX_FILE).parent.mkdir()
    (folder / ONNX_FILE).write_bytes(full_graph(encoder.backbone, pre.input_px).SerializeToString())
    (folder / PREPROCESS_FILE).write_bytes(preprocess_graph(pre).SerializeToString())


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CONFIG_FILE)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
