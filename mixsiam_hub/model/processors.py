"""What other libraries read from files of their own: copies of the preprocessing, and the form of the head."""

from __future__ import annotations

from typing import Any

from mixsiam_hub.model.config import ModelConfig

_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
"""Pillow's numbers of the filters, which stand in every preprocessor_config.json."""


def preprocessor_json(config: ModelConfig) -> dict[str, Any]:
    """Returns preprocessor_config.json for transformers.js, fastembed and transformers 4.

    CLIPImageProcessor is the one name that all three take for resize, centre crop, rescale, normalise.
    """
    pre = config.preprocessing
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": pre.resize_px},
        "resample": _RESAMPLE[pre.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": pre.input_px, "width": pre.input_px},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pre.mean),
        "image_std": list(pre.std),
    }


def processor_json(config: ModelConfig, license_id: str) -> dict[str, Any]:
    """Returns processor_config.json, which makes transformers 5 use timm's preprocessing and not the file above."""
    whole = config.to_json(license_id)
    return {
        "image_processor": {
            "image_processor_type": "TimmWrapperImageProcessor",
            "architecture": whole["architecture"],
            "pretrained_cfg": whole["pretrained_cfg"],
        }
    }


def fastembed_json(config: ModelConfig) -> dict[str, Any]:
    """Returns onnx/preprocessor_config.json, for `specific_model_path="FOLDER/onnx"`.

    What fastembed does for CLIPImageProcessor, the type in the folder's own preprocessor_config.json, rounds the crop's
    offset down: for some odd sizes that is a pixel off. For JinaCLIPImageProcessor it rounds half to even, as timm and
    torchvision do. transformers.js knows that type too, but not with lanczos, so the two cannot share one file.

    The type has one size for the short edge and the crop. An encoder that cuts off a margin keeps CLIPImageProcessor.
    """
    pre = config.preprocessing
    if pre.resize_px != pre.input_px:
        return preprocessor_json(config)
    return {
        "image_processor_type": "JinaCLIPImageProcessor",
        "size": pre.input_px,
        "resize_mode": "shortest",
        "interpolation": pre.interpolation,
        "do_normalize": True,
        "image_mean": list(pre.mean),
        "image_std": list(pre.std),
    }


def dense_json(config: ModelConfig) -> dict[str, Any]:
    """Returns 1_Dense/config.json, the form of the head for sentence-transformers."""
    return {
        "in_features": config.features_dim,
        "out_features": config.head_dim,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
