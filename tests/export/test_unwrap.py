"""What training scripts wrap around a network comes off by three rules, and nothing else does."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra export")

from mixsiam_hub.errors import ModelError
from mixsiam_hub.export.layouts import LAYOUTS
from mixsiam_hub.export.unwrap import NESTS, Unwrapped, unwrap

PATH = Path("weights.pth")
NAMES = ("conv1.weight", "bn1.weight", "fc.weight")


def state(*prefixes: str, names: tuple[str, ...] = NAMES, value: float = 0.0) -> dict[str, Any]:
    return {"".join(prefixes) + name: torch.full((1,), value) for name in names}


def opened(content: object, source: str = "torchvision") -> Unwrapped:
    return unwrap(content, LAYOUTS[source].prefix, PATH)


def test_a_plain_state_dict_stays_as_it_is() -> None:
    found = opened(OrderedDict(state()))
    assert list(found.tensors) == list(NAMES)
    assert (found.steps, found.dropped) == ([], [])


@pytest.mark.parametrize(
    ("content", "steps"),
    [
        ({"state_dict": state(), "epoch": 3}, ["state_dict"]),
        ({"model": state(), "optimizer": {"state": {}, "param_groups": []}}, ["model"]),
        ({"model": {"state_dict": state(), "lr": 0.1}}, ["model", "state_dict"]),
        ({"module": state(), "epoch": 3}, ["module"]),
        ({"ema": {"module": state(), "decay": 0.9}}, ["ema", "module"]),
        ({"state_dict": state(value=1), "state_dict_ema": state()}, ["state_dict_ema, not state_dict"]),
        ({"model": state(value=1), "model_ema": state()}, ["model_ema, not model"]),
    ],
)
def test_nested_dictionaries_are_opened_averages_first(content: dict[str, Any], steps: list[str]) -> None:
    found = opened(content)
    assert found.steps == steps
    assert {name: float(tensor) for name, tensor in found.tensors.items()} == dict.fromkeys(NAMES, 0.0)


@pytest.mark.parametrize("key", NESTS)
def test_every_nest_is_opened(key: str) -> None:
    assert opened({key: state(), "epoch": 1}).steps == [key]


@pytest.mark.parametrize(
    ("prefixes", "steps"),
    [
        (["module."], ["module."]),
        (["_orig_mod."], ["_orig_mod."]),
        (["model."], ["model."]),
        (["encoder."], ["encoder."]),
        (["module.", "encoder."], ["module.", "encoder."]),
        (["module.", "_orig_mod.", "model.", "encoder."], ["_orig_mod.", "module.", "model.", "encoder."]),
        (["model.", "_orig_mod.", "model."], ["_orig_mod.", "model.", "model."]),
    ],
)
def test_prefixes_come_off_again_and_again_and_the_old_names_are_kept(prefixes: list[str], steps: list[str]) -> None:
    found = opened(state(*prefixes))
    assert found.steps == steps
    assert found.names == {name: "".join(prefixes) + name for name in NAMES}
    assert list(found.tensors) == list(NAMES)


def test_a_prefix_that_belongs_to_the_layout_stays() -> None:
    names = ("encoder.conv1.weight", "predictor.0.weight")
    assert list(opened(state("module.", names=names), "simsiam").tensors) == list(names)
    alone = opened(state("encoder."), "simsiam")
    assert (next(iter(alone.tensors)), alone.steps) == ("encoder.conv1.weight", [])


def test_wrappers_come_out_of_the_middle() -> None:
    names = ("backbone._orig_mod.0.weight", "projection_head.layers.0.weight")
    found = opened(state(names=names), "lightly")
    assert list(found.tensors) == ["backbone.0.weight", "projection_head.layers.0.weight"]
    assert found.names["backbone.0.weight"] == names[0]


def test_a_prefix_that_only_some_names_have_stays() -> None:
    content = state("model.") | state(names=("criterion.weight",))
    assert "model.conv1.weight" in opened(content).tensors


def test_torchs_averaged_model_is_unwrapped() -> None:
    net = torch.nn.Sequential(OrderedDict(conv1=torch.nn.Conv2d(3, 4, 7, bias=False)))
    found = opened(torch.optim.swa_utils.AveragedModel(net).state_dict())
    assert (list(found.tensors), found.steps) == (["conv1.weight"], ["module."])
    assert found.dropped == ["n_averaged"]


def test_torchs_own_wrappers_are_known_by_their_names() -> None:
    net = torch.nn.Sequential(OrderedDict(conv1=torch.nn.Conv2d(3, 4, 7, bias=False)))
    for wrapped in (torch.nn.DataParallel(net), torch.compile(net), torch.compile(torch.nn.DataParallel(net))):
        assert list(opened(wrapped.state_dict()).tensors) == ["conv1.weight"]


def test_two_names_that_become_one_are_refused() -> None:
    with pytest.raises(ModelError, match=r"'conv1\.weight' and 'module\.conv1\.weight' have"):
        opened(state() | state("module."))
