"""The stock transformers.js pipeline on a model folder, in Node."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from in_javascript import BARS, loaded_dtype, transformers_js, transformers_js_pooled

pytestmark = pytest.mark.js
ROUTE = "transformers_js"


def test_unasked_it_gives_the_embedding(
    loader_folder: Path, pictures: list[Path], cosines: Callable[..., np.ndarray]
) -> None:
    assert cosines(transformers_js(loader_folder, pictures), pictures).min() >= BARS[ROUTE]


def test_asked_to_pool_it_gives_pooled_features(
    loader_folder: Path, pictures: list[Path], cosines: Callable[..., np.ndarray]
) -> None:
    vectors = transformers_js_pooled(loader_folder, pictures)
    assert cosines(vectors, pictures, pooled=True).min() >= BARS["transformers_js_pooled"]


def test_the_config_says_which_graph_it_takes(loader_folder: Path, tmp_path: Path) -> None:
    assert loaded_dtype(loader_folder) == "fp32"
    folder = shutil.copytree(loader_folder, tmp_path / "encoder", copy_function=os.symlink)
    config = json.loads((folder / "config.json").read_text())
    config["transformers.js_config"]["dtype"] = "q8"
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    assert loaded_dtype(folder) == "q8"
