"""Names come back as they were, in the order they were given."""

from __future__ import annotations

import pickle

import pytest

from mixsiam_hub.images.names import Names


def test_names_come_back() -> None:
    given = ["a.png", "", "é.png", "\udcff.png", "\U0001f600/x.png", "a.png"]
    names = Names.of(iter(given))
    assert list(names) == given
    assert list(pickle.loads(pickle.dumps(names))) == given
    for index in (-1, len(given)):
        with pytest.raises(IndexError):
            names[index]


def test_a_million_names_take_little_more_than_their_letters() -> None:
    names = Names.of(f"{index:06}.jpg" for index in range(1_000_000))
    assert len(names.joined) + names.ends.nbytes == 18_000_000
    assert names[999_999] == "999999.jpg"
