"""Others' ResNet checkpoints as encoders to export: read without running code, every tensor accounted for."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import torch
from safetensors.torch import load

from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.errors import ArgumentError, ModelError
from mixsiam_hub.export.import_preprocessing import Given, choose_config
from mixsiam_hub.export.layouts import layout_of, refuse_missing, refuse_unknown, split
from mixsiam_hub.export.unwrap import unwrap
from mixsiam_hub.model.config import ModelConfig
from mixsiam_hub.model.files import WEIGHTS_FILE
from mixsiam_hub.model.hub import HUB_ID
from mixsiam_hub.training.checkpoint import TrainedEncoder
from mixsiam_hub.untrusted import one_line, open_regular, sha256_file

Tensors = dict[str, torch.Tensor]

_COUNTER = "num_batches_tracked"
_FIRST_BYTES = 512


def import_encoder(checkpoint: Path, source: str, given: Given, base_model: str | None = None) -> TrainedEncoder:
    """Reads a ResNet-18, 34 or 50 that another project trained; BatchNorm statistics are kept as they came.

    Args:
        checkpoint: A file of torch.save or safetensors: a state dict, or a training checkpoint that `unwrap` finds one
            in. For timm also a folder as timm saves it, whose config.json says the preprocessing.
        source: `simsiam`, `lightly`, `solo-learn`, `torchvision` or `timm`: whose names the tensors have.
        given: The preprocessing, where it is not known.
        base_model: The checkpoint's own repository on the Hub, `org/name`, which the card then names.

    Returns:
        What `export_folder` takes. Its provenance lists what was unwrapped, and the tensors that were dropped.

    Raises:
        ArgumentError: The source is unknown, base_model is no Hub id, or the preprocessing is missing, said twice or
            out of place.
        ModelError: The checkpoint cannot be read without running code, is not exactly such a network with heads that
            the source is known to write, or has weights that are not finite.
    """
    if base_model and not HUB_ID.fullmatch(base_model):
        raise ArgumentError(f"base_model is {base_model!r}; give a Hub id, org/name")
    layout = layout_of(source)
    timm_folder = checkpoint if source == "timm" and checkpoint.is_dir() else None
    file = _weights_of(timm_folder) if timm_folder else checkpoint
    unwrapped = unwrap(read_checkpoint(file), layout.prefix, file)
    names, heads = split(unwrapped.tensors, source, str(file))
    own = {name: unwrapped.tensors[theirs] for name, theirs in names.items()}
    _check_finite(own, file)
    config, known_by = choose_config(_architecture(own, str(file)), source, given, timm_folder)
    provenance = {
        "imported_from": source,
        "file": file.name,
        "sha256": sha256_file(file),
        "unwrapped": unwrapped.steps,
        "dropped": sorted([*unwrapped.dropped, *(unwrapped.names[head] for head in heads)]),
        "preprocessing": known_by,
        "batchnorm_statistics": "as they came",
        **({"base_model": base_model} if base_model else {}),
    }
    return TrainedEncoder(_backbone(own, config, source, str(file)), config, f"imported from {source}", provenance)


def read_checkpoint(path: Path) -> object:
    """Reads a checkpoint onto the CPU, without unpickling anything but tensors and plain values.

    Args:
        path: Of safetensors, by its suffix, or of torch.save.

    Raises:
        ModelError: There is no such file, it is no checkpoint, or it asks for more than tensors and plain values.
    """
    with open_regular(path) as file:
        _check_kind(file.read(_FIRST_BYTES), path)
        file.seek(0)
        try:
            if path.suffix == ".safetensors":
                return load(file.read())
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ModelError(
                f"{path} is no checkpoint, or holds more than tensors and plain values, and to unpickle that can run "
                "any code. If you trust where it is from, save its tensors alone, once, and import that file: "
                f"torch.save(torch.load({path.name!r}, weights_only=False)['state_dict'], 'tensors.pt')"
            ) from error
        except Exception as error:  # Of a file that is no checkpoint, torch and safetensors raise many kinds.
            reason = one_line(error)
            raise ModelError(f"{path} cannot be read as a checkpoint: {reason}; give a file of weights") from error


def _check_kind(first: bytes, path: Path) -> None:
    """Names what people save as a checkpoint by mistake.

    Raises:
        ModelError: It is a Git-LFS pointer, a web page, or empty.
    """
    if first.startswith(b"version https://git-lfs.github.com/spec/"):
        raise ModelError(f"{path} is a Git-LFS pointer, not the weights; fetch them, by: git lfs pull")
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml)", first, re.IGNORECASE):
        raise ModelError(f"{path} is a web page, not a checkpoint; download the file itself, from its raw link")
    if not first:
        raise ModelError(f"{path} is empty; download it again")


def _check_finite(tensors: Tensors, path: Path) -> None:
    """Checks the backbone's tensors.

    Raises:
        ModelError: One holds NaN or infinity.
    """
    for name, tensor in tensors.items():
        if wrong := int((~torch.isfinite(tensor.float())).sum()):
            raise ModelError(
                f"{path}: {name} has {wrong} of {tensor.numel()} values that are NaN or infinite, so the network is "
                "broken; give an earlier checkpoint"
            )


def _weights_of(folder: Path) -> Path:
    names = (WEIGHTS_FILE, "pytorch_model.bin")
    if found := [folder / name for name in names if (folder / name).is_file()]:
        return found[0]
    raise ModelError(f"{folder} has neither {' nor '.join(names)}; give a folder that timm saved, or a file")


def _architecture(tensors: Tensors, where: str) -> str:
    """Tells a ResNet by what only it has; whether it has everything else is checked against the network itself."""
    stem = tensors.get("conv1.weight")
    if stem is not None and stem.shape[2:] == (3, 3):
        raise ModelError(
            f"{where}: its first convolution is 3 x 3, the variant for small images of lightly's ResNetGenerator and "
            "solo-learn's CIFAR recipes; timm and transformers have no such ResNet. Import one that begins with 7 x 7"
        )
    if "layer1.0.conv3.weight" in tensors:
        return "resnet50"
    return "resnet34" if "layer1.2.conv1.weight" in tensors else "resnet18"


def _backbone(tensors: Tensors, config: ModelConfig, source: str, where: str) -> Backbone:
    """Returns the network with exactly these tensors, in eval mode."""
    net = Backbone(config.architecture, config.output_stride)
    expected = net.state_dict()
    # Files older than PyTorch 0.4.1 lack BatchNorm's step counters, which no inference reads.
    tensors = {name: tensor for name, tensor in expected.items() if name.endswith(_COUNTER)} | tensors
    refuse_unknown(set(tensors) - set(expected), source, where)
    refuse_missing(set(expected) - set(tensors), source, where)
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            got, want = tuple(tensor.shape), tuple(expected[name].shape)
            raise ModelError(f"{where}: {name} is {got}, a {config.architecture} has {want}; ResNet-18, 34, 50 only")
    net.load_state_dict(tensors)
    return net.eval()
