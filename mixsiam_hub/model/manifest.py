"""mixsiam.json: strict, since only this project writes it; an unknown key is an error that names it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixsiam_hub.errors import ModelError
from mixsiam_hub.model.figures import Evaluation, Parity, evaluations_from_json, evaluations_to_json
from mixsiam_hub.model.files import COMPACT_ONNX_FILE, MANIFEST_FILE, ONNX_FILE
from mixsiam_hub.untrusted import field, one_of

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """mixsiam.json: where the encoder came from, what its files hash to, what was measured.

    Attributes:
        license: SPDX identifier of the weights' licence, given by whoever exported.
        fingerprint: `fingerprint()` of the backbone and preprocessing, a sha256 in hex.
        config_digest: `ModelConfig.digest` of config.json, whose bytes may change when other tools save it again.
        card_sha256: README.md's as export rendered it, in hex, so that a push knows a card that nobody edited.
        files: Path in the folder -> sha256 in hex, for every file but mixsiam.json, config.json and README.md.
        method: Objective that trained it: `mixsiam`, `simsiam`, or `imported from SOURCE`; `timm` where timm saved it
            and this manifest was made in memory.
        weights: How model.safetensors stores convolutions: `fp32`, or `fp16` in a compact folder.
        training: Provenance: recipe, data, epochs, seconds, versions, hardware. Free-form.
        parity: Measured differences between the runtimes; None before export has measured them.
        evaluations: From report.json; `quality` in mixsiam.json.
        format_version: Of this file; a loader refuses one it does not know.
    """

    license: str
    fingerprint: str
    config_digest: str
    card_sha256: str
    files: dict[str, str]
    method: str = "mixsiam"
    weights: str = "fp32"
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    parity: Parity | None = None
    evaluations: tuple[Evaluation, ...] = ()
    format_version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """Returns mixsiam.json, format_version first."""
        own = {"format_version": self.format_version} | vars(self)
        del own["evaluations"]
        parity = self.parity.to_json() if self.parity else {}
        return own | {"parity": parity, "quality": evaluations_to_json(self.evaluations)}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], source: str = MANIFEST_FILE) -> Manifest:
        """Reads mixsiam.json strictly.

        Raises:
            ModelError: Another format_version, a missing or unknown key, a wrong type.
        """
        version = field(raw, "format_version", int, source)
        if version != FORMAT_VERSION:
            raise ModelError(
                f"{source}: format_version is {version}, this mixsiam-hub reads {FORMAT_VERSION}; "
                "upgrade with: pip install -U mixsiam-hub"
            )
        texts = ("license", "fingerprint", "config_digest", "card_sha256", "method", "weights")
        types: dict[str, type] = dict.fromkeys(texts, str)
        types |= dict.fromkeys(("files", "training", "parity", "quality"), dict) | {"format_version": int}
        if unknown := set(raw) - set(types):
            raise ModelError(f"{source}: unknown key {sorted(unknown)[0]!r}; allowed are {sorted(types)}")
        values = {name: field(raw, name, kind, source) for name, kind in types.items()}
        one_of(values["weights"], ("fp32", "fp16"), "weights", source)
        for name, digest in values["files"].items():
            if name.startswith("/") or ".." in Path(name).parts or not isinstance(digest, str):
                raise ModelError(f"{source}: files[{name!r}] must map a path inside the folder to a sha256")
        parity, quality = values.pop("parity"), values.pop("quality")
        return cls(
            **values,
            parity=Parity.from_json(parity, f"{source}: parity") if parity else None,
            evaluations=evaluations_from_json(quality, f"{source}: quality"),
        )

    @property
    def onnx_file(self) -> str:
        """Path of the fp32 graph within the folder."""
        return COMPACT_ONNX_FILE if self.weights == "fp16" else ONNX_FILE
