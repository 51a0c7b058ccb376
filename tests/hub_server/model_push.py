"""A model folder that is quick to push, and what its push must leave on the Hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from manifests import edit_manifest

from mixsiam_hub.export.card import render_card
from mixsiam_hub.export.push import Pushed, plan_push, push
from mixsiam_hub.model.folder import ModelFolder

from .round_trip import REPO, contents


def make_small(compact_folder: Path, folder: Path) -> Path:
    """Makes a folder with noise for weights, and so without known answers that could be replayed."""
    shutil.copytree(compact_folder, folder, ignore=shutil.ignore_patterns("known_answers", "*.onnx"))
    rewrite(folder, {"model.safetensors": noise(0), "model.onnx": noise(1)})
    opened = ModelFolder.open(folder)
    (folder / "README.md").write_text(render_card("small", opened.config, opened.manifest))
    return folder


def noise(seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(200_000)


def rewrite(folder: Path, files: dict[str, bytes]) -> None:
    """Gives a folder these model files beside its JSON files, as another export would."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    edit_manifest(folder, *files, edit=lambda raw: raw.update(files={name: raw["files"][name] for name in files}))


def pushed(folder: Path, **options: Any) -> Pushed:
    """Plans and pushes, and sees to it that the folder stays as it was."""
    before = contents(str(folder))
    try:
        return push(plan_push(folder, REPO, **options))
    finally:
        assert contents(str(folder)) == before


def expected(folder: Path) -> dict[str, bytes]:
    """What the repository must hold of an untouched folder."""
    opened = ModelFolder.open(folder)
    names = {"config.json", "mixsiam.json", *opened.manifest.files}
    files = {name: (folder / name).read_bytes() for name in names}
    return {**files, "README.md": render_card(REPO, opened.config, opened.manifest).encode()}
