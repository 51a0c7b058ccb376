"""What an export starts from: a run, or a model folder that is exported again in another form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mixsiam_hub.backends.backbone import backbone_fingerprint
from mixsiam_hub.backends.torch import load_backbone
from mixsiam_hub.errors import DataError, ModelError
from mixsiam_hub.export.card import EXPORTED_FROM
from mixsiam_hub.model.files import CONFIG_FILE, CURVES_PICTURE, REPORT_PICTURE
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.model.hub import resolve
from mixsiam_hub.training.checkpoint import RECIPE_FILE, REPORT_FILE, TrainedEncoder, load_encoder, read_report


def open_encoder(source: str) -> TrainedEncoder:
    """Loads an encoder to export.

    Args:
        source: A run folder; a model folder; a Hub id; or `builtin`. The latter are taken as they are, with all that
            their mixsiam.json says; of a Hub id the provenance names the repository and the commit that say it.

    Raises:
        DataError: The run has no checkpoint yet, its data are gone, or it was trained on after its evaluation.
        ModelError: It is neither, or breaks the contract.
        HubError: The repository cannot be reached, found or read.
    """
    path = Path(source)
    if (path / RECIPE_FILE).is_file():
        return _with_own_evaluations(load_encoder(path), path)
    if path.is_dir() and not (path / CONFIG_FILE).is_file():
        raise ModelError(
            f"{path} is no run folder, which has {RECIPE_FILE}, and no model folder, which has {CONFIG_FILE}"
        )
    folder = resolve(source)
    encoder = folder_encoder(folder)
    if folder.revision is None:
        return encoder
    earlier = encoder.provenance.get(EXPORTED_FROM)
    sources = [*(earlier if isinstance(earlier, list) else []), f"{source.partition('@')[0]}@{folder.revision}"]
    return replace(encoder, provenance=encoder.provenance | {EXPORTED_FROM: sources})


def with_report(encoder: TrainedEncoder, folder: Path) -> TrainedEncoder:
    """Returns an encoder with what `mixsiam evaluate` measured of it, in place of the figures that it has.

    Args:
        encoder: The encoder as it will be exported.
        folder: Of report.json and report.png.

    Raises:
        DataError: There is no report, or none of its figures are of this encoder.
    """
    evaluations = read_report(folder)
    if not evaluations:
        raise DataError(f"{folder / REPORT_FILE} is missing; `mixsiam evaluate` writes it")
    picture = folder / REPORT_PICTURE
    encoder = replace(encoder, evaluations=evaluations, report=picture if picture.is_file() else None)
    return _with_own_evaluations(encoder, folder)


def _with_own_evaluations(encoder: TrainedEncoder, run: Path) -> TrainedEncoder:
    """Returns an encoder with those of its evaluations, from the report in `run`, that are of itself as it is now.

    Raises:
        DataError: There are evaluations, and all are of other encoders or of an earlier step.
    """
    own = backbone_fingerprint(encoder.backbone, encoder.config)
    steps = encoder.provenance.get("steps")
    kept = tuple(e for e in encoder.evaluations if e.fingerprint == own and e.steps in (None, steps))
    if kept == encoder.evaluations:
        return encoder
    if not kept:
        raise DataError(
            f"{run / REPORT_FILE}: its figures are of step {encoder.evaluations[-1].steps} or of another encoder, the "
            f"run is at {steps}; evaluate it again, or remove the file to export without figures"
        )
    return replace(encoder, evaluations=kept, report=None)  # The picture shows the others too.


def folder_encoder(folder: ModelFolder) -> TrainedEncoder:
    """Returns a model folder's encoder.

    Raises:
        ModelError: The folder is a plain timm one, or its weights are missing, changed or wrong.
    """
    if folder.is_plain:
        raise ModelError(
            f"{folder.path} was saved by timm; run: mixsiam import {folder.path} FOLDER --from timm --license ID"
        )
    manifest = folder.manifest
    report, curves = (
        folder.file(name) if name in manifest.files else None for name in (REPORT_PICTURE, CURVES_PICTURE)
    )
    return TrainedEncoder(
        load_backbone(folder).eval(),
        folder.config,
        manifest.method,
        manifest.training,
        manifest.evaluations,
        report,
        curves,
        manifest.head,
    )
