"""What a service's logs say of snapstore's operations, and what their reports count."""

import asyncio
import json
import logging
import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import pytest
import zstandard

from snapstore import InvalidInput, Limits, MemberNotFound, Progress, SnapStore, TargetNotEmpty
from snapstore.storage.urls import open_store
from tests.conftest import BUCKET
from tests.proxy import Answer, Delay, Proxy


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def ends(self) -> list[tuple[str, str | None, str | None, str]]:
        found = [record.__dict__ for record in self.records if hasattr(record, "outcome")]
        return [(each["operation"], each["app"], each["snapshot_id"], each["outcome"]) for each in found]


@pytest.fixture
def kept() -> Iterator[Kept]:
    logger, handler = logging.getLogger("snapstore"), Kept()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(before)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "blog").mkdir()
    (tmp_path / "blog" / "file").write_bytes(b"x" * 1000)
    return tmp_path / "blog"


async def test_each_operation_has_one_line_at_its_end(store: SnapStore, app: Path, tmp_path: Path, kept: Kept) -> None:
    made = await store.create("blog", app)
    await store.restore(made.id, tmp_path / "out")
    with pytest.raises(TargetNotEmpty):
        await store.restore(made.id, tmp_path / "out")
    await store.relabel(made.id, add=["a:b"])
    await store.delete(made.id)
    operations = [("create", "done"), ("restore", "done"), ("restore", "TargetNotEmpty")]
    operations += [("relabel", "done"), ("delete", "done")]
    assert kept.ends() == [(name, "blog", made.id, outcome) for name, outcome in operations]
    assert [record.__dict__["bytes"] for record in kept.records] == [1000, 1000, 0, 0, 0]
    assert all(0 < record.__dict__["seconds"] < 60 for record in kept.records)


async def test_what_only_reads_has_such_a_line_too(store: SnapStore, app: Path, kept: Kept) -> None:
    (app / "large").write_bytes(bytes(9 << 20))
    made = await store.create("blog", app)
    assert b"".join([piece async for piece in store.read(made.id, "file")]) == b"x" * 1000
    assert (await store.file(made.id, "file")).member.size == 1000
    assert len([member async for member in store.members(made.id)]) == 3
    async with aclosing(store.read(made.id, "large")) as pieces:
        async for _ in pieces:
            break
    with pytest.raises(MemberNotFound):
        await anext(store.read(made.id, "none"))
    operations = [
        ("read", "done"),
        ("file", "done"),
        ("members", "done"),
        ("read", "closed"),
        ("read", "MemberNotFound"),
    ]
    assert kept.ends()[1:] == [(name, "blog", made.id, outcome) for name, outcome in operations]
    assert [record.__dict__["bytes"] for record in kept.records][1:] == [1000, 0, 0, 256 << 10, 0]
    logging.getLogger("snapstore").info("afterwards")  # in this task, which the generators ran beside
    assert kept.records[-1].__dict__["operation"] is None


async def test_what_is_done_to_the_index_is_an_operation_of_no_snapshot(
    store: SnapStore, app: Path, tmp_path: Path, kept: Kept
) -> None:
    await store.create("blog", app)
    kept.records.clear()
    await store.sync()
    await store.rebuild()
    await store.checkpoint()
    await store.salvage()
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "new.db"):
        pass
    names = ("sync", "rebuild", "checkpoint", "sync", "salvage", "fill")
    assert kept.ends() == [(name, None, None, "done") for name in names]
    assert kept.records[0].getMessage().startswith("sync: done in ")


async def test_a_cancelled_operation_says_so(store: SnapStore, app: Path, kept: Kept) -> None:
    def cancel(progress: Progress) -> None:
        creating.cancel()

    creating = asyncio.create_task(store.create("blog", app, progress=cancel))
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert [outcome for *_, outcome in kept.ends()] == ["cancelled"]


async def test_every_record_of_an_operation_says_whose_it_is(
    store: SnapStore, app: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*args: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", unreadable)
    both = await asyncio.gather(*(store.create(name, app, on_error="skip") for name in ("one", "two")))
    warnings = {
        record.__dict__["snapshot_id"]: (record.__dict__["app"], record.__dict__["operation"])
        for record in kept.records
        if record.levelno == logging.WARNING
    }
    assert warnings == {both[0].id: ("one", "create"), both[1].id: ("two", "create")}


async def test_a_record_of_a_thread_says_whose_it_is_too(store: SnapStore, app: Path, kept: Kept) -> None:
    from snapstore.archive.source import Source

    listed = Source.ignore_lines

    def told(self: Source) -> list[str]:
        logging.getLogger("snapstore").info("in a thread")
        return list(listed(self))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Source, "ignore_lines", told)
        made = await store.create("blog", app)
    (record,) = [record for record in kept.records if record.msg == "in a thread"]
    assert record.threadName != "MainThread"
    assert record.__dict__["snapshot_id"] == made.id


async def test_a_record_outside_of_operations_has_the_fields_too(kept: Kept) -> None:
    """A formatter that names them does not fail."""
    logging.getLogger("snapstore").info("said by nobody")
    assert logging.Formatter("%(operation)s %(app)s %(snapshot_id)s").format(kept.records[0]) == "None None None"


async def test_requests_and_retries_are_counted(
    app: Path, tmp_path: Path, proxy: Proxy, prefix: str, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    async with SnapStore.open(f"s3://{BUCKET}/{prefix}", index=tmp_path / "index.db") as store:
        before = proxy.count()
        proxy.fault(Answer(503, "SlowDown"), operation="PutObject", times=1)
        made = await store.create("blog", app)
        assert (made.requests, made.retries) == (proxy.count() - before, 1)
        before = proxy.count()
        restored = await store.restore(made.id, tmp_path / "out")
        assert (restored.requests, restored.retries) == (proxy.count() - before, 0)
        before = proxy.count()
        synced = await store.sync()
        assert (synced.requests, synced.retries) == (proxy.count() - before, 0)
    counted = [
        (record.__dict__["requests"], record.__dict__["retries"])
        for record in kept.records
        if hasattr(record, "requests")
    ]
    assert counted[1:] == [(made.requests, 1), (restored.requests, 0), (synced.requests, 0)]  # after `fill`


@pytest.mark.parametrize("connections", [1, 3])
async def test_stores_of_one_limits_share_its_connections(
    app: Path, tmp_path: Path, proxy: Proxy, prefix: str, monkeypatch: pytest.MonkeyPatch, connections: int
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    (app / "large").write_bytes(os.urandom(17 << 20))  # in several parts
    proxy.fault(Delay(0.02), times=None)
    limits = Limits(connections=connections)
    async with (
        SnapStore.open(f"s3://{BUCKET}/{prefix}/one", index=tmp_path / "one.db", limits=limits) as one,
        SnapStore.open(f"s3://{BUCKET}/{prefix}/two", index=tmp_path / "two.db", limits=limits) as two,
    ):
        made = await asyncio.gather(*(store.create("blog", app) for store in (one, two, one, two)))
        await asyncio.gather(
            *(
                store.restore(snapshot.id, tmp_path / snapshot.id)
                for store, snapshot in zip((one, two, one, two), made, strict=True)
            )
        )
        await asyncio.gather(one.rebuild(), two.rebuild())
    assert proxy.most_under_way == connections
    for snapshot in made:
        assert (tmp_path / snapshot.id / "large").read_bytes() == (app / "large").read_bytes()


async def test_a_slow_reader_keeps_no_connection_from_others(
    app: Path, tmp_path: Path, proxy: Proxy, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of an archive that others made, which is read from its beginning."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    large = os.urandom(17 << 20)
    (app / "large").write_bytes(large)
    url, limits = f"s3://{BUCKET}/{prefix}", Limits(connections=1)
    raw = await open_store(url)
    foreign = str(uuid.uuid4())
    packed = subprocess.run(["tar", "-cf", "-", "-C", str(app), "."], check=True, capture_output=True).stdout
    await raw.put(f"old:{foreign}:-:1600000000", zstandard.compress(packed))
    described = {"uuid": foreign, "app_name": "old", "ts": 1600000000, "labels": ["size:1"]}
    await raw.put(f"_metadata/{foreign}", json.dumps(described).encode())
    await raw.aclose()
    async with SnapStore.open(url, index=tmp_path / "index.db", limits=limits) as store:
        made = await store.create("blog", app)
        async with AsyncExitStack() as paused:
            for one in (made.id, foreign) * 6:
                reading = await paused.enter_async_context(aclosing(store.read(one, "large")))
                assert large.startswith(await anext(reading))
            async with asyncio.timeout(60):
                await store.create("blog", app)
                assert b"".join([piece async for piece in store.read(foreign, "large")]) == large


async def test_a_read_is_one_operation_from_its_first_request_to_its_last(
    app: Path, tmp_path: Path, proxy: Proxy, prefix: str, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    (app / "large").write_bytes(os.urandom(17 << 20))
    async with SnapStore.open(f"s3://{BUCKET}/{prefix}", index=tmp_path / "index.db") as store:
        made = await store.create("blog", app)
        before = proxy.count()
        assert sum([len(piece) async for piece in store.read(made.id, "large")]) == 17 << 20
        assert kept.records[-1].__dict__["requests"] == proxy.count() - before == 6


async def test_limits_of_nothing_are_refused() -> None:
    for limits in ({"threads": 0}, {"connections": 0}, {"memory": "128M"}, {"operations": 2.5}):
        (name,) = limits
        with pytest.raises(InvalidInput, match=f"{name} is 1 or more"):
            Limits(**limits)  # type: ignore[arg-type]
