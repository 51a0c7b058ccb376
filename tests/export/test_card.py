"""README.md of a folder: figures with their floors, terms and limits, code that runs, metadata for the Hub."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx", reason="needs the extra export")

from huggingface_hub import ModelCard

from mixsiam_hub.export.card import BUILTIN_CARD, render_card
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model.config import ModelConfig, Preprocessing
from mixsiam_hub.model.figures import Evaluation, Fidelity, Parity, Variant, Whitening, evaluations_from_json
from mixsiam_hub.model.manifest import Manifest
from mixsiam_hub.training.recipe import load_recipe

ROWS = {
    "raw pixels": {"knn20": 0.25, "knn200": 0.24, "linear": 0.3},
    "random weights": {"knn20": 0.2, "knn200": 0.19, "linear": 0.28},
    "mixsiam": {"knn20": 0.41, "knn200": 0.4, "linear": 0.5},
}
EVALUATION: dict[str, Any] = {
    "train": "pets::train",
    "test": "pets::val",
    "n_train": 9000,
    "n_test": 1000,
    "classes": 12,
    "precision": "bf16",
    "rank": 90.5,
    "rows": ROWS,
    "fingerprint": "0" * 64,
    "clears_raw_pixels": True,
    "command": "mixsiam evaluate runs/pets --train pets::train --test pets::val",
}
ROWS_WITH_HEAD = {
    "embedding": {"knn20": 0.45, "knn200": 0.44, "linear": 0.49},
    "first 64 of it": {"knn20": 0.42, "knn200": 0.43},
    "pooled": ROWS["mixsiam"],
    "raw pixels": ROWS["raw pixels"],
    "raw pixels, whitened": {"knn20": 0.35, "knn200": 0.34},
}
HEAD = Whitening("pets::train", 9000, 0.02)
PARITY = Parity({"onnx": 1e-6}, (1, 2), 1.0, {"torch": "2.14.0"})
CONFIG = ModelConfig("resnet18", Preprocessing(64))
MANIFEST = Manifest(
    license="Apache-2.0",
    fingerprint="0" * 64,
    config_digest="0" * 64,
    card_sha256="",
    files={"report.png": "0" * 64, "neighbours.png": "0" * 64},
    training={"recipe": {"name": "pets", "data": "pets::train", "data_terms": "CC0"}, "seconds": 77, "commit": None},
    parity=PARITY,
    evaluations=evaluations_from_json({"evaluations": [EVALUATION]}, "report.json"),
)
IMPORTED = {
    "imported_from": "lightly",
    "file": "a.ckpt",
    "sha256": "1" * 64,
    "dropped": ["fc.weight"],
    "preprocessing": "what was given",
    "base_model": "lab/first",
}


def card(name: str | None = "pets", **changes: Any) -> str:
    config = replace(CONFIG, head_dim=256) if changes.get("head") else CONFIG
    return render_card(name, config, replace(MANIFEST, **changes))


def evaluated(**changes: Any) -> tuple[Evaluation, ...]:
    return evaluations_from_json({"evaluations": [EVALUATION | changes]}, "report.json")


def metadata(text: str) -> Any:
    return ModelCard(text).data


def test_every_figure_stands_with_its_floors_and_command() -> None:
    text = card()
    for name, cells in (("raw pixels", "25.0 | 24.0 | 30.0"), ("mixsiam", "41.0 | 40.0 | 50.0")):
        assert f"| {name} | {cells} |" in text
    assert str(EVALUATION["command"]) in text
    assert "Undertrained" not in text


def test_an_undertrained_encoder_is_called_so() -> None:
    assert "Undertrained" in card(evaluations=evaluated(clears_raw_pixels=False))


def test_an_encoder_with_a_head_stands_with_and_without_it_and_floors_that_were_treated_alike() -> None:
    text = card(head=HEAD, evaluations=evaluated(rows=ROWS_WITH_HEAD, clears_raw_pixels=False))
    for name, cells in (("embedding", "45.0 | 44.0 | 49.0"), ("pooled", "41.0 | 40.0 | 50.0")):
        assert f"| {name} | {cells} |" in text
    assert "| first 64 of it | 42.0 | 43.0 | - |" in text
    assert "| raw pixels, whitened | 35.0 | 34.0 | - |" in text
    assert "less than 5 points of kNN above whitened raw pixels" in text
    results = {result.metric_name: result.metric_value for result in metadata(text).eval_results}
    assert results == {
        "Accuracy of kNN, k = 20, %": 45.0,
        "Accuracy of kNN, k = 200, %": 44.0,
        "Accuracy of linear probe, %": 49.0,
    }


def test_a_measure_that_was_not_taken_is_no_result_on_the_hub() -> None:
    rows = ROWS_WITH_HEAD | {"embedding": {"knn20": 0.45, "knn200": 0.44}}
    results = metadata(card(head=HEAD, evaluations=evaluated(rows=rows))).eval_results
    assert [result.metric_value for result in results] == [45.0, 44.0]


def test_the_head_and_what_it_was_fitted_on_are_told() -> None:
    text = " ".join(card(head=HEAD).split())
    assert "whitens the 512 pooled features: its 256 numbers" in text
    assert "on 9,000 images of `pets::train`; directions with less than 0.02 of the largest variance" in text
    assert "resampling kernel" not in text
    resized = " ".join(card(head=replace(HEAD, resizing=3.0)).split())
    assert "What another resampling kernel changes in the features counted as variance, 3 times over" in resized
    assert "encoder.embed(images, pooled=True)" in text
    assert 'ImageEncoder.from_pretrained("pets", dim=64)' in text
    assert "ImageEncoder.from_pretrained(dim=64)" in card(BUILTIN_CARD, head=HEAD)
    without = card()
    assert "## The head" not in without
    assert "this encoder has no head" in without


def test_every_example_gives_the_embedding() -> None:
    with_head, without = card("lab/pets", head=HEAD), card("lab/pets")
    for line in ('["image_embeds"]', "{ image_embeds }", "# 256 numbers", "// 256 numbers", "(256,)"):
        assert line in with_head
        assert line not in without
    for line in ('["pooler_output"]', "{ pooler_output }", 'embed("one.jpg", { pool: true })', ".pooler_output[0]"):
        assert line in without
        assert line not in with_head


def test_figures_from_before_the_rounding_say_so() -> None:
    training = MANIFEST.training | {"fp16_rounding_min_cosine": 0.9999}
    for digit, is_said in (("1", True), ("0", False)):
        text = card(training=training, evaluations=evaluated(fingerprint=digit * 64))
        assert ("before the weights were rounded" in text) is is_said


def test_the_smaller_graphs_stand_with_what_they_were_measured_on() -> None:
    plain = Fidelity(900, 0.9991, 0.98, 0.95)
    classified = replace(plain, knn20=0.4, knn20_fp32=0.41, knn20_change_points=-1.0)
    fp16 = Variant(2_000_000, "pets", plain)
    int8 = Variant(2_000_000, "pets", classified, calibration_images=512, held_out=True, forced=True)
    text = card(parity=replace(PARITY, variants={"fp16": fp16, "int8": int8}))
    assert "| fp16 | 2.0 | 0.999100 | 0.980000 | 95.0 % | not measured |" in text
    assert "| int8, forced | 2.0 | 0.999100 | 0.980000 | 95.0 % | -1.00 |" in text
    assert "- fp16: 900 images of pets.\n" in text
    assert "kNN (k = 20) of the fp32 graph 41.0 %, each half of them classified by the other" in text
    assert "calibrated on 512 images, others of them." in text
    assert "| fp16, left out |" in card(parity=replace(PARITY, variants={"fp16": replace(fp16, left_out=True)}))
    assert "${onnx}/model_quantized.onnx" in text
    assert "model_quantized" not in card()


def test_what_is_not_known_is_said() -> None:
    text = card(evaluations=(), training={"recipe": {}})
    assert "Not measured" in text
    assert "Trained on data that were not recorded. Terms: not recorded." in text
    assert "| wall time, s | not recorded |" in text


def test_what_is_known_is_told() -> None:
    text = card()
    assert "Trained on pets::train. Terms: CC0." in text
    assert "| wall time, s | 77 |" in text
    assert "| commit of mixsiam-hub | not recorded |" in text
    assert "core-hours" not in text
    began = card(training={"core_hours": 5.5, "init": {"name": "builtin", "fingerprint": "1f", "core_hours": 2.7}})
    assert "| fingerprint of that | 1f |" in began
    for row in ("| core-hours | 5.5 |", "| began with | builtin |", "| core-hours of that | 2.7 |"):
        assert row in began
    assert "![" in text
    assert "](report.png)" in text
    assert "](neighbours.png)" in text
    assert "](at/report.png)" in render_card("pets", CONFIG, MANIFEST, pictures_at="at/")


def test_pictures_that_the_folder_lacks_are_not_linked() -> None:
    assert "![" not in card(files={})


def test_metadata_are_what_the_hub_reads() -> None:
    data = metadata(card())
    assert (data.library_name, data.pipeline_tag, data.license) == ("timm", "image-feature-extraction", "apache-2.0")
    assert {"mixsiam-hub", "onnx", "transformers.js", "self-supervised-learning"} <= set(data.tags)
    assert data.datasets == ["pets"]
    assert data.base_model is None
    assert data.model_name == "pets"
    results = {result.metric_name: result.metric_value for result in data.eval_results}
    assert results["Accuracy of kNN, k = 20, %"] == 41.0
    assert {result.dataset_name for result in data.eval_results} == {"pets::val"}


def test_a_folder_of_photos_is_no_dataset_of_the_hub() -> None:
    for data in ("", "my_photos", "photos/train.parquet"):
        assert metadata(card(training={"recipe": {"name": "folder", "data": data}})).datasets is None


def test_an_import_names_its_origin_and_no_training() -> None:
    text = card(training=IMPORTED, method="imported from lightly", evaluations=())
    assert "a checkpoint of `lightly`, the file `a.ckpt`\n" in text
    assert "heads that were dropped: 1;" in text
    assert "mixsiam train" not in text
    assert "arxiv.org" not in text
    assert metadata(text).base_model == "lab/first"
    assert "self-supervised-learning" not in metadata(text).tags


def test_a_run_that_went_on_from_a_hub_model_names_it(tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    for init, base in (("lab/first@v1", "lab/first"), (str(tmp_path / "lab"), None), ("", None)):
        recipe = load_recipe("digits", [f'init="{init}"']).to_json()
        assert metadata(card(training={"recipe": recipe})).base_model == base


@pytest.mark.parametrize("name", [BUILTIN_CARD, "my pets", "lab/pets"])
@pytest.mark.parametrize("weights", ["fp32", "fp16"])
@pytest.mark.parametrize("head", [None, HEAD])
@pytest.mark.parametrize(
    ("method", "training"),
    [("mixsiam", MANIFEST.training), ("simsiam", MANIFEST.training), ("imported from lightly", IMPORTED)],
)
def test_every_kind_of_card_is_whole(
    name: str | None, weights: str, head: Whitening | None, method: str, training: dict[str, Any]
) -> None:
    text = card(name, weights=weights, head=head, method=method, training=training, evaluations=())
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(block, "card", "exec")
    assert text.count("```") == 14
    assert ("MixSiam" in text) is (method == "mixsiam")
    assert ("BUILTIN" in text) is (name is BUILTIN_CARD)
    assert ("compact form" in text) is (weights == "fp16")
    assert "\n\n\n" not in text
    if name == "my pets":
        assert "mixsiam verify 'my pets'" in text


def test_a_folder_that_happens_to_be_called_builtin_is_not_the_builtin() -> None:
    text = card("builtin")
    assert "A small encoder" not in text
    assert 'ImageEncoder.from_pretrained("builtin")' in text


def test_free_text_is_no_markup() -> None:
    terms = "mine\n# Title <b>`code`"
    assert "Terms: mine # Title &lt;b&gt;'code'." in card(training={"recipe": {"data_terms": terms}})


HOSTILE = (
    "x\n\n# Title\n```\n| <script>a()</script> `code` **bold** _it_ [a](http://b.c) ![p](https://t.c/x.png) "
    "www.b.org https://b.org me@b.org $$x$$ {{ 7 * 7 }} \\ ~~a~~ &lt; \x1b[2J \u202e"
)


def outside_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"(?ms)^```.*?^```$", "", text.partition("\n---\n")[2]))


@pytest.mark.parametrize("imported", [False, True])
def test_nothing_that_a_foreign_mixsiam_json_says_is_markup(imported: bool) -> None:
    versions = {"torch": HOSTILE, "mixsiam-hub": [HOSTILE]}
    recipe = dict.fromkeys(("name", "data", "data_terms", "init", "epochs"), HOSTILE)
    training = {"recipe": recipe, "versions": versions, "commit": HOSTILE, "exported_from": [HOSTILE]}
    if imported:
        training |= dict.fromkeys(IMPORTED, HOSTILE) | {"dropped": [HOSTILE]}
    line = " ".join(HOSTILE.split()).replace("\x1b", "").replace("\u202e", "")
    evaluations = evaluated(rows={line: ROWS["mixsiam"]}, train=line, test=line, precision=line, command=line)
    variant = Variant(2_000_000, HOSTILE, Fidelity(900, 0.9991, 0.98, 0.95), calibration_images=200, held_out=True)
    parity = replace(PARITY, max_relative_error={line: 1e-6}, variants={"int8": variant})
    head = replace(HEAD, data=HOSTILE)
    changes = {"method": HOSTILE, "training": training, "evaluations": evaluations, "parity": parity, "head": head}
    text = card(HOSTILE, **changes)
    method = "imported from lightly" if imported else "own"
    benign = card("pets", method=method, training=training | {"commit": "c"}, head=HEAD)
    plain = outside_code(text)
    assert re.findall("^#.*", plain, re.MULTILINE)[1:] == re.findall("^#.*", outside_code(benign), re.MULTILINE)[1:]
    assert len(re.findall("^```", text, re.MULTILINE)) == 14
    for markup in (
        "<",
        "**bold",
        " _it",
        " [a]",
        "![p]",
        "www.b",
        "https://b.org",
        "me@b",
        "$$",
        "~~",
        "\x1b",
        "\u202e",
    ):
        assert markup not in plain, markup
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "{{ 7 \\* 7 }}" in plain
    assert metadata(text).license == "apache-2.0"
    assert metadata(text).base_model is None
    bars = {row.count("|") for row in plain.splitlines() if "| x # Title" in row}
    assert {4, 5} <= bars <= {3, 4, 5}


@pytest.mark.parametrize("recipe", [None, 3, [], "text", {"data": 3, "name": [], "init": {}}])
def test_provenance_of_another_form_is_none(recipe: Any) -> None:
    text = card(training={"recipe": recipe, "exported_from": 3, "dropped": 3})
    assert "Trained on data that were not recorded. Terms: not recorded." in text


def test_figures_that_came_with_another_repository_are_cited_and_it_is_the_base() -> None:
    sources = ["lab/first@" + "1" * 40, "lab/second@" + "2" * 40]
    text = card("me/third", training=MANIFEST.training | {"exported_from": sources})
    assert f"those that `{sources[0]}` and `{sources[1]}` states; this export" in " ".join(text.split())
    assert metadata(text).base_model == "lab/second"
    assert metadata(card("lab/second", training={"exported_from": sources})).base_model == "lab/first"
    assert "measured none of them" not in card()


def test_on_the_hub_every_example_names_the_repository() -> None:
    text = card("lab/pets")
    for line in (
        'ImageEncoder.from_pretrained("lab/pets")',
        'timm.create_model("hf-hub:lab/pets"',
        'AutoModel.from_pretrained("lab/pets")',
        'SentenceTransformer("lab/pets")',
        'pipeline("image-feature-extraction", "lab/pets")',
        "hf download lab/pets --local-dir pets",
        "mixsiam verify lab/pets",
    ):
        assert line in text
    assert 'timm.create_model("local-dir:pets"' in card("pets")


def test_nothing_of_the_template_is_left_over(model_folder: Path, compact_folder: Path, headed_folder: Path) -> None:
    for folder in (model_folder, compact_folder, headed_folder):
        text = (folder / "README.md").read_text(encoding="utf-8")
        assert not re.search(r"\{[{%]|[%}]\}|Undefined", text)
        assert "\n\n\n" not in text


_CHECK = """
import numpy
from mixsiam_hub import ImageEncoder
found = vectors[0] if "vectors" in dir() else vector
found = numpy.asarray(found.detach() if hasattr(found, "detach") else found)
expected = ImageEncoder.from_pretrained("model").embed("one.jpg")[0]
assert found @ expected / numpy.linalg.norm(found) > 0.9999
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["model_folder", "headed_folder"])
def test_its_python_runs_as_it_stands_and_gives_the_embedding(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(kind)
    for module in ("timm", "transformers", "sentence_transformers"):
        pytest.importorskip(module, reason="needs the extra dev")
    for name, image in zip(("one.jpg", "two.png"), draw_samples(2).values(), strict=True):
        image.save(tmp_path / name)
    (tmp_path / "model").symlink_to(folder)
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        code = f"{block}\n{_CHECK}"
        command = [sys.executable, "-c", code]
        result = subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
        )
        assert result.returncode == 0, f"{block}\n{result.stderr}"
