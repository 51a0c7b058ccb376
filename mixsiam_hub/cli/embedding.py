"""Commands that embed images: embed, demo."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mixsiam_hub.cli.group import (
    EXIT_SKIPPED,
    PATH,
    PLACE,
    EncoderOptions,
    check_not_replaced,
    encoder_options,
    main,
    printable,
)
from mixsiam_hub.cli.vectors import show
from mixsiam_hub.errors import DataError, MixsiamError

if TYPE_CHECKING:
    from tqdm import tqdm

    from mixsiam_hub import ImageEncoder
    from mixsiam_hub.images.sources import ImageSet, Item
    from mixsiam_hub.vectors.bulk import Tally
    from mixsiam_hub.vectors.ray_engine import RayEncoder
    from mixsiam_hub.vectors.table import VectorFile

_FILES = (".npz", ".parquet", ".npy")
_DTYPES = ("float32", "float16")
_ENGINES = ("local", "ray")


@main.command()
@click.argument("inputs", nargs=-1, required=True)
@encoder_options
@click.option(
    "--out", type=PLACE, required=True, help="FILE.npz, FILE.parquet, FILE.npy, or a folder or address of shards."
)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--column", help="Of Parquet files, the one that holds encoded images. Default: image.")
@click.option("--strict", is_flag=True, help="Stop at the first bad image or folder; no file is written then.")
@click.option("--dtype", type=click.Choice(_DTYPES), help="Of the vectors in a folder. Default: float32.")
@click.option("--hash", "by_content", is_flag=True, help="Tell by its content whether an image in a folder changed.")
@click.option("--engine", type=click.Choice(_ENGINES), default=_ENGINES[0], show_default=True, help="ray: a cluster.")
def embed(
    inputs: Sequence[str],
    encoder: EncoderOptions,
    out: Path | str,
    batch_size: int,
    column: str | None,
    strict: bool,
    dtype: str | None,
    by_content: bool,
    engine: str,
) -> None:
    """Embed images: INPUTS are files, folders, globs, Parquet files, tars, and lists of paths (a .txt, or -).

    A folder as OUT gets Parquet shards as the vectors are computed: the same command goes on where an earlier run was
    stopped, and embeds only images that are new or changed.

    A bad image and a folder that cannot be searched are left out and listed, with the reason, in OUT.errors.jsonl, or
    OUT/_errors.jsonl; the exit code is then 3.
    """
    from mixsiam_hub.images.feed import count_source, stream_source
    from mixsiam_hub.images.sources import open_source
    from mixsiam_hub.vectors.npy_file import keys_path

    if isinstance(out, Path):
        check_not_replaced([out, keys_path(out)] if out.suffix == ".npy" else [out], inputs)
    if isinstance(out, str) or (out.suffix not in _FILES and (out.is_dir() or not out.suffix)):
        images, count = stream_source(inputs, column), partial(count_source, inputs, column)
        unread = _embed_into(out, encoder, engine, images, count, batch_size, strict, dtype or _DTYPES[0], by_content)
    else:
        _check_file(out, dtype, by_content, engine)
        found = open_source(inputs, column)
        if strict:
            found.check_searched()
        unread = _embed_to_file(out, encoder, found, batch_size, strict)
    if unread:
        click.echo(f"{printable(unread)} says what could not be read, and why", err=True)
        sys.exit(EXIT_SKIPPED)


def _check_file(out: Path, dtype: str | None, by_content: bool, engine: str) -> None:
    """Raises DataError for a place that is neither a file of vectors nor a folder, and for a folder's options."""
    if out.suffix not in _FILES:
        raise DataError(f"{out} must end in {', '.join(_FILES)}, or be a folder: make it first if its name has a dot")
    if dtype or by_content or engine != _ENGINES[0]:
        raise DataError(f"--dtype, --hash and --engine are for a folder of shards, and {out} is a file; leave them out")


def _embed_to_file(out: Path, encoder: EncoderOptions, images: ImageSet, batch_size: int, strict: bool) -> str | None:
    """Writes all vectors at the end; returns the list of what could not be read, if there is one."""
    from mixsiam_hub.vectors.embed import embed_files, errors_path, write_errors
    from mixsiam_hub.vectors.npy_file import matrix_writer, with_listable_keys
    from mixsiam_hub.vectors.table import vector_writer

    is_matrix = out.suffix == ".npy"
    with matrix_writer(out) if is_matrix else vector_writer(out) as write:
        opened = encoder.open()
        with _progress_bar(len(images)) as bar:
            vectors, bad = embed_files(
                opened,
                with_listable_keys(images) if is_matrix else images,
                model=encoder.model,
                batch_size=batch_size,
                strict=strict,
                progress=bar.update if bar else lambda count: None,
            )
        write(vectors)
    unread = {**images.unreadable, **bad}
    write_errors(out, unread)
    click.echo(f"{_summary(out, vectors, images, bad)}; {_by(opened)}")
    return str(errors_path(out)) if unread else None


def _embed_into(
    out: Path | str,
    encoder: EncoderOptions,
    engine: str,
    images: Iterable[Item],
    count: Callable[[], int | None],
    batch_size: int,
    strict: bool,
    dtype: str,
    by_content: bool,
) -> str | None:
    """Writes shards as vectors come; returns the list of what could not be read, if there is one.

    `count` is called meanwhile, for the time left: the search for them may take long.
    """
    from mixsiam_hub.vectors.bulk import embed_into
    from mixsiam_hub.vectors.shard_writer import check_shard_folder
    from mixsiam_hub.vectors.shards import ERRORS

    check_shard_folder(out)
    if engine == "ray":  # One for each task: many that compute alone lose less than a few that share their work.
        encoder = replace(encoder, threads=encoder.threads or 1)
    opened = encoder.open()
    began_s = time.perf_counter()
    with _computing(opened, engine, encoder.threads) as computing, _progress_bar(None) as bar:
        try:
            tally = embed_into(
                out,
                computing,
                images,
                model=encoder.model,
                dtype=dtype,
                by_content=by_content,
                batch_size=batch_size,
                strict=strict,
                progress=partial(_show_tally, bar, _Count(count)) if bar else lambda tally: None,
            )
        except KeyboardInterrupt:
            click.echo(f"{printable(str(out))} holds what was embedded; the same command goes on", err=True)
            raise
    took_s = time.perf_counter() - began_s
    counts = f"{tally.embedded} images embedded; already there: {tally.present}; errors: {tally.errors}"
    speed = f"{took_s:.1f} s, {tally.embedded / took_s:.1f} images/s"
    click.echo("; ".join([f"{printable(str(out))}: {counts}", speed, _by(opened)]))
    return f"{out}/{ERRORS}" if tally.errors else None


@contextmanager
def _computing(encoder: ImageEncoder, engine: str, threads: int | None) -> Iterator[ImageEncoder | RayEncoder]:
    """Gives what computes the batches: the encoder itself, or a cluster by it."""
    if engine != "ray":
        yield encoder
        return
    from mixsiam_hub.vectors.ray_engine import RayEncoder, connected

    with connected():
        yield RayEncoder(encoder, threads or 1)


@main.command()
@click.argument("folder", type=PATH, required=False)
@encoder_options
@click.option("--out", type=PATH, default=Path("mixsiam-demo"), show_default=True, help="Folder for what it writes.")
@click.option("--sheet", type=PATH, help="The contact sheet. Default: neighbours.png in that folder.")
def demo(folder: Path | None, encoder: EncoderOptions, out: Path, sheet: Path | None) -> None:
    """Embed the images of FOLDER, or samples, and show the nearest neighbours of one; works offline."""
    from mixsiam_hub.atomic import make_folder
    from mixsiam_hub.images.samples import write_samples
    from mixsiam_hub.images.sources import open_source
    from mixsiam_hub.vectors.embed import embed_files
    from mixsiam_hub.vectors.search import neighbours_within
    from mixsiam_hub.vectors.table import vector_writer

    make_folder(out)
    file = out / "vectors.npz"
    images = open_source(str(folder) if folder else [str(path) for path in write_samples(out / "samples")])
    with vector_writer(file) as write:
        vectors, bad = embed_files(encoder.open(), images, model=encoder.model)
        write(vectors)
    for key, reason in {**images.unreadable, **bad}.items():
        click.echo(printable(f"{key}: {reason}"), err=True)
    click.echo(_summary(file, vectors, images, bad))
    if vectors.ids:
        show([neighbours_within(vectors, 0, 5)], sheet or out / "neighbours.png")


@contextmanager
def _progress_bar(images: int | None) -> Iterator[tqdm[None] | None]:
    """Shows how many images are done and when the rest will be; None, to save a slow import, where nobody looks."""
    if (images is not None and images < 2) or not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=images, unit=" images") as bar:
        yield bar


class _Count:
    """Counts images in another thread; `total` is None until they are counted."""

    def __init__(self, count: Callable[[], int | None]) -> None:
        self.total: int | None = None
        threading.Thread(target=self._run, args=(count,), daemon=True).start()

    def _run(self, count: Callable[[], int | None]) -> None:
        with suppress(MixsiamError, OSError):  # Whoever embeds them says so.
            self.total = count()


def _show_tally(bar: tqdm[None], count: _Count, tally: Tally) -> None:
    """Counts only what is embedded in this run, so that the speed and the time left are those of embedding."""
    bar.total = None if count.total is None else max(count.total - tally.present, tally.embedded + tally.errors)
    bar.set_postfix(errors=tally.errors, refresh=False)
    bar.update(tally.embedded + tally.errors - bar.n)


def _summary(out: Path, vectors: VectorFile, images: ImageSet, bad: Mapping[str, str]) -> str:
    """Says how many images became vectors, and how many did not."""
    counts = {
        "images skipped": len(bad),
        "files left out for their suffix": images.left_out,
        "folders not searched": len(images.unreadable),
    }
    shown = [f"{what}: {count}" for what, count in counts.items() if count]
    return "; ".join([f"{printable(str(out))}: {len(vectors.ids)} vectors of {vectors.vectors.shape[1]}", *shown])


def _by(encoder: ImageEncoder) -> str:
    return f"by {encoder.backend} on {encoder.device}, {encoder.variant}"
