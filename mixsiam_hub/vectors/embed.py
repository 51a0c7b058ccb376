"""Image files to a table of vectors, and a list of the files that could not be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mixsiam_hub.atomic import write_text
from mixsiam_hub.encoder import ImageEncoder
from mixsiam_hub.errors import ImageError
from mixsiam_hub.vectors.table import VectorFile

ERRORS_FILE = "errors.jsonl"


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
    write_text(path, "".join(lines))
