"""The drawn pictures are the same everywhere, and their families can be told apart."""

from __future__ import annotations

import numpy as np

from mixsiam_hub.images.samples import draw_samples


def test_names_sizes_and_modes() -> None:
    samples = draw_samples()
    assert len(samples) == 64
    assert len({name.split("_")[0] for name in samples}) == 8
    assert "disc_03.png" in samples
    assert list(samples) == sorted(samples)
    for image in samples.values():
        assert image.mode == "RGB"
        assert all(48 <= edge <= 200 and edge % 2 for edge in image.size)


def test_same_seed_same_pixels_whatever_the_count() -> None:
    few, many = draw_samples(10, seed=3), draw_samples(20, seed=3)
    assert few.keys() <= many.keys()
    for name, image in few.items():
        np.testing.assert_array_equal(np.asarray(image), np.asarray(many[name]))


def test_another_seed_and_another_name_differ() -> None:
    samples = draw_samples(64)
    assert len({image.tobytes() for image in samples.values()}) == 64
    assert samples["disc_00.png"].tobytes() != draw_samples(8, seed=1)["disc_00.png"].tobytes()


def test_every_picture_shows_something() -> None:
    for name, image in draw_samples().items():
        assert np.asarray(image).std(axis=(0, 1)).max() > 10, name


def test_none_at_all() -> None:
    assert draw_samples(0) == {}
