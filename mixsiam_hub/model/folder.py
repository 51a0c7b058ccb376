"""A model folder on this machine: its two JSON files read, every other file checked before it is opened.

A folder without mixsiam.json may be one that timm saved: the torch backend runs it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixsiam_hub.errors import ModelError
from mixsiam_hub.model.config import ModelConfig
from mixsiam_hub.model.files import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from mixsiam_hub.model.manifest import Manifest
from mixsiam_hub.model.plain import read_plain
from mixsiam_hub.untrusted import one_line, parse_json, read_bytes, read_json, sha256_file


@dataclass(frozen=True)
class ModelFolder:
    """A folder that keeps the contract, or a plain one.

    Attributes:
        path: The folder, or the snapshot in the Hub's cache.
        config: From config.json.
        manifest: From mixsiam.json; of a plain folder worked out from its files.
        revision: The commit on the Hub; None for a folder of this machine.
        fetch: Brings a file by its name in the folder, for a snapshot that is downloaded file by file as it is needed.
        is_plain: As timm saves it, without mixsiam.json: no graphs and no known answers, so that only torch runs it.
    """

    path: Path
    config: ModelConfig
    manifest: Manifest
    revision: str | None = None
    fetch: Callable[[str], Path] | None = field(default=None, repr=False, compare=False)
    is_plain: bool = False

    @classmethod
    def open(
        cls, path: str | Path, *, revision: str | None = None, fetch: Callable[[str], Path] | None = None
    ) -> ModelFolder:
        """Opens a folder: reads mixsiam.json and config.json, and no weights yet; those of a plain folder now.

        Args:
            path: The folder.
            revision: The commit it was downloaded at, if it was.
            fetch: Brings a missing file of it; without one, the folder is expected to be whole.

        Raises:
            ModelError: No such folder, a missing or wrong field, a changed config.json, or no safetensors weights.
            HubError: A file cannot be downloaded.
        """
        if not os.path.isdir(path):
            raise ModelError(f"{one_line(path)} is no folder; give a model folder, as written by `mixsiam export`")
        path = Path(path).absolute()  # Its files are opened later too, when the process may be in another folder.
        if not os.path.exists(path / MANIFEST_FILE):
            if not (fetch or os.path.exists(path / CONFIG_FILE)):
                raise ModelError(f"{path} is no model folder: it has neither {MANIFEST_FILE} nor {CONFIG_FILE}")
            return cls(path, *read_plain(path, fetch or path.joinpath), revision, fetch, is_plain=True)
        manifest = Manifest.from_json(read_json(path / MANIFEST_FILE), str(path / MANIFEST_FILE))
        config_file = fetch(CONFIG_FILE) if fetch else path / CONFIG_FILE
        config = ModelConfig.from_json(read_json(config_file), str(config_file))
        if config.digest != manifest.config_digest:
            raise ModelError(
                f"{config_file}: its architecture, stride or preprocessing is not what {MANIFEST_FILE} is for; "
                "download or export the folder again"
            )
        if (config.head_dim is None) != (manifest.head is None):
            raise ModelError(f"{path}: one of {CONFIG_FILE} and {MANIFEST_FILE} has a head; export the folder again")
        if WEIGHTS_FILE not in manifest.files or not (fetch or os.path.exists(path / WEIGHTS_FILE)):
            raise ModelError(f"{path} has no {WEIGHTS_FILE}; weights in other formats are never opened, export again")
        return cls(path, config, manifest, revision, fetch)

    def read(self, name: str) -> bytes:
        """Returns the bytes of one file of the folder, downloaded if need be: the very bytes whose sha256 was checked.

        Args:
            name: Path within the folder, as mixsiam.json lists it.

        Raises:
            ModelError: The file is not listed, is missing or was changed.
            HubError: It cannot be downloaded.
        """
        file = self._locate(name)
        data = read_bytes(file)
        self._compare(file, name, hashlib.sha256(data).hexdigest())
        return data

    def file(self, name: str) -> Path:
        """Returns the path of one file of the folder, downloaded if need be, after its sha256 was checked.

        For whoever needs no more than a path; `read` is for what will run, since the file may change after the check.

        Args:
            name: Path within the folder, as mixsiam.json lists it.

        Raises:
            ModelError: The file is not listed, is missing or was changed.
            HubError: It cannot be downloaded.
        """
        file = self._locate(name)
        self._compare(file, name, sha256_file(file))
        return file

    def read_json(self, name: str) -> dict[str, Any]:
        """Returns one JSON file of the folder, parsed; as `read`, and ModelError where it is no JSON object."""
        return parse_json(self.read(name), self.path / name)

    def _locate(self, name: str) -> Path:
        if name not in self.manifest.files:
            raise ModelError(f"{self.path / MANIFEST_FILE} does not list {one_line(name)}; export the folder again")
        file = self.fetch(name) if self.fetch else self.path / name
        if not os.path.exists(file):
            raise ModelError(f"{file} is missing; download or export the folder again")
        return file

    def _compare(self, file: Path, name: str, got: str) -> None:
        if got != self.manifest.files[name]:
            raise ModelError(
                f"{file} was changed: its sha256 is {got}, {MANIFEST_FILE} says {self.manifest.files[name]}; "
                "download or export the folder again"
            )
