from __future__ import annotations

import gc
import os
import threading

import pytest
from needs import FORK

from mixsiam_hub.per_process import PerProcess


def test_value_is_made_once_and_only_when_asked_for() -> None:
    made: list[int] = []

    def make() -> list[int]:
        made.append(1)
        return made

    value = PerProcess(make)
    assert not made
    assert value.get() is value.get()
    assert len(made) == 1


@FORK
def test_forked_child_makes_its_own_even_while_a_thread_of_the_parent_is_making_it() -> None:
    making, release = threading.Event(), threading.Event()
    parent = os.getpid()

    def make() -> int:
        if os.getpid() == parent:
            making.set()
            release.wait(30)
        return os.getpid()

    value = PerProcess(make)
    thread = threading.Thread(target=value.get)
    thread.start()
    making.wait(30)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if value.get() == os.getpid() else 1)
    release.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert value.get() == parent


@FORK
@pytest.mark.parametrize("is_dropped_before", [True, False])
def test_forked_child_never_frees_what_the_parent_made(is_dropped_before: bool) -> None:
    parent = os.getpid()

    class Session:
        def __del__(self) -> None:
            if os.getpid() != parent:
                os._exit(1)  # A session would wait here for threads that the child does not have.

    class User:
        def __init__(self) -> None:
            self.session = PerProcess(Session)
            self.session.get()
            self.myself = self  # Only the garbage collector frees it.

    gc.disable()
    try:
        user: User | None = User()
        if is_dropped_before:
            user = None
        pid = os.fork()
        if pid == 0:
            user = None
            gc.collect()
            os._exit(0)
    finally:
        gc.enable()
    del user
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
