"""What runs in Node and in a headless Chromium, run for real: loaders of a model folder, and embedding-atlas."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import urlopen

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests" / "js"
NODE_SAMPLE = ROOT / "examples" / "node"
PAGE = ROOT / "examples" / "browser"

EMBEDDING_ATLAS = Path(sys.executable).with_name("embedding-atlas")

TIME_LIMIT_S = 900
OLDEST_NODE = 20

BARS = {"transformers_js": 0.98, "transformers_js_pooled": 0.99, "node": 0.9999, "browser": 0.9999}
"""Function below -> the smallest cosine allowed: the stock pipeline's resize is not quite Pillow's, and the head
amplifies the difference: 0.9863 at worst, of pooled features 0.9965.
"""


def missing(route: str) -> str | None:
    """Says what a route lacks on this machine, and the command that brings it.

    Args:
        route: A key of BARS, or `atlas`.
    """
    if _node_version() < OLDEST_NODE:
        return f"needs Node {OLDEST_NODE} or newer with npm; install it from nodejs.org or your system's packages"
    if route in ("browser", "atlas") and not shutil.which("chromium"):
        return "needs Chromium; run: apt-get install chromium"
    if route == "atlas" and not EMBEDDING_ATLAS.is_file():
        return "needs embedding-atlas; run: pip install embedding-atlas"
    folders = {"node": [NODE_SAMPLE], "browser": [SCRIPTS, PAGE]}.get(route, [SCRIPTS])
    bare = [folder.relative_to(ROOT).as_posix() for folder in folders if not (folder / "node_modules").is_dir()]
    return (
        f"needs JavaScript packages; run: {' && '.join(f'npm ci --prefix {name}' for name in bare)}" if bare else None
    )


def _node_version() -> int:
    """Returns Node's major version; 0 where there is none."""
    if not shutil.which("node"):
        return 0
    printed = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    return int(printed.removeprefix("v").partition(".")[0])


def transformers_js(folder: Path, files: Sequence[Path]) -> Vectors:
    """The stock pipeline `image-feature-extraction` of transformers.js in Node, which opens the files itself.

    Returns:
        The embedding, (N, K) float32, not normalised. Of a folder without a head it would be the feature map.

    Raises:
        RuntimeError: It refuses a file, or fails.
    """
    return _vectors(_run(SCRIPTS / "transformers_js.mjs", folder, "{}", *files)[1:], files)


def transformers_js_pooled(folder: Path, files: Sequence[Path]) -> Vectors:
    """As `transformers_js`, asked to pool: the pooled features, (N, D)."""
    return _vectors(_run(SCRIPTS / "transformers_js.mjs", folder, '{"pool": true}', *files)[1:], files)


def loaded_dtype(folder: Path) -> str:
    """Returns which of the folder's graphs transformers.js takes unasked, in its own word, as in `fp32`."""
    return str(_run(SCRIPTS / "transformers_js.mjs", folder, "{}")[0]["dtype"])


def node(folder: Path, files: Sequence[Path]) -> Vectors:
    """The sample of examples/node: preprocess.onnx and model.onnx in onnxruntime-node, files decoded by sharp.

    Returns:
        The embedding, (N, K) float32, of length 1.

    Raises:
        RuntimeError: It refuses a file, or fails.
    """
    return _vectors(_run(NODE_SAMPLE / "embed.mjs", folder, *files), files)


def replay(folder: Path) -> dict[str, Any]:
    """Has Node replay the known answers: {"min_cosine": what they ask for, "cosines": {file: cosine}}."""
    return _run(SCRIPTS / "replay.mjs", folder)[0]


def browser(folder: Path, files: Sequence[Path], graph: str = "fp32") -> Vectors:
    """The page of examples/browser in Chromium: the same two graphs in onnxruntime-web, files decoded by the browser.

    Args:
        folder: The model folder.
        files: Images, chosen all at once.
        graph: `fp32`, `fp16` or `int8`.

    Returns:
        The embedding, (N, K) float32, of length 1.

    Raises:
        RuntimeError: It refuses a file, or fails.
    """
    seen = visit(folder, files, graph=graph)
    if seen["errors"]:
        raise RuntimeError("; ".join(seen["errors"]))
    return _vectors(seen["images"], files)


def visit(
    folder: Path | None,
    picked: Sequence[Path] = (),
    dropped: Sequence[Path] = (),
    *,
    graph: str | None = None,
    query: str = "",
    page: Path = PAGE,
) -> dict[str, Any]:
    """Visits the page as its user does and tells what is seen there.

    Args:
        folder: The model folder, served as ./model/ and as ./elsewhere/model/; None serves none.
        picked: Files for the file chooser.
        dropped: Files dropped on the page afterwards.
        graph: The precision to choose; None keeps the page's own choice.
        query: Of the page's address, as in `?model=elsewhere/model`.
        page: The folder of the page.

    Returns:
        graph (the one chosen), sizes (the text on each precision), status, errors; images ({"file", "vector"} of the
        downloaded JSON); neighbours (file names for each of images, the nearest first); requests (all of them, as in
        "GET http://...") and requests_after_loading (those since the first file was given).
    """
    with _served(page, folder) as address:
        request = {
            "chromium": shutil.which("chromium"),
            "url": address + query,
            "graph": graph,
            "picked": [str(path) for path in picked],
            "dropped": [str(path) for path in dropped],
        }
        return _run(SCRIPTS / "visit.mjs", json.dumps(request))[0]


def atlas(table: Path, ready: str) -> str:
    """Opens a table of `mixsiam map` in embedding-atlas.

    Args:
        table: A Parquet file.
        ready: A text that the page shows once it has read the table.

    Returns:
        The text of the page.

    Raises:
        RuntimeError: It does not show it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--x", "x", "--y", "y", "--neighbors", "neighbors", "--port", str(port), "--no-auto-port"]
    command = [str(EMBEDDING_ATLAS), str(table), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            url = f"http://127.0.0.1:{port}/"
            _wait_for(url)
            request = {"chromium": shutil.which("chromium"), "url": url, "ready": ready}
            return str(_run(SCRIPTS / "atlas.mjs", json.dumps(request))[0]["text"])
        finally:
            server.terminate()


def _wait_for(url: str) -> None:
    """Waits until a server answers."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            with urlopen(url):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"nothing answers at {url}")


def _run(script: Path, *arguments: Path | str) -> list[dict[str, Any]]:
    """Runs a script in Node and reads the lines of JSON that it prints."""
    command = ["node", str(script), *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S)
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    if ended.returncode and not any("error" in line for line in lines):
        raise RuntimeError(f"{script.name}: {ended.stderr.strip()[-2000:]}")
    return lines


def _vectors(lines: Sequence[dict[str, Any]], files: Sequence[Path]) -> Vectors:
    if refused := [f"{Path(line['file']).name}: {line['error']}" for line in lines if "error" in line]:
        raise RuntimeError("; ".join(refused))
    if len(lines) != len(files):
        raise RuntimeError(f"it gave {len(lines)} vectors for {len(files)} files")
    return np.array([line["vector"] for line in lines], np.float32)


@contextmanager
def _served(page: Path, folder: Path | None) -> Iterator[str]:
    """Serves the page, and the model folder at every path that ends in /model/; yields the page's address."""

    class Handler(SimpleHTTPRequestHandler):
        extensions_map = {".html": "text/html", ".css": "text/css", ".wasm": "application/wasm", "": "text/plain"} | (
            dict.fromkeys((".js", ".mjs"), "text/javascript")
        )

        def translate_path(self, path: str) -> str:
            _, found, rest = path.partition("/model/")
            self.directory = str(folder if found and folder else page)
            return super().translate_path(rest if found and folder else path)

        def log_message(self, *_: object) -> None:
            """Keeps quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
