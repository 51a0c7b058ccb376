"""Foreign text in Markdown: names, terms and figures that others wrote, shown as they are and never as markup."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Sequence

from mixsiam_hub.untrusted import one_line

_LONGEST = 2000
_MARKUP = re.compile(r"([\\*_\[\]~$@])")
_LINK = re.compile(r"(?i)(www)\.|:(?=//)")
"""What GitHub's Markdown makes a link of without any brackets."""


def text(value: object) -> str:
    r"""Returns a value as one line of text in which nothing is markup, HTML, a link or a control character.

    Backslashes go before what Markdown reads as markup, HTML's own characters become entities, and backticks `'`.
    """
    line = html.escape(one_line(value, _LONGEST), quote=False).replace("|", "&#124;").replace("`", "'")
    return _LINK.sub(lambda match: f"{match[1]}\\." if match[1] else "\\:", _MARKUP.sub(r"\\\1", line))


def code(value: object) -> str:
    """Returns a value as one line between backticks, where only a backtick would be markup."""
    line = one_line(value, _LONGEST).replace("`", "'")
    return f"`{line or ' '}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], cell: Callable[[str], str] = text) -> str:
    """Returns a table; every cell is taken as `text`, or by `str` as it is, where all cells are Markdown of our own."""
    lines = [[cell(value) for value in row] for row in (head, *rows)]
    lines.insert(1, ["---" for _ in head])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
