"""Where this package keeps what it can compute again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Returns `mixsiam-hub` in the user's cache folder: XDG_CACHE_HOME, or `.cache` in the home. It may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "mixsiam-hub"
