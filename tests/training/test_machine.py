"""Which precision a machine trains in."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")

from mixsiam_hub.training import machine
from mixsiam_hub.training.machine import bf16_trains_faster, has_fast_bf16, pick_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "is_faster", "precision"),
    [
        (True, True, False, "bf16"),  # Not timed.
        (False, True, True, "bf16"),
        (False, True, False, "fp32"),
        (False, False, True, "fp32"),
    ],
)
def test_a_cpu_trains_in_bf16_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512_bf16: bool, is_faster: bool, precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(machine, "bf16_trains_faster", lambda: is_faster)
    assert pick_precision("auto", CPU) == precision
    assert has_fast_bf16(CPU) == amx


@pytest.mark.parametrize(("slow", "expected"), [("fp32", True), ("bf16", False)])
def test_bf16_is_timed_against_fp32_and_leaves_random_numbers_alone(
    monkeypatch: pytest.MonkeyPatch, slow: str, expected: bool
) -> None:
    now = [0.0]

    def pass_time(network: torch.nn.Module, *_: object) -> None:
        now[0] += 2 if (slow == "bf16") == torch.is_autocast_enabled("cpu") else 1

    monkeypatch.setattr(machine.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(machine, "_TIMED_SHAPE", (2, 3, 16, 16))
    torch.manual_seed(0)
    first = torch.rand(1)
    torch.manual_seed(0)
    with torch.nn.modules.module.register_module_forward_pre_hook(pass_time):
        assert bf16_trains_faster.__wrapped__() is expected
    assert torch.rand(1) == first


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_what_is_asked_for_is_taken(asked: str) -> None:
    assert pick_precision(asked, torch.device("cpu")) == asked
