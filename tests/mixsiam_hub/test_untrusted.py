from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from needs import NAMED_PIPES, SOCKETS

from mixsiam_hub.errors import DataError, ImageError, MixsiamError, ModelError
from mixsiam_hub.untrusted import (
    field,
    integer,
    number,
    one_line,
    one_of,
    open_regular,
    parse_json,
    parsing,
    path_inside,
    quote,
    read_bytes,
    read_json,
    sha256_file,
    sha256_hex,
    text,
)

HOSTILE = "\x1b[31mred\nline\u202e\ud800"


# Files


@NAMED_PIPES
@pytest.mark.parametrize("read", [open_regular, read_bytes, read_json, sha256_file])
def test_named_pipe_is_refused_at_once(read: Callable[[Path], Any], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match=r"pipe is a pipe.*regular file"):
        read(tmp_path / "pipe")


@SOCKETS
def test_sockets_and_folders_are_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
        with pytest.raises(DataError, match="socket"):
            open_regular(tmp_path / "socket", DataError)
    with pytest.raises(ImageError, match="a folder"):
        open_regular(tmp_path, ImageError)


@pytest.mark.parametrize("name", ["absent", "a\0b", "n" * 300, "x/y/z"])
def test_file_that_cannot_be_opened_is_one_line_of_ours(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be opened") as caught:
        open_regular(tmp_path / name, DataError)
    assert str(caught.value).isprintable()


def test_bytes_are_read_up_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bytes(tmp_path / "file", 5) == b"12345"
    with pytest.raises(ModelError, match="5 bytes; at most 4"):
        read_bytes(tmp_path / "file", 4)


# JSON


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[1]",
        b"{} x",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"9" * 30 + b"}",
        b'{"a": ' + b"[" * 1000 + b"]" * 1000 + b"}",
        b'{"a":' * 100_000,
        b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}",
        b'{"\\ud800": 1}',
        b'{"a": ["\\udfff"]}',
    ],
)
def test_json_that_is_not_sane_is_refused_in_one_short_line(data: bytes) -> None:
    with pytest.raises(DataError, match=r"^x\.json ") as caught:
        parse_json(data, "x.json", DataError)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


def test_sound_json_is_read_and_a_later_field_wins(tmp_path: Path) -> None:
    data = '{"a": 1, "a": -2.5e-3, "b": ["é", "\\ud83d\\ude00", null, true, 999999999999999999]}'
    (tmp_path / "a.json").write_text(data, encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"a": -0.0025, "b": ["é", "😀", None, True, 10**18 - 1]}


def test_damaged_json_raises_nothing_but_our_errors() -> None:
    sound = b'{"a": [1, 2.5e3, {"b": "text \\u00e9", "c": null}], "d": -17, "e": "\\"\\n"}'
    chance = random.Random(0)
    refused = 0
    for _ in range(2000):
        data = bytearray(sound[: chance.randrange(len(sound) + 1)] if chance.random() < 0.2 else sound)
        for _ in range(chance.randrange(4) if data else 0):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        try:
            parse_json(bytes(data), "x.json")
        except MixsiamError:
            refused += 1
    assert 0 < refused < 2000


def test_whatever_a_parser_raises_becomes_ours_and_ours_stays() -> None:
    for cause in (RecursionError(), MemoryError(), KeyError("x"), OSError(5, "I/O error"), ValueError(HOSTILE)):
        with (
            pytest.raises(DataError, match=r"^file cannot be read as cheese: .") as caught,
            parsing("file", DataError, "cheese"),
        ):
            raise cause
        assert str(caught.value).isprintable()
    with pytest.raises(ImageError, match=r"^mine$"), parsing("file", DataError):
        raise ImageError("mine")


# Fields


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 2, True, "1", None, [1], 10**400])
def test_numbers_out_of_range_are_refused(value: object) -> None:
    with pytest.raises(DataError, match=r"^f: std is .*a number from 0\.001 to 1"):
        number(value, 1e-3, 1, "std", "f", DataError)


@pytest.mark.parametrize("value", [0, 5, 2.0, True, "2", None])
def test_integers_out_of_range_are_refused(value: object) -> None:
    with pytest.raises(ModelError, match=r"n is .*an integer from 1 to 4"):
        integer(value, 1, 4, "n", "f")


def test_values_in_range_are_given_back() -> None:
    assert number(1, 0, 1, "n", "f") == 1.0
    assert integer(4, 1, 4, "n", "f") == 4
    assert text("MIT", "license", "f") == "MIT"
    assert sha256_hex("0a" * 32, "sha", "f") == "0a" * 32
    assert field({"a": [1]}, "a", list, "f") == [1]


@pytest.mark.parametrize("value", ["a\nb", "\x1b[0m", "x" * 201, 3, None])
def test_text_must_be_a_line_that_prints(value: object) -> None:
    with pytest.raises(ModelError, match=r"^f: license is ") as caught:
        text(value, "license", "f")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", ["0A" * 32, "0a" * 31, "0a" * 32 + "\n", 5])
def test_sha256_is_64_hex_digits(value: object) -> None:
    with pytest.raises(ModelError, match="64 hex digits"):
        sha256_hex(value, "sha", "f")


def test_fields_have_their_type_and_choices_theirs() -> None:
    with pytest.raises(DataError, match="a is missing"):
        field({}, "a", int, "f", DataError)
    with pytest.raises(ModelError, match="a is True; it must be int"):
        field({"a": True}, "a", int, "f")
    one_of(32, (32, 16), "stride", "f")
    for value in (32.0, "32", [32], HOSTILE):
        with pytest.raises(ModelError, match="allowed are 32, 16"):
            one_of(value, (32, 16), "stride", "f")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "/a", "a/../b", "a//b", "a/", "a\\b", "C:a", "a\nb", "é" * 200, "n" * 300, "a/" * 9 + "a", 5, None],
)
def test_name_that_may_leave_its_folder_is_refused(name: object) -> None:
    with pytest.raises(ModelError, match=r"^mixsiam\.json: .* inside the folder") as caught:
        path_inside(Path("m"), name, "mixsiam.json")
    assert len(str(caught.value)) < 200


def test_name_inside_its_folder_is_joined() -> None:
    assert path_inside(Path("m"), "onnx/model é.onnx", "f") == Path("m", "onnx", "model é.onnx")


def test_quotes_are_short_and_print() -> None:
    for value in (HOSTILE, [HOSTILE] * 50, {"k": HOSTILE}, "x" * 10_000):
        assert quote(value).isprintable()
        assert len(quote(value)) <= 80
    assert one_line("a\n  b\x1b") == "a b\\x1b"
    assert quote("MIT") == "'MIT'"
