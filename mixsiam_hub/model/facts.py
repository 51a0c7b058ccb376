"""What a model folder says about itself, for people to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixsiam_hub.model.figures import evaluations_to_json
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.untrusted import one_line


def facts_of(folder: ModelFolder) -> dict[str, str]:
    """Returns what a folder says about itself, by dotted name, each on one line.

    The entries of a list go by their place, from 0 on.
    """
    config, manifest = folder.config, folder.manifest
    facts: dict[str, Any] = {
        "path": folder.path,
        "revision": folder.revision or "-",
        "architecture": config.architecture,
        "output_stride": config.output_stride,
        "dim": config.dim,
        "features_dim": config.features_dim,
        "head": manifest.head.to_json() if manifest.head else "none: a vector is the pooled features",
        "preprocessing": vars(config.preprocessing),
        "method": manifest.method,
        "license": manifest.license,
        "weights": manifest.weights,
        "fingerprint": manifest.fingerprint,
        "files": len(manifest.files),
        "training": manifest.training,
        "parity": manifest.parity.to_json() if manifest.parity else {},
        "quality": evaluations_to_json(manifest.evaluations),
    }
    return _flatten(facts)


def _flatten(facts: Mapping[Any, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in facts.items():
        if isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
            value = dict(enumerate(value))
        key = f"{prefix}{one_line(name)}"
        flat |= _flatten(value, f"{key}.") if isinstance(value, Mapping) else {key: one_line(value, 1000)}
    return flat
