"""Commands that look at vectors: search, duplicates, map."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mixsiam_hub.atomic import replacing
from mixsiam_hub.cli.group import PATH, PLACE, EncoderOptions, check_not_replaced, encoder_options, main, printable
from mixsiam_hub.errors import DataError

if TYPE_CHECKING:
    from mixsiam_hub.vectors.duplicates import Duplicates, Leaks
    from mixsiam_hub.vectors.index import VectorIndex
    from mixsiam_hub.vectors.search import Neighbours
    from mixsiam_hub.vectors.table import Vectors

_LISTED = 10
"""Groups of duplicates that are printed; the report has all."""


@main.command()
@click.argument("vectors", type=PLACE)
@click.argument("queries", nargs=-1, required=True)
@encoder_options
@click.option("-k", type=click.IntRange(1), default=5, show_default=True, help="Neighbours of each query.")
@click.option("--sheet", type=PATH, help="Also draw them: a PNG.")
@click.option("--index", "by_index", is_flag=True, help="Search a folder approximately, by an index kept in it.")
def search(
    vectors: Path | str, queries: Sequence[str], encoder: EncoderOptions, k: int, sheet: Path | None, by_index: bool
) -> None:
    """Find the images nearest to QUERIES in VECTORS, a file or folder of `mixsiam embed`, by cosine.

    The search is exact and reads all vectors once. With --index it takes an index, which is built where the folder has
    none of its vectors as they are now, and says which share of the exact neighbours that finds.
    """
    from mixsiam_hub.images.sources import open_source
    from mixsiam_hub.vectors.search import check_encoder
    from mixsiam_hub.vectors.search import search as find
    from mixsiam_hub.vectors.table import open_vectors

    check_not_replaced([sheet] if sheet else [], [vectors, *queries])
    stored = open_vectors(vectors)
    images = open_source(queries)
    images.check_searched()
    opened = encoder.open()
    check_encoder(opened, stored)  # Before an index is built.
    show(find(opened, stored, images, k, _index(stored, vectors) if by_index else None), sheet)


@main.command()
@click.argument("vectors", type=PLACE)
@click.option(
    "--threshold", type=float, default=0.9, show_default=True, help="Cosine from which images are duplicates."
)
@click.option("--against", type=PLACE, help="Other vectors: which images of VECTORS stand in those, too?")
@click.option("--out", type=PATH, default=Path("duplicates.json"), show_default=True, help="The report, as JSON.")
@click.option("--sheet", type=PATH, help="Draw the least similar pairs that count as duplicates: a PNG.")
def duplicates(
    vectors: Path | str, threshold: float, against: Path | str | None, out: Path, sheet: Path | None
) -> None:
    """Find images that stand twice in VECTORS, a file or folder of `mixsiam embed`; nothing is deleted.

    Exact copies are told by their files' sha256, which folders hold; near ones by cosine. Which cosine tells a copy
    differs between encoders: look at the sheet, and raise --threshold while it shows pairs that are none.
    """
    from mixsiam_hub.vectors.duplicates import Leaks, find_duplicates, find_leaks, write_report
    from mixsiam_hub.vectors.search import write_sheet
    from mixsiam_hub.vectors.table import open_vectors

    check_not_replaced([out, *([sheet] if sheet else [])], [vectors, against])
    stored = open_vectors(vectors)
    others = open_vectors(against) if against else None
    with replacing(out) as report:
        with _share_bar() as progress:
            if others is None:
                found: Duplicates | Leaks = find_duplicates(stored, threshold, progress=progress)
            else:
                found = find_leaks(stored, others, threshold, progress=progress)
        write_report(report, found)
    _show_leaks(found) if isinstance(found, Leaks) else _show_duplicates(found)
    click.echo(f"{printable(str(out))}: all of them")
    if sheet:
        write_sheet(sheet, found.least_similar)
        click.echo(f"{printable(str(sheet))}: the least similar pairs; raise --threshold while some are no duplicates")


@main.command("map")
@click.argument("vectors", type=PLACE)
@click.option("--out", type=PATH, required=True, help="FILE.parquet, for embedding-atlas; FILE.png is drawn beside it.")
def map_(vectors: Path | str, out: Path) -> None:
    """Draw a map of VECTORS, a file or folder of `mixsiam embed`, by UMAP: like images lie near one another."""
    from mixsiam_hub.vectors.map import make_map, write_map, write_picture
    from mixsiam_hub.vectors.table import open_vectors

    if out.suffix != ".parquet":
        raise DataError(f"{out} must end in .parquet")
    check_not_replaced([out, out.with_suffix(".png")], [vectors])
    with replacing(out) as table:
        found = make_map(open_vectors(vectors))
        write_map(table, found)
    write_picture(out.with_suffix(".png"), found)
    click.echo(
        f"{printable(str(out))}: {len(found.names)} images; a picture: {printable(str(out.with_suffix('.png')))}"
    )
    click.echo(f"to look around in it: embedding-atlas {printable(str(out))} --x x --y y --neighbors neighbors")


def show(rows: Sequence[Neighbours], sheet: Path | None) -> None:
    """Prints queries and what was found near them, and draws them where `sheet` says so."""
    from mixsiam_hub.vectors.search import write_sheet

    for row in rows:
        click.echo(printable(row.query))
        for key, cosine in row.found:
            click.echo(f"  {cosine:>6.3f}  {printable(key)}")
    if sheet:
        write_sheet(sheet, rows)
        click.echo(f"{printable(str(sheet))}: contact sheet")


def _index(vectors: Vectors, path: Path | str) -> VectorIndex:
    """Opens a folder's index, and builds it first where there is none."""
    from mixsiam_hub.vectors.index import RECALL_K, build_index, open_index
    from mixsiam_hub.vectors.shards import ShardFolder

    if not isinstance(vectors, ShardFolder):
        raise DataError(f"{path} is a file, which is searched exactly; leave --index out")
    index = open_index(vectors)
    if index is None:
        with _share_bar() as progress:
            index = build_index(vectors, progress=progress)
    click.echo(f"index: {index.recall:.1%} of the {RECALL_K} exact neighbours are found", err=True)
    return index


@contextmanager
def _share_bar() -> Iterator[Callable[[float], object]]:
    """Gives what shows the share of some work that is done, and the time left, where somebody looks."""
    if not sys.stderr.isatty():
        yield lambda share: None
        return
    from tqdm import tqdm

    with tqdm(total=1.0, bar_format="{percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]") as bar:
        yield lambda share: bar.update(share - bar.n)


def _show_duplicates(found: Duplicates) -> None:
    for names in found.exact[:_LISTED]:
        _show_group("exact", names)
    for group in found.near[:_LISTED]:
        _show_group(f"{group.least_cosine:.3f}", group.images)
    copies = sum(len(names) - 1 for names in found.exact)
    near = sum(len(group.images) - 1 for group in found.near)
    click.echo(
        f"{found.images} images; exact copies: {copies} in {len(found.exact)} groups; "
        f"near duplicates: {near} in {len(found.near)} groups, from a cosine of {found.threshold}"
    )


def _show_leaks(found: Leaks) -> None:
    for leak in found.leaks[:_LISTED]:
        _show_group("exact" if leak.exact else f"{leak.cosine:.3f}", [leak.image, leak.other])
    copies = sum(leak.exact for leak in found.leaks)
    click.echo(
        f"{len(found.leaks)} of {found.images} images stand among the {found.others} others, too: "
        f"exact copies: {copies}; near duplicates: {len(found.leaks) - copies}, from a cosine of {found.threshold}"
    )


def _show_group(title: str, names: Sequence[str]) -> None:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    click.echo(f"{title:>6}  {'  '.join(map(printable, names[:_LISTED]))}{more}")
