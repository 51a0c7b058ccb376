"""A model folder on this machine: its two JSON files read, every other file checked before it is opened.

A folder without mixsiam.json may be one that timm saved: the torch backend runs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mixsiam_hub.errors import ModelError
from mixsiam_hub.model.config import ModelConfig
from mixsiam_hub.model.files import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from mixsiam_hub.model.manifest import Manifest
from mixsiam_hub.model.plain import read_plain
from mixsiam_hub.untrusted import read_json, sha256_file


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
        path = Path(path)
        if not path.is_dir():
            raise ModelError(f"{path} is no folder; give a model folder, as written by `mixsiam export`")
        if not (path / MANIFEST_FILE).is_file():
            return cls(path, *read_plain(path, fetch or path.joinpath), revision, fetch, is_plain=True)
        manifest = Manifest.from_json(read_json(path / MANIFEST_FILE), str(path / MANIFEST_FILE))
        config_file = fetch(CONFIG_FILE) if fetch else path / CONFIG_FILE
        config = ModelConfig.from_json(read_json(config_file), str(config_file))
        if config.digest != manifest.config_digest:
            raise ModelError(
                f"{config_file}: its architecture, stride or preprocessing is not what {MANIFEST_FILE} is for; "
                "download or export the folder again"
            )
        if WEIGHTS_FILE not in manifest.files or not (fetch or (path / WEIGHTS_FILE).is_file()):
            raise ModelError(f"{path} has no {WEIGHTS_FILE}; weights in other formats are never opened, export again")
        return cls(path, config, manifest, revision, fetch)

    def file(self, name: str) -> Path:
        """Returns the path of one file of the folder, downloaded if need be, after its sha256 was checked.

        Args:
            name: Path within the folder, as mixsiam.json lists it.

        Raises:
            ModelError: The file is not listed, is missing or was changed.
            HubError: It cannot be downloaded.
        """
        return checked_file(self.path, name, self.manifest, self.fetch)


def checked_file(path: Path, name: str, manifest: Manifest, fetch: Callable[[str], Path] | None) -> Path:
    """Returns the path of one file of a folder after its sha256 was checked; arguments as ModelFolder's fields.

    Raises:
        ModelError: The file is not listed, is missing or was changed.
        HubError: It cannot be downloaded.
    """
    if name not in manifest.files:
        raise ModelError(f"{path / MANIFEST_FILE} does not list {name}; export the folder again")
    file = fetch(name) if fetch else path / name
    if not file.is_file():
        raise ModelError(f"{file} is missing; download or export the folder again")
    got = sha256_file(file)
    if got != manifest.files[name]:
        raise ModelError(
            f"{file} was changed: its sha256 is {got}, {MANIFEST_FILE} says {manifest.files[name]}; "
            "download or export the folder again"
        )
    return file
