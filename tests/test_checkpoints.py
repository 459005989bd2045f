"""Checkpoints: copies of metadata that save requests, and are never believed further than the listing goes.

FORMAT.md says what one is, and a reader of its own here decodes it. Whatever is wrong with one costs requests alone.
"""

import asyncio
import contextlib
import hashlib
import json
import re
import time
import tracemalloc
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from blake3 import blake3

from benchmarks.fleet import FleetStore, snapshot
from snapstore import AccessDenied, Snapshot, SnapStore, metadata
from snapstore.aio import Workers
from snapstore.engine import objects, syncing
from snapstore.engine import opened as engine
from snapstore.errors import ObjectNotFound, PreconditionFailed
from snapstore.index import checkpoint_file, checkpoints, rebuild, sync
from snapstore.index.catalog import Catalog
from snapstore.index.mirror import Mirror
from snapstore.index.queries import Query
from snapstore.keys import CHECKPOINT_PREFIX, METADATA_PREFIX, metadata_key
from snapstore.model import CheckpointReport
from snapstore.objectstore import Body, ObjectInfo
from snapstore.storage.urls import open_store

APPS = 50
DAY = 24 * 3600.0


class Bucket:
    """An object store in memory, with a clock that tests set; ETags are MD5s, as those of most servers are."""

    url = "memory://bucket"
    part_size = 8 << 20
    equal_parts = False
    listings = 4

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, str, float]] = {}
        self.asked: list[tuple[str, str]] = []
        self.now = 1_800_000_000.0
        self.answers_late = 0.0
        """By how much later a PUT's answer is than what it wrote: servers tell a time of their own with it."""

    def requests(self, prefix: str = METADATA_PREFIX) -> Counter[str]:
        return Counter(what for what, key in self.asked if key.startswith(prefix))

    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.objects if key.startswith(prefix))

    def hold(self, key: str, body: bytes) -> None:
        """As if somebody had written it."""
        self.objects[key] = body, hashlib.md5(body, usedforsecurity=False).hexdigest(), self.now

    def info(self, key: str) -> ObjectInfo:
        if key not in self.objects:
            raise ObjectNotFound(key, self.url)
        body, etag, modified = self.objects[key]
        return ObjectInfo(key, len(body), etag, modified)

    async def _asked(self, what: str, key: str) -> None:
        self.asked.append((what, key))
        await asyncio.sleep(0)

    async def get(self, key: str, **_: Any) -> Body:
        await self._asked("get", key)
        return Body(self.objects[self.info(key).key][0], self.info(key).etag)

    async def head(self, key: str) -> ObjectInfo:
        await self._asked("head", key)
        return self.info(key)

    async def put(
        self, key: str, body: bytes, *, if_none_match: bool = False, if_match: str | None = None
    ) -> ObjectInfo:
        await self._asked("put", key)
        if if_match is not None and self.info(key).etag != if_match:
            raise PreconditionFailed(key)
        self.hold(key, body)
        return msgspec.structs.replace(self.info(key), modified=self.now + self.answers_late)

    async def delete(self, key: str) -> None:
        await self._asked("delete", key)
        self.objects.pop(key, None)

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncGenerator[Sequence[ObjectInfo], None]:
        found = [self.info(key) for key in self.keys(prefix) if key > start_after]
        for start in range(0, max(len(found), 1), 1000):
            await self._asked("list", prefix)
            yield found[start : start + 1000]

    def add(self, numbers: Iterable[int]) -> Sequence[Snapshot]:
        """Snapshots of a fleet, as snapstore writes them."""
        made = [snapshot(number, APPS) for number in numbers]
        for one in made:
            self.hold(metadata_key(one.id), metadata.encode(one))
        return made


def decoded(name: str, content: bytes) -> list[tuple[str, str, str]]:
    """A checkpoint's rows, by FORMAT.md alone."""
    assert name == f"_checkpoints/{blake3(content).hexdigest()}"
    text = zstandard.ZstdDecompressor().decompressobj().decompress(content).decode()
    assert text.endswith("\n")
    rows = [json.loads(line) for line in text[:-1].split("\n")]
    for row in rows:
        assert [type(part) for part in row] == [str, str, str]
    return [(key, etag, body) for key, etag, body in rows]


def encoded(*rows: tuple[str, str, str]) -> tuple[str, bytes]:
    """A checkpoint, written by hand."""
    return named("".join(json.dumps(row) + "\n" for row in rows).encode())


def named(raw: bytes) -> tuple[str, bytes]:
    content = zstandard.ZstdCompressor().compress(raw)
    return f"_checkpoints/{blake3(content).hexdigest()}", content


def copied(bucket: Bucket, prefix: str = METADATA_PREFIX) -> list[tuple[str, str, str]]:
    """The rows of a checkpoint of all that a bucket holds now."""
    return [(key, bucket.objects[key][1], bucket.objects[key][0].decode()) for key in bucket.keys(prefix)]


def all_rows(bucket: Bucket) -> list[tuple[str, str, str]]:
    return [row for key in bucket.keys(CHECKPOINT_PREFIX) for row in decoded(key, bucket.objects[key][0])]


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


class Node:
    """One node's index of a bucket."""

    def __init__(self, store: Any, catalog: Catalog) -> None:
        self.store = store
        self.catalog = catalog

    async def sync(self) -> Any:
        return await sync.sync(self.store, self.catalog)

    async def write(self, **options: Any) -> CheckpointReport:
        return await checkpoints.write(self.store, self.catalog, **options)

    async def checkpoint(self) -> CheckpointReport:
        await self.sync()
        return await self.write()

    async def rebuild(self) -> Any:
        return await rebuild.rebuild(self.store, self.catalog)

    async def covered(self) -> tuple[int, int]:
        status = await self.catalog.status()
        return status.covered, status.snapshots

    async def listed(self) -> dict[str, Snapshot]:
        return {one.id: one for one in (await self.catalog.page(Query(), 100_000)).snapshots}


@pytest.fixture
async def nodes(tmp_path: Path, workers: Workers, bucket: Bucket) -> AsyncIterator[tuple[Node, Node, Node]]:
    """Three over one bucket."""
    made = [await Catalog.open(str(tmp_path / f"{name}.db"), bucket.url, workers) for name in ("one", "two", "three")]
    yield tuple(Node(bucket, catalog) for catalog in made)  # type: ignore[misc]
    for catalog in made:
        await catalog.aclose()


Nodes = tuple[Node, Node, Node]


def in_bucket(bucket: Bucket) -> dict[str, Snapshot]:
    found = [metadata.decode(key, bucket.objects[key][0]) for key in bucket.keys(METADATA_PREFIX)]
    return {one.id: one for one in found}


async def test_a_checkpoint_is_what_the_format_says(
    nodes: Nodes, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "ROWS", 40)
    monkeypatch.setattr(checkpoints, "BATCH", 15)
    made = bucket.add(range(100))
    report = await nodes[0].checkpoint()
    assert (report.snapshots, report.covered, report.written, report.read, report.removed) == (100, 100, 3, 0, 0)
    assert bucket.requests(CHECKPOINT_PREFIX)["put"] == 3
    files = [decoded(key, bucket.objects[key][0]) for key in bucket.keys(CHECKPOINT_PREFIX)]
    assert sorted(map(len, files)) == [20, 40, 40]
    for rows in files:
        assert rows == sorted(rows)
    assert sorted(row for rows in files for row in rows) == copied(bucket)
    assert len(made) == 100


async def test_the_same_rows_give_the_same_checkpoint(nodes: Nodes, bucket: Bucket) -> None:
    """So two nodes that write it at once write one."""
    bucket.add(range(100))
    for node in nodes[:2]:
        await node.sync()
    await asyncio.gather(*(node.write() for node in nodes[:2]))
    assert len(bucket.keys(CHECKPOINT_PREFIX)) == 1
    assert [await node.covered() for node in nodes[:2]] == [(100, 100)] * 2


async def test_progress_is_told(nodes: Nodes, bucket: Bucket) -> None:
    bucket.add(range(10))
    await nodes[0].sync()
    told: list[Any] = []
    await checkpoints.write(bucket, nodes[0].catalog, told.append)
    assert [(one.phase, one.members) for one in told] == [("checkpoint", 10)]


async def test_a_rebuild_reads_no_object_that_stands_in_a_checkpoint(tmp_path: Path, workers: Workers) -> None:
    store = FleetStore(10_000, apps=APPS)
    catalog = await Catalog.open(str(tmp_path / "one.db"), store.url, workers)
    try:
        await sync.sync(store, catalog)
        assert store.requests["get"] == 10_000
        assert (await checkpoints.write(store, catalog)).written == 1
        expected = (await catalog.page(Query(), 10_000)).snapshots
        store.requests.clear()
        report = await rebuild.rebuild(store, catalog)
        assert (report.snapshots, report.read) == (10_000, 0)
        assert store.requests["get"] == 1  # the checkpoint
        assert store.requests["list"] <= 1 + 10 + store.listings
        assert (await catalog.status()).covered == 10_000
        assert (await catalog.page(Query(), 10_000)).snapshots == expected
        store.requests.clear()
        assert (await sync.sync(store, catalog)).read == 0
        assert store.requests["get"] == store.requests["head"] == 0
    finally:
        await catalog.aclose()


async def test_a_rebuild_reads_what_came_and_what_changed_since(nodes: Nodes, bucket: Bucket) -> None:
    bucket.add(range(50))
    await nodes[0].checkpoint()
    bucket.add(range(50, 60))
    changed = bucket.keys(METADATA_PREFIX)[:5]
    for key in changed:
        bucket.hold(key, metadata.relabelled(bucket.objects[key][0], ["changed"]))
    for key in bucket.keys(METADATA_PREFIX)[20:23]:
        del bucket.objects[key]
    bucket.asked.clear()
    report = await nodes[1].rebuild()
    assert (report.snapshots, report.read) == (57, 15)
    assert bucket.requests()["get"] == 15
    assert await nodes[1].listed() == in_bucket(bucket)
    assert await nodes[1].covered() == (42, 57)


def corrupt(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


async def damage(bucket: Bucket, kind: str) -> int:
    """Do something to a checkpoint of 30 snapshots; returns how many have to be read then."""
    [name] = bucket.keys(CHECKPOINT_PREFIX)
    content = bucket.objects[name][0]
    rows = decoded(name, content)
    if kind in ("corrupt", "truncated", "empty"):
        bucket.hold(name, {"corrupt": corrupt(content), "truncated": content[:-7], "empty": b""}[kind])
        return 30
    if kind == "missing":
        del bucket.objects[name]
        return 30
    if kind == "gone while read":
        real = bucket.get

        async def get(key: str, **options: Any) -> Body:
            bucket.objects.pop(name, None)
            bucket.get = real  # type: ignore[method-assign]
            return await real(key, **options)

        bucket.get = get  # type: ignore[method-assign]
        return 30
    if kind == "duplicate":
        bucket.hold(*encoded(*reversed(rows)))
        bucket.hold(*encoded(*rows[:7], *rows[:7]))
        return 0
    if kind == "stale":
        for key in bucket.keys(METADATA_PREFIX):
            bucket.hold(key, metadata.relabelled(bucket.objects[key][0], ["later"]))
        return 30
    if kind == "half stale":
        for key in bucket.keys(METADATA_PREFIX)[:10]:
            bucket.hold(key, metadata.relabelled(bucket.objects[key][0], ["later"]))
        return 10
    del bucket.objects[name]
    if kind == "foreign names":
        bucket.hold("_checkpoints/README", b"notes")
        bucket.hold("_checkpoints/" + "0" * 64, content)
        bucket.hold("_checkpoints/sub/" + name.split("/")[1], content)
        return 30
    if kind == "no zstd":
        raw = b"plain text\n"
        bucket.hold(f"_checkpoints/{blake3(raw).hexdigest()}", raw)
        return 30
    if kind == "cut within, with its name":
        raw = content[: len(content) // 2]
        bucket.hold(f"_checkpoints/{blake3(raw).hexdigest()}", raw)
        return -1
    if kind == "lines of another kind":
        lines = [json.dumps(row) for row in rows]
        lines[3:3] = ["", "{}", "[]", "[1,2,3]", "null", "[[", '["a","b"]', json.dumps([*rows[0], "more"]), '"x"']
        bucket.hold(*named("\n".join(lines).encode()))  # and no line's end at the end
        return -1
    if kind == "lies":
        others = [(key, etag, "not json") for key, etag, _ in rows[:10]]
        others += [(key, etag, body) for (key, etag, _), (_, _, body) in zip(rows[10:20], rows[:10], strict=True)]
        others += [("archive:" + key, etag, body) for key, etag, body in rows[20:]]
        bucket.hold(*encoded(*others))
        return 30
    if kind == "snapshots that are nowhere":
        strangers = [snapshot(number, APPS) for number in range(1000, 1030)]
        bucket.hold(*encoded(*((metadata_key(one.id), "e", metadata.encode(one).decode()) for one in strangers)))
        return 30
    raise AssertionError(kind)


KINDS = (
    "corrupt",
    "truncated",
    "empty",
    "missing",
    "gone while read",
    "duplicate",
    "stale",
    "half stale",
    "foreign names",
    "no zstd",
    "cut within, with its name",
    "lines of another kind",
    "lies",
    "snapshots that are nowhere",
)


@pytest.mark.parametrize("kind", KINDS)
async def test_whatever_is_wrong_with_a_checkpoint_costs_requests_alone(
    nodes: Nodes, bucket: Bucket, kind: str
) -> None:
    bucket.add(range(30))
    await nodes[0].checkpoint()
    wanted = await damage(bucket, kind)
    bucket.asked.clear()
    report = await nodes[1].rebuild()
    assert report.snapshots == 30
    assert bucket.requests()["get"] == report.read
    assert report.read <= 30 if wanted < 0 else report.read == wanted
    assert await nodes[1].listed() == in_bucket(bucket)
    # Whoever writes the next ones gets over it as well, and then all is covered.
    bucket.now += 60
    await nodes[0].checkpoint()
    await nodes[1].checkpoint()
    for node in nodes[:2]:
        assert await node.covered() == (30, 30)
        assert await node.listed() == in_bucket(bucket)
    bucket.asked.clear()
    assert (await nodes[2].rebuild()).read == 0


async def test_a_line_that_is_not_utf8_costs_requests_alone(nodes: Nodes, bucket: Bucket) -> None:
    bucket.add(range(5))
    bucket.hold(*named(b'["_metadata/\xff","e","{}"]\n'))
    assert (await nodes[0].rebuild()).snapshots == 5


def test_a_line_that_never_ends_is_given_up() -> None:
    """A kilobyte can say gigabytes."""
    _, content = named(bytes(32 << 20))
    assert len(content) < 2048
    tracemalloc.start()
    try:
        assert list(checkpoint_file._decoded(content)) == []
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def older(ts: int = 1_700_000_000, **fields: Any) -> tuple[str, bytes]:
    """A metadata object of the older system, in a way of writing of its own."""
    made = str(uuid.uuid4())
    body = {"labels": ["owner:42", "size:7"], "ts": ts, "app_name": "old app", "uuid": made} | fields
    return metadata_key(made), json.dumps(body, indent=1).encode()


UNUSUAL: dict[str, tuple[str, bytes]] = {
    "the older system's": older(),
    "with blanks and escapes": older(app_name="caf\u00e9 \u2028 \\ \" \n"),
    "with unknown fields": older(novel={"a": [1, 2.50, None, "\u00e9"]}, other="x\ty"),
    "of a later format": older(
        format=7, created_at="2026-01-02T03:04:05.678901Z", uuid="0f0f0f0f-0f0f-4f0f-8f0f-0f0f0f0f0f0f",
        app_name="new", key="new:0f0f0f0f-0f0f-4f0f-8f0f-0f0f0f0f0f0f:-:1767323045",
    ),
}  # fmt: skip
UNUSUAL["of a later format"] = (metadata_key("0f0f0f0f-0f0f-4f0f-8f0f-0f0f0f0f0f0f"), UNUSUAL["of a later format"][1])


@pytest.mark.parametrize("kind", UNUSUAL)
async def test_what_we_would_write_otherwise_is_copied_byte_by_byte(nodes: Nodes, bucket: Bucket, kind: str) -> None:
    bucket.add(range(5))
    key, body = UNUSUAL[kind]
    bucket.hold(key, body)
    report = await nodes[0].checkpoint()
    assert (report.covered, report.read) == (6, 1)
    [copy] = [row for row in all_rows(bucket) if row[0] == key]
    assert copy == (key, bucket.objects[key][1], body.decode())
    bucket.asked.clear()
    assert (await nodes[1].rebuild()).read == 0
    assert await nodes[1].listed() == in_bucket(bucket)


async def test_metadata_with_bytes_that_are_not_utf8_keeps_no_checkpoint_from_being_written(
    nodes: Nodes, bucket: Bucket
) -> None:
    """Fields that we do not know are not looked into, so such an object is listed."""
    bucket.add(range(5))
    key, body = older(novel="?")
    bucket.hold(key, body.replace(b"?", b"\xff"))
    await nodes[0].sync()
    report = await nodes[0].write()
    assert report.covered in (5, 6)


async def test_what_changes_while_a_checkpoint_is_written_is_not_in_it(nodes: Nodes, bucket: Bucket) -> None:
    bucket.add(range(3))
    key, body = older()
    gone, lost = older()
    bucket.hold(key, body)
    bucket.hold(gone, lost)
    await nodes[0].sync()
    bucket.hold(key, metadata.relabelled(body, ["changed"]))
    del bucket.objects[gone]
    report = await nodes[0].write()
    assert (report.snapshots, report.covered) == (5, 3)
    assert {row[0] for row in all_rows(bucket)} == set(bucket.keys(METADATA_PREFIX)) - {key}
    await nodes[0].checkpoint()
    assert await nodes[0].covered() == (4, 4)


@pytest.mark.parametrize("by", ["a call of ours", "another node"])
async def test_a_relabelled_row_is_uncovered_until_the_next_checkpoint(nodes: Nodes, bucket: Bucket, by: str) -> None:
    made = bucket.add(range(10))
    await nodes[0].checkpoint()
    await nodes[1].rebuild()
    await objects.relabel(bucket, nodes[by == "another node"].catalog, made[3], lambda _: ["changed"])
    await nodes[0].sync()
    assert await nodes[0].covered() == (9, 10)
    await nodes[2].rebuild()
    assert await nodes[2].covered() == (9, 10)
    bucket.now += 1
    assert (await nodes[0].write()).covered == 10
    assert await nodes[0].covered() == (10, 10)
    [relabelled] = [one for one in (await nodes[2].listed()).values() if one.labels == ("changed",)]
    assert relabelled.id == made[3].id


async def test_small_checkpoints_are_merged(nodes: Nodes, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "ROWS", 200)
    monkeypatch.setattr(checkpoints, "_GRACE", 0.0)
    total = 0
    for turn in range(30):
        bucket.add(range(total, total + 5 + turn % 3))
        total += 5 + turn % 3
        bucket.now += 3600
        report = await nodes[0].checkpoint()
        assert report.covered == report.snapshots == total
        sizes = sorted(len(decoded(key, bucket.objects[key][0])) for key in bucket.keys(CHECKPOINT_PREFIX))
        assert max(sizes) <= 200
        assert len(sizes) <= 8, sizes
    assert sum(len(body) for key, (body, _, _) in bucket.objects.items() if key.startswith(CHECKPOINT_PREFIX)) < 100_000
    bucket.asked.clear()
    assert (await nodes[1].rebuild()).read == 0


async def test_merging_copies_a_row_a_few_times_in_its_life(nodes: Nodes, bucket: Bucket) -> None:
    """Thirty rounds of ten do not write all anew each time, which would be 4,650 rows."""
    written = 0
    for turn in range(30):
        bucket.add(range(turn * 10, turn * 10 + 10))
        bucket.now += 3600
        before = set(bucket.keys(CHECKPOINT_PREFIX))
        await nodes[0].checkpoint()
        new = set(bucket.keys(CHECKPOINT_PREFIX)) - before
        written += sum(len(decoded(key, bucket.objects[key][0])) for key in new)
    assert written < 2000
    await nodes[1].rebuild()
    assert await nodes[1].covered() == (300, 300)


async def test_where_all_is_covered_nothing_is_written(nodes: Nodes, bucket: Bucket) -> None:
    bucket.add(range(10))
    await nodes[0].checkpoint()
    bucket.asked.clear()
    report = await nodes[0].checkpoint()
    assert (report.written, report.read, report.removed, report.covered) == (0, 0, 0, 10)
    assert bucket.requests("")["put"] == bucket.requests("")["get"] == bucket.requests("")["delete"] == 0


async def test_fewer_than_the_least_are_not_written(nodes: Nodes, bucket: Bucket) -> None:
    bucket.add(range(9))
    await nodes[0].sync()
    assert (await nodes[0].write(least=10)).written == 0
    bucket.add(range(9, 10))
    await nodes[0].sync()
    assert (await nodes[0].write(least=10)).written == 1


async def test_an_empty_bucket_has_no_checkpoint(nodes: Nodes, bucket: Bucket) -> None:
    report = await nodes[0].checkpoint()
    assert (report.snapshots, report.written, bucket.keys("")) == (0, 0, [])


async def test_what_is_superseded_is_removed_after_a_day_and_no_earlier(nodes: Nodes, bucket: Bucket) -> None:
    bucket.now = time.time()
    bucket.add(range(10))
    await nodes[0].checkpoint()
    [first] = bucket.keys(CHECKPOINT_PREFIX)
    bucket.now += DAY - 60
    bucket.add(range(10, 20))
    assert (await nodes[0].checkpoint()).removed == 0
    assert len(bucket.keys(CHECKPOINT_PREFIX)) == 2
    bucket.now += 120
    bucket.add(range(20, 25))
    assert (await nodes[0].checkpoint()).removed == 1
    assert first not in bucket.keys(CHECKPOINT_PREFIX)
    bucket.asked.clear()
    assert (await nodes[1].rebuild()).read == 0
    assert await nodes[0].covered() == await nodes[1].covered() == (25, 25)


async def test_what_is_not_superseded_stays_however_old_it_is(
    nodes: Nodes, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_GRACE", 0.0)
    bucket.add(range(100))
    await nodes[0].checkpoint()
    bucket.now += 10 * DAY
    bucket.add(range(100, 110))
    assert (await nodes[0].checkpoint()).removed == 0
    await nodes[1].rebuild()
    bucket.now += 10 * DAY
    assert (await nodes[1].checkpoint()).removed == 0
    assert len(bucket.keys(CHECKPOINT_PREFIX)) == 2


async def test_files_that_are_no_checkpoints_are_not_removed(
    nodes: Nodes, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_GRACE", 0.0)
    bucket.hold("_checkpoints/README", b"notes")
    bucket.add(range(10))
    bucket.now += 10 * DAY
    await nodes[0].checkpoint()
    bucket.now += 10 * DAY
    await nodes[0].checkpoint()
    assert "_checkpoints/README" in bucket.objects


async def fleets(nodes: Nodes, bucket: Bucket) -> None:
    """Rounds in which nodes write at once, each with something that the other has not seen in its own sync."""
    total = 0
    for turn in range(12):
        bucket.add(range(total, total + 10))
        await nodes[0].sync()
        bucket.add(range(total + 10, total + 20))
        await nodes[1].sync()
        total += 20
        bucket.now += 3 * DAY
        await asyncio.gather(*(node.write() for node in nodes[:2]))
        # What a node counts as covered is covered for whoever comes then, but for what the other has yet to be told.
        bucket.asked.clear()
        report = await nodes[2].rebuild()
        assert report.snapshots == total
        assert report.read <= 20, turn
        for node in nodes[:2]:
            await node.sync()


LATE = [0.0, 2.0]


@pytest.mark.parametrize("late", LATE)
async def test_nodes_that_write_at_once_do_not_remove_what_the_other_needs(
    nodes: Nodes, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, late: float
) -> None:
    monkeypatch.setattr(checkpoints, "_GRACE", DAY)
    bucket.answers_late = late
    await fleets(nodes, bucket)
    assert len(bucket.keys(CHECKPOINT_PREFIX)) < 12


@pytest.mark.parametrize("late", LATE)
async def test_two_that_wrote_the_same_rows_agree_on_which_one_is_superseded(
    nodes: Nodes, bucket: Bucket, late: float
) -> None:
    bucket.now = time.time() - 9 * DAY
    bucket.answers_late = late
    bucket.add(range(10))
    await nodes[0].sync()
    [gone] = bucket.add([10])
    await nodes[1].sync()
    await asyncio.gather(*(node.write() for node in nodes[:2]))
    assert len(bucket.keys(CHECKPOINT_PREFIX)) == 2
    del bucket.objects[metadata_key(gone.id)]
    await asyncio.gather(*(node.checkpoint() for node in nodes[:2]))
    assert len(bucket.keys(CHECKPOINT_PREFIX)) == 1
    assert await nodes[0].covered() == await nodes[1].covered() == (10, 10)
    bucket.asked.clear()
    assert (await nodes[2].rebuild()).read == 0


async def test_a_checkpoint_that_another_node_removed_covers_nothing_any_more(nodes: Nodes, bucket: Bucket) -> None:
    bucket.add(range(10))
    await nodes[0].checkpoint()
    await nodes[1].rebuild()
    for key in bucket.keys(CHECKPOINT_PREFIX):
        del bucket.objects[key]
    report = await nodes[1].checkpoint()
    assert (report.written, report.covered) == (1, 10)
    assert len(bucket.keys(CHECKPOINT_PREFIX)) == 1


async def test_what_another_node_wrote_is_not_written_again(nodes: Nodes, bucket: Bucket) -> None:
    bucket.add(range(10))
    await nodes[1].sync()
    await nodes[0].checkpoint()
    assert await nodes[1].covered() == (0, 10)
    report = await nodes[1].checkpoint()
    assert (report.written, report.covered) == (0, 10)


async def test_a_node_that_is_cut_off_while_it_writes_goes_on_the_next_time(
    nodes: Nodes, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "ROWS", 20)
    bucket.add(range(50))
    await nodes[0].sync()
    put = bucket.put

    async def put_twice(key: str, body: bytes, **options: Any) -> ObjectInfo:
        if len(bucket.keys(CHECKPOINT_PREFIX)) == 1:
            await put(key, body, **options)
            raise AccessDenied("cut")
        return await put(key, body, **options)

    with monkeypatch.context() as patch:
        patch.setattr(bucket, "put", put_twice)
        with pytest.raises(AccessDenied):
            await nodes[0].write()
    assert len(bucket.keys(CHECKPOINT_PREFIX)) == 2
    report = await nodes[0].write()
    assert (report.covered, report.written) == (50, 1)


async def test_a_checkpoint_that_was_read_in_part_is_read_again(
    nodes: Nodes, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever goes on with an interrupted rebuild asks for each of the rest."""
    monkeypatch.setattr(checkpoint_file, "BATCH", 10)
    bucket.add(range(50))
    await nodes[0].checkpoint()
    apply = Mirror.apply
    times = 0

    async def apply_twice(*args: Any, **options: Any) -> Any:
        nonlocal times
        times += 1
        if times > 2:
            raise asyncio.CancelledError
        return await apply(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "apply", apply_twice)
        with pytest.raises(asyncio.CancelledError):
            await nodes[1].rebuild()
    report = await nodes[1].rebuild()
    assert (report.snapshots, report.read) == (50, 0)


async def test_status_tells_how_many_are_covered(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
        made = [await store.create("blog", tmp_path / "app") for _ in range(4)]
        assert (await store.index_status()).covered == 0
        report = await store.checkpoint()
        assert (report.snapshots, report.covered, report.written, report.read) == (4, 4, 1, 4)
        assert (await store.index_status()).covered == 4
        await store.relabel(made[0].id, add=["x"])
        await store.delete(made[1].id)
        await store.create("blog", tmp_path / "app")
        status = await store.index_status()
        assert (status.covered, status.snapshots) == (2, 4)
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "other.db") as other:
        status = await other.index_status()
        assert (status.covered, status.snapshots) == (2, 4)


class ReadOnly:
    """A folder store whose checkpoints may not be written, removed or even read."""

    def __init__(self, store: Any, refused: Sequence[str]) -> None:
        self._store = store
        self._refused = refused

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)

        async def refuse(key: str, *args: Any, **options: Any) -> Any:
            if key.startswith(CHECKPOINT_PREFIX):
                raise AccessDenied("not allowed", key)
            return await found(key, *args, **options)

        return refuse if name in self._refused else found


@contextlib.contextmanager
def refusing(monkeypatch: pytest.MonkeyPatch, *refused: str) -> Iterator[None]:
    async def open_refusing(*args: Any, **options: Any) -> ReadOnly:
        return ReadOnly(await open_store(*args, **options), refused)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "open_store", open_refusing)
        yield


async def test_a_rebuild_writes_one_where_that_is_worth_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncing, "_WORTH_A_CHECKPOINT", 3)
    (tmp_path / "app").mkdir()
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
        for expected in (0, 0, 1, 1):
            await store.create("blog", tmp_path / "app")
            await store.rebuild()
            folder = tmp_path / "store" / "_checkpoints"
            assert len(list(folder.iterdir()) if folder.exists() else ()) == expected
        assert (await store.index_status()).covered == 3


async def test_a_store_that_refuses_checkpoints_does_not_make_a_rebuild_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syncing, "_WORTH_A_CHECKPOINT", 1)
    (tmp_path / "app").mkdir()
    with refusing(monkeypatch, "put", "delete"):
        async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
            for _ in range(3):
                await store.create("blog", tmp_path / "app")
            assert (await store.rebuild()).snapshots == 3
            assert (await store.index_status()).covered == 0
            with pytest.raises(AccessDenied):
                await store.checkpoint()  # who asks for one is told


async def test_superseded_ones_that_may_not_be_removed_do_not_make_a_rebuild_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syncing, "_WORTH_A_CHECKPOINT", 1)
    monkeypatch.setattr(checkpoints, "_GRACE", -3600.0)
    (tmp_path / "app").mkdir()
    with refusing(monkeypatch, "delete"):
        async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
            for number in range(1, 4):
                await store.create("blog", tmp_path / "app")
                assert (await store.rebuild()).snapshots == number
            assert (await store.index_status()).covered == 3


async def test_names_of_checkpoints_are_not_taken_for_snapshots(nodes: Nodes, bucket: Bucket) -> None:
    bucket.add(range(3))
    await nodes[0].checkpoint()
    assert all(re.fullmatch("_checkpoints/[0-9a-f]{64}", key) for key in bucket.keys(CHECKPOINT_PREFIX))
    report = await nodes[1].rebuild()
    assert (report.snapshots, report.problems) == (3, ())


def test_the_bound_on_rows_is_the_formats() -> None:
    assert checkpoint_file.ROWS == 100_000
    assert timedelta(days=1).total_seconds() == checkpoints._GRACE
