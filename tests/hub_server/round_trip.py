"""A small model folder that goes up and comes back, for the tests of the server itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, hf_hub_download, snapshot_download

from .server import LocalHub

REPO = "lab/encoder"
FILES = {
    "README.md": b"---\nlicense: apache-2.0\nlibrary_name: timm\ntags: [test]\n---\n# Card\n",
    "config.json": b'{"model_type": "timm_wrapper"}',
    "model.safetensors": np.random.default_rng(0).bytes(300_000),
    "onnx/model.onnx": b"\x08\x08" + bytes(200_000) + np.random.default_rng(1).bytes(100_000),
    "known_answers/0.png": b"\x89PNG\r\n\x1a\n\0\0 not quite",
}
LARGE = {"model.safetensors", "onnx/model.onnx", "known_answers/0.png"}


def push(files: dict[str, bytes] = FILES, **options: Any) -> str:
    """One commit of these files; its hash."""
    HfApi().create_repo(REPO, exist_ok=True)
    additions = [CommitOperationAdd(path, content) for path, content in files.items()]
    made: CommitInfo = HfApi().create_commit(REPO, additions, commit_message="push", **options)
    return made.oid


def contents(folder: str) -> dict[str, bytes]:
    """Every file below a folder, by its path there."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if path.name != ".gitattributes"}


def fetch(cache: Path, token: str | bool | None = None) -> bytes:
    """config.json of the repository, by a cache that may be another account's."""
    return Path(hf_hub_download(REPO, "config.json", token=token, cache_dir=cache)).read_bytes()


def pull(revision: str | None = None) -> dict[str, bytes]:
    """What a snapshot of the repository holds."""
    return contents(snapshot_download(REPO, revision=revision))


def asked_files(hub: LocalHub) -> list[str]:
    """Names of the files that were asked for, in order, once each."""
    paths = [line.path.partition("/resolve/")[2].partition("/")[2] for line in hub.requests("resolve-head")]
    return list(dict.fromkeys(paths))
