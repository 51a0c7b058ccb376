"""JavaScript tests skip where a tool is missing, with the command that brings it; in CI they fail there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from in_javascript import Vectors, missing
from needs import need

from mixsiam_hub import ImageEncoder

_missing = cache(missing)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Function) -> None:
    """Asks for what the module's ROUTE needs, before any fixture exports a folder for it."""
    need(_missing(item.module.ROUTE))


@pytest.fixture(scope="session")
def cosines(loader_folder: Path) -> Callable[[Vectors, Sequence[Path]], Vectors]:
    """Compares embeddings of files, (N, K), or pooled features, (N, D), with those of ImageEncoder; gives (N,)."""
    encoder = ImageEncoder.from_pretrained(loader_folder)

    def compare(got: Vectors, files: Sequence[Path], *, pooled: bool = False) -> Vectors:
        want = encoder.embed(files, pooled=pooled)
        assert got.shape == want.shape
        return (got / np.linalg.norm(got, axis=1, keepdims=True) * want).sum(1)

    return compare


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What is odd about a picture -> its file."""
    pytest.importorskip("skimage", reason="needs the extra dev")
    from odd_pictures import odd_pictures

    return odd_pictures(tmp_path_factory.mktemp("odd"))
