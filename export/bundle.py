"""From a trained encoder to one model folder: built aside, verified, then moved into place."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mixsiam_hub.atomic import check_new_folder, new_folder
from mixsiam_hub.backends.backbone import backbone_fingerprint
from mixsiam_hub.errors import ArgumentError, ModelError
from mixsiam_hub.export.answers import write_answers
from mixsiam_hub.export.card import BUILTIN_CARD, ROUNDING, render_card
from mixsiam_hub.export.parity import measure_parity, min_cosine, run
from mixsiam_hub.export.pictures import write_sheet
from mixsiam_hub.export.preprocess_graph import preprocess_graph
from mixsiam_hub.export.sentence_files import sentence_transformers_files
from mixsiam_hub.export.to_onnx import compact_graph, full_graph
from mixsiam_hub.export.variants import Calibration, measure_fast_decoding, write_variants
from mixsiam_hub.export.weights import round_convolutions, tensor_spans, write_dense, write_weights
from mixsiam_hub.images.preprocess import preprocess
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model.figures import FastDecoding, Variant
from mixsiam_hub.model.files import (
    ANSWERS,
    CARD_FILE,
    COMPACT_ONNX_FILE,
    CONFIG_FILE,
    CURVES_PICTURE,
    DENSE_FILE,
    FASTEMBED_FILE,
    MANIFEST_FILE,
    ONNX_FILE,
    PREPROCESS_FILE,
    PREPROCESSOR_FILE,
    PROCESSOR_FILE,
    REPORT_PICTURE,
    SHEET_PICTURE,
    WEIGHTS_FILE,
)
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.model.hub import BUILTIN
from mixsiam_hub.model.known_answers import replay_vectors, verify_folder
from mixsiam_hub.model.manifest import Manifest
from mixsiam_hub.model.processors import fastembed_json, preprocessor_json, processor_json
from mixsiam_hub.training.checkpoint import TrainedEncoder
from mixsiam_hub.untrusted import sha256_file

_ROUNDING_SAMPLES = 16


def export_folder(
    encoder: TrainedEncoder,
    folder: Path,
    license_id: str,
    *,
    compact: bool = False,
    calibration: Calibration | None = None,
    force: bool = False,
) -> Manifest:
    """Writes a model folder that every runtime loads with the same vectors, or writes nothing.

    Args:
        encoder: What to export; its backbone is on the CPU and stays as it is.
        folder: Where; must not exist, or be empty.
        license_id: SPDX identifier of the weights' licence, such as `Apache-2.0`; never guessed.
        compact: Half the size, as the wheel ships it: convolution weights are rounded to fp16, the rounded weights are
            the model, and one copy of them serves torch and ONNX. Vectors are still computed in float32. There is no
            onnx/ in it, so JavaScript and fastembed do not load it.
        calibration: Images for onnx/model_quantized.onnx, the int8 graph; without them there is none.
        force: Write an fp16 or int8 graph whose vectors are off by more than allowed.

    Returns:
        The folder's mixsiam.json.

    Raises:
        ArgumentError: Calibration images for a compact folder.
        ModelError: The licence is not given, or a runtime's vectors differ by more than allowed.
        OutputError: The folder is taken or cannot be written.
    """
    check_request(folder, license_id, compact=compact, calibrated=calibration is not None)
    name = BUILTIN_CARD if folder.resolve() == BUILTIN else folder.resolve().name
    with new_folder(folder) as built:
        if compact:
            encoder = _rounded(encoder)
        variants = _write_files(encoder, built, license_id, compact, calibration, force)
        fast = measure_fast_decoding(built, encoder.config.preprocessing, calibration)
        manifest = _write_manifest(encoder, built, name, license_id, compact, variants, fast, force)
        verify_folder(built, accept_forced=force)
    return manifest


def check_request(folder: Path, license_id: str, *, compact: bool = False, calibrated: bool = False) -> None:
    """Refuses what `export_folder` would refuse, before an encoder or calibration images are loaded for it.

    Raises:
        ArgumentError: Calibration images for a compact folder.
        ModelError: The licence is not given.
        OutputError: The folder is taken or cannot be written.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", license_id):
        raise ModelError(f"license is {license_id!r}; give an SPDX identifier, such as Apache-2.0 or CC-BY-NC-4.0")
    if compact and calibrated:
        raise ArgumentError("calibration is given and compact is set; a compact folder has no int8 graph, choose one")
    check_new_folder(folder)


def _rounded(encoder: TrainedEncoder) -> TrainedEncoder:
    """Rounds the weights to 16 bits and notes what that costs, unless they were rounded in an earlier export."""
    rounded = round_convolutions(encoder.backbone)
    samples = draw_samples(_ROUNDING_SAMPLES).values()
    pixels = np.stack([preprocess(image, encoder.config.preprocessing) for image in samples])
    cosine = min_cosine(run(encoder.backbone, pixels).embedding, run(rounded, pixels).embedding)
    return replace(encoder, backbone=rounded, provenance={ROUNDING: round(cosine, 8)} | encoder.provenance)


def _write_files(
    encoder: TrainedEncoder,
    folder: Path,
    license_id: str,
    compact: bool,
    calibration: Calibration | None,
    force: bool,
) -> dict[str, Variant]:
    """Writes everything but mixsiam.json and the card; returns what was measured of the smaller graphs."""
    config = encoder.config
    _write_json(folder / CONFIG_FILE, config.to_json(license_id))
    _write_json(folder / PREPROCESSOR_FILE, preprocessor_json(config))
    _write_json(folder / PROCESSOR_FILE, processor_json(config, license_id))
    if encoder.backbone.fc is not None:
        (folder / DENSE_FILE).parent.mkdir()
        write_dense(encoder.backbone.fc, folder / DENSE_FILE)
    for name, content in sentence_transformers_files(config).items():
        _write_json(folder / name, content)
    write_weights(encoder.backbone, folder / WEIGHTS_FILE, half=compact)
    _write_graphs(encoder, folder, compact)
    variants = {} if compact else write_variants(folder, config.preprocessing, calibration, force=force)
    write_answers(encoder.backbone, config.preprocessing, folder)
    write_sheet(encoder.backbone, config.preprocessing, folder / SHEET_PICTURE)
    if encoder.report:
        shutil.copyfile(encoder.report, folder / REPORT_PICTURE)
    if encoder.curves:
        shutil.copyfile(encoder.curves, folder / CURVES_PICTURE)
    return variants


def _write_manifest(
    encoder: TrainedEncoder,
    folder: Path,
    name: str | None,
    license_id: str,
    compact: bool,
    variants: dict[str, Variant],
    fast: FastDecoding | None,
    force: bool,
) -> Manifest:
    """Compares the folder with the network in memory, and writes mixsiam.json and the card with what was measured."""
    config = encoder.config
    manifest = Manifest(
        license=license_id,
        fingerprint=backbone_fingerprint(encoder.backbone, config),
        config_digest=config.digest,
        card_sha256="",
        files={path.relative_to(folder).as_posix(): sha256_file(path) for path in _files(folder)},
        method=encoder.method,
        head=encoder.head,
        weights="fp16" if compact else "fp32",
        training=encoder.provenance,
        evaluations=encoder.evaluations,
    )
    _write_json(folder / MANIFEST_FILE, manifest.to_json())
    images = sorted(path for path in (folder / ANSWERS).iterdir() if path.suffix != ".json")
    written = ModelFolder.open(folder)
    parity = measure_parity(encoder.backbone, written, images)
    if force:
        variants = _with_forced(variants, written)
    manifest = replace(manifest, parity=replace(parity, variants=variants, fast_decoding=fast))
    (folder / CARD_FILE).write_text(render_card(name, config, manifest), encoding="utf-8")
    manifest = replace(manifest, card_sha256=sha256_file(folder / CARD_FILE))
    _write_json(folder / MANIFEST_FILE, manifest.to_json())
    return manifest


def _with_forced(variants: dict[str, Variant], folder: ModelFolder) -> dict[str, Variant]:
    """Records as forced what fails on the known answers too: they need not look like the calibration images."""
    failing = {check.precision for check in replay_vectors(folder, ("onnx",)) if not check.holds}
    return {name: replace(variant, forced=variant.forced or name in failing) for name, variant in variants.items()}


def _write_graphs(encoder: TrainedEncoder, folder: Path, compact: bool) -> None:
    if compact:
        graph = compact_graph(encoder.backbone, encoder.config, tensor_spans(folder / WEIGHTS_FILE))
        (folder / COMPACT_ONNX_FILE).write_bytes(graph.SerializeToString())
        return
    (folder / ONNX_FILE).parent.mkdir()
    (folder / ONNX_FILE).write_bytes(full_graph(encoder.backbone, encoder.config).SerializeToString())
    (folder / PREPROCESS_FILE).write_bytes(preprocess_graph(encoder.config.preprocessing).SerializeToString())
    _write_json(folder / FASTEMBED_FILE, fastembed_json(encoder.config))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / CONFIG_FILE)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
