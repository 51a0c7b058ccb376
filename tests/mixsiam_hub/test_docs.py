"""The Python in the documents runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
    (snippet,) = _snippets("README.md")
    names = {"paths": ["one.jpg", "bad.jpg"], "endless_iterable": ["two.png"]}
    exec(compile(snippet, "README.md", "exec"), names)
    assert names["vectors"].shape == (2, 256)
    assert list(names["bad"]) == [1]
    assert names["batch"].vectors.shape == (1, 256)
    assert names["backbone"].training


def test_readme_has_two_commands_to_start_with() -> None:
    start = (ROOT / "README.md").read_text("utf-8").partition("## Start")[2].partition("\n## ")[0]
    assert start.count("```bash") == 2
    assert start.count("pip install") == 2
