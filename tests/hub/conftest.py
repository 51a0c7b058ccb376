"""The local Hub as a fixture. Its package is loaded by path: importlib mode puts no test folder on sys.path."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hub_server import LocalHub

    from mixsiam_hub.model.folder import ModelFolder
    from mixsiam_hub.model.known_answers import Verified


def _load_hub_server() -> None:
    init = Path(__file__).parents[1] / "hub_server" / "__init__.py"
    spec = importlib.util.spec_from_file_location("hub_server", init)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["hub_server"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["hub_server"])


_load_hub_server()


@pytest.fixture(params=["xet", "lfs"])
def hub(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A fresh Hub, and the client signed in to it as Alice: every test runs by xet and by LFS.

    `@pytest.mark.parametrize("hub", ["xet"], indirect=True)` runs one that is about one of them.
    """
    from hub_server import LocalHub, point_client_at

    running = LocalHub()
    point_client_at(running, tmp_path / "hf_home", monkeypatch, use_xet=request.param == "xet")
    yield running
    running.close()


@pytest.fixture
def small_folder(compact_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is quick to push: nothing in it is replayed, and nothing lost is waited for."""
    pytest.importorskip("torch", reason="needs the extra export")
    from hub_server.model_push import make_small

    from mixsiam_hub.export import push as pushing
    from mixsiam_hub.model import known_answers
    from mixsiam_hub.model.known_answers import Verified

    def verify_nothing(folder: ModelFolder, *_: object, **__: object) -> Verified:
        return Verified(folder, len(folder.manifest.files), (), None)

    monkeypatch.setattr(pushing, "check_files", lambda folder: None)
    monkeypatch.setattr(known_answers, "verify", verify_nothing)
    monkeypatch.setattr(pushing, "WAITS_S", (0, 0))
    return make_small(compact_folder, tmp_path / "small")
