"""The smaller graphs of a full folder, fp16 and int8: written, measured against fp32 on real images, and judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tqdm import tqdm

from mixsiam_hub.backends.signature import INPUT, POOLED
from mixsiam_hub.cpus import available_cpus
from mixsiam_hub.errors import DataError, ImageError, ModelError
from mixsiam_hub.export.fidelity import Floats, Labels, compare
from mixsiam_hub.export.quantise import write_fp16, write_int8
from mixsiam_hub.images.preprocess import normalise, resize_and_crop
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model.bars import BARS
from mixsiam_hub.model.config import Preprocessing
from mixsiam_hub.model.files import FP16_ONNX_FILE, INT8_ONNX_FILE, ONNX_FILE
from mixsiam_hub.training.data import ImageSet, open_images
from mixsiam_hub.training.recipe import data_name

MIN_CALIBRATION, MAX_CALIBRATION = 200, 512
MIN_MEASURED, MAX_MEASURED = 100, 2000
MIN_MEAN_COSINE, MIN_COSINE = BARS["int8"]

_BATCH_SIZE = 16
Pixels = Sequence[NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Real images, preprocessed up to normalisation: (S, S, 3) uint8 each, in random order.

    Attributes:
        data: Name of the data set, without the machine's folders.
        images: Those that set int8's ranges; none of them, no int8 graph.
        measured: Those that the graphs are compared on.
        labels: (len(measured),) int64 classes, or None.
        held_out: `measured` are others than `images`.
    """

    data: str
    images: Pixels
    measured: Pixels
    labels: Labels | None = None
    held_out: bool = True


def open_calibration(spec: str, pre: Preprocessing) -> Calibration:
    """Reads a fixed sample of a data set: half of it for calibration, the rest for measuring, each up to its maximum.

    Corrupt images are left out. Where too few would be left to measure on, all of them serve both ends.

    Args:
        spec: As `open_images` takes it.
        pre: The deployed preprocessing.

    Raises:
        DataError: As `open_images`; or fewer than MIN_CALIBRATION images can be read.
    """
    images = open_images(spec).sample(MAX_CALIBRATION + MAX_MEASURED)
    pixels, positions = _read(images, pre)
    if len(pixels) < MIN_CALIBRATION:
        raise DataError(
            f"{spec}: {len(pixels)} images can be read, and int8 needs at least {MIN_CALIBRATION} to calibrate on; "
            "give more, or export without calibration"
        )
    order = np.random.default_rng(0).permutation(len(pixels))  # A data set often lies class by class.
    n = min(MAX_CALIBRATION, max(MIN_CALIBRATION, len(pixels) // 2))
    held_out = len(pixels) - n >= MIN_MEASURED
    ranges, measured = (order[:n], order[n:]) if held_out else (order, order)
    return Calibration(
        data_name(spec),
        [pixels[i] for i in ranges],
        [pixels[i] for i in measured],
        None if images.labels is None else images.labels[positions][measured],
        held_out,
    )


def write_variants(
    folder: Path, pre: Preprocessing, calibration: Calibration | None = None, *, force: bool = False
) -> dict[str, Any]:
    """Writes FP16_ONNX_FILE and, with calibration images, INT8_ONNX_FILE beside ONNX_FILE.

    Args:
        folder: A full model folder.
        pre: Its preprocessing.
        calibration: Images; without them fp16 is measured on drawn samples and there is no int8.
        force: Write a graph that fails the limits, and record that.

    Returns:
        For mixsiam.json, `fp16` and `int8` -> bytes, data and the figures of `compare`. int8 has calibration_images and
        held_out too. `forced` is there only where it was needed, and `left_out` where an fp16 graph was not written
        because some activations exceed what fp16 holds.

    Raises:
        ModelError: int8's vectors are too far from fp32's: below MIN_MEAN_COSINE or, the worst, MIN_COSINE.
    """
    images = calibration or _drawn(pre)
    full = folder / ONNX_FILE
    with TemporaryDirectory(prefix=".variants-", dir=full.parent) as temporary:
        graphs = _write_graphs(full, Path(temporary), pre, images)
        expected = _embed(full, images.measured, pre)
        record: dict[str, Any] = {}
        for name, graph in graphs.items():
            figures = compare(expected, _embed(graph, images.measured, pre), images.labels)
            record[name] = {"bytes": graph.stat().st_size, "data": images.data} | figures
            if not _is_close(figures):
                record[name] |= {"forced": True} if force else _left_out(name, record[name])
        if "int8" in record:
            record["int8"] |= {"calibration_images": len(images.images), "held_out": images.held_out}
        for name, graph in graphs.items():
            if "left_out" not in record[name]:
                graph.replace(full.with_name(graph.name))
    return record


def _drawn(pre: Preprocessing) -> Calibration:
    return Calibration("drawn samples", (), [resize_and_crop(image, pre) for image in draw_samples().values()])


def _write_graphs(full: Path, into: Path, pre: Preprocessing, images: Calibration) -> dict[str, Path]:
    graphs = {"fp16": into / Path(FP16_ONNX_FILE).name}
    write_fp16(full, graphs["fp16"])
    if images.images:
        graphs["int8"] = into / Path(INT8_ONNX_FILE).name
        write_int8(full, graphs["int8"], _batches(images.images, pre, "calibrating"))
    return graphs


def _read(images: ImageSet, pre: Preprocessing) -> tuple[list[NDArray[np.uint8]], list[int]]:
    """Returns the readable images and their positions."""
    pixels, positions = [], []
    for position in tqdm(range(len(images)), desc="reading images", unit="image", disable=None, leave=False):
        try:
            pixels.append(resize_and_crop(images[position], pre))
        except ImageError:
            continue
        positions.append(position)
    return pixels, positions


def _batches(pixels: Pixels, pre: Preprocessing, what: str) -> Iterator[Floats]:
    with tqdm(total=len(pixels), desc=what, unit="image", disable=None, leave=False) as bar:
        for start in range(0, len(pixels), _BATCH_SIZE):
            batch = normalise(np.stack(pixels[start : start + _BATCH_SIZE]), pre)
            yield batch
            bar.update(len(batch))


def _embed(graph: Path, pixels: Pixels, pre: Preprocessing) -> Floats:
    """Returns pooled features, (N, D) float32."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cpus()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    batches = _batches(pixels, pre, f"measuring {graph.name}")
    return np.concatenate([session.run([POOLED], {INPUT: batch})[0] for batch in batches])


def _is_close(figures: Mapping[str, Any]) -> bool:
    return bool(figures["mean_cosine"] >= MIN_MEAN_COSINE and figures["min_cosine"] >= MIN_COSINE)


def _left_out(name: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Refuses int8, which was asked for; fp16, which comes along, is left out, and the record says so.

    Raises:
        ModelError: It is int8; the message says what was measured.
    """
    if name == "fp16":
        return {"left_out": True}
    raise ModelError(
        f"the {name} graph's cosine to fp32, on {figures['images']} images of {figures['data']}, is "
        f"{figures['mean_cosine']} on average and {figures['min_cosine']} at worst; at least {MIN_MEAN_COSINE} and "
        f"{MIN_COSINE} are needed. Nothing was written: calibrate on more images, or on images more like those that "
        "will be embedded; or force it"
    )
