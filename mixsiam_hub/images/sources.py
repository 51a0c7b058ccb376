"""From what a user types (files, folders, globs) to a list of image files."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mixsiam_hub.errors import DataError
from mixsiam_hub.images.load import is_image_path

_log = logging.getLogger(__name__)


def expand(inputs: Sequence[str]) -> list[Path]:
    """Lists the files that inputs stand for, in their order and each once.

    Args:
        inputs: Each a file, taken whatever its suffix; a folder, searched to any depth for image suffixes, hidden
            files and folders left out; or a glob (`**` and `~` work), whose matches count by suffix as a folder's do.
            A name that exists is never read as a glob.

    Returns:
        Paths, relative where the input was; sorted within each folder or glob.

    Raises:
        DataError: An input that stands for no file.
    """
    found: dict[str, Path] = {}
    for given in inputs:
        paths = _matches(given)
        if not paths:
            raise DataError(
                f"{given!r} matches no image; give a file, a folder with images, or a glob like 'in/**/*.jpg'"
            )
        for path in paths:
            found.setdefault(os.path.abspath(path), path)
    return list(found.values())


def _matches(given: str) -> list[Path]:
    path = Path(given).expanduser()
    if path.is_dir():
        return sorted(_walk(path))
    if path.exists():
        return [path]
    paths: set[Path] = set()
    for match in map(Path, glob.iglob(str(path), recursive=True)):
        if match.is_dir():
            paths.update(_walk(match))
        elif is_image_path(match):
            paths.add(match)
    return sorted(paths)


def _walk(folder: Path) -> Iterator[Path]:
    """Yields visible images below a folder; links to folders are followed, each real folder once."""
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=lambda e: _log.warning("left out: %s", e)):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in files if not name.startswith(".") and is_image_path(name))
