from __future__ import annotations

import os
import threading

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
