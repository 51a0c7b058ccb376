"""The Content-Security-Policy of examples/browser, and that the page has nothing in it that the policy forbids."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

PAGE = Path(__file__).parents[1] / "examples/browser"
FORBIDDEN = (
    *("eval(", "new Function", "innerHTML", "outerHTML", "insertAdjacentHTML"),
    'setAttribute("style"',
)


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text inside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.lasttag in ("script", "style"):
            self.inline += data.strip()


def test_the_page_runs_its_own_files_alone() -> None:
    elements = Elements((PAGE / "index.html").read_text(encoding="utf-8"))
    (content,) = (a["content"] for _, a in elements.found if a.get("http-equiv") == "Content-Security-Policy")
    policy = {name: values for name, *values in (part.split() for part in str(content).split(";"))}
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == ["'none'"]
    assert policy["script-src"] == ["'self'", "'wasm-unsafe-eval'"]
    assert policy["worker-src"] == policy["style-src"] == ["'self'"]
    assert policy["connect-src"] == ["'self'", "https:"]
    assert "unsafe-inline" not in str(content)
    scripts_and_styles = [a for tag, a in elements.found if tag in ("script", "style") or a.get("rel") == "stylesheet"]
    assert all((PAGE / str(a.get("src") or a.get("href"))).is_file() for a in scripts_and_styles)
    assert elements.inline == ""
    assert [a for _, a in elements.found if any(name == "style" or name.startswith("on") for name in a)] == []


def test_the_scripts_neither_evaluate_text_nor_set_styles_or_markup() -> None:
    for script in PAGE.glob("*.js"):
        code = script.read_text(encoding="utf-8")
        for forbidden in FORBIDDEN:
            assert forbidden not in code, f"{script.name}: {forbidden}"
