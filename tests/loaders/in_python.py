"""The Python loaders of a model folder, each used as its own documentation does; files in, vectors out.

They are embeddings, (N, K) float32, or of the functions in POOLED the features before the head, (N, D).
timm, transformers and sentence-transformers also take a Hub id, a string, in the folder's place.

Files are opened by `Image.open(path).convert("RGB")`, as timm's own readers and most examples do, except where a loader
takes paths itself: transformers' pipeline, fastembed and the sample in examples/python.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mixsiam_hub import ImageEncoder

Vectors = NDArray[np.float32]

SAMPLE = Path(__file__).parents[2] / "examples" / "python" / "embed.py"
BY_FASTEMBED = Path(__file__).with_name("by_fastembed.py")
FASTEMBED_PYTHON = "MIXSIAM_FASTEMBED_PYTHON"
"""Names the Python of an environment with fastembed, which does not go with the huggingface-hub of this one."""


PACKAGES = {
    "mixsiam_torch": "torch",
    "mixsiam_torch_pooled": "torch",
    "timm": "timm",
    "timm_pooled": "timm",
    "transformers_head": "transformers",
    "transformers_auto": "transformers",
    "transformers_pipeline": "transformers",
    "sentence_transformers": "sentence-transformers",
    "onnxruntime_graphs": "onnxruntime",
    "onnxruntime_pooled": "onnxruntime",
    "openvino": "openvino",
    "openvino_pooled": "openvino",
    "fastembed": "fastembed",
    "fastembed_root": "fastembed",
}
"""Function below -> what it needs."""

POOLED = {name for name in PACKAGES if name.endswith("_pooled")} | {"transformers_auto", "transformers_pipeline"}
"""Functions below that give pooled features; the others give the embedding."""

BARS = dict.fromkeys(PACKAGES, 0.9999) | {"fastembed_root": 0.98}
"""Function below -> the smallest cosine allowed. On the folder itself fastembed's crop can be a pixel off, and the head
amplifies that: pooled features would differ by 0.9987 at worst, embeddings do by 0.9858.
"""


def missing(loader: str) -> str | None:
    """Says what a loader lacks on this machine, and how to get it; None if nothing.

    Args:
        loader: A key of PACKAGES.
    """
    package = PACKAGES[loader]
    if package == "fastembed" and not os.environ.get(FASTEMBED_PYTHON):
        return f"needs fastembed; set {FASTEMBED_PYTHON} to the Python of an environment with it"
    try:
        version(loader)
    except (importlib.metadata.PackageNotFoundError, subprocess.SubprocessError, OSError):
        return f"needs {package}; run: pip install {package}"
    return None


def version(loader: str) -> str:
    """Returns the version of what a loader, a key of PACKAGES, needs."""
    package = PACKAGES[loader]
    if package != "fastembed":
        return importlib.metadata.version(package)
    command = [
        os.environ[FASTEMBED_PYTHON],
        "-c",
        "from importlib.metadata import version; print(version('fastembed'))",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def mixsiam_torch(folder: Path, files: Sequence[Path]) -> Vectors:
    """ImageEncoder by torch."""
    return ImageEncoder.from_pretrained(folder, backend="torch").embed(files)


def mixsiam_torch_pooled(folder: Path, files: Sequence[Path]) -> Vectors:
    """ImageEncoder by torch, asked for pooled features."""
    return ImageEncoder.from_pretrained(folder, backend="torch").embed(files, pooled=True)


def timm(folder: Path | str, files: Sequence[Path]) -> Vectors:
    """A model by `local-dir:` or `hf-hub:`, with the transform that its own config asks for."""
    import torch

    model, transform = _timm(folder)
    with torch.inference_mode():
        return model(torch.stack([transform(image) for image in _opened(files)])).numpy()


def timm_pooled(folder: Path | str, files: Sequence[Path]) -> Vectors:
    """As `timm`, stopped before the head."""
    import torch

    model, transform = _timm(folder)
    with torch.inference_mode():
        features = model.forward_features(torch.stack([transform(image) for image in _opened(files)]))
        return model.forward_head(features, pre_logits=True).numpy()


def _timm(folder: Path | str) -> tuple[Any, Callable[[Image.Image], Any]]:
    import timm

    source = "local-dir" if isinstance(folder, Path) else "hf-hub"
    model = timm.create_model(f"{source}:{folder}", pretrained=True).eval()
    return model, timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)


def transformers_head(folder: Path | str, files: Sequence[Path]) -> Vectors:
    """AutoModelForImageClassification, whose last layer is the head, and AutoImageProcessor."""
    from transformers import AutoModelForImageClassification

    return _transformers(AutoModelForImageClassification, folder, files).logits.numpy()


def transformers_auto(folder: Path | str, files: Sequence[Path]) -> Vectors:
    """AutoModel, which has no place for the head, and AutoImageProcessor."""
    from transformers import AutoModel

    return _transformers(AutoModel, folder, files).pooler_output.numpy()


def _transformers(auto_class: Any, folder: Path | str, files: Sequence[Path]) -> Any:
    import torch
    from transformers import AutoImageProcessor

    model = auto_class.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    with torch.inference_mode():
        return model(**processor(_opened(files), return_tensors="pt"))


def transformers_pipeline(folder: Path | str, files: Sequence[Path]) -> Vectors:
    """The pipeline `image-feature-extraction`, which opens the files itself."""
    from transformers import pipeline

    extract = pipeline("image-feature-extraction", model=str(folder), device="cpu")
    return np.array(extract([str(path) for path in files], pool=True), np.float32)[:, 0]


def sentence_transformers(folder: Path | str, files: Sequence[Path]) -> Vectors:
    """SentenceTransformer on PIL images."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode(_opened(files))


def onnxruntime_graphs(folder: Path, files: Sequence[Path]) -> Vectors:
    """The sample of examples/python: the two graphs in onnxruntime."""
    return _by_script(sys.executable, [SAMPLE, folder, *files, "--out"])


def onnxruntime_pooled(folder: Path, files: Sequence[Path]) -> Vectors:
    """The two graphs in onnxruntime, asked for pooler_output."""
    from onnxruntime import InferenceSession

    prepare, network = (InferenceSession(folder / "onnx" / f"{name}.onnx") for name in ("preprocess", "model"))
    inputs = (prepare.run(["pixel_values"], {"image": np.asarray(image)[None]})[0] for image in _opened(files))
    return np.concatenate([network.run(["pooler_output"], {"pixel_values": pixels})[0] for pixels in inputs])


def openvino(folder: Path, files: Sequence[Path]) -> Vectors:
    """The two graphs, read and compiled by OpenVINO itself; the network's first output."""
    return _openvino(folder, files, 0)


def openvino_pooled(folder: Path, files: Sequence[Path]) -> Vectors:
    """As `openvino`, the output pooler_output."""
    return _openvino(folder, files, "pooler_output")


def _openvino(folder: Path, files: Sequence[Path], output: int | str) -> Vectors:
    import openvino as ov

    core = ov.Core()
    # Unasked, OpenVINO computes in 16 bits on CPUs that can.
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    prepare, network = (
        core.compile_model(folder / "onnx" / f"{name}.onnx", "CPU", exact) for name in ("preprocess", "model")
    )
    inputs = (prepare(np.asarray(image)[None])["pixel_values"] for image in _opened(files))
    return np.concatenate([network(pixel_values)[output] for pixel_values in inputs])


def fastembed(folder: Path, files: Sequence[Path]) -> Vectors:
    """Vectors by fastembed's ImageEmbedding on the folder's onnx/, in an environment of its own."""
    return _fastembed(folder / "onnx", "model.onnx", files)


def fastembed_root(folder: Path, files: Sequence[Path]) -> Vectors:
    """As `fastembed`, with the preprocessor_config.json of the folder itself, which it reads of a Hub repository."""
    return _fastembed(folder, "onnx/model.onnx", files)


def _fastembed(folder: Path, model_file: str, files: Sequence[Path]) -> Vectors:
    return _by_script(os.environ[FASTEMBED_PYTHON], [BY_FASTEMBED, folder, model_file, *files])


def _opened(files: Sequence[Path]) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in files]


def _by_script(python: str, arguments: Sequence[Path | str]) -> Vectors:
    """Runs a script whose last argument is the .npy file to write.

    Raises:
        RuntimeError: It failed; the message is the last line that it printed.
    """
    with TemporaryDirectory() as folder:
        out = Path(folder) / "vectors.npy"
        ended = subprocess.run([python, *arguments, out], capture_output=True, text=True)
        if ended.returncode:
            raise RuntimeError(ended.stderr.strip().splitlines()[-1])
        return np.load(out)
