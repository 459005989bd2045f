"""The label index: a cache that can be thrown away, shared by processes, and never a surprise.

It is filled from the bucket, whatever else is in there; it belongs to one store and one schema; and its pages are read
from an index of SQLite's, never sorted.
"""

import asyncio
import json
import os
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from snapstore import (
    CatalogBusy,
    CatalogError,
    CatalogMismatch,
    CatalogTooNew,
    Progress,
    Snapshot,
    SnapStore,
)
from snapstore.aio import Workers
from snapstore.index import migrations
from snapstore.index.catalog import Catalog
from snapstore.index.queries import Query, Rarity, page_statement
from tests.places import look
from tests.scripts import script

URL = "file:///somewhere"


@pytest.fixture
async def catalog(tmp_path: Path, workers: Workers) -> AsyncIterator[Catalog]:
    opened = await Catalog.open(str(tmp_path / "index.db"), URL, workers)
    yield opened
    await opened.aclose()


def opening(tmp_path: Path, index: str = "index.db") -> SnapStore:
    return SnapStore.open(tmp_path / "store", index=tmp_path / index)


async def ids(store: SnapStore, **filters: Any) -> list[str]:
    return [snapshot.id async for snapshot in store.list(**filters)]


def snapshot_at(moment: datetime, *, app: str = "blog", labels: tuple[str, ...] = ()) -> Snapshot:
    return Snapshot(id=str(uuid.uuid4()), app=app, created_at=moment, labels=labels, format=1)


def put_metadata(tmp_path: Path, name: str, body: bytes | dict[str, Any]) -> None:
    folder = tmp_path / "store" / "_metadata"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(body if isinstance(body, bytes) else json.dumps(body).encode())


def described(snapshot_id: str, **fields: Any) -> dict[str, Any]:
    return {"uuid": snapshot_id, "app_name": "blog", "ts": 1_700_000_000, "labels": []} | fields


def write(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def with_migrations(monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    """As if these had been added; returns the version without them."""
    known = migrations.scripts()
    monkeypatch.setattr(migrations, "scripts", lambda: (*known, *more))
    return len(known)


async def test_migrations_are_applied_in_order_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opening(tmp_path):
        pass
    with monkeypatch.context() as patched:
        first = with_migrations(patched)
    assert look(tmp_path / "index.db", "PRAGMA user_version") == [(first,)]
    with_migrations(
        monkeypatch,
        "CREATE TABLE note (text TEXT);",
        "-- a comment; with a semicolon\nINSERT INTO note VALUES ('a;b');\n",
    )
    for _ in range(2):
        async with opening(tmp_path) as store:
            await ids(store)
        assert look(tmp_path / "index.db", "PRAGMA user_version") == [(first + 2,)]
        assert look(tmp_path / "index.db", "SELECT text FROM note") == [("a;b",)]


@pytest.mark.parametrize("there", [True, False], ids=["there", "new"])
async def test_migrations_are_applied_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    if there:
        await (await opening(tmp_path)).aclose()
    with monkeypatch.context() as patched:
        first = with_migrations(
            patched,
            "CREATE TABLE good (x INTEGER);",
            "CREATE TABLE half (x INTEGER); \nINSERT INTO nowhere VALUES (1);",
            "CREATE TABLE never (x INTEGER);",
        )
        with pytest.raises(CatalogError):
            await opening(tmp_path)
    index = tmp_path / "index.db"
    assert look(index, "PRAGMA user_version") == [(first if there else 0,)]
    names = {name for (name,) in look(index, "SELECT name FROM sqlite_schema")}
    assert not names & {"good", "half", "never"}
    with_migrations(monkeypatch, "CREATE TABLE good (x INTEGER);", "CREATE TABLE half (x INTEGER);")
    async with opening(tmp_path) as store:
        assert await ids(store) == []


async def test_a_migration_whose_last_statement_does_not_end_is_not_taken_for_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = with_migrations(monkeypatch, "CREATE TABLE one (x INTEGER);\nCREATE TABLE two (x INTEGER)\n")
    try:
        async with opening(tmp_path):
            pass
    except CatalogError:
        assert look(tmp_path / "index.db", "PRAGMA user_version") == [(first,)]
    else:
        assert look(tmp_path / "index.db", "SELECT name FROM sqlite_schema WHERE name = 'two'") == [("two",)]


async def test_the_shipped_migrations_are_numbered_without_gaps() -> None:
    files = sorted((Path(__file__).parents[1] / "migrations").glob("*.sql"))
    assert [int(file.name[:4]) for file in files] == list(range(1, migrations.version() + 1))


async def test_an_index_of_a_newer_snapstore_is_refused_and_kept(tmp_path: Path) -> None:
    async with opening(tmp_path):
        pass
    index = tmp_path / "index.db"
    write(index, "PRAGMA user_version = 99")
    with pytest.raises(CatalogTooNew, match="99") as caught:
        await opening(tmp_path)
    assert caught.value.path == str(index)
    assert look(index, "PRAGMA user_version") == [(99,)]


async def test_an_index_of_another_store_is_refused_and_kept(tmp_path: Path) -> None:
    async with opening(tmp_path):
        pass
    with pytest.raises(CatalogMismatch, match="belongs to") as caught:
        await SnapStore.open(tmp_path / "other", index=tmp_path / "index.db")
    assert caught.value.path == str(tmp_path / "index.db")
    async with opening(tmp_path) as store:
        assert await ids(store) == []


async def test_a_database_of_another_program_is_refused_and_kept(tmp_path: Path) -> None:
    write(tmp_path / "index.db", "CREATE TABLE theirs (x)", "PRAGMA user_version = 1", "INSERT INTO theirs VALUES (7)")
    before = (tmp_path / "index.db").read_bytes()
    with pytest.raises(CatalogMismatch):
        await opening(tmp_path)
    assert (tmp_path / "index.db").read_bytes() == before


@pytest.mark.parametrize("size", [1, 5, 99, 100, 511, 512, 4096, 100_000])
async def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path, size: int) -> None:
    (tmp_path / "index.db").write_bytes(b"n" * size)
    with pytest.raises(CatalogMismatch):
        await opening(tmp_path)
    assert (tmp_path / "index.db").read_bytes() == b"n" * size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.db", "store"]


async def test_an_empty_file_becomes_an_index(tmp_path: Path) -> None:
    (tmp_path / "index.db").touch()
    async with opening(tmp_path) as store:
        assert await ids(store) == []


async def test_a_place_where_no_index_can_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for index in ("file/index.db", "folder"):
        with pytest.raises(CatalogError) as caught:
            await opening(tmp_path, index)
        assert caught.value.path == str(tmp_path / index)


async def fill_with(path: Path, count: int) -> None:
    """As many snapshots that are in no store, for a file of some size."""
    workers = Workers(1, "test")
    catalog = await Catalog.open(str(path), (path.parent / "store").as_uri(), workers)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    await catalog.put([(snapshot_at(start + timedelta(seconds=number)), "etag") for number in range(count)])
    await catalog.aclose()
    workers.close()


def overwritten(body: bytes) -> bytes:
    return body[:4096] + b"\xff" * (len(body) - 4096)


def cut(body: bytes) -> bytes:
    return body[: len(body) // 2]


def first_page_only(body: bytes) -> bytes:
    return body[:4096]


@pytest.mark.parametrize("damage", [overwritten, cut, first_page_only])
async def test_a_damaged_index_is_moved_aside_and_filled_anew(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "app").mkdir()
    async with opening(tmp_path) as store:
        for _ in range(50):
            await store.create("blog", tmp_path / "app", labels=["owner:42"])
        before = await ids(store)
    damaged = damage((tmp_path / "index.db").read_bytes())
    (tmp_path / "index.db").write_bytes(damaged)
    async with opening(tmp_path) as store:
        assert await ids(store) == before
    [aside] = tmp_path.glob("index.db.damaged-*")
    assert aside.read_bytes() == damaged
    assert f"moved to {aside}" in caplog.text


async def test_a_damage_that_is_met_in_use_is_mended_when_the_index_is_opened_next(tmp_path: Path) -> None:
    """What lies between the ends of a table is not looked at on opening."""
    (tmp_path / "app").mkdir()
    async with opening(tmp_path) as store:
        for _ in range(5):
            await store.create("blog", tmp_path / "app")
        before = await ids(store)
    await fill_with(tmp_path / "index.db", 5000)
    [(page,)] = look(
        tmp_path / "index.db",
        "SELECT pageno FROM dbstat WHERE name = 'snapshot' AND pagetype = 'leaf' ORDER BY path LIMIT 1 OFFSET 20",
    )
    with (tmp_path / "index.db").open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    async with opening(tmp_path) as store:
        with pytest.raises(CatalogError, match="open the store again"):
            await ids(store)
        async with opening(tmp_path) as another:
            assert await ids(another) == before
        assert await ids(store) == before  # its connections were closed: new ones find the new file


async def test_the_index_and_its_companions_are_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with opening(tmp_path, "new/er/index.db") as store:
            await store.rebuild()
            modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "new" / "er").iterdir()}
            assert modes == dict.fromkeys(("index.db", "index.db-wal", "index.db-shm", "index.db-lock"), 0o600)
            assert (tmp_path / "new" / "er").stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


async def test_a_lost_index_is_filled_anew_when_it_is_opened(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    async with opening(tmp_path) as store:
        for number in range(3):
            await store.create(f"app{number}", tmp_path / "app", labels=[f"n:{number}", "all"])
        listed = [snapshot async for snapshot in store.list()]
    for file in tmp_path.glob("index.db*"):
        file.unlink()
    async with opening(tmp_path) as store:
        assert [snapshot async for snapshot in store.list()] == listed
        assert await ids(store, labels=["n:1", "all"]) == [listed[1].id]


async def test_only_a_new_index_is_filled_by_itself(tmp_path: Path) -> None:
    """Later ones are as they were: opening costs no request."""
    (tmp_path / "app").mkdir()
    async with opening(tmp_path) as one, opening(tmp_path, "other.db") as other:
        made = await one.create("blog", tmp_path / "app")
        assert await ids(other) == []
    async with opening(tmp_path, "other.db") as other:
        assert await ids(other) == []
        steps: list[Progress] = []
        report = await other.rebuild(progress=steps.append)
        assert (report.snapshots, report.problems) == (1, ())
        assert report.seconds > 0
        assert steps[-1].members == 1
        assert await ids(other) == [made.id]


async def test_a_rebuild_finds_what_came_and_what_went_and_what_changed(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    async with opening(tmp_path) as store:
        gone, changed = [await store.create("blog", tmp_path / "app", labels=["old"]) for _ in range(2)]
        (tmp_path / "store" / "_metadata" / gone.id).unlink()
        path = tmp_path / "store" / "_metadata" / changed.id
        fields = json.loads(path.read_text()) | {"labels": ["new:1", "size:7"], "app_name": "renamed", "revision": 2}
        path.write_text(json.dumps(fields))
        came = str(uuid.uuid4())
        put_metadata(tmp_path, came, described(came))
        assert (await store.rebuild(archives=False)).snapshots == 2
        assert set(await ids(store)) == {changed.id, came}
        assert await ids(store, labels=["new:1"], apps=["renamed"]) == [changed.id]
        assert await ids(store, labels=["old"]) == []
        assert (await store.get(changed.id)).revision == 2


async def test_metadata_of_the_older_system_has_four_fields(tmp_path: Path) -> None:
    snapshot_id = str(uuid.uuid4())
    body = described(snapshot_id, app_name="some/app:1", labels=["owner:a:b", "plain", "size:123"])
    put_metadata(tmp_path, snapshot_id, body)
    async with opening(tmp_path) as store:
        assert await store.get(snapshot_id) == Snapshot(
            id=snapshot_id,
            app="some/app:1",
            created_at=datetime.fromtimestamp(1_700_000_000, UTC),
            labels=("owner:a:b", "plain"),
            size=123,
        )
        assert await ids(store, apps=["some/app:1"], labels=["owner:a:b", "plain"]) == [snapshot_id]


@pytest.mark.parametrize(
    ("labels", "kept", "size"),
    [
        (["size:5"], (), 5),
        (["size:5", "x"], ("size:5", "x"), None),
        (["size:5", "size:6"], ("size:5",), 6),
        (["size:five"], ("size:five",), None),
        (["size:-5"], ("size:-5",), None),
        (["size:" + "9" * 30], ("size:" + "9" * 30,), None),
        (["", ":x", "a\nb"], ("", ":x", "a\nb"), None),
        (["x", "x"], ("x", "x"), None),
    ],
)
async def test_labels_of_the_older_system_are_taken_as_they_are(
    tmp_path: Path, labels: list[str], kept: tuple[str, ...], size: int | None
) -> None:
    snapshot_id = str(uuid.uuid4())
    put_metadata(tmp_path, snapshot_id, described(snapshot_id, labels=labels))
    async with opening(tmp_path) as store:
        found = await store.get(snapshot_id)
        assert (found.labels, found.size) == (kept, size)


ID = "0f0f0f0f-0f0f-4f0f-8f0f-0f0f0f0f0f0f"
OURS = {"format": 1, "created_at": "2026-01-02T03:04:05.678901Z"}

MALFORMED: dict[str, tuple[str, bytes | dict[str, Any]]] = {
    "empty": (ID, b""),
    "no JSON": (ID, b"not json"),
    "cut": (ID, json.dumps(described(ID)).encode()[:-1]),
    "not UTF-8": (ID, b'{"uuid":"\xff"}'),
    "a list": (ID, b"[]"),
    "null": (ID, b"null"),
    "deeply nested": (ID, b'{"novel":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "no fields": (ID, {}),
    "no uuid": (ID, {"app_name": "blog", "ts": 1, "labels": []}),
    "no labels": (ID, {"uuid": ID, "app_name": "blog", "ts": 1}),
    "labels null": (ID, described(ID, labels=None)),
    "labels no strings": (ID, described(ID, labels=[1])),
    "ts a string": (ID, described(ID, ts="1")),
    "ts negative": (ID, described(ID, ts=-1)),
    "ts huge": (ID, described(ID, ts=10**18)),
    "ts beyond 64 bits": (ID, described(ID, ts=10**30)),
    "uuid of another": (ID, described(str(uuid.uuid4()))),
    "uuid none": (ID, described("x")),
    "uuid empty": (ID, described("")),
    "app empty": (ID, described(ID, app_name="")),
    "app impossible": (ID, described(ID, app_name="..", **OURS)),
    "surrogate": (ID, json.dumps(described(ID)).replace("blog", "\\ud800").encode()),
    "name no id": ("README", described(ID)),
    "name upper case": (ID.upper(), described(ID)),
    "name without hyphens": (ID.replace("-", ""), described(ID)),
    "name with more": (ID + ".tmp", described(ID)),
    "root no hex": (ID, described(ID, **OURS, root="xyz")),
    "root too short": (ID, described(ID, **OURS, root="ab")),
    "base no id": (ID, described(ID, **OURS, base="xyz")),
    "time before all": (ID, described(ID, format=1, created_at="0001-01-01T00:00:00+10:00")),
    "time after all": (ID, described(ID, format=1, created_at="9999-12-31T23:59:59-10:00")),
    "time without zone": (ID, described(ID, format=1, created_at="2026-01-02T03:04:05")),
    "size beyond 64 bits": (ID, described(ID, **OURS, size=10**30)),
    "size negative": (ID, described(ID, **OURS, size=-1)),
    "toc negative": (ID, described(ID, **OURS, toc={"offset": -1, "size": 5})),
    "toc half": (ID, described(ID, **OURS, toc={"offset": 1})),
    "key empty": (ID, described(ID, **OURS, key="")),
    "key leads out": (ID, described(ID, **OURS, key="../outside")),
}


@pytest.mark.parametrize("kind", MALFORMED)
async def test_metadata_that_cannot_be_understood_is_reported_and_the_rest_is_listed(tmp_path: Path, kind: str) -> None:
    name, body = MALFORMED[kind]
    put_metadata(tmp_path, name, body)
    good = [str(uuid.uuid4()) for _ in range(2)]
    for snapshot_id in good:
        put_metadata(tmp_path, snapshot_id, described(snapshot_id))
    async with opening(tmp_path) as store:
        assert set(await ids(store)) == set(good)
        report = await store.rebuild(archives=False)
        (problem,) = report.problems
        assert name in problem
        assert report.snapshots == 2


async def test_all_kinds_of_malformed_metadata_at_once_do_not_keep_a_store_from_opening(tmp_path: Path) -> None:
    for number, (name, body) in enumerate(MALFORMED.values()):
        changed = name.replace("0f0f0f0f-", f"{number:08x}-")
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        put_metadata(tmp_path, changed, text.replace(ID.encode(), changed.encode()))
    good = str(uuid.uuid4())
    put_metadata(tmp_path, good, described(good))
    async with opening(tmp_path) as store:
        assert good in await ids(store)


async def test_large_numbers_come_back_as_they_are(tmp_path: Path) -> None:
    snapshot_id = str(uuid.uuid4())
    large = 2**60 - 1
    fields = {"size": large, "content_size": large, "entries": large, "toc": {"offset": large, "size": large}}
    put_metadata(
        tmp_path, snapshot_id, described(snapshot_id, **OURS, **fields, key=f"blog:{snapshot_id}:-:1", revision=large)
    )
    async with opening(tmp_path) as store:
        found = await store.get(snapshot_id)
        assert (found.size, found.revision) == (large, large)


@pytest.mark.parametrize("labels", [(), ("owner:42",)])
async def test_snapshots_of_the_same_microsecond_are_all_listed(catalog: Catalog, labels: tuple[str, ...]) -> None:
    moment = datetime(2026, 1, 1, 12, tzinfo=UTC)
    same = [snapshot_at(moment, labels=labels) for _ in range(20)]
    around = [snapshot_at(moment + timedelta(microseconds=step), labels=labels) for step in (-1, 1, 2, 50)]
    await catalog.put([(snapshot, "etag") for snapshot in (*same, *around)])
    await catalog.put([(snapshot, "again") for snapshot in same])
    found: list[Snapshot] = []
    cursor = None
    while True:
        page = await catalog.page(Query(labels=labels), 3, cursor)
        found += page.snapshots
        cursor = page.cursor
        if cursor is None:
            break
    assert sorted(snapshot.id for snapshot in found) == sorted(snapshot.id for snapshot in (*same, *around))
    assert {snapshot.id: snapshot.created_at for snapshot in found} == {
        snapshot.id: snapshot.created_at for snapshot in (*same, *around)
    }


@pytest.mark.parametrize("order", [1, -1])
async def test_a_cursor_survives_a_rebuild_that_orders_an_instant_anew(catalog: Catalog, order: int) -> None:
    moment = datetime(2026, 1, 1, 12, tzinfo=UTC)
    same = [(snapshot_at(moment), "etag") for _ in range(6)]
    older = [(snapshot_at(moment - timedelta(hours=1)), "etag") for _ in range(3)]
    await catalog.put([*same, *older])
    page = await catalog.page(Query(), 6)
    assert page.cursor is not None
    await catalog.remove([uuid.UUID(snapshot.id).bytes for snapshot, _ in (*same, *older)])
    await catalog.put([*older[::order], *same[::order]])
    following = await catalog.page(Query(), 10, page.cursor)
    assert {snapshot.id for snapshot in following.snapshots} >= {snapshot.id for snapshot, _ in older}


async def test_an_iterator_of_apps_or_labels_holds_for_every_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapstore.engine.listing._PAGE", 2)
    now = datetime.now(UTC)
    async with opening(tmp_path) as store:
        for app in ("blog", "shop"):
            await store._catalog.put([(snapshot_at(now, app=app, labels=(f"of:{app}",)), "etag") for _ in range(5)])
        assert {one.app async for one in store.list(apps=iter(["blog"]))} == {"blog"}
        assert {one.app async for one in store.list(labels=iter(["of:shop"]))} == {"shop"}


async def test_removing_takes_labels_along(catalog: Catalog, tmp_path: Path) -> None:
    made = snapshot_at(datetime(2026, 1, 1, tzinfo=UTC), labels=("a:1", "b"))
    await catalog.put([(made, "etag")])
    assert look(tmp_path / "index.db", "SELECT count(*) FROM snapshot_label") == [(4,)]
    await catalog.remove([uuid.UUID(made.id).bytes, uuid.uuid4().bytes])
    assert look(tmp_path / "index.db", "SELECT count(*) FROM snapshot_label") == [(0,)]
    assert (await catalog.page(Query(labels=("a",)), 5)).snapshots == ()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with 5,000 snapshots of 50 apps and three labels each."""
    path = tmp_path_factory.mktemp("many") / "index.db"

    async def fill() -> None:
        workers = Workers(1, "test")
        catalog = await Catalog.open(str(path), URL, workers)
        start = datetime(2026, 1, 1, tzinfo=UTC)
        rows = [
            snapshot_at(
                start + timedelta(seconds=number),
                app=f"app{number % 50}",
                labels=(f"owner:{number % 100}", f"tier:{'gold' if number % 10 else 'silver'}", "all"),
            )
            for number in range(5000)
        ]
        await catalog.put([(row, "etag") for row in rows])
        await catalog.aclose()
        workers.close()

    asyncio.run(fill())
    return path


QUERIES = {
    "all": Query(),
    "one app": Query(apps=("app1",)),
    "two apps": Query(apps=("app1", "app2")),
    "three apps": Query(apps=("app1", "app2", "app3")),
    "one label": Query(labels=("owner:7",)),
    "a key": Query(labels=("owner",)),
    "two labels": Query(labels=("owner:7", "tier:gold")),
    "three labels": Query(labels=("owner:7", "tier:gold", "all")),
    "a label and an app": Query(labels=("owner:7",), apps=("app7",)),
    "a label and two apps": Query(labels=("tier:gold",), apps=("app7", "app8")),
    "two labels and an app": Query(labels=("tier:gold", "all"), apps=("app7",)),
}


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize("times", [False, True])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", QUERIES)
def test_a_page_is_read_from_an_index_and_never_sorted(
    many: Path, name: str, after: bool, times: bool, analyzed: bool
) -> None:
    query = QUERIES[name]
    if times:
        query = query._replace(since=datetime(2026, 1, 1, tzinfo=UTC), until=datetime(2027, 1, 1, tzinfo=UTC))
    sql, values = page_statement(query, (1_767_229_200_000_000, b"x" * 16) if after else None, Rarity())
    with closing(sqlite3.connect(many, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        if analyzed:  # statistics that somebody made must not change it either
            connection.execute("ANALYZE")
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", [*values, 51])]
        connection.execute("ROLLBACK")
    text = "\n".join(plan)
    assert "TEMP B-TREE" not in text, text
    scans = [line for line in plan if line.startswith("SCAN")]
    assert scans == (["SCAN s"] if name == "all" and not (after or times) else []), text
    assert "AUTOMATIC" not in text, text


@pytest.mark.parametrize("name", QUERIES)
def test_a_page_touches_few_rows_whatever_the_index_holds(many: Path, name: str) -> None:
    """Counted in SQLite's own steps, so that no clock is asked."""
    sql, values = page_statement(QUERIES[name], None, Rarity())
    with closing(sqlite3.connect(many)) as connection:
        steps = 0

        def step() -> int:
            nonlocal steps
            steps += 1
            return 0

        connection.set_progress_handler(step, 10)
        found = connection.execute(sql, [*values, 11]).fetchall()
        assert found
        assert steps * 10 < 20_000


WORKER = """
import asyncio, sys
from datetime import datetime, timedelta
from pathlib import Path
from snapstore import SnapStore

async def main(base, number, rounds):
    made = []
    for turn in range(rounds):
        async with SnapStore.open(base / "store", index=base / "index.db") as store:
            for _ in range(3):
                made.append((await store.create(f"app{number}", base / "app", labels=[f"turn:{turn}", "all"])).id)
                listed = [snapshot.id async for snapshot in store.list(apps=[f"app{number}"])]
                assert listed == made[::-1], (listed, made)
                assert (await store.latest(f"app{number}", labels=["all"])).id == made[-1]
            await asyncio.gather(*(store.page(labels=["all"]) for _ in range(8)))
            await store.delete(made.pop())
    print(len(made))

sys.stdin.read(1)
asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), 6))
"""


def test_many_processes_share_one_index(tmp_path: Path) -> None:
    """They make it together, too; each opens and closes it again and again."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "file").write_text("x")
    processes = [script(WORKER, tmp_path, number) for number in range(10)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go")
        process.stdin.flush()
    ended = [process.communicate(timeout=60) for process in processes]
    assert [errors for _, errors in ended if errors] == []
    assert [output for output, _ in ended] == ["12\n"] * 10
    index = tmp_path / "index.db"
    assert look(index, "SELECT count(*) FROM snapshot") == [(120,)]
    assert look(index, "PRAGMA integrity_check") == [("ok",)]
    assert look(index, "PRAGMA foreign_key_check") == []
    assert len(list((tmp_path / "store" / "_metadata").iterdir())) == 120


async def test_a_change_waits_for_another_process_and_readers_do_not(tmp_path: Path, catalog: Catalog) -> None:
    made = snapshot_at(datetime(2026, 1, 1, tzinfo=UTC))
    await catalog.put([(made, "etag")])
    with closing(sqlite3.connect(tmp_path / "index.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        changing = asyncio.create_task(catalog.remove([uuid.UUID(made.id).bytes]))
        for _ in range(3):
            assert await catalog.find(made.id) == made
        assert not changing.done()
        other.execute("COMMIT")
        await changing
    assert await catalog.find(made.id) is None


async def test_a_change_that_waits_can_be_cancelled_and_holds_nothing(tmp_path: Path, catalog: Catalog) -> None:
    made = snapshot_at(datetime(2026, 1, 1, tzinfo=UTC))
    with closing(sqlite3.connect(tmp_path / "index.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        changing = asyncio.create_task(catalog.put([(made, "etag")]))
        for _ in range(3):
            assert await catalog.find(made.id) is None
        changing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await changing
        other.execute("COMMIT")
    await catalog.put([(made, "etag")])
    assert await catalog.find(made.id) == made


async def test_an_index_that_stays_locked_is_told(
    tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapstore.index.file.PATIENCE", 0.05)
    with closing(sqlite3.connect(tmp_path / "index.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(CatalogBusy) as caught:
            await catalog.remove([])
    assert caught.value.path == str(tmp_path / "index.db")


async def test_a_snapshot_that_cannot_be_indexed_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When create raises, there is no snapshot: not in the bucket either."""
    (tmp_path / "app").mkdir()
    async with opening(tmp_path) as store:
        monkeypatch.setattr("snapstore.index.file.PATIENCE", 0.05)
        with closing(sqlite3.connect(tmp_path / "index.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(CatalogBusy):
                await store.create("blog", tmp_path / "app")
            other.execute("COMMIT")
        assert await ids(store) == []
        assert list((tmp_path / "store" / "_metadata").iterdir()) == []
        assert {path.name for path in (tmp_path / "store").iterdir()} == {".snapstore", "_metadata"}


async def test_an_index_that_is_damaged_while_it_is_open_is_an_error_of_ours(tmp_path: Path) -> None:
    async with opening(tmp_path) as store:
        write(tmp_path / "index.db", "ALTER TABLE snapshot RENAME TO gone")
        with pytest.raises(CatalogError):
            await ids(store)
        (tmp_path / "app").mkdir()
        with pytest.raises(CatalogError):
            await store.create("blog", tmp_path / "app")
