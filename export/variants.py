"""The smaller graphs of a full folder, fp16 and int8: written, measured against fp32 on real images, and judged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tqdm import tqdm

from mixsiam_hub.backends.signature import INPUT
from mixsiam_hub.cpus import available_cpus
from mixsiam_hub.errors import DataError, ModelError
from mixsiam_hub.export.fidelity import Floats, Labels, compare
from mixsiam_hub.export.quantise import write_fp16, write_int8
from mixsiam_hub.images.preprocess import FAST_SCALE, normalise, resize_and_crop
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.images.sources import ImageSet
from mixsiam_hub.model.bars import BARS
from mixsiam_hub.model.config import Preprocessing
from mixsiam_hub.model.figures import FastDecoding, Fidelity, Variant
from mixsiam_hub.model.files import FP16_ONNX_FILE, INT8_ONNX_FILE, ONNX_FILE
from mixsiam_hub.training.data import class_numbers, open_images, sample
from mixsiam_hub.training.features import read_batches
from mixsiam_hub.training.recipe import data_name
from mixsiam_hub.vectors.cosine import row_cosines

MIN_CALIBRATION, MAX_CALIBRATION = 200, 512
MIN_MEASURED, MAX_MEASURED = 100, 2000

_BATCH_SIZE = 16
Pixels = NDArray[np.uint8]


def _no_pixels() -> Pixels:
    return np.empty((0, 0, 0, 3), np.uint8)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Real images, preprocessed up to normalisation, in random order.

    Attributes:
        data: Name of the data set, without the machine's folders.
        images: (N, S, S, 3) uint8, those that set int8's ranges; where N is 0, there is no int8 graph.
        measured: (M, S, S, 3) uint8, those that the graphs are compared on.
        labels: (M,) int64 classes, or None.
        held_out: `measured` are others than `images`.
        large: (K, S, S, 3) uint8, those of all images that `decode="fast"` reads at a reduced scale, decoded in full.
        large_fast: (K, S, S, 3) uint8, the same, decoded so.
    """

    data: str
    images: Pixels
    measured: Pixels
    labels: Labels | None = None
    held_out: bool = True
    large: Pixels = field(default_factory=_no_pixels)
    large_fast: Pixels = field(default_factory=_no_pixels)


def open_calibration(spec: str, pre: Preprocessing) -> Calibration:
    """Reads a fixed sample of a data set: half of it for calibration, the rest for measuring, each up to its maximum.

    Corrupt images are left out. Where fewer than MIN_MEASURED would be left to measure on, all serve both ends.

    Args:
        spec: As `open_images` takes it.
        pre: The deployed preprocessing.

    Raises:
        DataError: As `open_images`; or fewer than MIN_CALIBRATION images can be read.
    """
    images = sample(open_images(spec), MAX_CALIBRATION + MAX_MEASURED)
    batches = list(read_batches(images, pre))
    pixels = np.concatenate([batch.pixels for batch in batches])  # (n, S, S, 3)
    if len(pixels) < MIN_CALIBRATION:
        raise DataError(
            f"{spec}: {len(pixels)} images can be read, and int8 needs at least {MIN_CALIBRATION} to calibrate on; "
            "give more, or export without calibration"
        )
    places = np.concatenate([batch.indices for batch in batches])
    edges_px = np.array([min(fact.height, fact.width) for batch in batches for fact in batch.facts])
    large, large_fast = _large(images.take(places), pixels, edges_px, pre)
    labels = None
    if images.labels is not None:
        labels = class_numbers(images, sorted(set(images.labels)))[places]
    n = min(MAX_CALIBRATION, max(MIN_CALIBRATION, len(pixels) // 2))
    if len(pixels) - n < MIN_MEASURED:
        return Calibration(data_name(spec), pixels, pixels, labels, False, large, large_fast)
    labels = None if labels is None else labels[n:]
    return Calibration(data_name(spec), pixels[:n], pixels[n:], labels, True, large, large_fast)


def _large(images: ImageSet, pixels: Pixels, edges_px: NDArray[np.int64], pre: Preprocessing) -> tuple[Pixels, Pixels]:
    """Returns the images that fast decoding changes, as `Calibration.large` and `.large_fast`.

    Args:
        images: N of them.
        pixels: (N, S, S, 3) uint8, decoded in full.
        edges_px: (N,) the shorter edge of each.
        pre: The deployed preprocessing.
    """
    large = np.flatnonzero(edges_px > FAST_SCALE * pre.resize_px)
    if not len(large):
        return _no_pixels(), _no_pixels()
    batches = list(read_batches(images.take(large), pre, "fast"))
    fast = np.concatenate([batch.pixels for batch in batches])
    exact = pixels[large[np.concatenate([batch.indices for batch in batches])]]
    changed = (fast != exact).any(axis=(1, 2, 3))
    return exact[changed], fast[changed]


def write_variants(
    folder: Path, pre: Preprocessing, calibration: Calibration | None = None, *, force: bool = False
) -> dict[str, Variant]:
    """Writes FP16_ONNX_FILE and, with calibration images, INT8_ONNX_FILE beside ONNX_FILE.

    Args:
        folder: A full model folder.
        pre: Its preprocessing.
        calibration: Images; without them fp16 is measured on drawn samples and there is no int8.
        force: Write a graph that fails the limits, and record that.

    Returns:
        `fp16` and `int8` -> what was measured; an fp16 graph that fails the limits, since some activations exceed what
        fp16 holds, is left out and recorded as such.

    Raises:
        ModelError: int8's vectors are further from fp32's than BARS allows.
    """
    images = calibration or _drawn(pre)
    full = folder / ONNX_FILE
    with TemporaryDirectory(prefix=".variants-", dir=full.parent) as temporary:
        graphs = _write_graphs(full, Path(temporary), pre, images)
        expected = _embed(full, images.measured, pre)
        variants = {}
        for precision, graph in graphs.items():
            fidelity = compare(expected, _embed(graph, images.measured, pre), images.labels)
            bar = BARS[precision]
            is_close = fidelity.mean_cosine >= bar.mean and fidelity.min_cosine >= bar.min
            is_int8 = precision == "int8"
            if is_int8 and not is_close and not force:
                raise ModelError(_refusal(images.data, fidelity))
            variants[precision] = Variant(
                graph.stat().st_size,
                images.data,
                fidelity,
                len(images.images) if is_int8 else None,
                images.held_out if is_int8 else None,
                forced=force and not is_close,
                left_out=not force and not is_close,
            )
        for precision, graph in graphs.items():
            if not variants[precision].left_out:
                graph.replace(full.with_name(graph.name))
    return variants


def measure_fast_decoding(folder: Path, pre: Preprocessing, calibration: Calibration | None) -> FastDecoding | None:
    """Compares the vectors that ONNX_FILE gives of large images decoded in full and at a reduced scale.

    Returns:
        The figures; None without such images.
    """
    if calibration is None or not len(calibration.large):
        return None
    full, fast = (_embed(folder / ONNX_FILE, pixels, pre) for pixels in (calibration.large, calibration.large_fast))
    cosines = row_cosines(full, fast)
    mean, least = round(float(cosines.mean()), 7), round(float(cosines.min()), 7)
    return FastDecoding(calibration.data, len(full), mean, least)


def _drawn(pre: Preprocessing) -> Calibration:
    pixels = np.stack([resize_and_crop(image, pre) for image in draw_samples().values()])
    return Calibration("drawn samples", pixels[:0], pixels)


def _write_graphs(full: Path, into: Path, pre: Preprocessing, images: Calibration) -> dict[str, Path]:
    graphs = {"fp16": into / Path(FP16_ONNX_FILE).name}
    write_fp16(full, graphs["fp16"])
    if len(images.images):
        graphs["int8"] = into / Path(INT8_ONNX_FILE).name
        write_int8(full, graphs["int8"], _batches(images.images, pre, "calibrating"))
    return graphs


def _batches(pixels: Pixels, pre: Preprocessing, what: str) -> Iterator[Floats]:
    with tqdm(total=len(pixels), desc=what, unit="image", disable=None, leave=False) as bar:
        for start in range(0, len(pixels), _BATCH_SIZE):
            batch = normalise(pixels[start : start + _BATCH_SIZE], pre)
            yield batch
            bar.update(len(batch))


def _embed(graph: Path, pixels: Pixels, pre: Preprocessing) -> Floats:
    """Returns embeddings, (N, K) float32, not normalised: the first output of every graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cpus()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    batches = _batches(pixels, pre, f"measuring {graph.name}")
    embedding = session.get_outputs()[0].name
    return np.concatenate([session.run([embedding], {INPUT: batch})[0] for batch in batches])


def _refusal(data: str, fidelity: Fidelity) -> str:
    return (
        f"the int8 graph's cosine to fp32, on {fidelity.images} images of {data}, is {fidelity.mean_cosine} on average "
        f"and {fidelity.min_cosine} at worst; at least {BARS['int8'].mean} and {BARS['int8'].min} are needed. "
        "Nothing was written: calibrate on more images, or on images more like those that will be embedded; or force it"
    )
