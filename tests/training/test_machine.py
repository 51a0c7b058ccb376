"""Which precision a machine trains in."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")

from mixsiam_hub.training import machine
from mixsiam_hub.training.machine import pick_precision


@pytest.mark.parametrize(("amx", "precision"), [(True, "bf16"), (False, "fp32")])
def test_a_cpu_trains_in_bf16_where_it_has_amx(monkeypatch: pytest.MonkeyPatch, amx: bool, precision: str) -> None:
    monkeypatch.setattr(machine, "has_amx", lambda: amx)
    assert pick_precision("auto", torch.device("cpu")) == precision


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_what_is_asked_for_is_taken(asked: str) -> None:
    assert pick_precision(asked, torch.device("cpu")) == asked
