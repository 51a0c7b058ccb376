"""The API: images in, vectors out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.backends import choose as backends
from mixsiam_hub.cpus import available_cpus
from mixsiam_hub.errors import ArgumentError, ImageError, ModelError
from mixsiam_hub.images.kinds import ImageSource
from mixsiam_hub.images.preprocess import DECODES, ImageFacts, normalise
from mixsiam_hub.images.sources import Item
from mixsiam_hub.images.stream import DecodedBatch, as_iterable, decode_batches
from mixsiam_hub.model import hub
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.vectors.cosine import unit_length

if TYPE_CHECKING:
    from mixsiam_hub.backends.backbone import Backbone

OnError = Literal["raise", "skip"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Vectors of consecutive images of a stream.

    Attributes:
        indices: (n,) int64, which images these are, counted from 0 over the whole stream. Bad ones are left out.
        keys: Their names, n: the paths as they were given, or `image 7`.
        vectors: (n, D) float32.
        errors: Index of each bad image -> what is wrong with it, its name as `.image`; empty unless on_error is `skip`.
        facts: n: the upright image's height and width in pixels and, where asked for, the sha256 of its file.
    """

    indices: NDArray[np.int64]
    keys: list[str]
    vectors: NDArray[np.float32]
    errors: dict[int, ImageError] = field(default_factory=dict)
    facts: list[ImageFacts] = field(default_factory=list)


class ImageEncoder:
    """An image encoder: it decodes, preprocesses and embeds images.

    It may be used from several threads, pickled, and used after a fork: each process opens its own session. A child of
    a bare os.fork must leave through os._exit, as those of multiprocessing do: onnxruntime's exit handlers hang there.
    """

    def __init__(
        self,
        folder: ModelFolder,
        backend: backends.Backend,
        threads: int,
        dim: int | None = None,
        decode: str = DECODES[0],
    ) -> None:
        """Joins a folder with the backend that runs it; users call `from_pretrained`."""
        self._decode = decode
        self._folder = folder
        self._backend = backend
        self._dim = dim or folder.config.dim
        self._threads = threads

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        *,
        revision: str | None = None,
        backend: str = "auto",
        device: str = "auto",
        precision: str = "fp32",
        min_cosine: float = backends.MIN_COSINE,
        decode: str | None = None,
        dim: int | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        threads: int | None = None,
    ) -> ImageEncoder:
        """Opens an encoder.

        Args:
            name_or_path: A model folder, or a Hub id `org/name`. None is the built-in encoder, which works offline: a
                small encoder, trained for hours of CPU cores on 64 px images, not a strong general one.
            revision: Branch, tag or commit of a Hub id.
            backend: `onnx`, `openvino`, `torch` or `auto`: the first of these that can do what is asked. A ResNet as
                timm saves it, on the Hub or in a folder, runs by torch alone.
            device: `cpu`, `cuda`, `cuda:N`, `mps` or `auto`.
            precision: `fp32`; onnx also runs `fp16` and `int8` of a folder that was exported with them, openvino `int8`
                and `bf16`, torch `bf16`, and `fp16` on CUDA. `auto` times all of them here, for seconds, and takes the
                fastest that min_cosine allows; the choice is kept for the next time.
            min_cosine: With `auto`, the least cosine to fp32 of any of the folder's known answers; for fast decoding,
                the least to exact decoding of any image that export measured. The default admits what may stand in one
                store with fp32; 0.999 admits most bf16, 0.99 most int8.
            decode: `exact`, or `fast`: JPEGs of more than four times the network's input are decoded at a reduced
                scale. Pixels are a few levels off, and the variant says so. None is `exact`; with precision `auto` it
                is `fast` where export measured that and min_cosine allows it.
            dim: Numbers of a vector that are kept, from the first, for a store that is smaller by as much; None is all.
                The head orders them by how much they vary over images, so this needs an encoder with a head.
            token: For private and gated repositories.
            cache_dir: Where the Hub's files are kept; None is the Hub client's own cache.
            local_files_only: Never use the network.
            threads: CPU threads for decoding and for the network; None is the CPUs this process may use.

        Raises:
            ModelError: No such folder, or one that breaks the contract or was changed.
            HubError: The repository cannot be reached, found or read.
            BackendError: A backend, device or precision that cannot be had here, or with this model.
            MissingExtraError: The torch backend was asked for and torch is not installed.
            ArgumentError: threads is below 1, another decode or min_cosine, or dim not from 1 to the length of a
                vector, or given without a head.
        """
        if threads is not None and threads < 1:
            raise ArgumentError(f"threads is {threads}; it must be at least 1, or None for the CPUs available")
        if not 0 <= min_cosine <= 1:
            raise ArgumentError(f"min_cosine is {min_cosine}; it must be from 0 to 1")
        if decode not in (None, *DECODES):
            raise ArgumentError(f"decode is {decode!r}; allowed are {', '.join(DECODES)}")
        is_auto = precision == backends.AUTO
        # Before anything is downloaded.
        choice = backends.choose(backend, device, "fp32" if is_auto else precision)
        folder = hub.resolve(
            name_or_path, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        if folder.is_plain and not is_auto:
            choice = backends.choose(backend, device, precision, order=("torch",))
        if dim is not None:
            _check_dim(dim, folder)
        threads = threads or available_cpus()
        if is_auto:
            from mixsiam_hub.model.fastest import load_fastest

            network = load_fastest(folder, backend, device, min_cosine, threads)
        else:
            network = backends.load(choice, folder, threads)
        if decode is None:
            decode = "fast" if is_auto and folder.manifest.admits_fast_decoding(min_cosine) else "exact"
        return cls(folder, network, threads, dim, decode)

    def embed(
        self,
        images: ImageSource | Item | Iterable[ImageSource | Item],
        *,
        batch_size: int = 32,
        normalize: bool = True,
        pooled: bool = False,
        on_error: OnError = "raise",
        errors: dict[int, ImageError] | None = None,
    ) -> NDArray[np.float32]:
        """Embeds one image or many, mixed freely.

        Args:
            images: A path, an encoded file's bytes, a binary file object, a PIL image, a uint8 array (H, W), (H, W, 3)
                or (H, W, 4); or an iterable of these; or an (N, H, W, 3) uint8 array. An array of 3 dimensions is
                always one image.
            batch_size: Images for one run of the network.
            normalize: Scale vectors to length 1, so that a dot product is the cosine; a zero vector stays zero.
            pooled: Give the features before the head, all of them; an encoder without a head gives these anyway.
            on_error: `raise` stops at the first bad image; `skip` makes its row NaN.
            errors: With `skip`, a dict of yours that gets row -> what is wrong with the image.

        Returns:
            (N, D) float32, rows in the order of the images; (1, D) for one image and (0, D) for none.

        Raises:
            ImageError: A bad image, with `raise`.
            ModelError: The network gives NaN or infinite features.
            ArgumentError: Another on_error, or a batch_size below 1.
        """
        stream = self.embed_stream(images, batch_size=batch_size, normalize=normalize, pooled=pooled, on_error=on_error)
        batches = list(stream)
        count = sum(len(batch.indices) + len(batch.errors) for batch in batches)
        vectors = np.full((count, self._width(pooled)), np.nan, np.float32)
        for batch in batches:
            vectors[batch.indices] = batch.vectors
            if errors is not None:
                errors.update(batch.errors)
        return vectors

    def embed_stream(
        self,
        images: ImageSource | Item | Iterable[ImageSource | Item],
        *,
        batch_size: int = 32,
        normalize: bool = True,
        pooled: bool = False,
        on_error: OnError = "raise",
        with_sha256: bool = False,
    ) -> Iterator[Batch]:
        """Embeds an iterable of any length, a batch at a time, and never holds more than 2 * batch_size images.

        Args:
            images: As in `embed`.
            batch_size: Images for one run of the network.
            normalize: Scale vectors to length 1; a zero vector stays zero.
            pooled: Give the features before the head, all of them.
            on_error: `raise` stops at the first bad image; `skip` leaves it out and says why in its batch's errors.
            with_sha256: The batches' facts hold the sha256 of each encoded file, of the very bytes that are decoded.

        Returns:
            An iterator of batches, in the order of the images.

        Raises:
            ImageError: A bad image, with `raise`, while iterating.
            ModelError: The network gives NaN or infinite features, while iterating.
            ArgumentError: Another on_error, or a batch_size below 1; at the call.
        """
        width = self._width(pooled)
        network = self._backend.pooled if pooled else self._backend.embedding

        def vectors_of(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
            # (n, 3, S, S) -> (n, K) -> (n, width)
            return network(pixels)[:, :width]

        outputs = self._run(vectors_of, images, batch_size, on_error, (width,), with_sha256)
        return (Batch(d.indices, d.keys, unit_length(v) if normalize else v, d.errors, d.facts) for d, v in outputs)

    def features(
        self, images: ImageSource | Item | Iterable[ImageSource | Item], *, batch_size: int = 32
    ) -> NDArray[np.float32]:
        """Computes the last feature map, whose mean over the cells is the pooled features.

        Args:
            images: As in `embed`.
            batch_size: Images for one run of the network.

        Returns:
            (N, D, h, w) float32, h rows from the top and w columns from the left of the cropped image.

        Raises:
            ImageError: A bad image.
            ModelError: The network gives NaN or infinite features.
            ArgumentError: A batch_size below 1.
        """
        config = self._folder.config
        cells = (-(-edge // config.output_stride) for edge in self.input_size)
        shape = (config.features_dim, *cells)
        outputs = self._run(self._backend.feature_map, images, batch_size, "raise", shape)
        return np.concatenate([np.empty((0, *shape), np.float32), *(output for _, output in outputs)])

    def to_torch(self) -> Backbone:
        """Returns the backbone for fine-tuning, without the head: a new nn.Module, float32, on the CPU, to be trained.

        It maps normalised images, (N, 3, H, W), to pooled features, (N, D).

        Raises:
            MissingExtraError: torch is not installed.
            ModelError: The weights are missing, changed or wrong.
        """
        backbone: Backbone = backends.torch_backend().load_backbone(self._folder, with_head=False)
        return backbone

    @property
    def dim(self) -> int:
        """Length of a vector, D: `dim` of `from_pretrained`, or all that the encoder gives."""
        return self._dim

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the network's input, in pixels; images of any size are resized and cropped to it."""
        edge = self._folder.config.preprocessing.input_px
        return edge, edge

    @property
    def backend(self) -> str:
        """`onnx`, `openvino` or `torch`."""
        return self._backend.name

    @property
    def device(self) -> str:
        """`cpu`, `cuda:N` or `mps`."""
        return self._backend.device

    @property
    def precision(self) -> str:
        """`fp32`, `bf16`, `fp16` or `int8`."""
        return self._backend.precision

    @property
    def revision(self) -> str | None:
        """The commit on the Hub that this encoder is; None for a folder of this machine."""
        return self._folder.revision

    @property
    def fingerprint(self) -> str:
        """Identity of the weights and the preprocessing: vectors of two fingerprints must never be compared."""
        return self._folder.manifest.fingerprint

    @property
    def variant(self) -> str:
        """How the vectors are computed beside the fingerprint: precision, decoding and, if some are cut off, numbers.

        As in `fp32-exact`, `bf16-fast` or `fp32-exact-64`.
        """
        cut = f"-{self.dim}" if self.dim < self._folder.config.dim else ""
        return f"{self.precision}-{self._decode}{cut}"

    def __repr__(self) -> str:
        model = f"{self._folder.config.architecture}, {self.input_size[0]} px, {self.dim} numbers"
        return f"ImageEncoder({model}; {self.backend} on {self.device}, {self.variant}; {self.fingerprint[:12]})"

    def _run(
        self,
        network: Callable[[NDArray[np.float32]], NDArray[np.float32]],
        images: ImageSource | Item | Iterable[ImageSource | Item],
        batch_size: int,
        on_error: str,
        shape: tuple[int, ...],
        with_sha256: bool = False,
    ) -> Iterator[tuple[DecodedBatch, NDArray[np.float32]]]:
        # Checked here and not in a generator, which would wait for the first batch to be asked for.
        if batch_size < 1:
            raise ArgumentError(f"batch_size is {batch_size}; it must be at least 1")
        if on_error not in get_args(OnError):
            raise ArgumentError(f"on_error is {on_error!r}; allowed are {', '.join(get_args(OnError))}")
        pre = self._folder.config.preprocessing
        decoded = decode_batches(
            as_iterable(images),
            pre,
            batch_size=batch_size,
            on_error=on_error,
            workers=self._threads,
            with_sha256=with_sha256,
            decode=self._decode,
        )
        nothing = np.empty((0, *shape), np.float32)  # Not every runtime takes an empty batch.
        return ((d, self._finite(network(normalise(d.pixels, pre))) if len(d.indices) else nothing) for d in decoded)

    def _width(self, pooled: bool) -> int:
        return self._folder.config.features_dim if pooled else self.dim

    def _finite(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        # Pixels are finite, so only weights that are not, or too large for the precision, give such features.
        if not np.isfinite(features).all():
            raise ModelError(
                f"{self._folder.path} gives NaN or infinite features in {self.precision}; its weights are damaged or "
                "too large for that precision: check it with `mixsiam verify`"
            )
        return features


def _check_dim(dim: int, folder: ModelFolder) -> None:
    """Raises ArgumentError unless the first `dim` numbers of a folder's vectors are vectors of their own."""
    if folder.config.head_dim is None:
        raise ArgumentError(
            f"dim is {dim} and {folder.path} has no head: its numbers are in no order, so that none can be left out; "
            "make a folder that has one: mixsiam export MODEL FOLDER --license ID --whiten DATA"
        )
    if not 1 <= dim <= folder.config.head_dim:
        raise ArgumentError(f"dim is {dim}; it must be from 1 to {folder.config.head_dim}, the length of a vector")
