"""Image files to vectors by a model folder of mixsiam-hub, with numpy, Pillow and onnxruntime alone.

    python embed.py FOLDER one.jpg two.png                        one line of JSON a file, also for one that fails
    python embed.py FOLDER photos/*.jpg --out vectors.npy         (N, K) float32; stops at one that fails

Photos are turned as their EXIF says, transparency is put on white, and of 16-bit grey the high byte is kept. Colour
profiles are ignored, and of an animation only the first frame is read. HEIC files are not read.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession
from PIL import Image, ImageOps


class Encoder:
    """The two graphs of a model folder: from pixels of any size to the network's input, and on to the vector."""

    def __init__(self, folder: Path) -> None:
        """Opens a folder's two graphs."""
        self._prepare, self._network = (
            InferenceSession(folder / "onnx" / f"{name}.onnx", providers=["CPUExecutionProvider"])
            for name in ("preprocess", "model")
        )
        self._embedding = self._network.get_outputs()[0].name

    def embed(self, path: Path) -> np.ndarray:
        """Returns the embedding of an image file, (K,) float32 of length 1."""
        pixels = np.asarray(open_rgb(path))  # (height, width, 3) uint8
        pixel_values = self._prepare.run(["pixel_values"], {"image": pixels[None]})[0]
        vector = self._network.run([self._embedding], {"pixel_values": pixel_values})[0][0]
        return vector / (np.linalg.norm(vector) or 1)


def open_rgb(path: Path) -> Image.Image:
    """Returns an image file as upright RGB.

    Raises:
        ValueError: Its pixels have no fixed range, as those of a TIFF with floats.
    """
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"{path} has pixels of mode {image.mode}; convert it to 8 bits first")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def main() -> None:
    """Reads the command line and writes the vectors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a model folder with onnx/, as `mixsiam export` writes it")
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, help="an .npy file; without it, lines of JSON are printed")
    arguments = parser.parse_args()
    if not (arguments.folder / "onnx" / "preprocess.onnx").is_file():
        parser.error(f"{arguments.folder} has no onnx/preprocess.onnx; give a model folder in the full form")
    encoder = Encoder(arguments.folder)
    if arguments.out:
        np.save(arguments.out, np.stack([encoder.embed(path) for path in arguments.images]))
        return
    failed = False
    for path in arguments.images:
        try:
            print(json.dumps({"file": str(path), "vector": encoder.embed(path).tolist()}))
        except (OSError, ValueError) as error:
            failed = True
            print(json.dumps({"file": str(path), "error": str(error)}))
    sys.exit(failed)


if __name__ == "__main__":
    main()
