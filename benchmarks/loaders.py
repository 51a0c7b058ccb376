"""What every loader makes of a model folder: plain pictures and odd ones, against the vectors of ImageEncoder.

Writes export/loaders.json, which model cards show, and what is rendered from it: docs/loaders.md and README's table.
All loaders must be there: a record that lacks some would take their figures out of every card.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from loaders_page import render, render_readme
from numpy.typing import NDArray

from mixsiam_hub import ImageEncoder
from mixsiam_hub.model.bars import BARS
from mixsiam_hub.model.figures import EMBEDDING, POOLED

ROOT = Path(__file__).parents[1]
RECORD, DOC, README = ROOT / "export" / "loaders.json", ROOT / "docs" / "loaders.md", ROOT / "README.md"
sys.path.append(str(ROOT / "tests" / "loaders"))

Vectors = NDArray[np.float32]

REFUSED = "refused"
SAME_READING = {EMBEDDING: 0.98, POOLED: 0.995}
"""Vector -> the cosine from which on a loader is taken to see an odd picture as a certain plain one."""


@dataclass(frozen=True)
class Loader:
    """One way from files to vectors.

    Attributes:
        name: As the tables call it.
        vector: What it gives: EMBEDDING or POOLED.
        runtime: Where it runs.
        run: From a model folder and image files to (N, K) or (N, D) vectors of any length.
        missing: What it lacks on this machine; None if nothing.
        version: Of the library.
        bar: The smallest cosine that the tests allow on plain pictures.
    """

    name: str
    vector: str
    runtime: str
    run: Callable[[Path, Sequence[Path]], Vectors]
    missing: str | None
    version: Callable[[], str]
    bar: float


@dataclass(frozen=True)
class Expected:
    """One kind of ImageEncoder's vectors of all pictures, of length 1.

    Attributes:
        plain: (N, K) or (N, D), of the plain pictures.
        odd: What is odd -> the vector.
        readings: What is odd -> what a loader may do with it -> the vector.
    """

    plain: Vectors
    odd: dict[str, Vectors]
    readings: dict[str, dict[str, Vectors]]


def loaders() -> list[Loader]:
    """Returns all loaders, also those that this machine lacks."""
    import in_javascript as js
    import in_python as py

    def python(name: str, route: str) -> Loader:
        vector = POOLED if route in py.POOLED else EMBEDDING
        run, missing = getattr(py, route), py.missing(route)
        return Loader(name, vector, "Python", run, missing, lambda: py.version(route), py.BARS[route])

    def javascript(name: str, vector: str, runtime: str, route: str, place: Path, package: str) -> Loader:
        def version() -> str:
            file = place / "node_modules" / package / "package.json"
            return str(json.loads(file.read_text(encoding="utf-8"))["version"])

        return Loader(name, vector, runtime, getattr(js, route), js.missing(route), version, js.BARS[route])

    node = ("Node", "node", js.NODE_SAMPLE, "onnxruntime-node")
    stock = (js.SCRIPTS, "@huggingface/transformers")
    page = javascript("onnxruntime-web, the two graphs", EMBEDDING, "Chromium", "browser", js.PAGE, "onnxruntime-web")
    int8 = replace(page, name="onnxruntime-web, int8", run=partial(js.browser, graph="int8"), bar=BARS["int8"].min)
    return [
        python("mixsiam-hub, torch", "mixsiam_torch"),
        python("mixsiam-hub, torch", "mixsiam_torch_pooled"),
        python("timm", "timm"),
        python("timm", "timm_pooled"),
        python("transformers, AutoModelForImageClassification", "transformers_head"),
        python("transformers, AutoModel", "transformers_auto"),
        python("transformers, pipeline", "transformers_pipeline"),
        python("sentence-transformers", "sentence_transformers"),
        python("onnxruntime, the two graphs", "onnxruntime_graphs"),
        python("onnxruntime, the two graphs", "onnxruntime_pooled"),
        python("OpenVINO, the two graphs", "openvino"),
        python("OpenVINO, the two graphs", "openvino_pooled"),
        python("fastembed, on `onnx/`", "fastembed"),
        python("fastembed, on the folder", "fastembed_root"),
        javascript("onnxruntime-node, the two graphs", EMBEDDING, *node),
        page,
        int8,
        javascript("transformers.js, pipeline", EMBEDDING, "Node", "transformers_js", *stock),
        javascript("transformers.js, pipeline", POOLED, "Node", "transformers_js_pooled", *stock),
    ]


def draw(folder: Path) -> tuple[list[Path], dict[str, Path]]:
    """Writes the pictures into a folder; returns the plain ones, and what is odd -> the picture that is."""
    from odd_pictures import odd_pictures
    from pictures import upright_pictures

    (folder / "odd").mkdir()
    return upright_pictures(folder), odd_pictures(folder / "odd")


def expect(encoder: ImageEncoder, files: Sequence[Path], odd: Mapping[str, Path]) -> dict[str, Expected]:
    """Embeds all pictures; returns vector -> what is expected of a loader that gives it."""
    from odd_pictures import readings

    def expected(*, pooled: bool) -> Expected:
        embed = partial(encoder.embed, pooled=pooled)
        return Expected(
            embed(files),
            {kind: embed(file)[0] for kind, file in odd.items()},
            {kind: {word: embed(image)[0] for word, image in ways.items()} for kind, ways in readings().items()},
        )

    return {EMBEDDING: expected(pooled=False), POOLED: expected(pooled=True)}


def measure(loader: Loader, model: Path, files: Sequence[Path], expected: Vectors) -> dict[str, Any]:
    """Returns what the record's row says of plain pictures; whatever the loader raises is passed on."""
    cosines = (_unit(loader.run(model, files)) * expected).sum(1)
    row = {"loader": loader.name, "vector": loader.vector, "version": loader.version(), "runtime": loader.runtime}
    return row | {"mean": round(float(cosines.mean()), 8), "min": round(float(cosines.min()), 8), "bar": loader.bar}


def measure_odd(loader: Loader, model: Path, files: Mapping[str, Path], expected: Expected) -> dict[str, Any]:
    """Returns what the record's row says of odd pictures."""
    odd: dict[str, float | str] = {}
    words: dict[str, str] = {}
    for kind, file in files.items():
        try:
            got = _unit(loader.run(model, [file]))[0]
        except Exception as error:  # Each loader has its own way to refuse a picture.
            print(f"  {kind}: {error}")
            odd[kind] = words[kind] = REFUSED
        else:
            odd[kind] = round(float(got @ expected.odd[kind]), 6)
            words[kind] = _nearest(got, expected.readings[kind], SAME_READING[loader.vector])
    return {"odd": odd, "readings": words}


def _nearest(vector: Vectors, ways: Mapping[str, Vectors], same: float) -> str:
    cosine, word = max((float(vector @ expected), word) for word, expected in ways.items())
    return word if cosine >= same else "otherwise"


def _unit(vectors: Vectors) -> NDArray[np.float64]:
    vectors = np.asarray(vectors, np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def main() -> None:
    """Measures, and writes both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the built-in encoder in the full form with its int8 graph")
    model = parser.parse_args().folder.resolve()
    encoder = ImageEncoder.from_pretrained(model, backend="onnx")
    if encoder.fingerprint != ImageEncoder.from_pretrained().fingerprint:
        sys.exit(f"{model} is not the built-in encoder; make its full form: mixsiam export PATH FOLDER, see README.md")
    if lacking := [f"{loader.name}: {loader.missing}" for loader in loaders() if loader.missing]:
        sys.exit("\n".join(lacking))
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as scratch:
        plain, odd = draw(Path(scratch))
        expected = expect(encoder, plain, odd)
        for loader in loaders():
            print(f"{loader.name}, {loader.vector}", flush=True)
            of_vector = expected[loader.vector]
            row = measure(loader, model, plain, of_vector.plain)
            # How it reads a picture does not depend on which of its vectors is asked for.
            if loader.name not in {other["loader"] for other in rows}:
                row |= measure_odd(loader, model, odd, of_vector)
            rows.append(row)
    record = {
        "command": "python benchmarks/loaders.py FOLDER",
        "date": date.today().isoformat(),
        "fingerprint": encoder.fingerprint,
        "pictures": len(plain),
        "hardware": f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()}",
        "versions": {"Python": platform.python_version()}
        | {name: version(name) for name in ("mixsiam-hub", "onnxruntime", "Pillow", "torch")},
        "same_reading": SAME_READING,
        "rows": rows,
    }
    _write(RECORD, json.dumps(record, indent=2) + "\n")
    _write(DOC, render(record))
    _write(README, render_readme(README.read_text(encoding="utf-8"), record))


if __name__ == "__main__":
    main()
