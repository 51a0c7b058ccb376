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

ROOT = Path(__file__).parents[1]
RECORD, DOC, README = ROOT / "export" / "loaders.json", ROOT / "docs" / "loaders.md", ROOT / "README.md"
sys.path.append(str(ROOT / "tests" / "loaders"))

Vectors = NDArray[np.float32]

REFUSED = "refused"
SAME_READING = 0.995
"""Cosine from which on a loader is taken to see an odd picture as a certain plain one."""


@dataclass(frozen=True)
class Loader:
    """One way from files to vectors.

    Attributes:
        name: As the tables call it.
        runtime: Where it runs.
        run: From a model folder and image files to (N, D) vectors of any length.
        missing: What it lacks on this machine; None if nothing.
        version: Of the library.
        bar: The smallest cosine that the tests allow on plain pictures.
    """

    name: str
    runtime: str
    run: Callable[[Path, Sequence[Path]], Vectors]
    missing: str | None
    version: Callable[[], str]
    bar: float


@dataclass(frozen=True)
class Expected:
    """The pictures, and the vectors of ImageEncoder, all of length 1.

    Attributes:
        plain: Files, and (N, D).
        odd: What is odd -> a file, and (D,).
        readings: What is odd -> what a loader may do with it -> (D,).
    """

    plain: tuple[list[Path], Vectors]
    odd: dict[str, tuple[Path, Vectors]]
    readings: dict[str, dict[str, Vectors]]


def loaders() -> list[Loader]:
    """Returns all loaders, also those that this machine lacks."""
    import in_javascript as js
    import in_python as py

    def python(name: str, route: str) -> Loader:
        return Loader(name, "Python", getattr(py, route), py.missing(route), lambda: py.version(route), py.BARS[route])

    def javascript(name: str, runtime: str, route: str, place: Path, package: str) -> Loader:
        def version() -> str:
            file = place / "node_modules" / package / "package.json"
            return str(json.loads(file.read_text(encoding="utf-8"))["version"])

        return Loader(name, runtime, getattr(js, route), js.missing(route), version, js.BARS[route])

    stock = ("transformers_js", js.SCRIPTS, "@huggingface/transformers")
    page = javascript("onnxruntime-web, the two graphs", "Chromium", "browser", js.PAGE, "onnxruntime-web")
    int8 = replace(page, name="onnxruntime-web, int8", run=partial(js.browser, graph="int8"), bar=BARS["int8"].min)
    return [
        python("timm", "timm"),
        python("transformers, AutoModel", "transformers_auto"),
        python("transformers, pipeline", "transformers_pipeline"),
        python("sentence-transformers", "sentence_transformers"),
        python("onnxruntime, the two graphs", "onnxruntime_graphs"),
        python("OpenVINO, the two graphs", "openvino"),
        python("fastembed, on `onnx/`", "fastembed"),
        python("fastembed, on the folder", "fastembed_root"),
        javascript("onnxruntime-node, the two graphs", "Node", "node", js.NODE_SAMPLE, "onnxruntime-node"),
        page,
        int8,
        javascript("transformers.js, pipeline", "Node", *stock),
    ]


def expect(encoder: ImageEncoder, folder: Path) -> Expected:
    """Draws all pictures into a folder and embeds them."""
    from odd_pictures import odd_pictures, readings
    from pictures import upright_pictures

    (folder / "odd").mkdir()
    plain, odd = upright_pictures(folder), odd_pictures(folder / "odd")
    return Expected(
        (plain, encoder.embed(plain)),
        {kind: (file, encoder.embed(file)[0]) for kind, file in odd.items()},
        {kind: {word: encoder.embed(image)[0] for word, image in ways.items()} for kind, ways in readings().items()},
    )


def measure(loader: Loader, model: Path, expected: Expected) -> dict[str, Any]:
    """Returns one of the record's rows; whatever the loader raises on a plain picture is passed on."""
    files, vectors = expected.plain
    cosines = (_unit(loader.run(model, files)) * vectors).sum(1)
    row = {"loader": loader.name, "version": loader.version(), "runtime": loader.runtime}
    row |= {"mean": round(float(cosines.mean()), 8), "min": round(float(cosines.min()), 8), "bar": loader.bar}
    odd: dict[str, float | str] = {}
    words: dict[str, str] = {}
    for kind, (file, vector) in expected.odd.items():
        try:
            got = _unit(loader.run(model, [file]))[0]
        except Exception as error:  # Each loader has its own way to refuse a picture.
            print(f"  {kind}: {error}")
            odd[kind] = words[kind] = REFUSED
        else:
            odd[kind] = round(float(got @ vector), 6)
            words[kind] = _nearest(got, expected.readings[kind])
    return row | {"odd": odd, "readings": words}


def _nearest(vector: Vectors, ways: Mapping[str, Vectors]) -> str:
    cosine, word = max((float(vector @ expected), word) for word, expected in ways.items())
    return word if cosine >= SAME_READING else "otherwise"


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
    rows = []
    with TemporaryDirectory() as folder:
        expected = expect(encoder, Path(folder))
        for loader in loaders():
            print(loader.name, flush=True)
            rows.append(measure(loader, model, expected))
    record = {
        "command": "python benchmarks/loaders.py FOLDER",
        "date": date.today().isoformat(),
        "fingerprint": encoder.fingerprint,
        "pictures": len(expected.plain[0]),
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
