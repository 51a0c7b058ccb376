"""Others' loaders, given the Hub id of a model folder: each in a process of its own, which reads HF_ENDPOINT itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_server import LocalHub
from hub_server.round_trip import REPO, contents, push

pytest.importorskip("torch", reason="needs the extra export")

import in_python
from needs import need

from mixsiam_hub import ImageEncoder

pytestmark = pytest.mark.hub

LOAD = """
import sys
sys.path.append(sys.argv[1])
import in_python
import numpy as np
from pathlib import Path

loader, repo, out, *files = sys.argv[2:]
np.save(out, getattr(in_python, loader)(repo, [Path(file) for file in files]))
"""


@pytest.mark.parametrize("loader", ["timm", "transformers_auto", "transformers_pipeline", "sentence_transformers"])
@pytest.mark.parametrize("hub", ["xet"], indirect=True)
def test_a_hub_id_gives_the_vectors_of_image_encoder(
    hub: LocalHub, loader: str, model_folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    need(in_python.missing(loader))
    push(contents(str(model_folder)))
    out = tmp_path / "vectors.npy"
    arguments = [Path(in_python.__file__).parent, loader, REPO, out, *pictures]
    done = subprocess.run([sys.executable, "-c", LOAD, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    vectors = np.load(out)
    expected = ImageEncoder.from_pretrained(model_folder).embed(pictures)
    cosines = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) * expected).sum(1)
    assert cosines.min() >= in_python.BARS[loader]
