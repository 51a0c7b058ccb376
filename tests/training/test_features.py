"""Features go with their images' classes, and BatchNorm statistics equal the literal mean and variance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("sklearn", reason="needs the extra train")

from torch import nn

from mixsiam_hub.errors import DataError
from mixsiam_hub.images.preprocess import normalise
from mixsiam_hub.images.sources import ImageSet
from mixsiam_hub.model.config import Preprocessing
from mixsiam_hub.training import features
from mixsiam_hub.training.data import open_images
from mixsiam_hub.training.features import clean_statistics, extract, input_statistics, read_batches, use_statistics

PRE = Preprocessing(8)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))


def sorted_folders(root: Path, classes: int = 10, each: int = 40) -> ImageSet:
    """Plain squares with some noise, each class brighter than the one before: a batch of one class varies little."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        (root / str(label)).mkdir(parents=True)
        for i in range(each):
            pixels = np.clip(rng.normal(25 * label, 10, (8, 8, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / str(label) / f"{i:02}.png")
    return open_images(str(root))


def test_statistics_of_folders_sorted_by_class_are_the_literal_mean_and_variance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "BATCH_SIZE", 40)
    images, net = sorted_folders(tmp_path), network()
    found = clean_statistics(net, images, PRE)
    pixels = np.concatenate([batch.pixels for batch in read_batches(images, PRE)])
    with torch.no_grad():
        x = net[0](torch.from_numpy(normalise(pixels, PRE))).double()  # What enters the first BatchNorm.
    assert torch.allclose(found["1.running_mean"], x.mean((0, 2, 3)).float(), atol=1e-5)
    assert torch.allclose(found["1.running_var"], x.var((0, 2, 3)).float(), rtol=1e-5)


def test_each_image_counts_alike_in_batches_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "BATCH_SIZE", 2)
    pixels, net = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 3), dtype=np.uint8), network()
    parts = [pixels[:2], pixels[2:2], pixels[2:3], pixels[3:9], pixels[9:10], pixels[10:]]
    found = input_statistics(net, parts, PRE)
    with torch.no_grad():
        x = net[0](torch.from_numpy(normalise(pixels, PRE))).double()
    assert torch.allclose(found["1.running_mean"], x.mean((0, 2, 3)).float(), atol=1e-5)
    assert torch.allclose(found["1.running_var"], x.var((0, 2, 3)).float(), rtol=1e-5)


def test_one_corrupt_image_costs_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "BATCH_SIZE", 10)
    images = sorted_folders(tmp_path, classes=4, each=10)
    whole = clean_statistics(network(), images, PRE)
    Path(images[17].key).write_bytes(b"no image")
    without = clean_statistics(network(), images, PRE)
    assert not torch.equal(whole["1.running_var"], without["1.running_var"])
    assert torch.allclose(whole["1.running_var"], without["1.running_var"], rtol=0.1)


def test_statistics_leave_the_network_alone_until_they_are_used() -> None:
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    found = input_statistics(net, [pixels], PRE)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert net(torch.from_numpy(normalise(pixels, PRE))) is not None  # No hook is left behind.
    use_statistics(net, found)
    assert torch.equal(net[1].running_var, found["1.running_var"])
    with pytest.raises(DataError, match=r"another network: '1.running_mean'"):
        use_statistics(nn.Sequential(nn.Linear(2, 2)), found)


def test_too_few_images_are_named(tmp_path: Path) -> None:
    images = sorted_folders(tmp_path / "in", classes=2, each=1)
    Path(images[0].key).write_bytes(b"no image")
    with pytest.raises(DataError, match="in: BatchNorm statistics need at least two images"):
        clean_statistics(network(), images, PRE)
    Path(images[1].key).write_bytes(b"no image")
    with pytest.raises(DataError, match="in: none of 2 images can be read"):
        clean_statistics(network(), images, PRE)


def test_features_do_not_depend_on_batch_mates_and_keep_their_order() -> None:
    net = nn.Sequential(*network(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    alone = np.concatenate([extract(net, [row[None]], PRE) for row in pixels])
    together = extract(net, [pixels[:4], pixels[4:4], pixels[4:]], PRE)
    assert together.shape == (9, 5)
    assert np.allclose(alone, together, atol=1e-6)
