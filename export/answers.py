"""The known answers: small drawn images and the vectors that any loader of the folder must give for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.export.parity import run
from mixsiam_hub.images.load import load_image
from mixsiam_hub.images.preprocess import preprocess
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model.bars import BARS
from mixsiam_hub.model.config import Preprocessing
from mixsiam_hub.model.files import ANSWERS, ANSWERS_FILE

COUNT = 10


def write_answers(backbone: Backbone, pre: Preprocessing, folder: Path) -> None:
    """Draws images of odd sizes, colour and one grey, as PNG and JPEG in turn, and writes their vectors beside them.

    Args:
        backbone: In eval mode, float32, on the CPU, with its head.
        pre: The deployed preprocessing.
        folder: The model folder; known_answers/ is made in it.
    """
    (folder / ANSWERS).mkdir()
    files = [_write_image(folder / ANSWERS / name, image, i) for i, (name, image) in enumerate(_images().items())]
    vectors = run(backbone, np.stack([preprocess(load_image(file), pre) for file in files])).embedding
    entries: list[dict[str, Any]] = [
        # Nine digits hold a float32 exactly.
        {"file": file.name, "vector": [float(f"{value:.9g}") for value in vector]}
        for file, vector in zip(files, vectors, strict=True)
    ]
    answers = {"format_version": 1, "min_cosine": BARS["fp32"].min, "files": entries}
    (folder / ANSWERS_FILE).write_text(json.dumps(answers) + "\n", encoding="utf-8")


def _images() -> dict[str, Image.Image]:
    images = draw_samples(COUNT)
    first = next(iter(images))
    return images | {first: images[first].convert("L")}


def _write_image(path: Path, image: Image.Image, index: int) -> Path:
    if index % 2:
        path = path.with_suffix(".jpg")
        # Full colour resolution: decoders agree on everything but how half of it is scaled back up.
        image.save(path, quality=90, subsampling=0)
    else:
        image.save(path, optimize=True)
    return path
