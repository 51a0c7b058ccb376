"""config.json: the backbone and its preprocessing, under the names that timm and transformers read.

They add keys of their own when they save it again, so unknown keys are ignored.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mixsiam_hub.errors import ModelError
from mixsiam_hub.model.files import CONFIG_FILE
from mixsiam_hub.untrusted import field, integer, number, one_of, quote

INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "box", "hamming", "nearest")
ARCHITECTURES = {"resnet18": 512, "resnet34": 512, "resnet50": 2048}
"""Backbone name (torchvision's and timm's) -> width of its features."""

MAX_INPUT_PX = 1024
CROP_PCT_RANGE = (0.25, 1.0)
MEAN_RANGE = (-10.0, 10.0)
STD_RANGE = (1e-3, 10.0)
"""What a config.json may ask for. Published networks take 32 to 600 px, crop 0.8 to 1 and have means and deviations
from 0 to 1; beyond these bounds stand only damage and requests for more memory than an image needs."""

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
    """The backbone, its head and its preprocessing.

    Attributes:
        architecture: A key of ARCHITECTURES.
        preprocessing: How images become its input.
        output_stride: Input pixels for each cell of the last feature map: 32, or 16 or 8 by dilation, as timm does.
        head_dim: Numbers that the head makes of the pooled features; None without a head. timm's num_classes.
    """

    architecture: str
    preprocessing: Preprocessing
    output_stride: int = 32
    head_dim: int | None = None

    @property
    def features_dim(self) -> int:
        """Number of pooled features, D."""
        return ARCHITECTURES[self.architecture]

    @property
    def dim(self) -> int:
        """Length of an embedding: the head's output, or the pooled features where there is no head."""
        return self.head_dim or self.features_dim

    @property
    def digest(self) -> str:
        """A sha256 in hex of what config.json says to this package, whatever keys other tools add to it."""
        said = asdict(self)
        if self.head_dim is None:  # As before there were heads.
            del said["head_dim"]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def to_json(self, license_id: str) -> dict[str, Any]:
        """Returns config.json as timm, transformers, sentence-transformers and transformers.js read it."""
        pre = self.preprocessing
        stride = self.output_stride
        cells = math.ceil(pre.input_px / stride)
        return {
            "model_type": "timm_wrapper",
            "architectures": ["TimmWrapperModel"],
            "architecture": self.architecture,
            "num_classes": self.head_dim or 0,
            "num_features": self.features_dim,
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
                "num_classes": self.head_dim or 0,
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
        cfg = field(raw, "pretrained_cfg", dict, source)
        architecture = field(raw, "architecture", str, source)
        one_of(architecture, tuple(ARCHITECTURES), "architecture", source)
        model_args = field(raw, "model_args", dict, source) if "model_args" in raw else {}
        stride = model_args.get("output_stride", 32)
        one_of(stride, (32, 16, 8), "model_args.output_stride", source)
        if extra := set(model_args) - {"output_stride"}:
            raise ModelError(f"{source}: model_args has {quote(sorted(extra))}; only output_stride is supported")
        where = f"{source}: pretrained_cfg"
        size = field(cfg, "input_size", list, where)
        if len(size) != 3 or size[0] != 3 or size[1] != size[2]:
            raise ModelError(f"{where}.input_size is {quote(size)}; it must be [3, S, S]")
        input_px = integer(size[1], 1, MAX_INPUT_PX, "input_size", where)
        crop_pct = number(field(cfg, "crop_pct", (int, float), where), *CROP_PCT_RANGE, "crop_pct", where)
        one_of(cfg.get("crop_mode", "center"), ("center",), "crop_mode", where)
        interpolation = field(cfg, "interpolation", str, where)
        one_of(interpolation, INTERPOLATIONS, "interpolation", where)
        mean, std = _triple(cfg, "mean", MEAN_RANGE, where), _triple(cfg, "std", STD_RANGE, where)
        pre = Preprocessing(input_px, crop_pct, interpolation, mean, std)
        head_dim = integer(raw.get("num_classes", 0), 0, ARCHITECTURES[architecture], "num_classes", source)
        return cls(architecture, pre, stride, head_dim or None)

    @classmethod
    def from_timm(cls, raw: Mapping[str, Any], source: str = CONFIG_FILE) -> ModelConfig:
        """Reads a config.json that timm wrote; like timm's loaders, at the input size and not the one it tests at.

        Args:
            raw: The parsed file.
            source: What to call the file in errors.

        Raises:
            ModelError: A field is missing, of the wrong type, or asks for what this package does not do.
        """
        args = field(raw, "model_args", dict, source) if "model_args" in raw else {}
        args = {"global_pool": raw.get("global_pool", "avg")} | args
        # num_classes is about the classifier, which is dropped.
        odd = {k: v for k, v in args.items() if k != "num_classes" and v != _TIMM_DEFAULTS.get(k)}
        return cls.from_json({**raw, "model_args": odd, "num_classes": 0}, source)


def _triple(raw: Mapping[str, Any], key: str, allowed: tuple[float, float], source: str) -> tuple[float, float, float]:
    values = field(raw, key, list, source)
    if len(values) != 3:
        raise ModelError(f"{source}: {key} is {quote(values)}; it must be three numbers, one a channel")
    red, green, blue = (number(value, *allowed, key, source) for value in values)
    return red, green, blue
