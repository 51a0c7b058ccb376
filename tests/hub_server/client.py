"""Points huggingface_hub, in this process and in those it starts, at a local Hub.

huggingface_hub reads the environment once, when it is imported, and other tests have long imported it by then: so the
values that it read are replaced beside the environment. The names are those of version 2.4.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .server import ALICE, LocalHub

UNSET = (
    *("HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"),
    *("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_XET_CACHE", "HF_ASSETS_CACHE"),
)
"""What would point the client at another account, mode or cache."""


def point_client_at(hub: LocalHub, home: Path, monkeypatch: pytest.MonkeyPatch, *, use_xet: bool = True) -> None:
    """Signs the client in as Alice, with a cache of its own.

    Args:
        hub: The server.
        home: An empty folder, the HF_HOME.
        monkeypatch: Undoes it all after the test.
        use_xet: False is HF_HUB_DISABLE_XET=1: large files go by LFS.
    """
    for name in UNSET:
        monkeypatch.delenv(name, raising=False)
    _set_environment(hub, home, monkeypatch, use_xet)
    _set_constants(hub, home, monkeypatch, use_xet)


def _set_environment(hub: LocalHub, home: Path, monkeypatch: pytest.MonkeyPatch, use_xet: bool) -> None:
    values = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": ALICE,
        "HF_HUB_DISABLE_XET": "0" if use_xet else "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def _set_constants(hub: LocalHub, home: Path, monkeypatch: pytest.MonkeyPatch, use_xet: bool) -> None:
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import _http

    values = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_XET_CACHE": str(home / "xet"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_HUB_DISABLE_XET": not use_xet,
        "HF_HUB_OFFLINE": False,
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(constants, "HF_URL_HOSTS", constants.HF_URL_HOSTS | {"127.0.0.1"})
    monkeypatch.setattr(_http, "_HUB_ORIGINS", _http._HUB_ORIGINS | {_http._url_origin(hub.url)})
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
