"""Embedding by a Ray cluster of two nodes on this machine: the rows of one process, whatever happens to a node."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from commands import run

pytest.importorskip("pyarrow", reason="needs the extra bulk")

from mixsiam_hub import ImageEncoder
from mixsiam_hub.errors import BackendError, ImageError, MissingExtraError
from mixsiam_hub.images.feed import stream_source
from mixsiam_hub.images.samples import draw_samples
from mixsiam_hub.images.sources import Item
from mixsiam_hub.vectors import ray_engine
from mixsiam_hub.vectors.bulk import Tally, embed_into
from mixsiam_hub.vectors.ray_engine import BATCHES_A_TASK, RayEncoder
from mixsiam_hub.vectors.table import read_vectors

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = pytest.mark.slow
NODE_MEMORY_BYTES = 100 * 2**20


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": NODE_MEMORY_BYTES})
    ray.init(address=started.address, log_to_driver=False, logging_level="error")
    yield started
    ray.shutdown()
    started.shutdown()


@pytest.fixture
def second_node(cluster: Cluster) -> Any:
    node = cluster.add_node(num_cpus=1, object_store_memory=NODE_MEMORY_BYTES)
    cluster.wait_for_nodes()
    return node


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name, image in draw_samples(120).items():
        image.save(folder / name)
    (folder / "bad.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    return ImageEncoder.from_pretrained(threads=1)


@pytest.fixture(scope="module")
def expected(images: Path, encoder: ImageEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("expected") / "v"
    embed_into(out, encoder, stream_source(str(images)), batch_size=4)
    return out


def assert_same(folder: Path, expected: Path) -> None:
    found, wanted = read_vectors(folder), read_vectors(expected)
    assert found.ids == wanted.ids
    np.testing.assert_allclose(found.vectors, wanted.vectors, atol=1e-6)
    assert (folder / "_errors.jsonl").read_text() == (expected / "_errors.jsonl").read_text()


def test_a_lost_node_loses_no_row(
    cluster: Cluster, second_node: Any, images: Path, encoder: ImageEncoder, expected: Path, tmp_path: Path
) -> None:
    import ray

    nodes: list[int] = []

    def lose_a_node(tally: Tally) -> None:
        if tally.embedded >= 16 and not nodes:
            nodes.append(len([node for node in ray.nodes() if node["Alive"]]))
            cluster.remove_node(second_node, allow_graceful=False)

    tally = embed_into(
        tmp_path / "v", RayEncoder(encoder, 1), stream_source(str(images)), batch_size=4, progress=lose_a_node
    )
    assert nodes == [2]
    assert (tally.embedded, tally.errors) == (120, 1)
    assert_same(tmp_path / "v", expected)
    again = embed_into(tmp_path / "v", RayEncoder(encoder, 1), stream_source(str(images)))
    assert (again.embedded, again.present, again.errors) == (0, 120, 1)


def test_batches_are_those_of_the_encoder(
    cluster: Cluster, images: Path, encoder: ImageEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images.parent)  # The nodes were started elsewhere.
    items = list(stream_source(images.name))[: 4 * BATCHES_A_TASK + 3]
    ours, theirs = (
        list(which.embed_stream(items, batch_size=4, on_error="skip", with_sha256=True))
        for which in (RayEncoder(encoder, 1), encoder)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert (a.indices.tolist(), a.keys, a.facts) == (b.indices.tolist(), b.keys, b.facts)
        assert {place: str(error) for place, error in a.errors.items()} == {i: str(e) for i, e in b.errors.items()}
        np.testing.assert_allclose(a.vectors, b.vectors, atol=1e-6)
    assert sum(len(batch.errors) for batch in ours) == 1


def test_a_bad_image_stops_a_strict_run(cluster: Cluster, images: Path, encoder: ImageEncoder) -> None:
    with pytest.raises(ImageError, match=r"bad\.png"):
        list(RayEncoder(encoder, 1).embed_stream(stream_source(str(images)), batch_size=4))


class Killer:
    """An image that ends the process that reads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


def test_an_image_that_kills_its_process_does_not_do_so_for_ever(
    cluster: Cluster, encoder: ImageEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "_RETRIES", 1)
    deadly: Any = Killer()
    with pytest.raises(BackendError, match=r"the images killer\.png to killer\.png could not be embedded in 2 trials"):
        list(RayEncoder(encoder, 1).embed_stream([Item("killer.png", deadly)]))


def test_the_command(cluster: Cluster, images: Path, expected: Path, tmp_path: Path) -> None:
    result = run("embed", images, "--out", tmp_path / "v", "--engine", "ray")
    assert result.exit_code == 3
    assert "120 images embedded; already there: 0; errors: 1" in result.stdout
    assert_same(tmp_path / "v", expected)
    result = run("embed", images, "--out", tmp_path / "v.npz", "--engine", "ray")
    assert "--engine are for a folder of shards" in result.stderr


def test_without_its_package(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = run("embed", images, "--out", tmp_path / "v", "--engine", "ray")
    assert isinstance(result.exception, SystemExit | MissingExtraError)
    assert "pip install 'mixsiam-hub[ray]'" in result.stderr
