"""A run of eight steps on a tenth of the digits, and what stops it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from mixsiam_hub.training import loop
from mixsiam_hub.training.checkpoint import read_checkpoint
from mixsiam_hub.training.recipe import Recipe, load_recipe

OVERRIDES = [
    'data="digits::val"',
    'val_data="digits::val"',
    "epochs=2",
    "batch_size=44",
    "lr=0.03",
    "threads=1",
    "output_stride=32",
    "projector_dim=64",
    "predictor_dim=16",
]


def recipe(run: Path, *more: str) -> Recipe:
    """Four steps an epoch of a tenth of the digits, 32 px."""
    return load_recipe("digits", [*OVERRIDES, f'run_dir="{run}"', *more])


def log(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
    return lines


def assert_same_run(a: Path, b: Path) -> None:
    """Equal weights, optimiser state and log, but for the time it took."""
    one, two = read_checkpoint(a), read_checkpoint(b)
    assert one["step"] == two["step"]
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, two["model"][name]), name
    for name, tensor in one["statistics"].items():
        assert torch.equal(tensor, two["statistics"][name]), name
    assert str(one["head"]) == str(two["head"])
    for index, state in one["optimiser"]["state"].items():
        assert torch.equal(state["momentum_buffer"], two["optimiser"]["state"][index]["momentum_buffer"])
    assert log(a) == log(b)


def before_each_step(monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """Calls act(trainer) before each step of the runs to come."""
    step = loop._Trainer._step

    def act_and_step(trainer: Any, batch: Any) -> None:
        act(trainer)
        step(trainer, batch)

    monkeypatch.setattr(loop._Trainer, "_step", act_and_step)


def tell_to_stop(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Sends SIGTERM in the step that comes after so many."""
    before_each_step(
        monkeypatch, lambda trainer: signal.raise_signal(signal.SIGTERM) if trainer.progress.step == at else None
    )
