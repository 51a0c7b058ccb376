"""mixsiam.json edited by hand, and its checksum made anew as an export would have written it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixsiam_hub.model.files import MANIFEST_FILE
from mixsiam_hub.model.manifest import CHECKSUM, checksum
from mixsiam_hub.untrusted import sha256_file


def edit_manifest(folder: Path, *changed: str, edit: Callable[[dict[str, Any]], object] = lambda raw: None) -> None:
    """Makes mixsiam.json list these files as they are now, edits it, and puts its checksum right.

    The file is replaced and not written into, since the tests' folders are made of links.
    """
    raw = json.loads((folder / MANIFEST_FILE).read_text())
    raw["files"] |= {name: sha256_file(folder / name) for name in changed}
    edit(raw)
    (folder / MANIFEST_FILE).unlink()
    (folder / MANIFEST_FILE).write_bytes(signed(raw))


def signed(raw: dict[str, Any]) -> bytes:
    """The bytes of a mixsiam.json with this content, its checksum put right."""
    return json.dumps(raw | {CHECKSUM: checksum(raw)}).encode()
