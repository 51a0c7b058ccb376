"""What only a GPU can show: training, resuming and embedding on one. Run by name: python -m pytest -m gpu."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("sklearn", reason="needs the extra train")
pytest.importorskip("tensorboard", reason="needs the extra train")

from small_run import tell_to_stop

from mixsiam_hub import ImageEncoder
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.training.checkpoint import load_encoder, read_checkpoint
from mixsiam_hub.training.loop import train
from mixsiam_hub.training.recipe import Recipe, load_recipe

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU of CUDA")]


def recipe(run: Path, *more: str) -> Recipe:
    return load_recipe("digits", ["epochs=3", "workers=4", f"run_dir={run}", *more])


def test_digits_train_on_a_gpu(tmp_path: Path) -> None:
    outcome = train(recipe(tmp_path / "run"))
    assert outcome.finished
    encoder = load_encoder(outcome.run)
    assert encoder.provenance["device"].startswith("cuda")
    log = (outcome.run / "log.jsonl").read_text().splitlines()
    assert len(log) == 4
    assert outcome.verdict in ("healthy", "weak")


def test_a_run_resumes_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the same step; not bit for bit as on a CPU, since some kernels add up in no fixed order."""
    run = tmp_path / "run"
    tell_to_stop(monkeypatch, 19)
    assert train(recipe(run)).interrupted
    monkeypatch.undo()
    assert read_checkpoint(run)["step"] == 20
    outcome = train(recipe(run), resume=True)
    assert outcome.finished
    assert read_checkpoint(run)["step"] == 3 * (1797 * 9 // 10 // 128)


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.99999), ("fp16", 0.999), ("bf16", 0.99)])
def test_torch_on_a_gpu_embeds_as_onnxruntime_on_the_cpu(precision: str, least: float) -> None:
    images = list(draw_samples(12).values())
    here = ImageEncoder.from_pretrained(backend="onnx", device="cpu").embed(images)
    there = ImageEncoder.from_pretrained(backend="torch", device="cuda", precision=precision)
    assert there.device.startswith("cuda")
    assert np.sum(here * there.embed(images), axis=1).min() > least


def test_onnxruntime_on_a_gpu_embeds_as_on_the_cpu() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is not installed")
    images = list(draw_samples(12).values())
    here = ImageEncoder.from_pretrained(backend="onnx", device="cpu").embed(images)
    there = ImageEncoder.from_pretrained(backend="onnx", device="cuda").embed(images)
    assert np.sum(here * there, axis=1).min() > 0.999
