"""README.md of a model folder: what it is, how to load it, what was measured. The full card is rendered on push."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mixsiam_hub.config import Manifest, ModelConfig
from mixsiam_hub.export.verify import MAX_LEVELS, MAX_RELATIVE_ERROR, MIN_COSINE
from mixsiam_hub.hub import BUILTIN

CARD_FILE = "README.md"
BUILTIN_NAME = BUILTIN.name

_CARD = """\
---
library_name: timm
pipeline_tag: image-feature-extraction
license: {license}
tags:
- mixsiam-hub
{tag}- image-embeddings
- onnx
---
# {title}

{notice}An image encoder {origin}: {architecture}, {input_px} x {input_px} px in, {dim} numbers out.
Similar images get vectors of high cosine. It knows no classes and draws no boxes.

## Use

```python
from mixsiam_hub import ImageEncoder  # pip install mixsiam-hub: no torch needed

{load}
vectors = encoder.embed(["one.jpg", "two.png"])  # (2, {dim}) float32, of length 1
```

{loaders}
`mixsiam verify` replays `known_answers/` on this machine.

## Training

{method_notes}

{training}

Data: {data_terms}.

## Quality

{quality}

## Limits

- The network sees {input_px} x {input_px} px: what is small in a large photo is lost in the resize, and what lies
  outside the centred square is cut away.
- It was trained on one data set and inherits what that shows and what it lacks; measure it on images like yours
  (`mixsiam evaluate`) before you rely on it.
- Vectors say how alike images look, not what is in them. They are no basis for decisions about people.

## Parity

Measured when this folder was written, against the network in memory.

{parity}

Fingerprint: `{fingerprint}`
"""

_BUILTIN_NOTICE = """\
**A small demonstration encoder**, which the package carries so that everything works offline and at once. It was
trained briefly, on CPU cores, as the table under Training says; do not judge the method by it. Train your own for real
work.

"""
_METHODS = {"mixsiam": "MixSiam", "simsiam": "SimSiam"}
_SIMSIAM = "Chen and He, SimSiam (arXiv 2011.10566)"
_METHOD_NOTES = {
    "mixsiam": f"""\
The method is that of Guo, Zhao, Lin and Du, MixSiam (arXiv 2111.02679), on top of its baseline: {_SIMSIAM}.
The paper's abstract fixes the idea: a mixture of two views of one image is drawn to the element-wise maximum of the two
views' representations, behind a stop-gradient, beside the siamese loss. Its authors released no code; the weight of the
mixture loss, the distribution of the mixing share and taking the maximum before normalisation are this project's
choices, so this is no reproduction of the paper's figures.""",
    "simsiam": f"The method is that of {_SIMSIAM}.",
}
_TRAINED = """\
`mixsiam train {name} --data {data}` trained it; the value of every key of its recipe is in mixsiam.json.
Before export the BatchNorm statistics were estimated anew on clean training images through the preprocessing that is
shipped."""
_IMPORTED = """\
Trained elsewhere, and imported from the {imported_from} checkpoint `{file}` (sha256 `{sha256}`). Tensors of its heads
that were dropped: {dropped}; mixsiam.json names them. The BatchNorm statistics are kept as they came; the preprocessing
comes from {preprocessing}. How and on what it was trained, its source says."""
_FULL_LOADERS = """\
timm (`timm.create_model("local-dir:{name}", pretrained=True)`, or `hf-hub:`), transformers (`AutoModel`,
`AutoImageProcessor`) and plain onnxruntime (`onnx/preprocess.onnx`, then `onnx/model.onnx`) give the same vectors for
upright RGB images without a colour profile. transformers.js and fastembed load it too, with a resize of their own."""
_COMPACT_LOADERS = """\
This is the compact form: convolution weights are stored in 16 bits and computed with in 32, and `model.onnx` reads them
from `model.safetensors`. timm and transformers give the same vectors for upright RGB images without a colour profile;
JavaScript and fastembed need the full form."""
_TRAINING_ROWS = (
    *("recipe.name", "recipe.data", "recipe.epochs", "recipe.batch_size", "images", "steps", "seconds"),
    *("precision", "hardware"),
)


def render_card(name: str, config: ModelConfig, manifest: Manifest) -> str:
    """Returns README.md.

    Args:
        name: The folder's, as title and in the example; BUILTIN_NAME is the encoder inside the package.
        config: The encoder's.
        manifest: Complete, figures included.
    """
    is_builtin = name == BUILTIN_NAME
    loaders = _COMPACT_LOADERS if manifest.weights == "fp16" else _FULL_LOADERS
    training = dict(_leaves(manifest.training))
    imported = "imported_from" in training
    return _CARD.format(
        license=manifest.license.lower(),  # As the Hub spells SPDX identifiers.
        title="The built-in encoder of mixsiam-hub" if is_builtin else name,
        notice=_BUILTIN_NOTICE if is_builtin else "",
        load="encoder = ImageEncoder.from_pretrained()"
        if is_builtin
        else f'encoder = ImageEncoder.from_pretrained("{name}")  # this folder, or ORG/NAME on the Hub',
        tag="" if imported else "- self-supervised-learning\n",
        origin=manifest.method if imported else f"trained without labels by {_METHODS[manifest.method]}",
        architecture=config.architecture,
        input_px=config.preprocessing.input_px,
        dim=config.dim,
        loaders=loaders.format(name=name),
        method_notes=_imported(manifest) if imported else f"{_METHOD_NOTES[manifest.method]}\n{_trained(manifest)}",
        training=_table(("", ""), [(key, training[key]) for key in _TRAINING_ROWS if key in training]),
        data_terms=training.get("recipe.data_terms") or "its terms were not recorded",
        quality="\n\n".join(_evaluations(manifest)) or "Not measured: run `mixsiam evaluate`.",
        parity=_table(("what", "measured", "allowed"), _parity_rows(manifest.parity)),
        fingerprint=manifest.fingerprint,
    )


def _trained(manifest: Manifest) -> str:
    recipe = manifest.training.get("recipe", {})
    return _TRAINED.format(name=recipe.get("name", "RECIPE"), data=recipe.get("data", "DATA"))


def _imported(manifest: Manifest) -> str:
    return _IMPORTED.format(**manifest.training | {"dropped": len(manifest.training["dropped"])})


def _evaluations(manifest: Manifest) -> Iterator[str]:
    """Yields a paragraph and a table for each data set that report.json holds."""
    for entry in manifest.quality.get("evaluations", []):
        text = (
            f"{entry['test']}, {entry['n_test']:,} images of {entry['classes']} classes, by {entry['train']} "
            f"({entry['n_train']:,} images): accuracy in %, one seed, features in {entry['precision']}, by "
            f"`{entry['command']}`."
        )
        if not entry["clears_raw_pixels"]:
            text += " **Undertrained**: less than 5 points of kNN above raw pixels, so no comparison is drawn from it."
        rows = [
            (name, *(f"{100 * scores[measure]:.1f}" for measure in ("knn20", "knn200", "linear")))
            for name, scores in entry["rows"].items()
        ]
        yield f"{text}\n\n{_table(('features', 'kNN, k = 20', 'kNN, k = 200', 'linear probe'), rows)}"


def _parity_rows(parity: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    sizes = ", ".join(map(str, parity["batch_sizes"]))
    rows = [
        (f"{name} backend, batches of {sizes}: largest error over the mean", f"{error:.1e}", f"{MAX_RELATIVE_ERROR:g}")
        for name, error in parity["max_relative_error"].items()
    ]
    if pixels := parity.get("preprocess"):
        rows.append(("preprocess.onnx against Pillow, grey levels", str(pixels["max_levels"]), str(MAX_LEVELS)))
        rows.append(("preprocess.onnx against Pillow, share of values that differ", f"{pixels['share_off']:.1e}", "-"))
    rows.append(("file to vector, smallest cosine", str(parity["file_to_vector_min_cosine"]), str(MIN_COSINE)))
    if rounding := parity.get("fp16_weights_min_cosine"):
        rows.append(("weights rounded to 16 bits against 32, smallest cosine", str(rounding), "-"))
    return rows


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields the values of nested mappings as (dotted name, text)."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Returns a Markdown table, or nothing without rows."""
    lines = [head, tuple("---" for _ in head), *rows] if rows else []
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
