"""Image features from MixSiam encoders, without torch: `ImageEncoder.from_pretrained().embed(images)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["ImageEncoder", "__version__"]

if TYPE_CHECKING:
    from mixsiam_hub.encoder import ImageEncoder


def __getattr__(name: str) -> Any:
    # Resolved on first use: importing this package costs little more than numpy and Pillow.
    if name == "ImageEncoder":
        from mixsiam_hub.encoder import ImageEncoder

        return ImageEncoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
