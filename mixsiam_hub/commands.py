"""What the commands of the command line do, as functions: nothing here prints or exits."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mixsiam_hub.encoder import ImageEncoder
from mixsiam_hub.errors import DataError, ImageError
from mixsiam_hub.folder import ModelFolder
from mixsiam_hub.neighbours import nearest
from mixsiam_hub.samples import draw_samples
from mixsiam_hub.sheet import Tile, contact_sheet
from mixsiam_hub.vectors import VectorFile

ERRORS_FILE = "errors.jsonl"


@dataclass(frozen=True)
class Neighbours:
    """A query and what was found near it.

    Attributes:
        query: Path of the query image.
        found: (path, cosine), best first.
    """

    query: str
    found: list[tuple[str, float]]


def embed_files(
    encoder: ImageEncoder,
    paths: Sequence[Path],
    *,
    model: str,
    batch_size: int = 32,
    strict: bool = False,
    progress: Callable[[int], object] = lambda count: None,
) -> tuple[VectorFile, dict[Path, ImageError]]:
    """Embeds image files.

    Args:
        encoder: The encoder.
        paths: The files.
        model: Name of the encoder, for people.
        batch_size: Images for one run of the network.
        strict: Stop at the first bad file instead of leaving it out.
        progress: Called with the number of files done since its last call.

    Returns:
        Unit vectors of the good files, and what is wrong with each bad one.

    Raises:
        ImageError: A bad file, with strict.
    """
    vectors, ids = [np.empty((0, encoder.dim), np.float32)], []
    bad: dict[Path, ImageError] = {}
    for batch in encoder.embed_stream(paths, batch_size=batch_size, on_error="raise" if strict else "skip"):
        vectors.append(batch.vectors)
        ids += [str(paths[index]) for index in batch.indices]
        bad |= {paths[index]: error for index, error in batch.errors.items()}
        progress(len(batch.indices) + len(batch.errors))
    return VectorFile(np.concatenate(vectors), ids, encoder.fingerprint, encoder.variant, model), bad


def write_errors(path: Path, bad: Mapping[Path, ImageError]) -> None:
    """Writes one line of JSON a bad file, or removes the list of an earlier run where all are good.

    Args:
        path: The .jsonl file.
        bad: File -> what is wrong with it.
    """
    if not bad:
        path.unlink(missing_ok=True)
        return
    lines = [json.dumps({"file": str(file), "reason": str(error)}) + "\n" for file, error in bad.items()]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text("".join(lines), encoding="utf-8")
    temporary.replace(path)


def search(encoder: ImageEncoder, vectors: VectorFile, queries: Sequence[Path], k: int) -> list[Neighbours]:
    """Finds the k nearest of the embedded images for each query image.

    Raises:
        DataError: The vectors are of another encoder or variant.
        ImageError: A query cannot be read.
    """
    for what in ("fingerprint", "variant"):
        theirs, ours = getattr(vectors, what), getattr(encoder, what)
        if theirs != ours:
            raise DataError(
                f"the vectors are of {what} {theirs} (model {vectors.model}), the encoder of {ours}; "
                f"search with --model {vectors.model}, or embed the images again"
            )
    indices, cosines = nearest(encoder.embed(queries), vectors.vectors, k)
    return [
        Neighbours(str(query), [(vectors.ids[i], float(c)) for i, c in zip(row, row_cosines, strict=True)])
        for query, row, row_cosines in zip(queries, indices, cosines, strict=True)
    ]


def neighbours_within(vectors: VectorFile, query: int, k: int) -> Neighbours:
    """Finds the k nearest of one of the embedded images, itself left out.

    Args:
        vectors: At least one.
        query: Its row.
        k: How many, at least 1.
    """
    indices, cosines = nearest(vectors.vectors[query : query + 1], vectors.vectors, k + 1)
    pairs = zip(indices[0].tolist(), cosines[0].tolist(), strict=True)
    found = [(vectors.ids[index], cosine) for index, cosine in pairs if index != query]
    return Neighbours(vectors.ids[query], found[:k])


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, where they do not exist.

    Raises:
        DataError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path} cannot be made a folder: {error.strerror or error}") from error


def write_samples(folder: Path) -> list[Path]:
    """Draws the sample images into a folder, which is made if need be, and returns their paths.

    Raises:
        DataError: The folder cannot be made.
    """
    make_folder(folder)
    images = draw_samples()
    for name, image in images.items():
        _save_png(image, folder / name)
    return [folder / name for name in images]


def write_sheet(path: Path, rows: Sequence[Neighbours]) -> None:
    """Draws each query with its neighbours and their cosines, and writes it as a PNG.

    Raises:
        DataError: The place cannot be written.
    """
    tiles = [
        [Tile(row.query, Path(row.query).name), *(Tile(file, Path(file).name, cosine) for file, cosine in row.found)]
        for row in rows
    ]
    try:
        _save_png(contact_sheet(tiles), path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error


def describe(folder: ModelFolder) -> dict[str, str]:
    """Returns what a folder says about itself, by dotted name; the entries of a list go by their place, from 0 on."""
    config, manifest = folder.config, folder.manifest
    facts: dict[str, Any] = {
        "path": folder.path,
        "revision": folder.revision or "-",
        "architecture": config.architecture,
        "output_stride": config.output_stride,
        "dim": config.dim,
        "preprocessing": vars(config.preprocessing),
        "method": manifest.method,
        "license": manifest.license,
        "weights": manifest.weights,
        "fingerprint": manifest.fingerprint,
        "files": len(manifest.files),
        "training": manifest.training,
        "parity": manifest.parity,
        "quality": manifest.quality,
    }
    return _flatten(facts)


def _flatten(facts: Mapping[Any, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in facts.items():
        if isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
            value = dict(enumerate(value))
        key = f"{prefix}{name}"
        flat |= _flatten(value, f"{key}.") if isinstance(value, Mapping) else {key: str(value)}
    return flat


def _save_png(image: Image.Image, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        image.save(temporary, format="PNG")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
