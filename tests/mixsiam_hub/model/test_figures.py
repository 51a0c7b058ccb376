"""The figures in mixsiam.json and report.json come back as they were written, and nothing else is read as figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from mixsiam_hub.errors import DataError, ModelError
from mixsiam_hub.model.figures import (
    Accuracy,
    Evaluation,
    FastDecoding,
    Fidelity,
    Parity,
    PreprocessParity,
    Variant,
    evaluations_from_json,
    evaluations_to_json,
)
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.model.hub import BUILTIN
from mixsiam_hub.model.manifest import Manifest

EVALUATION = Evaluation(
    train="pets::train",
    test="pets::val",
    n_train=9000,
    n_test=1000,
    classes=12,
    precision="bf16",
    rank=80.5,
    rows={"raw pixels": Accuracy(0.2, 0.1, 0.3), "mixsiam": Accuracy(0.4, 0.3, 0.5)},
    clears_raw_pixels=True,
    command="mixsiam evaluate runs/pets --train pets::train --test pets::val",
    fingerprint="0" * 64,
    steps=500,
    train_digest="1" * 64,
    test_digest="2" * 64,
)
FP16 = Variant(2_000_000, "pets", Fidelity(900, 0.9999, 0.999, 0.98))
INT8 = Variant(
    1_000_000,
    "pets",
    Fidelity(900, 0.999, 0.98, 0.9, knn20=0.4, knn20_fp32=0.41, knn20_change_points=-1.0),
    calibration_images=512,
    held_out=True,
    forced=True,
)
PARITY = Parity(
    {"torch": 1e-6, "onnx": 2e-6},
    (1, 17),
    0.9999999,
    {"torch": "2.14.0+cpu"},
    PreprocessParity(1, 0.25, ((2, 7), (31, 33))),
    {"fp16": FP16, "int8": INT8},
    FastDecoding("pets", 64, 0.9999, 0.9997),
)

Change = Callable[[Any], Any]


def through_json(raw: Any) -> Any:
    return json.loads(json.dumps(raw, allow_nan=False))


def test_figures_come_back_as_they_were_written() -> None:
    assert Parity.from_json(through_json(PARITY.to_json()), "file") == PARITY
    report = through_json(evaluations_to_json([EVALUATION]))
    assert evaluations_from_json(report, "file") == (EVALUATION,)
    assert evaluations_from_json({}, "file") == ()


def test_what_is_not_known_is_left_out() -> None:
    bare = Parity({"onnx": 0.0}, (1,), 1.0, {})
    assert "preprocess" not in bare.to_json()
    assert Parity.from_json(through_json(bare.to_json()), "file") == bare
    assert "knn20" not in FP16.to_json()
    assert "held_out" not in FP16.to_json()


def test_a_manifest_holds_them_and_writes_plain_json() -> None:
    manifest = Manifest("MIT", "0" * 64, "1" * 64, "2" * 64, {}, parity=PARITY, evaluations=(EVALUATION,))
    raw = manifest.to_json()
    assert through_json(raw) == raw
    assert Manifest.from_json(raw) == manifest


def test_the_built_in_folder_is_read() -> None:
    manifest = ModelFolder.open(BUILTIN).manifest
    assert manifest.parity is not None
    assert manifest.parity.batch_sizes == (1, 2, 3, 17)
    assert {row for entry in manifest.evaluations for row in entry.rows} >= {
        "raw pixels",
        "random weights",
        "embedding",
    }


def changed(raw: Any, path: str, value: Any) -> Any:
    """Returns the JSON with one value replaced, or, by `...`, removed."""
    raw = through_json(raw)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    place = raw
    for part in parents:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("n_test", -1, "n_test"),
        ("n_test", 0.5, "n_test"),
        ("n_test", True, "n_test"),
        ("rank", float("nan"), "rank"),
        ("rank", float("inf"), "rank"),
        ("rank", ..., "rank is missing"),
        ("rows/mixsiam/knn20", 1.01, r"rows\.mixsiam: knn20"),
        ("rows/mixsiam/knn20", ..., "knn20 is missing"),
        ("rows/mixsiam/knn5", 0.5, "unknown key 'knn5'"),
        ("rows/mixsiam", 0.5, "must be a JSON object"),
        ("rows", [], "must be a JSON object"),
        ("rows/a\nb", {"knn20": 0, "knn200": 0, "linear": 0}, "a name"),
        ("clears_raw_pixels", 1, "clears_raw_pixels"),
        ("command", "rm\x1b[2J", "command"),
        ("fingerprint", "0", "sha256"),
        ("train_digest", "x" * 64, "sha256"),
        ("steps", "many", "steps"),
        ("best", 1, "unknown key 'best'"),
    ],
)
def test_an_evaluation_that_is_none_is_refused_by_field(path: str, value: Any, reason: str) -> None:
    report = changed(evaluations_to_json([EVALUATION]), f"evaluations/0/{path}", value)
    with pytest.raises(DataError, match=f"report.json: evaluations.0.*{reason}"):
        evaluations_from_json(report, "report.json", DataError)


@pytest.mark.parametrize("report", [{"results": []}, {"evaluations": {}}, {"evaluations": [3]}, [3], "text"])
def test_another_projects_report_is_refused(report: Any) -> None:
    with pytest.raises(ModelError, match=r"report\.json"):
        evaluations_from_json(report, "report.json")


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("max_relative_error/onnx", float("nan"), r"max_relative_error\.onnx"),
        ("max_relative_error/onnx", -1e-9, r"max_relative_error\.onnx"),
        ("batch_sizes", "1", "must be a list"),
        ("batch_sizes/0", 0, r"batch_sizes\.0"),
        ("file_to_vector_min_cosine", 1.5, "file_to_vector_min_cosine"),
        ("versions/torch", "2\n", r"versions\.torch"),
        ("preprocess/max_levels", -1, "max_levels"),
        ("preprocess/sizes/0", [1], "height, width"),
        ("preprocess/levels", 1, "unknown key 'levels'"),
        ("variants/int8/min_cosine", float("-inf"), "min_cosine"),
        ("variants/int8/bytes", 1e300, "bytes"),
        ("variants/int8/forced", "no", "forced"),
        ("variants/int8/knn20_change_points", 101, "knn20_change_points"),
        ("variants/int8/data", ..., "data is missing"),
        ("variants/int8/speed", 2, "unknown key 'speed'"),
        ("fast_decoding/min_cosine", 1.1, r"fast_decoding: min_cosine"),
        ("fast_decoding/images", ..., "images is missing"),
        ("fast_decoding/speed", 2, "unknown key 'speed'"),
        ("speed", 2, "unknown key 'speed'"),
    ],
)
def test_parity_that_is_none_is_refused_by_field(path: str, value: Any, reason: str) -> None:
    with pytest.raises(ModelError, match=f"^mixsiam.json: parity.*{reason}"):
        Parity.from_json(changed(PARITY.to_json(), path, value), "mixsiam.json: parity")
