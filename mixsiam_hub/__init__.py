"""Image features from MixSiam encoders, without torch: `ImageEncoder.from_pretrained().embed(images)`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["BUILTIN", "Batch", "ImageEncoder", "ImageError", "MixsiamError", "__version__"]

if TYPE_CHECKING:
    from mixsiam_hub.encoder import Batch, ImageEncoder
    from mixsiam_hub.errors import ImageError, MixsiamError
    from mixsiam_hub.model.hub import BUILTIN

_HOMES = {
    "BUILTIN": "model.hub",
    "Batch": "encoder",
    "ImageEncoder": "encoder",
    "ImageError": "errors",
    "MixsiamError": "errors",
}


def __getattr__(name: str) -> Any:
    # Resolved on first use: importing this package costs little more than numpy and Pillow.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
