"""The page of examples/browser in a real browser, used as its visitor does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from in_javascript import BARS, PAGE, browser, visit

pytestmark = pytest.mark.js
ROUTE = "browser"
RUNTIME = "node_modules/onnxruntime-web/dist"


@pytest.fixture(scope="module")
def unread(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("unread") / "notes.png"
    path.write_text("no pixels")
    return path


@pytest.fixture(scope="module")
def seen(loader_folder: Path, pictures: list[Path], unread: Path) -> dict[str, Any]:
    """A visit that leaves the precision alone: half of the pictures picked, half dropped, with one unreadable file."""
    return visit(loader_folder, pictures[:8], [unread, *pictures[8:]])


@pytest.mark.parametrize("graph", ["fp32", "fp16"])
def test_sixteen_pictures(
    graph: str, loader_folder: Path, pictures: list[Path], cosines: Callable[..., np.ndarray]
) -> None:
    assert cosines(browser(loader_folder, pictures, graph), pictures).min() >= BARS[ROUTE]


def test_odd_pictures_are_read_as_image_encoder_does(
    loader_folder: Path, odd: dict[str, Path], cosines: Callable[..., np.ndarray]
) -> None:
    files = list(odd.values())
    found = dict(zip(odd, cosines(browser(loader_folder, files), files), strict=True))
    assert min(found.values()) > 0.9999, found


def test_int8_is_what_a_visitor_gets_and_its_size_is_stated(seen: dict[str, Any], loader_folder: Path) -> None:
    assert seen["graph"] == "int8"
    files = ("int8", "model_quantized"), ("fp16", "model_fp16"), ("fp32", "model")
    megabytes = {label: (loader_folder / "onnx" / f"{name}.onnx").stat().st_size / 1e6 for label, name in files}
    assert [text.split() for text in seen["sizes"]] == [
        [label, f"{size:.1f}", "MB"] for label, size in megabytes.items()
    ]


def test_int8_vectors_are_near(seen: dict[str, Any], pictures: list[Path], cosines: Callable[..., np.ndarray]) -> None:
    vectors = np.array([image["vector"] for image in seen["images"]], np.float32)
    assert cosines(vectors, pictures).min() >= 0.97


def test_neighbours_are_those_of_the_vectors(seen: dict[str, Any]) -> None:
    names = [image["file"] for image in seen["images"]]
    vectors = np.array([image["vector"] for image in seen["images"]])
    similar = vectors @ vectors.T - 2 * np.eye(len(names))
    assert seen["neighbours"] == [[names[i] for i in row[:6]] for row in np.argsort(-similar)]


def test_an_unreadable_file_is_named_and_the_others_are_shown(seen: dict[str, Any], pictures: list[Path]) -> None:
    assert seen["errors"] == ["notes.png: it is not an image that this browser can read."]
    assert [image["file"] for image in seen["images"]] == [path.name for path in pictures]
    assert seen["status"].startswith("16 images embedded by int8")


def test_nothing_leaves_the_machine(seen: dict[str, Any]) -> None:
    """Once the model is there, the page talks to nobody; before that it only asks its own server."""
    assert seen["requests_after_loading"]
    assert all(request.startswith("GET blob:") for request in seen["requests_after_loading"])
    asked = [request.split(" ") for request in seen["requests"] if "blob:" not in request]
    assert {method for method, _ in asked} == {"GET", "HEAD"}
    assert {urlsplit(url).hostname for _, url in asked} == {"127.0.0.1"}


def test_the_address_may_name_another_model(loader_folder: Path, pictures: list[Path]) -> None:
    seen = visit(loader_folder, pictures[:1], query="?model=elsewhere/model")
    assert [image["file"] for image in seen["images"]] == [pictures[0].name]
    assert any(request.endswith("/elsewhere/model/onnx/preprocess.onnx") for request in seen["requests"])


def test_a_missing_model_is_named(pictures: list[Path]) -> None:
    seen = visit(None, pictures[:1], query="?model=nowhere")
    assert seen["status"] == "No model is loaded."
    (error,) = seen["errors"]
    assert "No model can be read at http://127.0.0.1:" in error
    assert "/nowhere/. Put a model folder there" in error


@pytest.mark.parametrize("files", [[], ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs"]], ids=["runtime", "wasm"])
def test_a_missing_runtime_is_named(files: list[str], loader_folder: Path, tmp_path: Path) -> None:
    page = shutil.copytree(PAGE, tmp_path / "page", ignore=shutil.ignore_patterns("node_modules"))
    (page / RUNTIME).mkdir(parents=True)
    for file in files:
        shutil.copy(PAGE / RUNTIME / file, page / RUNTIME)
    seen = visit(loader_folder, page=page)
    assert seen["status"] == "No model is loaded."
    assert any("run: npm ci" in error for error in seen["errors"])
