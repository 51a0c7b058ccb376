"""The commands embed, search and demo: what they write, print and refuse."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import signal
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import assert_one_error_line, run, start
from PIL import Image
from tqdm import tqdm

from mixsiam_hub.backends.choose import AUTO, BACKENDS, DEVICES, PRECISIONS
from mixsiam_hub.cli.embedding import _Count, _show_tally
from mixsiam_hub.cli.group import EXIT_SKIPPED, main
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.model import hub
from mixsiam_hub.vectors.bulk import Tally
from mixsiam_hub.vectors.table import read_vectors, write_vectors


@pytest.fixture(scope="module")
def stored(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vector file of the images."""
    out = tmp_path_factory.mktemp("stored") / "v.npz"
    assert run("embed", images, "--out", out).exit_code == 0
    return out


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.jpg"
    path.write_bytes(b"no image")
    return path


def listed(out: Path) -> dict[str, str]:
    """What the list of errors beside a vector file holds."""
    lines = out.with_name(f"{out.name}.errors.jsonl").read_text().splitlines()
    return {entry["key"]: entry["reason"] for entry in map(json.loads, lines)}


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_embed_writes_a_unit_vector_for_each_image(images: Path, tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="needs the extra bulk")
    out = tmp_path / f"v{suffix}"
    result = run("embed", images, "--model", hub.BUILTIN, "--out", out, "--batch-size", 5, "--backend", "onnx")
    assert result.exit_code == 0, result.output
    vectors = read_vectors(out)
    assert vectors.ids == sorted(str(path) for path in images.iterdir())
    np.testing.assert_allclose(np.linalg.norm(vectors.vectors, axis=1), 1, atol=1e-5)
    assert vectors.model == str(hub.BUILTIN)
    assert result.stdout.splitlines()[-1] == f"{out}: 16 vectors of 512; by onnx on cpu, fp32-exact"
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_embed_reads_the_column_that_is_named(images: Path, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs the extra bulk")
    pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra bulk")
    data, out = tmp_path / "data.parquet", tmp_path / "v.npz"
    pq.write_table(pa.table({"scan": [file.read_bytes() for file in sorted(images.iterdir())[:3]]}), data)
    assert_one_error_line(run("embed", data, "--out", out), "no column 'image'; it has scan", "--column")
    assert run("embed", data, "--column", "scan", "--out", out).exit_code == 0
    assert read_vectors(out).ids == [f"{data}#{row}" for row in range(3)]


def test_embed_reads_tars_and_lists(images: Path, tmp_path: Path) -> None:
    files = sorted(images.iterdir())[:3]
    shard, paths, out = tmp_path / "shard.tar", tmp_path / "paths.txt", tmp_path / "v.npz"
    with tarfile.open(shard, "w") as tar:
        for file in files:
            tar.add(file, file.name)
    paths.write_text("".join(f"{file}\n" for file in files))
    assert run("embed", shard, paths, "--out", out).exit_code == 0
    vectors = read_vectors(out)
    assert vectors.ids == [f"{shard}#{file.name}" for file in files] + [str(file) for file in files]
    np.testing.assert_allclose(vectors.vectors[:3], vectors.vectors[3:], atol=1e-5)


def test_the_input_is_never_replaced(images: Path, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs the extra bulk")
    pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra bulk")
    data = tmp_path / "data.parquet"
    pq.write_table(pa.table({"image": [next(images.iterdir()).read_bytes()]}), data)
    content = data.read_bytes()
    assert_one_error_line(run("embed", data, "--out", data), "is one of the inputs", "give the output another name")
    assert data.read_bytes() == content


def test_a_list_of_keys_is_never_replaced_by_what_is_embedded_of_it(images: Path, tmp_path: Path) -> None:
    out, keys = tmp_path / "v.npy", tmp_path / "v.keys.txt"
    assert run("embed", images, "--out", out).exit_code == 0
    content = keys.read_bytes()
    assert_one_error_line(run("embed", keys, "--out", out), "v.keys.txt is one of the inputs")
    assert keys.read_bytes() == content


def test_embed_skips_counts_and_lists_bad_files(images: Path, bad: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.npz"
    result = run("embed", bad, images, "--out", out)
    assert result.exit_code == EXIT_SKIPPED
    assert f"{out}.errors.jsonl says what could not be read" in result.stderr
    assert f"{out}: 16 vectors of 512; images skipped: 1; by onnx" in result.stdout
    assert list(listed(out)) == [str(bad)]
    assert "is not an image" in listed(out)[str(bad)]
    assert len(read_vectors(out).ids) == 16
    assert run("embed", images, "--out", out).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jpg", "v.npz"]  # The stale list went.


def test_a_list_of_errors_belongs_to_its_output(images: Path, bad: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra bulk")
    own = tmp_path / "errors.jsonl"
    own.write_text("my own\n")
    assert run("embed", bad, images, "--out", tmp_path / "first.npz").exit_code == EXIT_SKIPPED
    for other in ("second.npz", "first.parquet"):
        assert run("embed", images, "--out", tmp_path / other).exit_code == 0
    assert own.read_text() == "my own\n"
    assert list(listed(tmp_path / "first.npz")) == [str(bad)]


def test_strict_stops_at_the_first_bad_file_and_writes_nothing(images: Path, bad: Path, tmp_path: Path) -> None:
    result = run("embed", images, bad, "--out", tmp_path / "v.npz", "--strict")
    assert_one_error_line(result, str(bad))
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jpg"]


def test_embed_into_a_folder_goes_on_and_search_reads_it(images: Path, bad: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra bulk")
    out, some = tmp_path / "vectors", sorted(images.iterdir())[:6]
    result = run("embed", *some, "--out", f"{out}/")
    assert result.exit_code == 0, result.output
    assert f"{out}: 6 images embedded; already there: 0; errors: 0; " in result.stdout
    result = run("embed", images, bad, "--out", out, "--hash")
    assert result.exit_code == EXIT_SKIPPED
    assert f"{out / '_errors.jsonl'} says what could not be read" in result.stderr
    assert f"{out}: 10 images embedded; already there: 6; errors: 1; " in result.stdout
    assert re.search(r" s, [\d.]+ images/s; by onnx on cpu, fp32-exact$", result.stdout)
    query = images / "ring_00.png"
    found = run("search", out, query, "-k", 3, "--sheet", tmp_path / "sheet.png").stdout.splitlines()
    assert found[1].split() == ["1.000", str(query)]
    assert_one_error_line(
        run("embed", images, "--out", out, "--dtype", "float16"), "of dtype float32", "another folder"
    )
    assert_one_error_line(
        run("embed", images, "--out", out, "--dim", 64), "of variant fp32-exact ", "not fp32-exact-64"
    )
    assert_one_error_line(run("search", out, query, "--dim", 64), "of variant fp32-exact,")


def test_what_is_a_folder_of_vectors_and_what_is_not(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra bulk")
    copy = Path(shutil.copytree(images, tmp_path / "photos"))
    for arguments, words in [
        ((copy, "--out", tmp_path / "v.npz", "--dtype", "float16"), "are for a folder of shards"),
        ((copy, "--out", tmp_path / "v.npy", "--hash"), "are for a folder of shards"),
        ((copy, "--out", tmp_path / "v.1"), "must end in .npz, .parquet, .npy, or be a folder"),
        ((copy, "--out", copy), "is one of the inputs"),
        ((copy / "ring_00.png", "--out", copy), "holds files and no _manifest.json"),
        ((copy, "--out", tmp_path / "new", "--model", tmp_path / "absent"), "absent"),
    ]:
        assert_one_error_line(run("embed", *arguments), words)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    assert len(list(copy.iterdir())) == 16
    (tmp_path / "v.1").mkdir()
    assert run("embed", copy, "--out", tmp_path / "v.1").exit_code == 0
    assert len(read_vectors(tmp_path / "v.1").ids) == 16


def test_embed_writes_a_bare_matrix(images: Path, stored: Path, bad: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.npy"
    assert run("embed", images, bad, "--out", out).exit_code == EXIT_SKIPPED
    vectors = read_vectors(stored)
    np.testing.assert_allclose(np.load(out, allow_pickle=False), vectors.vectors, atol=1e-5)
    assert (tmp_path / "v.keys.txt").read_text().splitlines() == vectors.ids
    assert list(listed(out)) == [str(bad)]


def test_interrupting_a_folder_keeps_what_is_done(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra bulk")
    hangs = """
import signal, time
from mixsiam_hub.images import stream
from mixsiam_hub.vectors.shard_writer import ShardWriter
signal.signal(signal.SIGINT, signal.default_int_handler)  # A test run in the background ignores it.
load, put, loaded, stored = stream.load_pixels_and_facts, ShardWriter.put, [], []
def put_counted(*arguments):
    put(*arguments)
    stored.append(1)
def load_seven(*arguments, **options):
    loaded.append(1)
    if len(loaded) > 7:
        while len(stored) < 6:
            time.sleep(0.01)
        print("decoding", flush=True)
        time.sleep(600)
    return load(*arguments, **options)
stream.load_pixels_and_facts, ShardWriter.put = load_seven, put_counted
"""
    out = tmp_path / "vectors"
    process = start("embed", images, "--out", out, "--batch-size", "3", "--threads", "1", code=hangs)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"decoding\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.decode().splitlines() == [f"{out} holds what was embedded; the same command goes on", "interrupted"]
    assert len(read_vectors(out).ids) == 6
    assert "10 images embedded; already there: 6;" in run("embed", images, "--out", out).stdout


def test_the_bar_counts_what_is_embedded_now(capsys: pytest.CaptureFixture[str]) -> None:
    with tqdm(total=100, unit=" images") as bar:
        count = _Count(lambda: None)
        _show_tally(bar, count, Tally(embedded=6, present=70, errors=1))
        assert bar.total is None  # They are not counted yet.
        count.total = 100
        _show_tally(bar, count, Tally(embedded=18, present=70, errors=2))
        assert (bar.n, bar.total) == (20, 30)
        bar.refresh()
    assert "20/30 [" in (shown := capsys.readouterr().err)
    assert "errors=2" in shown


def lock(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Makes a folder unreadable, to root too."""
    scandir = os.scandir

    def locked(path: str) -> object:
        if os.fspath(path) == str(folder):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)


def test_a_folder_that_cannot_be_searched_is_an_error_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "v.npz"
    for name, image in zip(("a.png", "sub/b.png"), draw_samples(2).values(), strict=True):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(photos / name)
    (photos / "notes.txt").touch()
    (photos / "more.txt").touch()
    lock(monkeypatch, photos / "sub")
    result = run("embed", photos, "--out", out)
    assert result.exit_code == EXIT_SKIPPED
    assert listed(out) == {str(photos / "sub"): "Permission denied"}
    assert read_vectors(out).ids == [str(photos / "a.png")]
    summary = "1 vectors of 512; files left out for their suffix: 2; folders not searched: 1; by"
    assert summary in result.stdout.splitlines()[-1]
    out.unlink()
    assert_one_error_line(run("embed", photos, "--out", out, "--strict"), str(photos / "sub"), "Permission denied")
    assert not out.exists()
    result = run("demo", photos, "--out", tmp_path / "demo")
    assert f"{photos / 'sub'}: Permission denied" in result.stderr


@pytest.mark.parametrize("out", ["v.csv", "absent/v.npz", "folder.npz", "file.txt/v.npz", f"{'n' * 300}.npz"])
def test_a_place_that_cannot_be_written_is_found_before_the_work(images: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "file.txt").touch()
    assert_one_error_line(run("embed", images, "--model", "absent", "--out", tmp_path / out), out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt", "folder.npz"]


def test_the_options_of_the_encoder_are_those_of_the_library(images: Path, stored: Path, tmp_path: Path) -> None:
    commands = {"embed": (images, "--out", tmp_path / "v.npz"), "search": (stored, images), "demo": (images,)}
    words = {"backend": BACKENDS, "device": DEVICES, "precision": (*PRECISIONS, AUTO)}
    for name, arguments in commands.items():
        options = {option.name: option for option in main.commands[name].params}
        for option, allowed in words.items():
            assert set(re.findall(r"[\w:]+", options[option].help)) - {"or"} == set(allowed)
            assert_one_error_line(run(name, *arguments, f"--{option}", "x"), f"{option} is 'x'")
        assert run(name, *arguments, "--threads", 0).exit_code == 2
        assert_one_error_line(run(name, *arguments, "--model", tmp_path), "config.json")


def test_search_finds_the_query_first(images: Path, stored: Path, tmp_path: Path) -> None:
    query = images / "ring_00.png"
    sheet = tmp_path / "sheet.png"
    result = run("search", stored, query, "-k", 3, "--sheet", sheet, "--backend", "onnx", "--threads", 1)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == str(query)
    assert lines[1].split() == ["1.000", str(query)]
    assert len(lines) == 5  # The query, three neighbours, the sheet.
    with Image.open(sheet) as image:
        assert image.format == "PNG"


def test_search_refuses_other_vectors_with_advice_that_works(images: Path, stored: Path, tmp_path: Path) -> None:
    query, copy = images / "ring_00.png", tmp_path / "a copy"
    shutil.copytree(hub.BUILTIN, copy)
    vectors, other = read_vectors(stored), tmp_path / "v.npz"
    write_vectors(other, replace(vectors, fingerprint="ab" * 32))
    assert_one_error_line(run("search", other, query), "of fingerprint abababababab", "leave --model out, or embed")
    write_vectors(other, replace(vectors, fingerprint="ab" * 32, model=str(copy)))
    assert_one_error_line(run("search", other, query), f"give --model '{copy}', or embed")
    assert run("search", stored, query, *shlex.split(f"--model '{copy}'")).exit_code == 0
    write_vectors(other, replace(vectors, variant="fp16-exact"))
    assert_one_error_line(run("search", other, query), "of variant fp16-exact", "give --precision fp16, or embed")
    write_vectors(other, replace(vectors, variant="fp32-fast-64"))
    assert_one_error_line(run("search", other, query), "give --precision fp32 --decode fast --dim 64, or embed")
    assert_one_error_line(run("search", stored, query, "--decode", "fast"), "give --precision fp32 --decode exact, or")
    assert_one_error_line(run("search", stored, query, "--decode", "slow"), "decode is 'slow'; allowed are exact, fast")
    write_vectors(other, replace(vectors, fingerprint="\x1b[31m\n", model="m\x1b\n; rm"))
    assert_one_error_line(run("search", other, query), r"fingerprint \x1b[31m", r"give --model 'm\x1b ; rm'")


def test_names_are_printed_without_control_characters(images: Path, stored: Path, tmp_path: Path) -> None:
    vectors, other = read_vectors(stored), tmp_path / "v.npz"
    write_vectors(other, replace(vectors, ids=["\x1b[31m\n\x9b\u3000日本  x"] * 16))
    result = run("search", other, images / "ring_00.png", "-k", 1)
    assert result.stdout.splitlines()[1] == "   1.000  \\x1b[31m\\n\\x9b\u3000日本  x"


def test_demo_draws_embeds_and_shows_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixsiam_hub.images.samples.photo_crops", dict)  # As without scikit-image.
    result = run("demo", "--out", tmp_path / "demo")
    assert result.exit_code == 0, result.output
    vectors = read_vectors(tmp_path / "demo/vectors.npz")
    assert len(vectors.ids) == 64
    neighbours = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("  ")]
    assert len(neighbours) == 5
    assert vectors.ids[0] not in neighbours
    with Image.open(tmp_path / "demo/neighbours.png") as sheet:
        assert sheet.width > 5 * 128


def test_demo_finds_crops_of_the_same_photo(tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="needs the extra test")
    result = run("demo", "--out", tmp_path / "demo")
    assert result.exit_code == 0, result.output
    ids = [Path(name).name for name in read_vectors(tmp_path / "demo/vectors.npz").ids]
    assert len(ids) == 60
    assert {name.split("_")[0] for name in ids} >= {"astronaut", "coffee", "hubble"}
    nearest = [Path(line.split()[1]).name for line in result.stdout.splitlines() if line.startswith("  ")]
    assert sum(name.startswith("astronaut") for name in nearest) >= 3


def test_demo_takes_a_folder_of_images(images: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "s.png"
    result = run("demo", images, "--out", tmp_path / "demo", "--sheet", sheet)
    assert result.exit_code == 0, result.output
    assert sheet.exists()
    assert not (tmp_path / "demo/samples").exists()


def test_a_named_pipe_is_a_bad_image_and_never_waited_for(images: Path, stored: Path, tmp_path: Path) -> None:
    pipe, out = tmp_path / "cam.jpg", tmp_path / "v.npz"
    os.mkfifo(pipe)
    for arguments, code in [
        (("embed", pipe, images / "ring_00.png", "--out", out), EXIT_SKIPPED),
        (("search", stored, pipe), 1),
        (("demo", tmp_path, "--out", tmp_path / "demo"), 0),
    ]:
        process = start(*arguments)
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == code, errors
        assert b"Traceback" not in errors
    assert list(listed(out)) == [str(pipe)]
