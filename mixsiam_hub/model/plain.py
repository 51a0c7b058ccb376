"""A ResNet as timm saves it, on the Hub or here: config.json and model.safetensors, and no mixsiam.json.

What mixsiam.json would say is worked out from the two files, so that a file of vectors knows this encoder again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from mixsiam_hub.errors import ModelError
from mixsiam_hub.model.config import ModelConfig
from mixsiam_hub.model.files import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from mixsiam_hub.model.manifest import Manifest
from mixsiam_hub.model.tensors import fingerprint, read_tensors
from mixsiam_hub.untrusted import one_line, quote, read_bytes, read_json

METHOD = "timm"
HEAD = frozenset({"fc.weight", "fc.bias"})

_Tensor = TypeVar("_Tensor")


def read_plain(path: Path, bring: Callable[[str], Path]) -> tuple[ModelConfig, Manifest]:
    """Reads what timm saved; the weights only once config.json has turned out to be of a ResNet that we run.

    Args:
        path: The folder.
        bring: Returns the path of a file of it by its name, downloaded if need be.

    Returns:
        The configuration, and the mixsiam.json that the folder does not have.

    Raises:
        ModelError: It is no such ResNet, or not saved as safetensors; the message says what is missing.
        HubError: A file cannot be fetched.
    """
    config, license_id = _read_config(path, bring(CONFIG_FILE))
    weights = bring(WEIGHTS_FILE)
    if not os.path.exists(weights):
        raise ModelError(
            f"{path} has no {WEIGHTS_FILE}, and weights in other formats are never opened; save it by timm with "
            f"safe_serialization=True, or make a folder of it: mixsiam import {path} FOLDER --from timm --license ID"
        )
    data = read_bytes(weights)
    manifest = Manifest(
        license=license_id,
        fingerprint=fingerprint(without_head(read_tensors(data, weights)), config),
        config_digest=config.digest,
        card_sha256="",
        files={WEIGHTS_FILE: hashlib.sha256(data).hexdigest()},
        method=METHOD,
    )
    return config, manifest


def without_head(tensors: Mapping[str, _Tensor]) -> dict[str, _Tensor]:
    """Drops timm's classifier, exactly HEAD; a network that was saved without one has nothing to drop."""
    dropped = HEAD if tensors.keys() >= HEAD else frozenset()
    return {name: tensor for name, tensor in tensors.items() if name not in dropped}


def _read_config(path: Path, config_file: Path) -> tuple[ModelConfig, str]:
    """Returns the configuration and the licence that it states."""
    raw = read_json(config_file)
    try:
        # Ours has it, and so has every config.json of transformers: a folder of ours that lost its mixsiam.json must
        # not pass for a plain one.
        if "model_type" in raw:
            raise ModelError(f"{CONFIG_FILE}: model_type is {quote(raw['model_type'])}, a key that timm does not write")
        config = ModelConfig.from_timm(raw)
    except ModelError as error:
        raise ModelError(
            f"{path / MANIFEST_FILE} is missing, and this is no ResNet as timm saves it: {error}; give a folder that "
            "`mixsiam export` or `mixsiam import` wrote"
        ) from error
    return config, one_line(raw["pretrained_cfg"].get("license", "not stated"))
