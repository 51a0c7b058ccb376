"""Commands that embed images and look at what came out: embed, search, demo."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mixsiam_hub.cli.group import EXIT_SKIPPED, PATH, EncoderOptions, encoder_options, main, printable
from mixsiam_hub.errors import DataError

if TYPE_CHECKING:
    from mixsiam_hub.images.sources import ImageSet
    from mixsiam_hub.vectors.search import Neighbours
    from mixsiam_hub.vectors.table import VectorFile


@main.command()
@click.argument("inputs", nargs=-1, required=True)
@encoder_options
@click.option("--out", type=PATH, required=True, help="FILE.npz or FILE.parquet.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--column", help="Of Parquet files, the one that holds encoded images. Default: image.")
@click.option("--strict", is_flag=True, help="Stop at the first bad image or folder and write nothing.")
def embed(
    inputs: Sequence[str], encoder: EncoderOptions, out: Path, batch_size: int, column: str | None, strict: bool
) -> None:
    """Embed images: INPUTS are files, folders, globs, Parquet files, tars, and lists of paths (a .txt, or -).

    A bad image and a folder that cannot be searched are left out and listed, with the reason, in OUT.errors.jsonl; the
    exit code is then 3.
    """
    from mixsiam_hub.images.sources import open_source
    from mixsiam_hub.vectors.embed import embed_files, errors_path, write_errors
    from mixsiam_hub.vectors.table import vector_writer

    if any(os.path.exists(name) and out.exists() and os.path.samefile(name, out) for name in inputs):
        raise DataError(f"{out} is one of the inputs, which it would replace; give --out another name")
    images = open_source(inputs, column)
    if strict:
        _check_searched(images)
    with vector_writer(out) as write:
        opened = encoder.open()
        with _progress_bar(len(images)) as advance:
            vectors, bad = embed_files(
                opened, images, model=encoder.model, batch_size=batch_size, strict=strict, progress=advance
            )
        write(vectors)
    unread = {**images.unreadable, **bad}
    write_errors(out, unread)
    if unread:
        click.echo(f"{printable(str(errors_path(out)))} says what could not be read, and why", err=True)
    click.echo(f"{_summary(out, vectors, images, bad)}; by {opened.backend} on {opened.device}, {opened.variant}")
    if unread:
        sys.exit(EXIT_SKIPPED)


@main.command()
@click.argument("vectors", type=PATH)
@click.argument("queries", nargs=-1, required=True)
@encoder_options
@click.option("-k", type=click.IntRange(1), default=5, show_default=True, help="Neighbours of each query.")
@click.option("--sheet", type=PATH, help="Also draw them: a PNG.")
def search(vectors: Path, queries: Sequence[str], encoder: EncoderOptions, k: int, sheet: Path | None) -> None:
    """Find the images nearest to QUERIES in VECTORS, a file written by `mixsiam embed`, by exact cosine."""
    from mixsiam_hub.images.sources import open_source
    from mixsiam_hub.vectors.search import search as find
    from mixsiam_hub.vectors.table import read_vectors

    stored = read_vectors(vectors)
    images = open_source(queries)
    _check_searched(images)
    _show(find(encoder.open(), stored, images, k), sheet)


@main.command()
@click.argument("folder", type=PATH, required=False)
@encoder_options
@click.option("--out", type=PATH, default=Path("mixsiam-demo"), show_default=True, help="Folder for what it writes.")
@click.option("--sheet", type=PATH, help="The contact sheet. Default: neighbours.png in that folder.")
def demo(folder: Path | None, encoder: EncoderOptions, out: Path, sheet: Path | None) -> None:
    """Embed the images of FOLDER, or samples drawn here, and show the nearest neighbours of one; works offline."""
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
        _show([neighbours_within(vectors, 0, 5)], sheet or out / "neighbours.png")


@contextmanager
def _progress_bar(images: int) -> Iterator[Callable[[int], object]]:
    """Shows how many images are done; without a terminal, and for one image, tqdm's slow import is saved."""
    if images < 2 or not sys.stderr.isatty():
        yield lambda count: None
        return
    from tqdm import tqdm

    with tqdm(total=images, unit=" images") as bar:
        yield bar.update


def _check_searched(images: ImageSet) -> None:
    """Raises DataError if some folders could not be searched."""
    for folder, reason in images.unreadable.items():
        raise DataError(f"{folder} cannot be searched: {reason}")


def _summary(out: Path, vectors: VectorFile, images: ImageSet, bad: Mapping[str, str]) -> str:
    """Says how many images became vectors, and how many did not."""
    counts = {
        "images skipped": len(bad),
        "files left out for their suffix": images.left_out,
        "folders not searched": len(images.unreadable),
    }
    rest = [f"{what}: {count}" for what, count in counts.items() if count]
    return "; ".join([f"{printable(str(out))}: {len(vectors.ids)} vectors of {vectors.vectors.shape[1]}", *rest])


def _show(rows: Sequence[Neighbours], sheet: Path | None) -> None:
    from mixsiam_hub.vectors.search import write_sheet

    for row in rows:
        click.echo(printable(row.query))
        for key, cosine in row.found:
            click.echo(f"  {cosine:>6.3f}  {printable(key)}")
    if sheet:
        write_sheet(sheet, rows)
        click.echo(f"{printable(str(sheet))}: contact sheet")
