"""One folder, one vector: timm, transformers and plain onnxruntime give what ImageEncoder gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the extra export")
data = pytest.importorskip("skimage.data", reason="needs the extra dev")

from mixsiam_hub import ImageEncoder
from mixsiam_hub.samples import draw_samples

Vectors = NDArray[np.float32]


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Eight upright RGB pictures of odd sizes: photos that ship inside scikit-image, parts of them, and drawn ones."""
    astronaut, coffee, chelsea = (Image.fromarray(load()) for load in (data.astronaut, data.coffee, data.chelsea))
    parts = [astronaut.crop((37, 1, 250, 500)), coffee.crop((0, 90, 599, 211)), chelsea.crop((90, 80, 121, 111))]
    return [astronaut, coffee, chelsea, *parts, *list(draw_samples(2, seed=3).values())]


@pytest.fixture(scope="module")
def expected(model_folder: Path, pictures: list[Image.Image]) -> Vectors:
    return ImageEncoder.from_pretrained(model_folder).embed(pictures)


def cosines(got: Any, expected: Vectors) -> Vectors:
    vectors = np.asarray(got, np.float64)
    assert vectors.shape == expected.shape
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) * expected).sum(1)


def test_the_pictures_can_tell_encoders_apart(expected: Vectors) -> None:
    between = expected @ expected.T - 2 * np.eye(len(expected))
    assert between.max() < 0.999


def test_the_torch_backend(model_folder: Path, pictures: list[Image.Image], expected: Vectors) -> None:
    vectors = ImageEncoder.from_pretrained(model_folder, backend="torch").embed(pictures, normalize=False)
    assert cosines(vectors, expected).min() > 0.9999


@pytest.mark.parametrize("kind", ["model_folder", "compact_folder"])
def test_timm_with_its_own_transform(
    kind: str, request: pytest.FixtureRequest, pictures: list[Image.Image], expected: Vectors
) -> None:
    timm = pytest.importorskip("timm", reason="needs the extra dev")
    model = timm.create_model(f"local-dir:{request.getfixturevalue(kind)}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        vectors = model(torch.stack([transform(picture) for picture in pictures]))
    # The compact folder's weights are rounded to 16 bits.
    assert cosines(vectors, expected).min() > (0.9999 if kind == "model_folder" else 0.999)


def test_transformers_automodel_and_autoimageprocessor(
    model_folder: Path, pictures: list[Image.Image], expected: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers", reason="needs the extra dev")
    model = transformers.AutoModel.from_pretrained(model_folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(model_folder)
    with torch.inference_mode():
        outputs = model(**processor(pictures, return_tensors="pt"))
    assert cosines(outputs.pooler_output, expected).min() > 0.9999
    assert outputs.last_hidden_state.shape == (len(pictures), 512, 2, 2)


def test_plain_onnxruntime_from_pixels_to_vector(
    model_folder: Path, pictures: list[Image.Image], expected: Vectors
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    prepare, embed = (
        onnxruntime.InferenceSession(model_folder / "onnx" / f"{n}.onnx") for n in ("preprocess", "model")
    )
    vectors = []
    for picture in pictures:
        pixel_values = prepare.run(["pixel_values"], {"image": np.asarray(picture)[None]})[0]
        vectors.append(embed.run(["pooler_output"], {"pixel_values": pixel_values})[0][0])
    assert cosines(vectors, expected).min() > 0.9999
