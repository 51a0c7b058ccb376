"""What a test needs of its machine."""

from __future__ import annotations

import os
import socket

import pytest

FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
NAMED_PIPES = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
SOCKETS = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no sockets in folders")


def need(missing: str | None) -> None:
    """Skips the test where something is missing; in CI, which must have everything, fails it.

    Args:
        missing: What is missing and the command that brings it; None if nothing is.
    """
    if missing is None:
        return
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)
