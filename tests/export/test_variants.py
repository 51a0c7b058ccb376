"""The fp16 and int8 graphs: what is written, what is measured, and what is refused."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra export")
onnx = pytest.importorskip("onnx", reason="needs the extra export")

import onnxruntime

from mixsiam_hub import ImageEncoder
from mixsiam_hub.errors import DataError, ModelError
from mixsiam_hub.export import variants
from mixsiam_hub.export.variants import Calibration, measure_fast_decoding, open_calibration, write_variants
from mixsiam_hub.images.preprocess import preprocess, resize_and_crop
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model.config import Preprocessing
from mixsiam_hub.model.figures import Fidelity, Variant
from mixsiam_hub.model.files import FP16_ONNX_FILE, INT8_ONNX_FILE

PRE = Preprocessing(32)
GOOD = 319
FULL = "onnx/model.onnx"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GOOD drawn samples and a corrupt one, a sub-folder for each family."""
    root = tmp_path_factory.mktemp("data") / "photos"
    for name, image in draw_samples(GOOD, seed=3).items():
        path = root / name.partition("_")[0] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    (root / "clouds" / "torn.png").write_bytes((root / "clouds" / "clouds_00.png").read_bytes()[:100])
    return root


@pytest.fixture(scope="module")
def written(
    model_folder: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Variant]]:
    """A folder with both variants, and their record. Read-only."""
    folder = graph_alone(model_folder, tmp_path_factory.mktemp("written"))
    return folder, write_variants(folder, PRE, open_calibration(str(photos), PRE))


@pytest.fixture
def blank() -> Calibration:
    """Black images, which tell the calibrator nothing of the ranges that real ones need."""
    drawn = np.stack([resize_and_crop(image, PRE) for image in draw_samples(32).values()])
    return Calibration("black", np.zeros((200, 32, 32, 3), np.uint8), drawn)


def graph_alone(model_folder: Path, folder: Path) -> Path:
    (folder / "onnx").mkdir()
    shutil.copy(model_folder / FULL, folder / FULL)
    return folder


def some_of(photos: Path, count: int, folder: Path) -> str:
    """Links to the corrupt image and to the first `count` others."""
    for path in sorted(photos.rglob("*_*.png"))[:count]:
        (folder / path.name).symlink_to(path)
    (folder / "torn.png").symlink_to(photos / "clouds" / "torn.png")
    return str(folder)


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def run(path: Path, pixels: np.ndarray, *, in_float: bool = False) -> list[np.ndarray]:
    """Runs a graph; `in_float` computes each quantised operation apart, in float32, where no CPU can saturate."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if in_float:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert [(node.name, node.type) for node in session.get_inputs()] == [("pixel_values", "tensor(float)")]
    outputs = [(node.name, node.type) for node in session.get_outputs()]
    assert outputs == [("pooler_output", "tensor(float)"), ("last_hidden_state", "tensor(float)")]
    return list(session.run(None, {"pixel_values": pixels}))


@pytest.mark.parametrize(("name", "least"), [(FP16_ONNX_FILE, 0.9999), (INT8_ONNX_FILE, 0.98)])
@pytest.mark.parametrize("batch", [1, 3, 17])
def test_a_variant_gives_the_vectors_of_fp32_in_the_same_order_at_any_batch(
    written: tuple[Path, dict[str, Variant]], name: str, least: float, batch: int
) -> None:
    folder, _ = written
    pixels = np.stack([preprocess(image, PRE) for image in draw_samples(batch).values()])
    for got, expected in zip(run(folder / name, pixels), run(folder / FULL, pixels), strict=True):
        assert got.shape == expected.shape
        x, y = got.reshape(batch, -1), expected.reshape(batch, -1)
        assert ((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)).min() > least


def test_int8_weights_leave_a_bit_free_so_that_no_cpu_saturates(written: tuple[Path, dict[str, Variant]]) -> None:
    graph = written[0] / INT8_ONNX_FILE
    weights = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(graph).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4
    ]
    assert len(weights) == 20  # ResNet-18's convolutions, three of them shortcuts.
    assert max(np.abs(weight.astype(int)).max() for weight in weights) == 64
    pixels = np.stack([preprocess(image, PRE) for image in draw_samples(8).values()])
    here, exact = run(graph, pixels)[0], run(graph, pixels, in_float=True)[0]
    assert ((here * exact).sum(1) / np.linalg.norm(here, axis=1) / np.linalg.norm(exact, axis=1)).min() > 0.9995


def test_variants_are_valid_smaller_graphs_of_their_precision(written: tuple[Path, dict[str, Variant]]) -> None:
    folder, _ = written
    kinds = {}
    for name in (FP16_ONNX_FILE, INT8_ONNX_FILE):
        onnx.checker.check_model(str(folder / name), full_check=True)
        model = onnx.load(folder / name)
        kinds[name] = {node.op_type for node in model.graph.node}, {t.data_type for t in model.graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds[FP16_ONNX_FILE][1]
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds[INT8_ONNX_FILE][0]
    assert {onnx.TensorProto.UINT8, onnx.TensorProto.INT8} <= kinds[INT8_ONNX_FILE][1]
    full, half, quarter = ((folder / name).stat().st_size for name in (FULL, FP16_ONNX_FILE, INT8_ONNX_FILE))
    assert half < 0.51 * full
    assert quarter < 0.27 * full


def test_variants_tell_nothing_of_the_machine_that_wrote_them(
    written: tuple[Path, dict[str, Variant]], photos: Path
) -> None:
    folder, _ = written
    for name in (FP16_ONNX_FILE, INT8_ONNX_FILE):
        content = (folder / name).read_bytes()
        for trace in (str(folder), str(photos), tempfile.gettempdir(), "site-packages", 'File "'):
            assert trace.encode() not in content, (name, trace)


def test_the_record_says_what_was_measured_on_what(written: tuple[Path, dict[str, Variant]]) -> None:
    folder, record = written
    assert set(record) == {"fp16", "int8"}
    for variant, name in ((record["fp16"], FP16_ONNX_FILE), (record["int8"], INT8_ONNX_FILE)):
        assert variant.bytes == (folder / name).stat().st_size
        fidelity = variant.fidelity
        assert (variant.data, fidelity.images) == ("photos", GOOD - 200)
        assert 0.97 < fidelity.min_cosine <= fidelity.mean_cosine <= 1
        assert 0.5 < fidelity.neighbour_agreement <= 1
        assert fidelity.knn20 is not None
        assert fidelity.knn20_fp32 is not None
        assert 0.3 < fidelity.knn20_fp32 <= 1  # Eight families, from the sub-folders; 59 images to vote by.
        change = 100 * (fidelity.knn20 - fidelity.knn20_fp32)
        assert fidelity.knn20_change_points == pytest.approx(change, abs=0.02)
        assert not variant.forced
    assert record["int8"].fidelity.min_cosine < record["fp16"].fidelity.min_cosine
    assert (record["int8"].calibration_images, record["int8"].held_out) == (200, True)
    assert (record["fp16"].calibration_images, record["fp16"].held_out) == (None, None)


def test_without_images_there_is_fp16_alone_measured_on_drawn_samples(model_folder: Path, tmp_path: Path) -> None:
    folder = graph_alone(model_folder, tmp_path)
    record = write_variants(folder, PRE)
    assert set(record) == {"fp16"}
    assert (record["fp16"].data, record["fp16"].fidelity.images) == ("drawn samples", 64)
    assert record["fp16"].fidelity.min_cosine > 0.9999
    assert files_of(folder) == {"onnx", FULL, FP16_ONNX_FILE}


def test_images_are_a_fixed_sample_and_none_is_both_calibrated_and_measured_on(photos: Path) -> None:
    first, second = (open_calibration(str(photos), PRE) for _ in range(2))
    assert (len(first.images), len(first.measured)) == (200, GOOD - 200)
    assert np.array_equal(first.images, second.images)
    assert np.array_equal(first.measured, second.measured)
    assert {image.tobytes() for image in first.images}.isdisjoint(image.tobytes() for image in first.measured)
    families = sorted(path.name for path in photos.iterdir())
    expected = {
        resize_and_crop(image, PRE).tobytes(): families.index(name.partition("_")[0])
        for name, image in draw_samples(GOOD, seed=3).items()
    }
    assert first.labels is not None
    assert [expected[image.tobytes()] for image in first.measured] == first.labels.tolist()


def test_fast_decoding_is_measured_on_the_images_that_it_changes(
    model_folder: Path, photos: Path, tmp_path: Path
) -> None:
    data = Path(some_of(photos, 210, tmp_path))
    small = open_calibration(str(data), PRE)
    assert measure_fast_decoding(model_folder, PRE, small) is None
    assert measure_fast_decoding(model_folder, PRE, None) is None
    files = []
    for name, image in draw_samples(5, seed=4).items():
        files.append(data / Path(name).with_suffix(".jpg").name)
        image.resize((500, 500)).save(files[-1], quality=90)
    calibration = open_calibration(str(data), PRE)
    assert len(calibration.large) == len(calibration.large_fast) == 5
    found = measure_fast_decoding(model_folder, PRE, calibration)
    assert found is not None
    assert (found.data, found.images) == (calibration.data, 5)
    exact, fast = (
        ImageEncoder.from_pretrained(model_folder, backend="onnx", decode=decode).embed(files)
        for decode in ("exact", "fast")
    )
    cosines = (exact * fast).sum(axis=1)
    assert found.min_cosine == pytest.approx(cosines.min(), abs=1e-5)
    assert found.mean_cosine == pytest.approx(cosines.mean(), abs=1e-5)
    assert found.min_cosine < 1


def test_large_sets_are_sampled_up_to_the_maxima(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="needs the extra train")
    monkeypatch.setattr("mixsiam_hub.export.variants.MAX_CALIBRATION", 210)
    monkeypatch.setattr("mixsiam_hub.export.variants.MAX_MEASURED", 300)
    calibration = open_calibration("digits", PRE)
    assert (calibration.data, len(calibration.images), len(calibration.measured)) == ("digits", 210, 300)


def test_few_images_serve_both_ends_and_the_record_can_say_so(photos: Path, tmp_path: Path) -> None:
    calibration = open_calibration(some_of(photos, 250, tmp_path), PRE)
    assert not calibration.held_out
    assert len(calibration.images) == 250
    assert np.array_equal(calibration.images, calibration.measured)


def test_too_few_readable_images_are_refused_with_both_numbers(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"199 images can be read.* at least 200"):
        open_calibration(some_of(photos, 199, tmp_path), PRE)


def test_a_bad_int8_graph_is_refused_by_its_figures_unless_forced(
    model_folder: Path,
    blank: Calibration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder, scratch = tmp_path / "folder", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    graph_alone(model_folder, folder)
    with pytest.raises(ModelError, match="int8 graph") as refused:
        write_variants(folder, PRE, blank)
    assert files_of(folder) == {"onnx", FULL}

    record = write_variants(folder, PRE, blank, force=True)
    assert files_of(folder) == {"onnx", FULL, FP16_ONNX_FILE, INT8_ONNX_FILE}
    assert record["int8"].forced
    assert not record["fp16"].forced
    mean, worst = record["int8"].fidelity.mean_cosine, record["int8"].fidelity.min_cosine
    assert worst < 0.97
    for told in (f"is {mean} on average", f"{worst} at worst", "0.995 and 0.97", "32 images of black", "force"):
        assert told in str(refused.value)
    assert files_of(scratch) == set()
    assert capfd.readouterr() == ("", "")
    assert [entry for entry in caplog.records if entry.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("mean", "worst", "is_refused"),
    [(0.995, 0.97, False), (0.9949, 0.99, True), (0.999, 0.9699, True)],
)
def test_either_limit_refuses(
    mean: float,
    worst: float,
    is_refused: bool,
    model_folder: Path,
    blank: Calibration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figures = Fidelity(64, mean, worst, neighbour_agreement=1.0)
    monkeypatch.setattr(variants, "compare", lambda full, small, labels: figures)
    folder = graph_alone(model_folder, tmp_path)
    if is_refused:
        with pytest.raises(ModelError, match=f"is {mean} on average and {worst} at worst"):
            write_variants(folder, PRE, blank)
    else:
        assert write_variants(folder, PRE, blank)["int8"].fidelity.min_cosine == worst
    assert (folder / INT8_ONNX_FILE).is_file() is not is_refused


def test_an_fp16_graph_that_overflows_is_left_out_unless_forced(model_folder: Path, tmp_path: Path) -> None:
    folder = graph_alone(model_folder, tmp_path)
    model = onnx.load(folder / FULL)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("backbone.conv1."):
            scaled = onnx.numpy_helper.to_array(tensor) * np.float32(1e5)
            tensor.CopyFrom(onnx.numpy_helper.from_array(scaled, tensor.name))
    onnx.save(model, folder / FULL)
    record = write_variants(folder, PRE)["fp16"]
    assert record.left_out
    assert record.fidelity.min_cosine < 0.97
    assert files_of(folder) == {"onnx", FULL}
    assert write_variants(folder, PRE, force=True)["fp16"].forced
    assert files_of(folder) == {"onnx", FULL, FP16_ONNX_FILE}
