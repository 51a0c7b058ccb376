"""What searching, indexing and comparing stored vectors costs, on random ones in a folder of shards.

    taskset -c 0 python benchmarks/vectors.py --rows 200000

Random vectors have no neighbours worth finding, which is the hardest case for an index: expect more of real ones.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from machine import command_and_machine

from mixsiam_hub.vectors.duplicates import find_duplicates
from mixsiam_hub.vectors.index import GRAPH, build_index
from mixsiam_hub.vectors.nearest import nearest, nearest_in_blocks
from mixsiam_hub.vectors.shard_writer import FileState, Row, open_shards
from mixsiam_hub.vectors.shards import ShardFolder, ShardManifest

K = 10
ROUNDS = 5
BANK, BANK_DIM, BANK_QUERIES, BANK_K = 90_000, 512, 1000, 200
"""As `mixsiam evaluate` asks, for a tenth of Tiny ImageNet's held-out images."""


def filled(folder: Path, rows: int, dim: int, dtype: str) -> float:
    """Puts random vectors into a folder; returns the seconds that it took."""
    random = np.random.default_rng(0)
    manifest = ShardManifest("0" * 64, "fp32-exact", "random", dim, dtype)
    began_s = time.perf_counter()
    with open_shards(folder, manifest, by_content=False) as writer:
        for number in range(rows):
            if number % 10_000 == 0:
                block = random.standard_normal((10_000, dim), np.float32)
            state = FileState(100_000, number, f"{number:064x}")
            key = f"photos/{number // 1000:06}/{number:012}.jpg"
            if writer.claim(key, state):
                writer.put(key, Row(block[number % 10_000], 480, 640, state))
        writer.flush()
    return time.perf_counter() - began_s


def median_s(work: Callable[[], object]) -> float:
    """Returns the median seconds of a few rounds."""
    seconds = []
    for _ in range(ROUNDS):
        began_s = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began_s)
    return statistics.median(seconds)


def figures(rows: int, dim: int, dtype: str, compared: int) -> Iterator[tuple[str, str]]:
    """Yields what was measured, and the figure."""
    with TemporaryDirectory() as temporary:
        path = Path(temporary, "v")
        seconds = filled(path, rows, dim, dtype)
        yield f"putting {rows:,} vectors of {dim} into shards as {dtype}", f"{rows / seconds:,.0f} rows/s"
        size_bytes = sum(shard.stat().st_size for shard in path.glob("*.parquet"))
        yield "bytes on the disk a row, path and sha256 included", f"{size_bytes / rows:,.0f}"
        folder = ShardFolder.open(path)
        for queries in (1, 100):
            asked = np.random.default_rng(1).standard_normal((queries, dim), np.float32)
            seconds = median_s(lambda asked=asked: nearest_in_blocks(asked, folder.blocks(), K))
            yield f"exact search, {queries} queries at once", f"{seconds:.2f} s, {rows / seconds:,.0f} vectors/s"
        began_s = time.perf_counter()
        index = build_index(folder)
        seconds = time.perf_counter() - began_s
        yield "building the index, recall measured", f"{seconds:,.0f} s, {rows / seconds:,.0f} vectors/s"
        yield "bytes of the index a row", f"{(path / GRAPH).stat().st_size / rows:,.0f}"
        yield f"its recall of the {K} nearest", f"{index.recall:.1%}"
        yield (
            "search by the index, 100 queries at once",
            f"{10 * median_s(lambda: index.nearest(asked, K)):.2f} ms a query",
        )
    bank = np.random.default_rng(2).standard_normal((BANK, BANK_DIM), np.float32)
    seconds = median_s(lambda: nearest(bank[:BANK_QUERIES], bank, BANK_K))
    yield f"the {BANK_K} nearest of {BANK_QUERIES:,} among {BANK:,} vectors of {BANK_DIM} in memory", f"{seconds:.2f} s"
    with TemporaryDirectory() as temporary:
        path = Path(temporary, "v")
        filled(path, compared, dim, dtype)
        began_s = time.perf_counter()
        find_duplicates(ShardFolder.open(path), 0.9)
        seconds = time.perf_counter() - began_s
        pairs = compared * (compared - 1) / 2
        yield f"duplicates among {compared:,}", f"{seconds:.1f} s, {pairs / seconds / 1e6:,.0f} million pairs/s"


def main() -> None:
    """Prints a table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="vectors that are searched")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float16")
    parser.add_argument("--compared", type=int, default=20_000, help="vectors among which duplicates are looked for")
    arguments = parser.parse_args()
    print(f"{command_and_machine()}\n\n| what | measured |\n| --- | --- |")
    for what, figure in figures(arguments.rows, arguments.dim, arguments.dtype, arguments.compared):
        print(f"| {what} | {figure} |", flush=True)


if __name__ == "__main__":
    main()
