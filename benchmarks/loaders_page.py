"""docs/loaders.md and README's table: made of export/loaders.json, which benchmarks/loaders.py measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PAGE = """# What each loader makes of a model folder

Every loader opened the same folder, and its vectors are compared with those of `ImageEncoder` (onnx backend, fp32) by
their cosine: the embedding, which is the head's output, and pooled features, which go into the head. The folder is the
built-in encoder in its full form, fingerprint `{fingerprint}`.
Measured by `{command}` on {date}:
{hardware}; {versions}.
The exact calls are in `tests/loaders/in_python.py` and `tests/loaders/in_javascript.py`.

## Plain pictures

{pictures} upright pictures, RGB or grey, without a colour profile: photos and drawn ones, odd sizes, tiny and large.
The tests hold each loader to its bar on the smallest cosine. **vector** says what the loader gives: where it gives the
embedding, that is what its plainest call returns; transformers' `AutoModel` and its pipeline have no place for a head.

{plain}

- **The head amplifies differences.** It brings all components to the same variance, the small ones too, so that pixels
  or weights which are slightly off turn an embedding further than pooled features. Where those are exact, so is it.
- **The two graphs** are `onnx/preprocess.onnx` and `onnx/model.onnx`; they leave only decoding to the image library.
  The samples in `examples/` use them.
- **fastembed** takes the folder's `onnx/`: `specific_model_path="FOLDER/onnx"`, model file `model.onnx`. There a
  `preprocessor_config.json` of its own has it round the crop's offset half to even, as timm and torchvision do. Given
  the folder itself or a repository's id, it reads the `preprocessor_config.json` that is for transformers.js and
  rounds down: for some odd sizes the crop is a pixel off, hence the lower bar. For an encoder whose `crop_pct` is below
  1 that holds in both.
- **int8** is `onnx/model_quantized.onnx`, which the page in `examples/browser` takes unless told otherwise.
- **OpenVINO** computes in 16 bits on CPUs that can, unless told `INFERENCE_PRECISION_HINT: "f32"`, as here.
- **transformers.js**'s pipeline resizes by the image library that it finds, and rounds the crop's offset down: most of
  all tiny pictures, which must be enlarged, get other pixels than Pillow's. Hence its lower bars.
  `pipe(image)` gives the embedding, `pipe(image, {{ pool: true }})` pooled features.

## Odd pictures

`ImageEncoder` turns a photo as its EXIF says, puts transparency on white, reads CMYK as Pillow does, keeps the high
byte of 16 bits and ignores colour profiles. A cell says what the loader does, and the cosine of its vector to ours.
The word is measured too: the picture was prepared in each of several ways as a plain one, and the loader's vector is
nearest to that one's, with a cosine of at least {same_embedding}, or {same_pooled} for pooled features; "otherwise" is
none of them, and "refused" is an error. timm, the Auto classes, sentence-transformers and OpenVINO take pictures that
are open already: by Pillow's `Image.open(path).convert("RGB")`, as everybody does, which minds neither EXIF nor
transparency.

{odd}

Where a cell is not what you need, give the loader upright RGB: `load_image(path)` of `mixsiam_hub.images.load` makes it
of any file, and so does `open_rgb` of `examples/python/embed.py`, without this package.
"""


def render(record: Mapping[str, Any]) -> str:
    """Returns docs/loaders.md for the content of export/loaders.json."""
    rows = [row for row in record["rows"] if "odd" in row]  # The first of each loader.
    kinds = list(rows[0]["odd"]) if rows else []
    odd = [(row["loader"], row["vector"], *(_cell(row, kind) for kind in kinds)) for row in rows]
    return PAGE.format(
        **{key: record[key] for key in ("command", "date", "hardware", "pictures")},
        same_embedding=record["same_reading"]["embedding"],
        same_pooled=record["same_reading"]["pooled"],
        fingerprint=record["fingerprint"][:12],
        versions=", ".join(f"{name} {number}" for name, number in record["versions"].items()),
        plain=_plain(record),
        odd=_table(("loader", "vector", *kinds), odd),
    )


def render_readme(text: str, record: Mapping[str, Any]) -> str:
    """Returns README.md with the table of plain pictures between its two marks."""
    begin, end = "<!-- loaders -->\n", "\n<!-- end of loaders -->"
    before, _, rest = text.partition(begin)
    return before + begin + _plain(record) + end + rest.partition(end)[2]


def _plain(record: Mapping[str, Any]) -> str:
    keys = ("loader", "vector", "runtime", "version")
    rows = [(*(row[key] for key in keys), *_figures(row)) for row in record["rows"]]
    return _table(("loader", "vector", "runs in", "version", "cosine, mean", "smallest", "bar"), rows)


def _figures(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return f"{row['mean']:.6f}", f"{row['min']:.6f}", f"{row['bar']:g}"


def _cell(row: Mapping[str, Any], kind: str) -> str:
    cosine = row["odd"][kind]
    return cosine if isinstance(cosine, str) else f"{row['readings'][kind]}, {cosine:.4f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])
