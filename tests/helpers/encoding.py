"""Images as the bytes of a file, and files as the bytes of a tar."""

from __future__ import annotations

import io
import tarfile

import numpy as np
from PIL import Image


def photo(width: int = 37, height: int = 23) -> Image.Image:
    """A smooth picture without any symmetry: JPEG keeps it nearly exactly."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    planes = [x / width * 255, y / height * 255, (x + 2 * y) / (width + 2 * height) * 255]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The image as a file of a kind that Pillow writes; options are its plugin's."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tar(members: dict[str, bytes]) -> bytes:
    """The files as a tar, by their names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as written:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            written.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
