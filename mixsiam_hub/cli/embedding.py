"""Commands that embed images and look at what came out: embed, search, demo."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mixsiam_hub.cli.group import EXIT_SKIPPED, PATH, main, model_option

if TYPE_CHECKING:
    from mixsiam_hub.vectors.search import Neighbours


@main.command()
@click.argument("inputs", nargs=-1, required=True)
@model_option
@click.option("--out", type=PATH, required=True, help="FILE.npz or FILE.parquet.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--backend", default="auto", show_default=True, help="onnx, torch or auto.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N, mps or auto.")
@click.option("--threads", type=click.IntRange(1), help="Default: the CPUs this process may use.")
@click.option("--strict", is_flag=True, help="Stop at the first bad file and write nothing.")
def embed(
    inputs: Sequence[str],
    model: str | None,
    out: Path,
    batch_size: int,
    backend: str,
    device: str,
    threads: int | None,
    strict: bool,
) -> None:
    """Embed images: INPUTS are files, folders and globs.

    A bad file is left out and listed, with the reason, in errors.jsonl beside the output; the exit code is then 3.
    """
    from tqdm import tqdm

    from mixsiam_hub import ImageEncoder
    from mixsiam_hub.images.sources import open_source
    from mixsiam_hub.vectors.embed import ERRORS_FILE, embed_files, write_errors
    from mixsiam_hub.vectors.table import check_place, write_vectors

    check_place(out)
    paths = [Path(item.key) for item in open_source(inputs)]
    encoder = ImageEncoder.from_pretrained(model, backend=backend, device=device, threads=threads)
    with tqdm(total=len(paths), unit="image", disable=None) as bar:
        vectors, bad = embed_files(
            encoder, paths, model=model or "built-in", batch_size=batch_size, strict=strict, progress=bar.update
        )
    write_vectors(out, vectors)
    errors = out.with_name(ERRORS_FILE)
    write_errors(errors, bad)
    click.echo(f"{out}: {len(vectors.ids)} vectors of {encoder.dim} ({encoder.backend} on {encoder.device})")
    if bad:
        click.echo(f"{len(bad)} of {len(paths)} files skipped; {errors} says why", err=True)
        sys.exit(EXIT_SKIPPED)


@main.command()
@click.argument("vectors", type=PATH)
@click.argument("queries", nargs=-1, required=True)
@model_option
@click.option("-k", type=click.IntRange(1), default=5, show_default=True, help="Neighbours of each query.")
@click.option("--sheet", type=PATH, help="Also draw them: a PNG.")
def search(vectors: Path, queries: Sequence[str], model: str | None, k: int, sheet: Path | None) -> None:
    """Find the images nearest to QUERIES in VECTORS, a file written by `mixsiam embed`, by exact cosine."""
    from mixsiam_hub import ImageEncoder
    from mixsiam_hub.images.sources import open_source
    from mixsiam_hub.vectors.search import search as find
    from mixsiam_hub.vectors.table import read_vectors

    stored = read_vectors(vectors)
    encoder = ImageEncoder.from_pretrained(model)
    rows = find(encoder, stored, [Path(item.key) for item in open_source(queries)], k)
    _show(rows, sheet)


@main.command()
@click.argument("folder", type=PATH, required=False)
@model_option
@click.option("--out", type=PATH, default=Path("mixsiam-demo"), show_default=True, help="Folder for what it writes.")
@click.option("--sheet", type=PATH, help="The contact sheet. Default: neighbours.png in that folder.")
def demo(folder: Path | None, model: str | None, out: Path, sheet: Path | None) -> None:
    """Embed the images of FOLDER, or samples drawn here, and show the nearest neighbours of one; works offline."""
    from mixsiam_hub import ImageEncoder
    from mixsiam_hub.atomic import make_folder
    from mixsiam_hub.images.samples import write_samples
    from mixsiam_hub.images.sources import open_source
    from mixsiam_hub.vectors.embed import embed_files
    from mixsiam_hub.vectors.search import neighbours_within
    from mixsiam_hub.vectors.table import write_vectors

    encoder = ImageEncoder.from_pretrained(model)
    make_folder(out)
    paths = [Path(item.key) for item in open_source(str(folder))] if folder else write_samples(out / "samples")
    vectors, bad = embed_files(encoder, paths, model=model or "built-in")
    write_vectors(out / "vectors.npz", vectors)
    click.echo(f"{out / 'vectors.npz'}: {len(vectors.ids)} vectors of {encoder.dim}; {len(bad)} files skipped")
    if vectors.ids:
        _show([neighbours_within(vectors, 0, 5)], sheet or out / "neighbours.png")


def _show(rows: Sequence[Neighbours], sheet: Path | None) -> None:
    from mixsiam_hub.vectors.search import write_sheet

    for row in rows:
        click.echo(row.query)
        for file, cosine in row.found:
            click.echo(f"  {cosine:>6.3f}  {file}")
    if sheet:
        write_sheet(sheet, rows)
        click.echo(f"{sheet}: contact sheet")
