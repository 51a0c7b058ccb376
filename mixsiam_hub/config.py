"""The contract: what a model folder must say, read from its config.json and its mixsiam.json.

`ModelConfig` is what every loader needs and is written into config.json under the names that timm and transformers
read; they add keys of their own when they save it again, so unknown keys there are ignored. `Manifest` is mixsiam.json,
which only this project writes: it is strict, and an unknown key is an error that names it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.errors import ModelError

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
MANIFEST_FILE = "mixsiam.json"
WEIGHTS_FILE = "model.safetensors"
ONNX_FILE = "onnx/model.onnx"
FP16_ONNX_FILE = "onnx/model_fp16.onnx"
INT8_ONNX_FILE = "onnx/model_quantized.onnx"
VARIANT_FILES = {"fp16": FP16_ONNX_FILE, "int8": INT8_ONNX_FILE}
"""Precision -> the graph that has it, in folders that were exported with it. Inputs and outputs are float32 in each."""
COMPACT_ONNX_FILE = "model.onnx"
"""A compact folder's graph: it stands beside model.safetensors and reads its weights from there, because onnxruntime
refuses external data outside the graph's own folder."""

INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "box", "hamming", "nearest")
ARCHITECTURES = {"resnet18": 512, "resnet34": 512, "resnet50": 2048}
"""Backbone name (torchvision's and timm's) -> width of its features."""

_TIMM_DEFAULTS = {"in_chans": 3, "global_pool": "avg"}
"""Arguments that timm records of every network, with the one value that a backbone has here."""


@dataclass(frozen=True)
class Preprocessing:
    """How an upright RGB image becomes the network's input: resize, centre crop, scale to [0, 1], normalise.

    Attributes:
        input_px: Edge of the square input, in pixels.
        crop_pct: Share of the resized short edge that the crop keeps, in (0, 1].
        interpolation: One of INTERPOLATIONS, as timm names them.
        mean: Per channel (R, G, B), subtracted after scaling to [0, 1].
        std: Per channel (R, G, B), divided by.
    """

    input_px: int
    crop_pct: float = 1.0
    interpolation: str = "lanczos"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @property
    def resize_px(self) -> int:
        """Length of the short edge before the crop, in pixels, rounded as timm rounds it."""
        return math.floor(self.input_px / self.crop_pct)


@dataclass(frozen=True)
class ModelConfig:
    """The backbone and its preprocessing.

    Attributes:
        architecture: A key of ARCHITECTURES.
        output_stride: Input pixels for each cell of the last feature map: 32, or 16 or 8 by dilation, as timm does.
        preprocessing: How images become its input.
    """

    architecture: str
    preprocessing: Preprocessing
    output_stride: int = 32

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return ARCHITECTURES[self.architecture]

    @property
    def digest(self) -> str:
        """A sha256 in hex of what config.json says to this package, whatever keys other tools add to it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def to_json(self, license_id: str) -> dict[str, Any]:
        """Returns config.json as timm, transformers, sentence-transformers and transformers.js read it."""
        pre = self.preprocessing
        stride = self.output_stride
        cells = math.ceil(pre.input_px / stride)
        return {
            "model_type": "timm_wrapper",
            "architectures": ["TimmWrapperModel"],
            "architecture": self.architecture,
            "num_classes": 0,
            "num_features": self.dim,
            "global_pool": "avg",
            "do_pooling": True,
            "model_args": {} if stride == 32 else {"output_stride": stride},
            "pretrained_cfg": {
                "tag": "mixsiam",
                "custom_load": False,
                "input_size": [3, pre.input_px, pre.input_px],
                "fixed_input_size": False,
                "interpolation": pre.interpolation,
                "crop_pct": pre.crop_pct,
                "crop_mode": "center",
                "mean": list(pre.mean),
                "std": list(pre.std),
                "num_classes": 0,
                "pool_size": [cells, cells],
                "first_conv": "conv1",
                "classifier": "fc",
                "license": license_id,
            },
            "transformers.js_config": {"dtype": "fp32"},
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], source: str = CONFIG_FILE) -> ModelConfig:
        """Reads what we need of a config.json and ignores the rest.

        Args:
            raw: The parsed file.
            source: What to call the file in errors.

        Raises:
            ModelError: A field is missing, of the wrong type, or asks for what this package does not do.
        """
        cfg = _get(raw, "pretrained_cfg", dict, source)
        architecture = _get(raw, "architecture", str, source)
        _one_of(architecture, tuple(ARCHITECTURES), "architecture", source)
        model_args = _get(raw, "model_args", dict, source) if "model_args" in raw else {}
        stride = model_args.get("output_stride", 32)
        _one_of(stride, (32, 16, 8), "model_args.output_stride", source)
        if extra := set(model_args) - {"output_stride"}:
            raise ModelError(f"{source}: model_args has {sorted(extra)}; only output_stride is supported")
        where = f"{source}: pretrained_cfg"
        size = _get(cfg, "input_size", list, where)
        if len(size) != 3 or size[0] != 3 or size[1] != size[2] or not _is_int(size[1]) or size[1] < 1:
            raise ModelError(f"{where}.input_size is {size}; it must be [3, S, S] with S of at least 1")
        crop_pct = float(_get(cfg, "crop_pct", (int, float), where))
        if not 0 < crop_pct <= 1:
            raise ModelError(f"{where}.crop_pct is {crop_pct}; it must lie in (0, 1]")
        _one_of(cfg.get("crop_mode", "center"), ("center",), "crop_mode", where)
        interpolation = _get(cfg, "interpolation", str, where)
        _one_of(interpolation, INTERPOLATIONS, "interpolation", where)
        pre = Preprocessing(size[1], crop_pct, interpolation, _triple(cfg, "mean", where), _triple(cfg, "std", where))
        if min(pre.std) <= 0:
            raise ModelError(f"{where}.std is {list(pre.std)}; every value must be above 0")
        return cls(architecture, pre, stride)

    @classmethod
    def from_timm(cls, raw: Mapping[str, Any], source: str = CONFIG_FILE) -> ModelConfig:
        """Reads a config.json that timm wrote; like timm's loaders, at the input size and not the one it tests at.

        Args:
            raw: The parsed file.
            source: What to call the file in errors.

        Raises:
            ModelError: A field is missing, of the wrong type, or asks for what this package does not do.
        """
        args = _get(raw, "model_args", dict, source) if "model_args" in raw else {}
        args = {"global_pool": raw.get("global_pool", "avg")} | args
        # num_classes is about the head, which is dropped.
        odd = {k: v for k, v in args.items() if k != "num_classes" and v != _TIMM_DEFAULTS.get(k)}
        return cls.from_json({**raw, "model_args": odd}, source)


@dataclass(frozen=True)
class Manifest:
    """mixsiam.json: where the encoder came from, what its files hash to, what was measured.

    Attributes:
        license: SPDX identifier of the weights' licence, given by whoever exported.
        fingerprint: `fingerprint()` of the backbone and preprocessing, a sha256 in hex.
        config_digest: `ModelConfig.digest` of config.json, whose bytes may change when other tools save it again.
        card_sha256: README.md's as export rendered it, in hex, so that a push knows a card that nobody edited.
        files: Path in the folder -> sha256 in hex, for every file but mixsiam.json, config.json and README.md.
        method: Objective that trained it: `mixsiam`, `simsiam`, or `imported from SOURCE`; `timm` where timm saved it
            and this manifest was made in memory.
        weights: How model.safetensors stores convolutions: `fp32`, or `fp16` in a compact folder.
        training: Provenance: recipe, data, epochs, seconds, versions, hardware. Free-form.
        parity: Measured differences between the runtimes, written by export. Free-form.
        quality: Evaluation figures with their floors, from report.json. Free-form.
        format_version: Of this file; a loader refuses one it does not know.
    """

    license: str
    fingerprint: str
    config_digest: str
    card_sha256: str
    files: dict[str, str]
    method: str = "mixsiam"
    weights: str = "fp32"
    training: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """Returns mixsiam.json, format_version first."""
        return {"format_version": self.format_version} | asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], source: str = MANIFEST_FILE) -> Manifest:
        """Reads mixsiam.json strictly.

        Raises:
            ModelError: Another format_version, a missing or unknown key, a wrong type.
        """
        version = _get(raw, "format_version", int, source)
        if version != FORMAT_VERSION:
            raise ModelError(
                f"{source}: format_version is {version}, this mixsiam-hub reads {FORMAT_VERSION}; "
                "upgrade with: pip install -U mixsiam-hub"
            )
        texts = ("license", "fingerprint", "config_digest", "card_sha256", "method", "weights")
        types: dict[str, type] = dict.fromkeys(texts, str)
        types |= dict.fromkeys(("files", "training", "parity", "quality"), dict) | {"format_version": int}
        if unknown := set(raw) - set(types):
            raise ModelError(f"{source}: unknown key {sorted(unknown)[0]!r}; allowed are {sorted(types)}")
        values = {name: _get(raw, name, kind, source) for name, kind in types.items()}
        _one_of(values["weights"], ("fp32", "fp16"), "weights", source)
        for name, digest in values["files"].items():
            if name.startswith("/") or ".." in Path(name).parts or not isinstance(digest, str):
                raise ModelError(f"{source}: files[{name!r}] must map a path inside the folder to a sha256")
        return cls(**values)

    @property
    def onnx_file(self) -> str:
        """Path of the fp32 graph within the folder."""
        return COMPACT_ONNX_FILE if self.weights == "fp16" else ONNX_FILE


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ModelError: The file is absent, or is no JSON object.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing; a model folder has {CONFIG_FILE} and {MANIFEST_FILE}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path} holds a {type(raw).__name__}; it must be a JSON object")
    return raw


def fingerprint(tensors: Mapping[str, NDArray[Any]], config: ModelConfig) -> str:
    """Identity of an encoder: the same hash means the same vectors, up to the runtime's rounding.

    Args:
        tensors: Backbone tensors by name, hashed as little-endian float32; BatchNorm's step counters are left out.
        config: Architecture, stride and preprocessing, which are part of the identity.

    Returns:
        A sha256 in hex.
    """
    digest = hashlib.sha256(config.digest.encode())
    for name in sorted(tensors):
        if name.endswith("num_batches_tracked"):
            continue
        tensor = np.ascontiguousarray(tensors[name], dtype="<f4")
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Reads every tensor of a safetensors file.

    Raises:
        ModelError: It is none, or has a type of tensor that NumPy lacks.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors: dict[str, NDArray[Any]] = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path} is no safetensors file: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:  # What looking a type up in NumPy can raise.
        raise ModelError(f"{path} has tensors of a type that NumPy lacks: {error}; save them as float32") from error
    return tensors


def sha256_file(path: Path) -> str:
    """Returns the sha256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _get(raw: Mapping[str, Any], key: str, kind: type | tuple[type, ...], source: str) -> Any:
    if key not in raw:
        raise ModelError(f"{source}: {key} is missing")
    value = raw[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ModelError(f"{source}: {key} is {value!r}; it must be {names}")
    return value


def _one_of(value: object, allowed: tuple[object, ...], key: str, source: str) -> None:
    if value not in allowed:
        raise ModelError(f"{source}: {key} is {value!r}; allowed are {', '.join(map(str, allowed))}")


def _triple(raw: Mapping[str, Any], key: str, source: str) -> tuple[float, float, float]:
    values = _get(raw, key, list, source)
    if len(values) != 3 or not all(isinstance(v, int | float) for v in values):
        raise ModelError(f"{source}: {key} is {values!r}; it must be three numbers, one a channel")
    return (float(values[0]), float(values[1]), float(values[2]))
