"""The Python in the documents runs as it stands there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run

from mixsiam_hub.images.samples import draw_samples

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "MODEL_CARD.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def _snippets(document: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / document).read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("document", "snippet"), [(name, text) for name in DOCUMENTS for text in _snippets(name)])
def test_python_compiles(document: str, snippet: str) -> None:
    assert compile(snippet, document, "exec").co_names


def test_readme_runs_on_the_built_in_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch", "torchvision"):
        pytest.importorskip(module, reason="needs the extra torch")
    monkeypatch.chdir(tmp_path)
    one, two = draw_samples(2).values()
    one.save("one.jpg")
    two.save("two.png")
    Path("bad.jpg").write_bytes(b"no image")
    snippet = _snippets("README.md")[0]
    names = {"paths": ["one.jpg", "bad.jpg"], "endless_iterable": ["two.png"]}
    exec(compile(snippet, "README.md", "exec"), names)
    assert names["vectors"].shape == (2, 512)
    assert list(names["bad"]) == [1]
    assert names["batch"].vectors.shape == (1, 512)
    assert names["backbone"].training


def test_other_tools_read_a_folder_of_vectors_as_the_readme_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("faiss", "lancedb", "pyarrow"):
        pytest.importorskip(module, reason="needs the extra dev")
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for name, image in draw_samples(12).items():
        image.save(f"photos/{name}")
    shutil.copy(sorted(Path("photos").iterdir())[3], "query.jpg")
    assert run("embed", "photos", "--out", "vectors").exit_code == 0
    found = [line.split() for line in run("search", "vectors", "query.jpg").stdout.splitlines()[1:]]
    names: dict[str, Any] = {}
    exec(compile(_snippets("README.md")[1], "README.md", "exec"), names)
    paths = names["table"]["path"].to_pylist()
    assert [paths[row] for row in names["rows"][0]] == [path for _, path in found]
    assert [row["path"] for row in names["found"]] == [path for _, path in found]
    np.testing.assert_allclose(names["cosines"][0], [float(cosine) for cosine, _ in found], atol=1e-3)
    np.testing.assert_allclose([1 - row["_distance"] for row in names["found"]], names["cosines"][0], atol=1e-3)


def test_readme_has_two_commands_to_start_with() -> None:
    start = (ROOT / "README.md").read_text("utf-8").partition("## Start")[2].partition("\n## ")[0]
    assert start.count("```bash") == 2
    assert start.count("pip install") == 2
