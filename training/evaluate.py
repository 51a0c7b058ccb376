"""How good are the features? kNN and linear probe on labelled images, beside the floors that a figure needs.

An encoder with a head is measured with and without it, and the floors, too, plain and whitened in the same way: alone,
whitening lifts raw pixels as well. Theirs is fitted on the evaluation's training images, the encoder's where it was.
The test images choose nothing: k and the preprocessing are fixed beforehand, and training images choose the probe's
regularisation.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import nn

from mixsiam_hub.backends.backbone import Backbone, backbone_fingerprint
from mixsiam_hub.errors import DataError, ImageError
from mixsiam_hub.images.kinds import ImageSource, path_or_bytes
from mixsiam_hub.images.sources import ImageSet
from mixsiam_hub.model.config import ModelConfig
from mixsiam_hub.model.figures import EMBEDDING, FIRST, FIRST_DIM, POOLED, RANDOM, RAW, WHITENED, Accuracy, Evaluation
from mixsiam_hub.training.data import class_numbers, common_classes, open_images
from mixsiam_hub.training.features import extract, read_batches
from mixsiam_hub.training.head import MAX_DIM, behind, moments_of, whitening
from mixsiam_hub.training.knn import TEMPERATURE, knn_accuracy
from mixsiam_hub.training.monitor import effective_rank, raw_pixels
from mixsiam_hub.training.networks import evaluation_precision, find_encoder, on_device, random_backbone
from mixsiam_hub.training.probe import CHOICES_OF_C, TOLERANCE, probe_accuracy
from mixsiam_hub.training.recipe import data_name
from mixsiam_hub.untrusted import sha256_file
from mixsiam_hub.user_cache import ArrayCache, cache_folder
from mixsiam_hub.vectors.cosine import unit_length

CLEARS_BY = 0.05
"""An encoder whose kNN is not this far above raw pixels is undertrained, and no comparison is drawn from it."""
_FIGURES = ("figures", str(TEMPERATURE), str(CHOICES_OF_C), str(TOLERANCE), torch.__version__)
"""Begins the key under which figures are kept: what decides them beside the features."""


@dataclass(frozen=True)
class Features:
    """Features of the two parts of one evaluation, with their classes.

    Attributes:
        train: (M, D) float32.
        train_labels: (M,) int64.
        test: (N, D) float32.
        test_labels: (N,) int64.
    """

    train: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test: NDArray[np.float32]
    test_labels: NDArray[np.int64]


def evaluate(model: str, train: str, test: str, *, probe: bool = True, cache: ArrayCache | None = None) -> Evaluation:
    """Evaluates an encoder and its floors: raw pixels and random weights. Classes are compared by name.

    Args:
        model: A run folder, a model folder, a Hub id, or "" for the built-in encoder.
        train: Labelled images for the neighbours and the probe, as `data.open_images` reads them.
        test: Labelled images that are classified.
        probe: Fit linear probes, too; they take longest.
        cache: Of features, and of what was found with them; None for the user's.

    Returns:
        Accuracies of kNN (k = 20 and 200) and linear probe, with what they were measured on; the features are in bf16
        where the hardware computes it.

    Raises:
        DataError: Images without labels, or no common class.
        ModelError: No such model.
    """
    sets = train_images, test_images = _labelled(train), _labelled(test)
    classes = common_classes(train_images, test_images)
    encoder = find_encoder(model)
    backbone, config, method = encoder.backbone, encoder.config, encoder.method
    before = backbone_fingerprint(backbone, config)
    networks = {RANDOM: random_backbone(config, train_images), method: on_device(backbone)}
    cache = cache or ArrayCache(cache_folder() / "features")
    features = _features(networks, sets, classes, config, cache)
    own, n_train, n_test = method, len(features[method].train), len(features[method].test)
    if backbone.fc is not None:
        own = EMBEDDING
        features = _with_heads(features, method, backbone.fc)
    if backbone_fingerprint(backbone, config) != before:
        raise AssertionError("the evaluation changed the backbone")
    rows = {name: _score(name, parts, cache, probe=probe) for name, parts in features.items()}
    floor = rows.get(RAW + WHITENED, rows[RAW])
    command = ["mixsiam", "evaluate", *filter(None, [data_name(model)]), "--train", data_name(train)]
    return Evaluation(
        train=data_name(train),
        test=data_name(test),
        train_digest=train_images.identity,
        test_digest=test_images.identity,
        n_train=n_train,
        n_test=n_test,
        classes=len(classes),
        precision=evaluation_precision(),
        rank=effective_rank(features.get(POOLED, features[own]).test[:1024]),
        rows=rows,
        clears_raw_pixels=rows[own].knn20 - floor.knn20 >= CLEARS_BY,
        command=shlex.join([*command, "--test", data_name(test)]),
        fingerprint=before,
        steps=encoder.provenance.get("steps"),
    )


def _score(name: str, features: Features, cache: ArrayCache, *, probe: bool) -> Accuracy:
    parts = features.train, features.train_labels, features.test, features.test_labels
    arrays: list[NDArray[Any]] = [*parts]
    key = *_FIGURES, *map(_array_digest, arrays)
    known = cache.get(*key) or {}
    found = known or {f"knn{k}": np.array(share) for k, share in knn_accuracy(*parts).items()}
    # A probe sees through a linear map: it is not fitted again on floors that were only whitened, nor on a part.
    probe = probe and name != FIRST and not name.endswith(WHITENED)
    if probe and "linear" not in found:
        found = found | {"linear": np.array(probe_accuracy(*parts))}
    if found.keys() != known.keys():
        cache.put(found, *key)
    return Accuracy(float(found["knn20"]), float(found["knn200"]), float(found["linear"]) if probe else None)


def _with_heads(features: Mapping[str, Features], method: str, head: nn.Linear) -> dict[str, Features]:
    """Returns the rows of an encoder with a head: its embedding, the first numbers of that, and all floors."""
    pooled = features[method]
    embedding = _behind(head, pooled)
    rows = {EMBEDDING: embedding}
    if head.out_features > FIRST_DIM:
        rows[FIRST] = replace(embedding, train=embedding.train[:, :FIRST_DIM], test=embedding.test[:, :FIRST_DIM])
    rows[POOLED] = pooled
    for name in (RAW, RANDOM):
        floor = rows[name] = features[name]
        if len(floor.train) >= floor.train.shape[1]:  # Fewer images fit no head.
            rows[name + WHITENED] = _behind(
                whitening(moments_of(floor.train), min(MAX_DIM, floor.train.shape[1])), floor
            )
    return rows


def _behind(head: nn.Linear, features: Features) -> Features:
    train, test = (unit_length(behind(head, part)) for part in (features.train, features.test))
    return replace(features, train=train, test=test)


def _features(
    networks: Mapping[str, Backbone],
    sets: tuple[ImageSet, ImageSet],
    classes: Sequence[str],
    config: ModelConfig,
    cache: ArrayCache,
) -> dict[str, Features]:
    """Returns raw pixels and each network's features of both sets, every image decoded once."""
    pre = config.preprocessing
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in (RAW, *networks)}
    labels = []
    for images in sets:
        of_images = (_content_digest(images), evaluation_precision(), PIL.__version__, torch.__version__)
        keys = {name: (backbone_fingerprint(network, config), *of_images) for name, network in networks.items()}
        known = {name: kept["features"] for name, key in keys.items() if (kept := cache.get(*key))}
        found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in parts if name not in known}
        read = []
        for batch in read_batches(images, pre):
            if not len(batch.indices):
                continue
            read.append(batch.indices)
            for name, batches in found.items():
                if name == RAW:
                    batches.append(raw_pixels(batch.pixels))
                else:
                    batches.append(extract(networks[name], [batch.pixels], pre, evaluation_precision()))
        labels.append(class_numbers(images, classes)[np.concatenate(read)])
        for name, features in known.items():
            if len(features) != len(labels[-1]):
                raise DataError(f"{images.name}: other images can be read than last time; delete {cache.folder}")
            parts[name].append(features)
        for name, batches in found.items():
            parts[name].append(np.concatenate(batches))
            if name != RAW:
                cache.put({"features": parts[name][-1]}, *keys[name])
    return {name: Features(train, labels[0], test, labels[1]) for name, (train, test) in parts.items()}


def _labelled(spec: str) -> ImageSet:
    images = open_images(spec)
    if images.labels is None:
        raise DataError(f"{spec} has no labels; evaluation needs a Parquet column 'label' or one sub-folder a class")
    return images


def _content_digest(images: ImageSet) -> str:
    """Returns a sha256 in hex of the encoded images themselves, in order."""
    digest = hashlib.sha256()
    for item in images:
        digest.update(_digest(item.source).encode())
    return digest.hexdigest()


def _digest(source: ImageSource) -> str:
    if isinstance(source, np.ndarray):
        return _array_digest(source)
    try:
        found = path_or_bytes(source)
        return sha256_file(found, ImageError) if isinstance(found, str) else hashlib.sha256(found).hexdigest()
    except (ImageError, OSError) as error:  # One that cannot be read is left out of the features too.
        return str(error)


def _array_digest(array: NDArray[Any]) -> str:
    digest = hashlib.sha256(repr((array.shape, array.dtype.str)).encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
