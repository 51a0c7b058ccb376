"""The command train: what its options become."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import run

for module in ("torch", "torchvision"):
    pytest.importorskip(module, reason="needs the extra train")

from mixsiam_hub.training import loop


@pytest.mark.parametrize(
    "data", ["📷/x", 'a"b', r"C:\new\u0041", "it's", "del\x7f", "tab\there", "true", "12", "a = b"]
)
def test_data_arrives_as_it_was_given(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = []

    def train(recipe: object, *, resume: bool) -> SimpleNamespace:
        recipes.append(recipe)
        return SimpleNamespace(
            run=Path("run"), verdict="healthy", summary="healthy: rank 9", finished=True, interrupted=False
        )

    monkeypatch.setattr(loop, "train", train)
    result = run("train", "digits", "--data", data)
    assert result.exit_code == 0, result.output
    assert [recipe.data for recipe in recipes] == [data]
