"""Writes tests/version1/encoder anew when the built-in encoder's weights change: python tests/helpers/version_1.py.

What format 1 says stays as the package of then wrote it: config.json but for the input's size, and every field of
mixsiam.json that the encoder does not determine. Graph and known answers are those of the backbone without its head.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from mixsiam_hub import BUILTIN
from mixsiam_hub.export.bundle import export_folder
from mixsiam_hub.export.source import open_encoder
from mixsiam_hub.model.files import CONFIG_FILE, MANIFEST_FILE
from mixsiam_hub.model.manifest import Manifest

STORED = Path(__file__).parents[1] / "version1" / "encoder"
SIZES = ("input_size", "pool_size")
"""What config.json says of the input's size, in `pretrained_cfg`."""


def main() -> None:
    """Exports the backbone, and puts what depends on its weights in place of what stands there."""
    encoder = open_encoder(str(BUILTIN))
    encoder.backbone.fc = None
    encoder = replace(encoder, config=replace(encoder.config, head_dim=None), head=None, evaluations=(), report=None)
    with TemporaryDirectory() as parent:
        made = Path(parent) / "encoder"
        found = export_folder(encoder, made, "Apache-2.0", compact=True)
        config, of_now = (json.loads((folder / CONFIG_FILE).read_text()) for folder in (STORED, made))
        for key in SIZES:
            config["pretrained_cfg"][key] = of_now["pretrained_cfg"][key]
        (STORED / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        before = Manifest.from_json(json.loads((STORED / MANIFEST_FILE).read_text()))
        files = {name: found.files.get(name, digest) for name, digest in before.files.items()}
        for path in STORED.rglob("*"):
            name = path.relative_to(STORED).as_posix()
            if path.is_file() and name not in (CONFIG_FILE, MANIFEST_FILE):
                shutil.copyfile(made / name, path)
    after = replace(before, fingerprint=found.fingerprint, config_digest=found.config_digest, files=files)
    (STORED / MANIFEST_FILE).write_text(json.dumps(after.to_json(), indent=2) + "\n")


if __name__ == "__main__":
    main()
