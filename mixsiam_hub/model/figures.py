"""The figures that travel in mixsiam.json and report.json: what each holds, and the ranges that reading checks.

`to_json` gives plain JSON values; `from_json` is strict: a missing or unknown key, or a number that is not finite or
out of its range, is an error that names it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixsiam_hub import untrusted
from mixsiam_hub.errors import MixsiamError, ModelError
from mixsiam_hub.model.fields import MOST, Fields

MEASURES = ("knn20", "knn200", "linear")
EMBEDDING, FIRST, POOLED = "embedding", "first 64 of it", "pooled"
"""An evaluation's rows of an encoder with a head: its output, the first FIRST_DIM numbers of that, and its input."""
FIRST_DIM = 64
RAW, RANDOM, WHITENED = "raw pixels", "random weights", ", whitened"
"""Its floors' rows; WHITENED behind a name is that floor behind a head of its own, fitted on the training images."""
EVALUATIONS = "evaluations"
"""The one key of report.json, and of mixsiam.json's `quality`."""


@dataclass(frozen=True)
class Whitening:
    """What a head was fitted on, and how.

    Attributes:
        data: Name of the data set, without the machine's folders.
        images: How many images of it.
        floor: Smallest variance that a component counts with, as a share of the largest one's.
        resizing: How many times the change of the features by another resampling kernel counts as variance; None in a
            head of before this was measured.
    """

    data: str
    images: int
    floor: float
    resizing: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns it as `from_json` reads it."""
        return _to_json(self)

    @classmethod
    def from_json(cls, raw: object, source: str, error: type[MixsiamError] = ModelError) -> Whitening:
        """Reads it; arguments and errors as of `Accuracy.from_json`."""
        fields = Fields(raw, source, error)
        whitening = cls(
            fields.text("data"),
            fields.count("images"),
            fields.number("floor", 0, 1),
            fields.optional("resizing", lambda key: fields.number(key, 0, MOST)),
        )
        fields.end()
        return whitening


@dataclass(frozen=True)
class Accuracy:
    """Share of test images that are classified right, in [0, 1].

    Attributes:
        knn20: By the 20 nearest training images.
        knn200: By the 200 nearest.
        linear: By a linear probe; None where none was fitted.
    """

    knn20: float
    knn200: float
    linear: float | None = None

    @classmethod
    def from_json(cls, raw: object, source: str, error: type[MixsiamError] = ModelError) -> Accuracy:
        """Reads it.

        Args:
            raw: Parsed JSON.
            source: What to call the file in errors.
            error: What to raise.

        Raises:
            MixsiamError: Of kind `error`: it is not of this form.
        """
        fields = Fields(raw, source, error)
        accuracy = cls(
            knn20=fields.number("knn20", 0, 1),
            knn200=fields.number("knn200", 0, 1),
            linear=fields.optional("linear", lambda key: fields.number(key, 0, 1)),
        )
        fields.end()
        return accuracy


@dataclass(frozen=True)
class Evaluation:
    """An encoder measured on one pair of data sets, beside its floors: an entry of report.json.

    Attributes:
        train: Name of the data set of the neighbours and the probe, without the machine's folders.
        test: Name of the data set that was classified.
        n_train: Images read of `train`.
        n_test: Images read of `test`.
        classes: How many there are.
        precision: Of the features, as in `bf16`.
        rank: Effective rank of the test features, at least 0.
        rows: Whose features -> their accuracies. The encoder's own row goes by its method; of one with a head there are
            EMBEDDING, FIRST and POOLED.
        clears_raw_pixels: Whether the encoder's kNN is far enough above that of raw pixels, whitened like it, to draw
            comparisons.
        command: The command line that measured it.
        fingerprint: The encoder's.
        steps: Training steps that it had done; None where that is not known.
        train_digest: Digest of `train`'s identity, a sha256 in hex; None in reports of before it was recorded.
        test_digest: Likewise of `test`.
    """

    train: str
    test: str
    n_train: int
    n_test: int
    classes: int
    precision: str
    rank: float
    rows: Mapping[str, Accuracy]
    clears_raw_pixels: bool
    command: str
    fingerprint: str
    steps: int | None = None
    train_digest: str | None = None
    test_digest: str | None = None

    @property
    def floor(self) -> str:
        """The row that the encoder has to clear: raw pixels, whitened where the encoder is."""
        return RAW + WHITENED if RAW + WHITENED in self.rows else RAW

    def to_json(self) -> dict[str, Any]:
        """Returns it as `from_json` reads it."""
        return _to_json(self)

    @classmethod
    def from_json(cls, raw: object, source: str, error: type[MixsiamError] = ModelError) -> Evaluation:
        """Reads it; arguments and errors as of `Accuracy.from_json`."""
        fields = Fields(raw, source, error)
        evaluation = cls(
            train=fields.text("train"),
            test=fields.text("test"),
            n_train=fields.count("n_train"),
            n_test=fields.count("n_test"),
            classes=fields.count("classes"),
            precision=fields.text("precision"),
            rank=fields.number("rank", 0, MOST),
            rows=fields.mapping("rows", Accuracy.from_json),
            clears_raw_pixels=fields.flag("clears_raw_pixels"),
            command=fields.text("command"),
            fingerprint=fields.sha256("fingerprint"),
            steps=fields.optional("steps", fields.count),
            train_digest=fields.optional("train_digest", fields.sha256),
            test_digest=fields.optional("test_digest", fields.sha256),
        )
        fields.end()
        return evaluation


def evaluations_to_json(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Returns report.json, which is also mixsiam.json's `quality`."""
    return {EVALUATIONS: [evaluation.to_json() for evaluation in evaluations]}


def evaluations_from_json(raw: object, source: str, error: type[MixsiamError] = ModelError) -> tuple[Evaluation, ...]:
    """Reads report.json, or mixsiam.json's `quality`, where {} holds none.

    Arguments and errors as of `Accuracy.from_json`.
    """
    fields = Fields(raw, source, error)
    entries = fields.items(EVALUATIONS, Evaluation.from_json) if raw else ()
    fields.end()
    return entries


@dataclass(frozen=True)
class Fidelity:
    """How close the vectors of a smaller graph are to the encoder's own.

    Attributes:
        images: Compared.
        mean_cosine: Of the two vectors of an image.
        min_cosine: The smallest.
        neighbour_agreement: Share of images whose nearest other image is the same one.
        knn20: Accuracy of the smaller graph in [0, 1], each half of the images classified by the other; None, as the
            following two, for images without classes.
        knn20_fp32: Likewise of the encoder itself.
        knn20_change_points: 100 * (knn20 - knn20_fp32).
    """

    images: int
    mean_cosine: float
    min_cosine: float
    neighbour_agreement: float
    knn20: float | None = None
    knn20_fp32: float | None = None
    knn20_change_points: float | None = None


@dataclass(frozen=True)
class Variant:
    """A smaller graph of the encoder, fp16 or int8, and what was measured of it.

    Attributes:
        bytes: Size of the file.
        data: Name of the data set that it was compared with fp32 on.
        fidelity: The comparison; its fields stand among the others in JSON.
        calibration_images: That set int8's ranges; None for fp16.
        held_out: Whether it was measured on others than those; None for fp16.
        forced: Written although it fails the limits.
        left_out: Not written, because some activations exceed what fp16 holds.
    """

    bytes: int
    data: str
    fidelity: Fidelity
    calibration_images: int | None = None
    held_out: bool | None = None
    forced: bool = False
    left_out: bool = False

    def to_json(self) -> dict[str, Any]:
        """Returns it as `from_json` reads it."""
        flat = _to_json(self)
        fidelity: dict[str, Any] = flat.pop("fidelity")
        return flat | fidelity

    @classmethod
    def from_json(cls, raw: object, source: str, error: type[MixsiamError] = ModelError) -> Variant:
        """Reads it; arguments and errors as of `Accuracy.from_json`."""
        fields = Fields(raw, source, error)
        fidelity = Fidelity(
            images=fields.count("images"),
            mean_cosine=fields.number("mean_cosine", -1.001, 1.001),
            min_cosine=fields.number("min_cosine", -1.001, 1.001),
            neighbour_agreement=fields.number("neighbour_agreement", 0, 1),
            knn20=fields.optional("knn20", lambda key: fields.number(key, 0, 1)),
            knn20_fp32=fields.optional("knn20_fp32", lambda key: fields.number(key, 0, 1)),
            knn20_change_points=fields.optional("knn20_change_points", lambda key: fields.number(key, -100, 100)),
        )
        variant = cls(
            bytes=fields.count("bytes"),
            data=fields.text("data"),
            fidelity=fidelity,
            calibration_images=fields.optional("calibration_images", fields.count),
            held_out=fields.optional("held_out", fields.flag),
            forced=fields.optional("forced", fields.flag) or False,
            left_out=fields.optional("left_out", fields.flag) or False,
        )
        fields.end()
        return variant


@dataclass(frozen=True)
class FastDecoding:
    """How close the vectors of images decoded by `decode="fast"` are to those of the same images decoded in full.

    Attributes:
        data: Name of the data set.
        images: Of it, those whose pixels differ: JPEGs large enough to be decoded at a reduced scale.
        mean_cosine: Of the two vectors of an image.
        min_cosine: The smallest.
    """

    data: str
    images: int
    mean_cosine: float
    min_cosine: float

    @classmethod
    def from_json(cls, raw: object, source: str, error: type[MixsiamError] = ModelError) -> FastDecoding:
        """Reads it; arguments and errors as of `Accuracy.from_json`."""
        fields = Fields(raw, source, error)
        found = cls(
            data=fields.text("data"),
            images=fields.count("images"),
            mean_cosine=fields.number("mean_cosine", -1.001, 1.001),
            min_cosine=fields.number("min_cosine", -1.001, 1.001),
        )
        fields.end()
        return found


@dataclass(frozen=True)
class PreprocessParity:
    """preprocess.onnx beside Pillow, on noise.

    Attributes:
        max_levels: Largest difference, in grey levels.
        share_off: Share of values that differ at all.
        sizes: (height, width) of each image, in pixels.
    """

    max_levels: int
    share_off: float
    sizes: tuple[tuple[int, int], ...]

    @classmethod
    def from_json(cls, raw: object, source: str, error: type[MixsiamError] = ModelError) -> PreprocessParity:
        """Reads it; arguments and errors as of `Accuracy.from_json`."""
        fields = Fields(raw, source, error)
        parity = cls(
            max_levels=fields.count("max_levels"),
            share_off=fields.number("share_off", 0, 1),
            sizes=fields.items("sizes", _read_size),
        )
        fields.end()
        return parity


@dataclass(frozen=True)
class Parity:
    """A written folder beside the network in memory that it was written from.

    Attributes:
        max_relative_error: Backend -> its largest error over the mean absolute output.
        batch_sizes: That were tried.
        file_to_vector_min_cosine: Smallest, over image files, between Pillow and torch, and the graphs.
        versions: Package -> its version.
        preprocess: Of preprocess.onnx; None in a compact folder, which has none.
        variants: Precision -> the smaller graph of it.
        fast_decoding: None where no image was large enough to tell.
    """

    max_relative_error: Mapping[str, float]
    batch_sizes: tuple[int, ...]
    file_to_vector_min_cosine: float
    versions: Mapping[str, str]
    preprocess: PreprocessParity | None = None
    variants: Mapping[str, Variant] = dataclasses.field(default_factory=dict)
    fast_decoding: FastDecoding | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns it as `from_json` reads it."""
        variants = {precision: variant.to_json() for precision, variant in self.variants.items()}
        return _to_json(self) | {"variants": variants}

    @classmethod
    def from_json(cls, raw: object, source: str, error: type[MixsiamError] = ModelError) -> Parity:
        """Reads it; arguments and errors as of `Accuracy.from_json`."""
        fields = Fields(raw, source, error)
        parity = cls(
            max_relative_error=fields.mapping("max_relative_error", _read_error),
            batch_sizes=fields.items("batch_sizes", _read_count),
            file_to_vector_min_cosine=fields.number("file_to_vector_min_cosine", -1.001, 1.001),
            versions=fields.mapping("versions", _read_text),
            preprocess=fields.optional("preprocess", lambda key: fields.nested(key, PreprocessParity.from_json)),
            variants=fields.optional("variants", lambda key: fields.mapping(key, Variant.from_json)) or {},
            fast_decoding=fields.optional("fast_decoding", lambda key: fields.nested(key, FastDecoding.from_json)),
        )
        fields.end()
        return parity


def _read_error(raw: object, source: str, error: type[MixsiamError]) -> float:
    return untrusted.number(raw, 0, 1, "the error", source, error)


def _read_count(raw: object, source: str, error: type[MixsiamError]) -> int:
    return untrusted.integer(raw, 1, MOST, "the count", source, error)


def _read_text(raw: object, source: str, error: type[MixsiamError]) -> str:
    return untrusted.text(raw, "the text", source, error)


def _read_size(raw: object, source: str, error: type[MixsiamError]) -> tuple[int, int]:
    if not isinstance(raw, list) or len(raw) != 2:
        raise error(f"{source} is {untrusted.quote(raw)}; it must be [height, width]")
    return _read_count(raw[0], source, error), _read_count(raw[1], source, error)


def _to_json(figures: Any) -> dict[str, Any]:
    """Returns a dataclass's fields but those that are None, tuples as lists."""
    return {name: _plain(value) for name, value in vars(figures).items() if value is not None}


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value):
        return _to_json(value)
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
