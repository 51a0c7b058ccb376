"""The head against what whitening is: components of unit variance that are not correlated, the strongest first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the extra train")

from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.errors import DataError
from mixsiam_hub.images.load import load_image
from mixsiam_hub.images.preprocess import preprocess
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.images.sources import open_source
from mixsiam_hub.model.config import ModelConfig, Preprocessing
from mixsiam_hub.model.figures import Whitening
from mixsiam_hub.training.checkpoint import TrainedEncoder, whiten_on
from mixsiam_hub.training.head import (
    FLOOR,
    MAX_DIM,
    RESIZING,
    Moments,
    clean_moments,
    fit_head,
    moments_of,
    resized_pairs,
    resizing_of,
    whitening,
    with_head,
)

RNG = np.random.default_rng(0)
MIXED = (RNG.normal(size=(400, 12)) @ RNG.normal(size=(12, 12)) + 5).astype(np.float32)
"""Features that are correlated and far from the origin, as those of an encoder are."""


def test_the_moments_are_mean_and_covariance() -> None:
    moments = moments_of(MIXED)
    assert moments.images == 400
    np.testing.assert_allclose(moments.mean, MIXED.astype(float).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(MIXED.astype(float), rowvar=False), rtol=1e-9)


def test_what_comes_out_is_centred_and_white() -> None:
    with torch.no_grad():
        out = whitening(moments_of(MIXED), 12, floor=0)(torch.from_numpy(MIXED)).double().numpy()
    np.testing.assert_allclose(out.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(out, rowvar=False), np.eye(12), atol=1e-3)


def test_the_components_are_ordered_by_the_variance_they_had() -> None:
    scales = np.array([1, 9, 4, 0.5], np.float32)
    features = RNG.normal(size=(2000, 4)).astype(np.float32) * scales
    weight = whitening(moments_of(features), 4, floor=0).weight.detach().numpy()  # (4, 4)
    assert np.abs(weight * scales).argmax(axis=1).tolist() == [1, 2, 0, 3]
    assert (np.take_along_axis(weight, np.abs(weight).argmax(axis=1, keepdims=True), axis=1) > 0).all()


def test_a_narrower_head_is_the_first_part_of_a_wider_one() -> None:
    moments = moments_of(MIXED)
    narrow, wide = whitening(moments, 5), whitening(moments, 12)
    torch.testing.assert_close(narrow.weight, wide.weight[:5], rtol=0, atol=0)
    torch.testing.assert_close(narrow.bias, wide.bias[:5], rtol=0, atol=0)


def test_the_floor_keeps_weak_components_weak() -> None:
    features = RNG.normal(size=(5000, 3)).astype(np.float32) * np.array([10, 1, 0.01], np.float32)
    with torch.no_grad():
        out = whitening(moments_of(features), 3, floor=0.01)(torch.from_numpy(features)).numpy()
    # Variances are 100, 1 and 1e-4; the floor is 1, so the third is divided by 1.
    np.testing.assert_allclose(out.std(axis=0), [1, 1, 0.01], rtol=0.05)


def test_what_resizing_changes_stays_weak() -> None:
    features = RNG.normal(size=(5000, 3)).astype(np.float32)
    change = RNG.normal(size=(5000, 3)).astype(np.float32) * np.array([0, 2, 0], np.float32)
    resizing = resizing_of(np.stack([features, features + change], axis=1).reshape(-1, 3))
    np.testing.assert_allclose(resizing, np.diag([0, 4, 0]), atol=0.2)

    def behind(times: float) -> np.ndarray:
        layer = whitening(moments_of(features)._replace(resizing=resizing), 3, resizing=times)
        with torch.no_grad():
            return layer(torch.from_numpy(features)).numpy().std(axis=0)

    np.testing.assert_allclose(behind(0), 1, rtol=0.01)
    # A variance of 1 + 3 x 4 in place of 1; the direction now comes first.
    np.testing.assert_allclose(behind(3), [1 / np.sqrt(13), 1, 1], rtol=0.05)


def test_pairs_are_an_image_shrunk_and_enlarged_by_two_kernels() -> None:
    squares = [np.asarray(image.convert("RGB").resize((30, 30))) for image in draw_samples(3).values()]
    pixels = np.stack([*squares, np.full((30, 30, 3), 77, np.uint8)])
    pairs = resized_pairs(pixels)
    assert pairs.shape == (8, 30, 30, 3)
    assert pairs.dtype == np.uint8
    assert (pairs[6:] == 77).all()
    for number, edge in enumerate([10, 15, 20]):
        small = Image.fromarray(squares[number]).resize((edge, edge), Image.Resampling.LANCZOS)
        bilinear = small.resize((30, 30), Image.Resampling.BILINEAR)
        lanczos = small.resize((30, 30), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(pairs[2 * number], bilinear)
        np.testing.assert_array_equal(pairs[2 * number + 1], lanczos)
        assert (pairs[2 * number] != pairs[2 * number + 1]).any()


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (MIXED[:11], "11 images can be read, and a head for 12 features needs at least 12"),
        (np.where(np.arange(12) == 3, np.nan, MIXED), "NaN or infinite features"),
        (np.where(np.arange(12) == 3, np.inf, MIXED), "NaN or infinite features"),
    ],
)
def test_features_that_fit_no_head_are_refused(features: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        moments_of(features.astype(np.float32))


@pytest.mark.parametrize("value", [0.0, 3.0, 1e4])
def test_one_image_again_and_again_fits_no_head(value: float) -> None:
    repeated = np.full((400, 12), value, np.float32)
    with pytest.raises(DataError, match="all images have the same features"):
        whitening(moments_of(repeated), 12)


def test_a_head_of_another_network_is_refused() -> None:
    with pytest.raises(DataError, match="for 12 features; this backbone has 512"):
        with_head(Backbone("resnet18"), fit_head(moments_of(MIXED)))


def test_a_backbone_gets_a_copy_with_the_head() -> None:
    backbone = Backbone("resnet18")
    headed = with_head(backbone, fit_head(Moments(600, torch.zeros(512).double(), torch.eye(512).double())))
    assert backbone.fc is None
    assert headed.fc is not None
    assert headed.fc.weight.shape == (MAX_DIM, 512)
    x = torch.randn(2, 3, 32, 32)
    embedding, pooled, feature_map = headed.eval().outputs(x)
    torch.testing.assert_close(pooled, backbone.eval()(x))
    torch.testing.assert_close(embedding, headed.fc(pooled))
    assert feature_map.shape == (2, 512, 1, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many images as a ResNet-18 has features, and eight more."""
    folder = tmp_path_factory.mktemp("images")
    for name, image in draw_samples(520, seed=3).items():
        image.resize((32, 32)).save(folder / name)
    return folder


def test_an_encoders_head_is_fitted_on_clean_images(trained_encoder: TrainedEncoder, folder: Path) -> None:
    pre = trained_encoder.config.preprocessing
    moments = clean_moments(trained_encoder.backbone, open_source(str(folder)), pre)
    pixels = np.stack([preprocess(load_image(item.source), pre) for item in open_source(str(folder))])
    with torch.no_grad():
        features = trained_encoder.backbone(torch.from_numpy(pixels)).numpy()
    assert moments.images == 520
    np.testing.assert_allclose(moments.mean, features.mean(axis=0), rtol=1e-3, atol=1e-5)
    assert moments.resizing is not None
    assert torch.linalg.eigvalsh(moments.resizing)[-1] > 0

    encoder = whiten_on(trained_encoder, str(folder))
    assert encoder.config.head_dim == MAX_DIM == encoder.config.dim
    assert encoder.head is not None
    assert encoder.head == Whitening(folder.name, 520, FLOOR, RESIZING)
    assert trained_encoder.config == ModelConfig("resnet18", Preprocessing(32), 16)
    assert trained_encoder.backbone.fc is None


def test_too_few_images_are_refused_with_the_number_needed(trained_encoder: TrainedEncoder, folder: Path) -> None:
    few = folder.parent / "few"
    few.mkdir(exist_ok=True)
    for path in sorted(folder.iterdir())[:40]:
        (few / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="few: 40 images can be read, and a head for 512 features needs at least 512"):
        whiten_on(trained_encoder, str(few))
