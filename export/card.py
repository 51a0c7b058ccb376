"""README.md of a model folder: what it is, how each runtime loads it, what was measured and on what.

The text is card_template.md; here its tables and the Hub's metadata are made of config.json and mixsiam.json.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mixsiam_hub.backends.signature import network_signature
from mixsiam_hub.export.markdown import code, table, text
from mixsiam_hub.model.bars import MAX_LEVELS, MAX_RELATIVE_ERROR, MIN_FILE_COSINE
from mixsiam_hub.model.config import ModelConfig
from mixsiam_hub.model.figures import EMBEDDING, RAW, WHITENED, Accuracy, Variant
from mixsiam_hub.model.files import CURVES_PICTURE, REPORT_PICTURE, SHEET_PICTURE
from mixsiam_hub.model.hub import HUB_ID
from mixsiam_hub.model.manifest import Manifest
from mixsiam_hub.untrusted import one_line

BUILTIN_CARD = None
"""Name of the encoder inside the package, which no folder can have."""
ROUNDING = "fp16_rounding_min_cosine"
"""Key of mixsiam.json's `training`: what it cost to round the weights to 16 bits."""
EXPORTED_FROM = "exported_from"
"""Key of mixsiam.json's `training`: the Hub repositories, `org/name@commit`, whose folders were exported again."""
SHEET_COUNT = 64
"""Drawn images among which the card's picture shows neighbours."""

_TEMPLATE = "card_template.md"
_LOADERS = "loaders.json"
_DATASET_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_METHODS = {"mixsiam": "MixSiam", "simsiam": "SimSiam"}
_MEASURES = {"knn20": "kNN, k = 20", "knn200": "kNN, k = 200", "linear": "linear probe"}
_VARIANT_HEAD = ("graph", "MB", "cosine, mean", "smallest", "same nearest neighbour", "change of kNN accuracy, points")
_TRAINING_ROWS = {
    "recipe.epochs": "epochs",
    "recipe.batch_size": "images a batch",
    "recipe.lr": "learning rate",
    "images": "images",
    "steps": "steps",
    "seconds": "wall time, s",
    "core_hours": "core-hours",
    "init.name": "began with",
    "init.fingerprint": "fingerprint of that",
    "init.core_hours": "core-hours of that",
    "precision": "precision",
    "hardware": "hardware",
    "commit": "commit of mixsiam-hub",
    "versions.mixsiam-hub": "mixsiam-hub",
    "versions.torch": "torch",
    "versions.python": "Python",
}
_WHERE_THERE_IS_ONE = {"core_hours", "init.name", "init.fingerprint", "init.core_hours"}
"""Rows that stand only where they are recorded."""


def render_card(name: str | None, config: ModelConfig, manifest: Manifest, *, pictures_at: str = "") -> str:
    """Returns README.md.

    Args:
        name: The folder's, or ORG/NAME on the Hub, as title and in the examples; BUILTIN_CARD for the encoder inside
            the package.
        config: The encoder's.
        manifest: Complete, figures included.
        pictures_at: Put before the pictures' names in links, for a card that is not in the same folder as they are.
    """
    title = name or "The built-in encoder of mixsiam-hub"
    is_compact = manifest.weights == "fp16"
    is_imported = "imported_from" in manifest.training
    files = SHEET_PICTURE, REPORT_PICTURE, CURVES_PICTURE
    pictures = {file: pictures_at + file for file in files if file in manifest.files}
    record = json.loads(_read(_LOADERS))
    training = manifest.training
    recipe = _recipe(training)
    variants = manifest.parity.variants if manifest.parity else {}
    card = ModelCard.from_template(
        _metadata(name or "mixsiam-hub built-in", manifest),
        template_str=_read(_TEMPLATE),
        title=text(title),
        is_builtin=name is BUILTIN_CARD,
        is_compact=is_compact,
        **_places(name, is_compact, manifest.license),
        browser_graph="model_quantized" if "int8" in variants else "model",
        is_imported=is_imported,
        origin=_origin(manifest.method, is_imported),
        license=manifest.license,
        sources=" and ".join(map(code, _sources(training))),
        imported={key: code(training.get(key, "not recorded")) for key in ("imported_from", "file", "sha256")},
        dropped=len(training["dropped"]) if isinstance(training.get("dropped"), list) else 0,
        preprocessing_from=text(training.get("preprocessing", "a source that was not recorded")),
        config=config,
        head=manifest.head,
        head_data=code(manifest.head.data) if manifest.head else "",
        output=next(iter(network_signature(config).outputs)),
        auto_class="AutoModelForImageClassification" if manifest.head else "AutoModel",
        auto_output="logits" if manifest.head else "pooler_output",
        px=config.preprocessing.input_px,
        manifest=manifest,
        sheet=pictures.get(SHEET_PICTURE),
        sheet_count=SHEET_COUNT,
        report=pictures.get(REPORT_PICTURE),
        curves=pictures.get(CURVES_PICTURE),
        record=record,
        loaders=table(("loader", "vector", "version", "cosine, mean", "smallest"), _loader_rows(record), cell=str),
        variants=variants,
        variant_table=table(_VARIANT_HEAD, _variant_rows(variants)),
        variant_notes="\n".join(_variant_notes(variants)),
        fast_decoding=_fast_decoding(manifest),
        parity=table(("what", "measured", "allowed"), _parity_rows(manifest)),
        quality="\n\n".join(_evaluations(manifest)) or "Not measured.",
        data=text(recipe.get("data") or "data that were not recorded"),
        data_terms=text(recipe.get("data_terms", "")).rstrip(".") or "not recorded",
        command=code(
            shlex.join(["mixsiam", "train", recipe.get("name", "RECIPE"), "--data", recipe.get("data", "DATA")])
        ),
        training=table(("", ""), _training_rows(training)),
    )
    # Where the template leaves a part out, its empty lines stay.
    return re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n"


def _recipe(training: Mapping[str, Any]) -> dict[str, str]:
    """Returns the texts of the recipe that trained the encoder; mixsiam.json may hold anything there."""
    recipe = training.get("recipe")
    return {key: value for key, value in recipe.items() if isinstance(value, str)} if isinstance(recipe, dict) else {}


def _origin(method: str, is_imported: bool) -> str:
    return text(method) if is_imported else f"trained without labels by {text(_METHODS.get(method, method))}"


def _places(name: str | None, is_compact: bool, license_id: str) -> dict[str, Any]:
    """Returns how the examples call the folder, quoted for the language that each is in."""
    on_hub = name is not None and HUB_ID.fullmatch(name) is not None
    full_folder = "FOLDER" if is_compact or name is None else name.rpartition("/")[2]
    places = {
        "on_hub": on_hub and not is_compact,
        "full_folder": full_folder,
        "full_place": json.dumps(full_folder),
        "repo": name if on_hub and not is_compact else "ORG/NAME",
    }
    if name is BUILTIN_CARD:
        return places | {
            "load": "",
            "load_64": code("ImageEncoder.from_pretrained(dim=64)"),
            "verify": code("mixsiam verify"),
            "place": "str(BUILTIN)",
            "timm_id": 'f"local-dir:{BUILTIN}"',
            "builtin_import": "from mixsiam_hub import BUILTIN\n",
            "export_full": code(f"mixsiam export PATH FOLDER --license {license_id}"),
        }
    return places | {
        "load": json.dumps(name),
        "load_64": code(f"ImageEncoder.from_pretrained({json.dumps(name)}, dim=64)"),
        "verify": code(f"mixsiam verify {shlex.quote(name)}"),
        "place": json.dumps(name),
        "timm_id": json.dumps(f"{'hf-hub' if on_hub else 'local-dir'}:{name}"),
        "builtin_import": "",
        "export_full": code(f"mixsiam export {shlex.quote(name)} FOLDER --license {license_id}"),
    }


def _read(name: str) -> str:
    return resources.files("mixsiam_hub.export").joinpath(name).read_text(encoding="utf-8")


def _metadata(name: str, manifest: Manifest) -> ModelCardData:
    """Returns what the Hub reads at the head of a card."""
    recipe = _recipe(manifest.training)
    data = recipe.get("data", "").partition("::")[0]
    results = list(_results(manifest))
    return ModelCardData(
        license=manifest.license.lower(),  # As the Hub spells SPDX identifiers.
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        tags=_tags(manifest),
        # Shipped recipes are named after the public data set that they are for; others' folders are not data sets.
        datasets=[data] if _DATASET_ID.fullmatch(data) and data == recipe.get("name") else None,
        base_model=_base(name, manifest.training),
        model_name=one_line(name) if results else None,
        eval_results=results or None,
    )


def _base(name: str, training: Mapping[str, Any]) -> str | None:
    """Returns the repository that this encoder was made from, the nearest one first."""
    nearest = [source.partition("@")[0] for source in reversed(_sources(training))]
    candidates = [*nearest, training.get("base_model"), _recipe(training).get("init")]
    return next((c for c in candidates if isinstance(c, str) and HUB_ID.fullmatch(c) and c != name), None)


def _tags(manifest: Manifest) -> list[str]:
    """Returns what the encoder is, and the libraries that load it."""
    method = [] if "imported_from" in manifest.training else ["self-supervised-learning"]
    javascript = [] if manifest.weights == "fp16" else ["transformers.js"]
    libraries = ["onnx", "safetensors", "transformers", "sentence-transformers", *javascript]
    return ["mixsiam-hub", *method, "image-embeddings", *libraries]


def _results(manifest: Manifest) -> Iterator[EvalResult]:
    """Yields the model-index: the encoder's own accuracies, in %; their floors stand in the card."""
    for entry in manifest.evaluations:
        scores = entry.rows.get(EMBEDDING) or entry.rows.get(manifest.method)
        for measure, value in _measured(scores) if scores else ():
            yield EvalResult(
                task_type="image-classification",
                task_name="Image classification on frozen features",
                dataset_type=entry.test.partition("::")[0].partition("/")[0],
                dataset_name=entry.test,
                metric_type="accuracy",
                metric_name=f"Accuracy of {_MEASURES[measure]}, %",
                metric_value=round(100 * value, 2),
            )


def _measured(scores: Accuracy) -> list[tuple[str, float]]:
    return [(measure, value) for measure in _MEASURES if (value := getattr(scores, measure)) is not None]


def _evaluations(manifest: Manifest) -> Iterator[str]:
    """Yields a paragraph and a table for each data set that report.json holds."""
    for entry in manifest.evaluations:
        what = (
            f"{text(entry.test)}, {entry.n_test:,} images of {entry.classes} classes, by {text(entry.train)} "
            f"({entry.n_train:,} images): accuracy in %, one seed, features in {text(entry.precision)}, by "
            f"{code(entry.command)}."
        )
        if ROUNDING in manifest.training and entry.fingerprint != manifest.fingerprint:
            what += " Measured before the weights were rounded to 16 bits."
        if not entry.clears_raw_pixels:
            floor = f"whitened {RAW}" if entry.floor.endswith(WHITENED) else RAW
            what += f" **Undertrained**: less than 5 points of kNN above {floor}, so no comparison is drawn from it."
        if EMBEDDING in entry.rows:
            what += " A floor that is whitened has a head of its own, fitted on the training images."
        rows = [(name, *_percents(scores)) for name, scores in entry.rows.items()]
        yield f"{what}\n\n{table(('features', *_MEASURES.values()), rows)}"


def _percents(scores: Accuracy) -> Iterator[str]:
    measured = dict(_measured(scores))
    return (f"{100 * measured[measure]:.1f}" if measure in measured else "-" for measure in _MEASURES)


def _loader_rows(record: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for row in record["rows"]:
        yield row["loader"], row["vector"], row["version"], f"{row['mean']:.6f}", f"{row['min']:.6f}"


def _variant_rows(variants: Mapping[str, Variant]) -> Iterator[tuple[str, ...]]:
    for precision, variant in variants.items():
        state = ", left out" if variant.left_out else ", forced" if variant.forced else ""
        fidelity = variant.fidelity
        change = fidelity.knn20_change_points
        yield (
            f"{precision}{state}",
            f"{variant.bytes / 1e6:.1f}",
            f"{fidelity.mean_cosine:.6f}",
            f"{fidelity.min_cosine:.6f}",
            f"{100 * fidelity.neighbour_agreement:.1f} %",
            "not measured" if change is None else f"{change:+.2f}",
        )


def _variant_notes(variants: Mapping[str, Variant]) -> Iterator[str]:
    """Yields what the figures of `_variant_rows` were measured on, a line of a list each."""
    for precision, variant in variants.items():
        fidelity = variant.fidelity
        note = f"- {text(precision)}: {fidelity.images:,} images of {text(variant.data)}"
        if fidelity.knn20_fp32 is not None:
            accuracy = 100 * fidelity.knn20_fp32
            note += f"; kNN (k = 20) of the fp32 graph {accuracy:.1f} %, each half of them classified by the other"
        if variant.calibration_images is not None:
            which = "others of them" if variant.held_out else "the same ones"
            note += f"; calibrated on {variant.calibration_images} images, {which}"
        yield f"{note}."


def _fast_decoding(manifest: Manifest) -> str:
    """Says how close fast decoding is; "" where it was not measured."""
    found = manifest.parity.fast_decoding if manifest.parity else None
    if found is None:
        return ""
    cosines = f"{found.mean_cosine:.5f} in the mean and {found.min_cosine:.5f} at least"
    return (
        f'`decode="fast"` reads large JPEGs at a reduced scale: cosine to full decoding {cosines}, '
        f"on {found.images:,} images of {text(found.data)}."
    )


def _parity_rows(manifest: Manifest) -> Iterator[tuple[str, ...]]:
    parity = manifest.parity
    if parity is None:
        return
    sizes = ", ".join(map(str, parity.batch_sizes))
    for name, error in parity.max_relative_error.items():
        what = f"{name} backend, batches of {sizes}: largest error over the mean"
        yield what, f"{error:.1e}", f"{MAX_RELATIVE_ERROR:g}"
    if pixels := parity.preprocess:
        yield "preprocess.onnx against Pillow, grey levels", str(pixels.max_levels), str(MAX_LEVELS)
        yield "preprocess.onnx against Pillow, share of values that differ", f"{pixels.share_off:.1e}", "-"
    yield "file to vector, smallest cosine", str(parity.file_to_vector_min_cosine), str(MIN_FILE_COSINE)
    if rounding := manifest.training.get(ROUNDING):
        yield "weights rounded to 16 bits against those trained, smallest cosine", str(rounding), "-"


def _training_rows(training: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    facts = dict(_leaves(training))
    for key, label in _TRAINING_ROWS.items():
        if key in facts or key not in _WHERE_THERE_IS_ONE:
            yield label, facts.get(key, "not recorded")


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields the values of nested mappings as (dotted name, text); None is left out."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", f"{value:.4g}" if isinstance(value, float) else str(value)


def _sources(training: Mapping[str, Any]) -> list[str]:
    """Returns the Hub repositories, `org/name@commit`, that the encoder was exported from again, the last one last."""
    stated = training.get(EXPORTED_FROM)
    return [str(source) for source in stated] if isinstance(stated, list) else []
