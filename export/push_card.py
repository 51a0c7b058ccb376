"""Which README.md a push sends: one written anew under the repository's name, or the user's own, checked by the Hub."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from huggingface_hub import ModelCard

from mixsiam_hub.errors import HubError
from mixsiam_hub.export.card import render_card
from mixsiam_hub.model.files import CARD_FILE
from mixsiam_hub.model.folder import ModelFolder


def card_for(folder: ModelFolder, repo: str) -> str:
    """Returns README.md: written anew under the repository's name, unless its text was edited since the export."""
    path = folder.path / CARD_FILE
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not text or is_as_rendered(text, folder):
        text = render_card(repo, folder.config, folder.manifest)
    return text


def check_card(path: Path, text: str) -> None:
    """Has the Hub check a card's metadata.

    Raises:
        HubError: They cannot be read, or the Hub refuses them.
    """
    try:
        card = ModelCard(text)
    except Exception as error:  # YAML's, or the client's for a field that is wrong.
        raise HubError(f"{path}: its metadata cannot be read: {error}; mend them and push again") from error
    try:
        card.validate()
    except ValueError as error:
        raise HubError(f"{path}: the Hub refuses its metadata: {error}; mend them and push again") from error


def is_as_rendered(text: str, folder: ModelFolder) -> bool:
    """Tells whether a card is still as it was written, by the export or by the push of a folder that is on the Hub."""
    if hashlib.sha256(text.encode()).hexdigest() == folder.manifest.card_sha256:
        return True
    named = re.search(r'ImageEncoder\.from_pretrained\("(.+)"\)', text)
    return named is not None and text == render_card(named[1], folder.config, folder.manifest)
