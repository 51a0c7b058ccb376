"""mixsiam.json: strict, since only this project writes it; an unknown key is an error that names it.

It ends with `manifest_sha256`, its own checksum: a flipped bit in a fingerprint would label every file of vectors
wrongly. Folders exported before there was one are read without it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixsiam_hub.errors import ModelError
from mixsiam_hub.model.figures import Evaluation, Parity, Variant, Whitening, evaluations_from_json, evaluations_to_json
from mixsiam_hub.model.files import COMPACT_ONNX_FILE, MANIFEST_FILE, ONNX_FILE
from mixsiam_hub.untrusted import field, one_of, path_inside, quote, sha256_hex, text

FORMAT_VERSION = 2
READABLE = (1, 2)
"""Versions of the format that this package reads; the first had no head."""
CHECKSUM = "manifest_sha256"

_TYPES: dict[str, type] = {
    "format_version": int,
    **dict.fromkeys(("license", "fingerprint", "config_digest", "card_sha256", "method", "weights"), str),
    **dict.fromkeys(("files", "training", "parity", "quality"), dict),
}


@dataclass(frozen=True)
class Manifest:
    """mixsiam.json: where the encoder came from, what its files hash to, what was measured.

    Attributes:
        license: SPDX identifier of the weights' licence, given by whoever exported.
        fingerprint: `fingerprint()` of the backbone and preprocessing, a sha256 in hex.
        config_digest: `ModelConfig.digest` of config.json, whose bytes may change when other tools save it again.
        card_sha256: README.md's as export rendered it, in hex, so that a push knows a card that nobody edited;
            "" until there is a card.
        files: Path in the folder -> sha256 in hex, for every file but mixsiam.json, config.json and README.md.
        method: Objective that trained it: `mixsiam`, `simsiam`, or `imported from SOURCE`; `timm` where timm saved it
            and this manifest was made in memory.
        head: What the head was fitted on; None without a head.
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
    head: Whitening | None = None
    weights: str = "fp32"
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    parity: Parity | None = None
    evaluations: tuple[Evaluation, ...] = ()
    format_version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """Returns mixsiam.json, format_version first and its checksum last."""
        own = {"format_version": self.format_version} | vars(self)
        del own["evaluations"], own["head"]
        if self.format_version > 1:
            own["head"] = self.head.to_json() if self.head else {}
        own["parity"] = self.parity.to_json() if self.parity else {}
        own["quality"] = evaluations_to_json(self.evaluations)
        # Through JSON: it is hashed as it will be read, where a tuple has become a list and a number as a key a text.
        raw: dict[str, Any] = json.loads(json.dumps(own))
        return raw | {CHECKSUM: checksum(raw)}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], source: str = MANIFEST_FILE) -> Manifest:
        """Reads mixsiam.json strictly.

        Raises:
            ModelError: Another format_version, a missing or unknown key, a value that is not sane, or another checksum
                than its content has.
        """
        version = field(raw, "format_version", int, source)
        if version not in READABLE:
            raise ModelError(
                f"{source}: format_version is {version}, this mixsiam-hub reads {' and '.join(map(str, READABLE))}; "
                "upgrade with: pip install -U mixsiam-hub"
            )
        types = _TYPES | ({"head": dict} if version > 1 else {})
        if unknown := set(raw) - {*types, CHECKSUM}:
            raise ModelError(f"{source}: unknown key {quote(min(unknown))}; allowed are {sorted({*types, CHECKSUM})}")
        values = {name: field(raw, name, kind, source) for name, kind in types.items()}
        for name in ("license", "method"):
            text(values[name], name, source)
        for name in ("fingerprint", "config_digest", "card_sha256"):
            if name != "card_sha256" or values[name]:
                sha256_hex(values[name], name, source)
        one_of(values["weights"], ("fp32", "fp16"), "weights", source)
        for name, digest in values["files"].items():
            path_inside(Path(), name, source)
            sha256_hex(digest, f"files[{quote(name)}]", source)
        if (want := raw.get(CHECKSUM)) not in (None, got := checksum(raw)):
            raise ModelError(
                f"{source} was damaged or edited: its content has the sha256 {got}, its {CHECKSUM} is {quote(want)}; "
                "download or export the folder again"
            )
        parity, quality, head = values.pop("parity"), values.pop("quality"), values.pop("head", None)
        return cls(
            **values,
            head=Whitening.from_json(head, f"{source}: head") if head else None,
            parity=Parity.from_json(parity, f"{source}: parity") if parity else None,
            evaluations=evaluations_from_json(quality, f"{source}: quality"),
        )

    @property
    def is_compact(self) -> bool:
        """Whether the folder has one graph, which takes its weights from model.safetensors, and no other."""
        return self.weights == "fp16"

    @property
    def onnx_file(self) -> str:
        """Path of the fp32 graph within the folder."""
        return COMPACT_ONNX_FILE if self.is_compact else ONNX_FILE

    def variant(self, precision: str) -> Variant | None:
        """Returns what export recorded of a smaller graph; None where it tried none."""
        return self.parity.variants.get(precision) if self.parity else None

    def admits_fast_decoding(self, min_cosine: float) -> bool:
        """Whether export measured `decode="fast"` and every image's vector stayed this close."""
        found = self.parity.fast_decoding if self.parity else None
        return found is not None and found.min_cosine >= min_cosine


def checksum(raw: Mapping[str, Any]) -> str:
    """Returns the sha256, in hex, of everything in a parsed mixsiam.json but its checksum, however it was laid out."""
    content = {name: value for name, value in raw.items() if name != CHECKSUM}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
