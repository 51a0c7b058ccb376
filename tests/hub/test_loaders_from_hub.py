"""Others' loaders, given the Hub id of the built-in encoder, of which the Hub has the files that a push sends.

Each runs in a process of its own, which reads HF_ENDPOINT itself.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_server import LocalHub
from hub_server.round_trip import REPO, push

pytest.importorskip("torch", reason="needs the extra export")

import in_python
from needs import need

from mixsiam_hub import BUILTIN, ImageEncoder
from mixsiam_hub.export.plan import model_files
from mixsiam_hub.model.files import CARD_FILE
from mixsiam_hub.model.folder import ModelFolder

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
    hub: LocalHub, loader: str, pictures: list[Path], tmp_path: Path
) -> None:
    need(in_python.missing(loader))
    sent = [*model_files(ModelFolder.open(BUILTIN)), CARD_FILE]
    push({name: (BUILTIN / name).read_bytes() for name in sent})
    out = tmp_path / "vectors.npy"
    arguments = [Path(in_python.__file__).parent, loader, REPO, out, *pictures]
    done = subprocess.run([sys.executable, "-c", LOAD, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    vectors = np.load(out)
    expected = ImageEncoder.from_pretrained().embed(pictures, pooled=loader in in_python.POOLED)
    cosines = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) * expected).sum(1)
    assert cosines.min() >= in_python.BARS[loader]
