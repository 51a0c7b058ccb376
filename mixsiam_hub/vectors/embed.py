"""Images to a table of vectors, and a list of what could not be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mixsiam_hub.atomic import write_text
from mixsiam_hub.vectors.table import BUILTIN_LABEL, VectorFile

if TYPE_CHECKING:
    from mixsiam_hub.encoder import ImageEncoder
    from mixsiam_hub.images.kinds import ImageSource
    from mixsiam_hub.images.sources import Item
    from mixsiam_hub.vectors.ray_engine import RayEncoder


def embed_files(
    encoder: ImageEncoder,
    images: Iterable[Item | ImageSource],
    *,
    model: str | None = None,
    batch_size: int = 32,
    strict: bool = False,
    progress: Callable[[int], object] = lambda count: None,
) -> tuple[VectorFile, dict[str, str]]:
    """Embeds images; of each only its vector is kept.

    Args:
        encoder: The encoder.
        images: Items as `open_source` finds them, or whatever else `ImageEncoder.embed_stream` takes.
        model: What the encoder was opened by; None for the built-in one.
        batch_size: Images for one run of the network.
        strict: Stop at the first bad image instead of leaving it out.
        progress: Called with the number of images done since its last call.

    Returns:
        Unit vectors of the good images, and for the key of each bad one what is wrong with it.

    Raises:
        ImageError: A bad image, with strict.
    """
    vectors, ids = [np.empty((0, encoder.dim), np.float32)], []
    bad: dict[str, str] = {}
    for batch in encoder.embed_stream(images, batch_size=batch_size, on_error="raise" if strict else "skip"):
        vectors.append(batch.vectors)
        ids += batch.keys
        bad |= {error.image: str(error) for error in batch.errors.values()}
        progress(len(batch.keys) + len(batch.errors))
    label = model_label(encoder, model)
    return VectorFile(np.concatenate(vectors), ids, encoder.fingerprint, encoder.variant, label), bad


def errors_path(out: Path) -> Path:
    """Returns where the errors of a vector file are listed; its whole name, as v.npz and v.parquet may lie together."""
    return out.with_name(f"{out.name}.errors.jsonl")


def write_errors(out: Path, bad: Mapping[str, str]) -> None:
    """Lists what could not be read beside a vector file, or removes the list of an earlier run with the same output.

    A line is a JSON object with `key`, the image or folder, and `reason`.

    Args:
        out: The vector file.
        bad: Key -> what is wrong.

    Raises:
        OutputError: The list cannot be written.
    """
    path = errors_path(out)
    if bad:
        write_text(path, "".join(json.dumps({"key": key, "reason": reason}) + "\n" for key, reason in bad.items()))
    else:
        path.unlink(missing_ok=True)


def model_label(encoder: ImageEncoder | RayEncoder, model: str | None) -> str:
    """Returns what opens the same encoder again, a Hub id at its commit."""
    if model is None:
        return BUILTIN_LABEL
    return f"{model.partition('@')[0]}@{encoder.revision}" if encoder.revision else model
