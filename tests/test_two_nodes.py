"""Two nodes over one bucket: whatever they do, and wherever it is cut off, a sync makes each index equal to the bucket.

A machine of hypothesis plays at random, and what it would hardly hit is tested one by one: changes between a sync's
listing and its write, by this process and by others, rebuilds beside them, and a process that is killed.
"""

import asyncio
import contextlib
import itertools
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from snapstore import Snapshot, SnapshotNotFound, SnapStore, SnapstoreError, StorageError, metadata
from snapstore.engine import opened as engine
from snapstore.keys import METADATA_PREFIX, metadata_key
from snapstore.objectstore import ObjectInfo, ObjectStore
from snapstore.storage.local import LocalStore
from tests.places import wrapped

Hook = Callable[[str, str], Awaitable[None]]
"""What is done at a request, of which kind and for which key."""


class Hooked:
    """A store that does something before each request, and after it."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.before: Hook | None = None
        self.after: Hook | None = None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in ("get", "head", "put", "delete"):
            return found

        async def request(key: str, *args: Any, **options: Any) -> Any:
            await self._tell(self.before, name, key)
            answer = await found(key, *args, **options)
            await self._tell(self.after, name, key)
            return answer

        return request

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncGenerator[Sequence[ObjectInfo], None]:
        await self._tell(self.before, "list", prefix)
        async for page in self._store.list(prefix, start_after=start_after):
            await self._tell(self.after, "list", prefix)
            yield page

    @staticmethod
    async def _tell(hook: Hook | None, what: str, key: str) -> None:
        if hook is not None:
            await hook(what, key)


@contextlib.contextmanager
def hooked_stores() -> Any:
    """The stores that are opened meanwhile, in their order."""
    with pytest.MonkeyPatch.context() as patch:
        yield wrapped(patch, Hooked)


@pytest.fixture
def hooked() -> Any:
    with hooked_stores() as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to take snapshots of."""
    made = tmp_path / "app"
    made.mkdir()
    (made / "file").write_text("content")
    return made


def opening(tmp_path: Path, index: str = "one.db") -> SnapStore:
    return SnapStore.open(tmp_path / "store", index=tmp_path / index)


async def held(root: Path) -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """ETag, app and labels of what a bucket holds, by id; read without any index."""
    store = LocalStore(root)
    found = {}
    async for page in store.list(METADATA_PREFIX):
        for info in page:
            body = await store.get(info.key)
            assert body.etag == info.etag
            snapshot = metadata.decode(info.key, body.content)
            found[snapshot.id] = (body.etag, snapshot.app, snapshot.labels)
    await store.aclose()
    return found


async def indexed(store: SnapStore) -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """The same, as an index has it: what is listed, with the ETags in its file."""
    with closing(sqlite3.connect(store.index)) as connection:
        etags = {str(uuid.UUID(bytes=row[0])): row[1] for row in connection.execute("SELECT id, etag FROM snapshot")}
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    listed = [snapshot async for snapshot in store.list()]
    assert len({snapshot.id for snapshot in listed}) == len(listed)
    assert {snapshot.id for snapshot in listed} == etags.keys()
    return {snapshot.id: (etags[snapshot.id], snapshot.app, snapshot.labels) for snapshot in listed}


async def counted(store: SnapStore) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Snapshots by app, by label key, and by label."""
    keys = {count.name: count.snapshots for count in await store.labels()}
    labels = [count for key in keys for count in await store.labels(key)]
    apps = {count.name: count.snapshots for count in await store.apps()}
    return apps, keys, {count.name: count.snapshots for count in labels}


APPS = ("blog", "wiki")
LABELS = ("env:test", "env:prod", "owner:1", "pinned")
NODES = st.integers(0, 1)
PICKS = st.integers(0, 1000)
SETS = st.lists(st.sampled_from(LABELS), max_size=3, unique=True)
FAULTS = st.sampled_from(("", "", "", "lost", "cut", "cancelled"))
"""A request's answer is lost; it and all that follow fail; or the call is cancelled there."""
WHEN = st.integers(1, 9)


class TwoNodes(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp())
        (self.base / "app").mkdir()
        (self.base / "app" / "file").write_text("content")
        self.runner = asyncio.Runner()
        self.patches = contextlib.ExitStack()
        self.made: list[Hooked] = self.patches.enter_context(hooked_stores())
        self.pages = pytest.MonkeyPatch()
        self.pages.setattr("snapstore.storage.local._PAGE", 3)
        self.model: dict[str, tuple[str, tuple[str, ...]]] = {}
        """App and labels of what the bucket must hold."""
        self.nodes: list[SnapStore] = []
        self.hooks: list[Hooked] = []
        for number in range(2):
            self.nodes.append(self.runner.run(self._open(number)))
            self.hooks.append(self.made[-1])
        self.checked = [True, True]
        """Whether an index has been made equal to the bucket, and none has changed since."""

    async def _open(self, number: int) -> SnapStore:
        return await SnapStore.open(self.base / "store", index=self.base / f"{number}.db")

    def teardown(self) -> None:
        for node in self.nodes:
            self.runner.run(node.aclose())
        self.runner.close()
        self.pages.undo()
        self.patches.close()
        shutil.rmtree(self.base)

    def run(self, node: int, call: Coroutine[Any, Any, Any], fault: str = "", when: int = 1) -> tuple[bool, Any]:
        """Whether a call came through with such a fault at its ``when``-th request, and what it gave."""
        return self.runner.run(self._run(node, call, fault, when))

    async def _run(self, node: int, call: Coroutine[Any, Any, Any], fault: str, when: int) -> tuple[bool, Any]:
        task = asyncio.create_task(call)
        left = when

        async def strike(_what: str, key: str) -> None:
            nonlocal left
            left -= 1
            if left == 0 and fault == "cancelled":
                task.cancel()
            if (left == 0 and fault == "lost") or (left <= 0 and fault == "cut"):
                raise StorageError("the line was cut", key)

        if fault:
            self.hooks[node].after = strike
            if fault == "cut":
                self.hooks[node].before = strike
        try:
            return True, await task
        except (SnapstoreError, asyncio.CancelledError):
            assert fault, "a call failed without a reason"
            return False, None
        finally:
            self.hooks[node].after = self.hooks[node].before = None

    def changed(self) -> None:
        self.checked = [False, False]

    def pick(self, number: int) -> str:
        return sorted(self.model)[number % len(self.model)]

    def bucket(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        return {key: value[1:] for key, value in self.runner.run(held(self.base / "store")).items()}

    @rule(node=NODES, app=st.sampled_from(APPS), labels=SETS, fault=FAULTS, when=WHEN)
    def create(self, node: int, app: str, labels: list[str], fault: str, when: int) -> None:
        done, made = self.run(node, self.nodes[node].create(app, self.base / "app", labels=labels), fault, when)
        new = {key: value for key, value in self.bucket().items() if key not in self.model}
        if done:
            assert new == {made.id: (app, tuple(labels))}
            assert self.runner.run(self.nodes[node].get(made.id)) == metadata_only(made)
        else:  # where no request comes through any more, what was made cannot be taken back
            assert not new or (fault == "cut" and list(new.values()) == [(app, tuple(labels))])
        self.model |= new
        self.changed()

    @rule(labels=SETS)
    def create_as_the_older_system_does(self, labels: list[str]) -> None:
        made = str(uuid.uuid4())
        body = {"uuid": made, "app_name": "old", "ts": 1_700_000_000, "labels": [*labels, "size:7"]}
        store = LocalStore(self.base / "store")
        self.runner.run(store.put(f"old:{made}:-:1700000000", b"content"))
        self.runner.run(store.put(metadata_key(made), json.dumps(body).encode()))
        self.runner.run(store.aclose())
        self.model[made] = ("old", tuple(labels))
        self.changed()

    @precondition(lambda self: self.model)
    @rule(node=NODES, pick=PICKS, fault=FAULTS, when=WHEN)
    def delete(self, node: int, pick: int, fault: str, when: int) -> None:
        wanted = self.pick(pick)
        if not self.knows(node, wanted):
            return
        done, _ = self.run(node, self.nodes[node].delete(wanted), fault, when)
        assert not (done and self.knows(node, wanted))
        left = self.bucket()
        assert left.keys() >= self.model.keys() - {wanted}
        assert not (done and wanted in left)
        self.model = {key: value for key, value in self.model.items() if key in left}
        self.changed()

    @precondition(lambda self: self.model)
    @rule(node=NODES, pick=PICKS, labels=SETS, fault=FAULTS, when=WHEN)
    def relabel(self, node: int, pick: int, labels: list[str], fault: str, when: int) -> None:
        wanted = self.pick(pick)
        if not self.knows(node, wanted):
            return
        app, before = self.model[wanted]
        done, made = self.run(node, self.nodes[node].relabel(wanted, replace=labels), fault, when)
        found = self.bucket()[wanted]
        assert found in ([(app, tuple(labels))] if done else [(app, tuple(labels)), (app, before)])
        if done:
            assert self.runner.run(self.nodes[node].get(wanted)) == made
        self.model[wanted] = found
        self.changed()

    def knows(self, node: int, wanted: str) -> bool:
        try:
            self.runner.run(self.nodes[node].get(wanted))
        except SnapshotNotFound:
            return False
        return True

    @rule(node=NODES, kind=st.sampled_from(("sync", "rebuild", "checkpoint")), fault=FAULTS, when=WHEN)
    def equalize(self, node: int, kind: str, fault: str, when: int) -> None:
        store = self.nodes[node]
        done, report = self.run(node, getattr(store, kind)(), fault, when)
        if done:
            assert report.snapshots == len(self.model)
            self.checked[node] = True
            self.equal(node)

    @rule(node=NODES, fault=FAULTS, when=WHEN)
    def find_recent_ones(self, node: int, fault: str, when: int) -> None:
        done, _ = self.run(node, self.nodes[node].sync(recent=timedelta(hours=1)), fault, when)
        if done:  # all of ours were begun within it; deletions and changes within it are found too
            ours = {key for key, (app, _) in self.model.items() if app != "old"}
            listed = self.runner.run(indexed(self.nodes[node]))
            assert {key for key, (_, app, _) in listed.items() if app != "old"} == ours

    @rule(node=NODES, how=st.sampled_from(("reopened", "lost", "damaged", "side file damaged")))
    def crash(self, node: int, how: str) -> None:
        path = self.base / f"{node}.db"
        self.runner.run(self.nodes[node].aclose())
        if how == "lost":
            for file in self.base.glob(f"{node}.db*"):
                file.unlink()
        elif how == "damaged":
            damage(path)
        elif how == "side file damaged" and (beside := self.base / f"{node}.db-rebuild").exists():
            damage(beside)
        self.nodes[node] = self.runner.run(self._open(node))
        self.hooks[node] = self.made[-1]
        if how in ("lost", "damaged"):
            self.checked[node] = True
            self.equal(node)

    @rule(node=NODES, rebuilds=st.booleans(), picks=st.lists(st.tuples(PICKS, st.booleans(), SETS), max_size=4))
    def equalize_amid_changes(self, node: int, rebuilds: bool, picks: list[tuple[int, bool, list[str]]]) -> None:
        """What calls of this node change meanwhile is right in its index at once."""
        store = self.nodes[node]
        known = sorted(self.runner.run(indexed(store)).keys() & self.model.keys())
        chosen = {known[pick % len(known)]: (gone, labels) for pick, gone, labels in picks if known}

        async def all_at_once() -> Any:
            calls = [
                store.delete(wanted) if gone else store.relabel(wanted, replace=labels)
                for wanted, (gone, labels) in chosen.items()
            ]
            creates = [node.create("blog", self.base / "app", labels=["pinned"]) for node in self.nodes]
            return await asyncio.gather(store.rebuild() if rebuilds else store.sync(), *creates, *calls)

        _, *made = self.runner.run(all_at_once())[:3]
        for wanted, (gone, labels) in chosen.items():
            self.model[wanted] = (self.model[wanted][0], tuple(labels))
            if gone:
                del self.model[wanted]
        self.model |= {one.id: ("blog", ("pinned",)) for one in made}
        self.changed()
        listed = {key: value[1:] for key, value in self.runner.run(indexed(store)).items()}
        # What the other node made meanwhile may be in it, and need not.
        assert listed | {made[1 - node].id: ("blog", ("pinned",))} == self.model

    @invariant()
    def the_bucket_is_what_it_must_be(self) -> None:
        assert self.bucket() == self.model

    def equal(self, node: int) -> None:
        """One index against the bucket, and its counts against the model."""
        store = self.nodes[node]
        assert self.runner.run(indexed(store)) == self.runner.run(held(self.base / "store"))
        apps, keys, labels = self.runner.run(counted(store))
        assert apps == Counter(app for app, _ in self.model.values())
        sets = [labels for _, labels in self.model.values()]
        assert labels == Counter(label for labels in sets for label in labels)
        assert keys == Counter(key for labels in sets for key in {label.split(":")[0] for label in labels})

    @invariant()
    def an_index_that_was_made_equal_stays_so(self) -> None:
        for node in range(2):
            if self.checked[node]:
                self.equal(node)


def damage(path: Path) -> None:
    """What was in it is gone, but for its header."""
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    body = path.read_bytes()
    path.write_bytes(body[:4096] + b"\xff" * (len(body) - 4096))


def metadata_only(report: Any) -> Any:
    """The snapshot that a create reported, without how it went."""
    return Snapshot(**{field: getattr(report, field) for field in Snapshot.__struct_fields__})


TestTwoNodes = TwoNodes.TestCase
TestTwoNodes.settings = settings(
    max_examples=25,
    stateful_step_count=18,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def once(wanted: str, act: Callable[[], Awaitable[Any]]) -> Hook:
    """A hook that acts at the first request of a kind for metadata."""
    acted = False

    async def hook(what: str, key: str) -> None:
        nonlocal acted
        if what == wanted and key.startswith(METADATA_PREFIX) and not acted:
            acted = True
            await act()

    return hook


CHANGES: dict[str, Callable[[SnapStore, str, Path], Awaitable[Any]]] = {
    "create": lambda store, _, folder: store.create("blog", folder, labels=["late"]),
    "delete": lambda store, wanted, _: store.delete(wanted),
    "relabel": lambda store, wanted, _: store.relabel(wanted, add=["late"]),
}


@pytest.mark.parametrize("kind", ["sync", "rebuild", "checkpoint"])
@pytest.mark.parametrize("step", ["list", "get"])
@pytest.mark.parametrize("by", ["a call of this process", "another process"])
@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_between_a_syncs_listing_and_its_write_is_right_in_the_index_afterwards(
    hooked: list[Hooked], tmp_path: Path, folder: Path, change: str, by: str, step: str, kind: str
) -> None:
    """``list``: it has the listing, and not yet what the index has. ``get``: it holds what it is about to write."""
    async with opening(tmp_path) as one, opening(tmp_path) as beside, opening(tmp_path, "two.db") as two:
        made = [(await one.create("blog", folder)).id for _ in range(3)]
        await two.sync()
        for wanted in made:  # so the sync has to read them all
            await two.relabel(wanted, add=["changed"])
        caller = one if by == "a call of this process" else beside
        hooked[0].after = once(step, lambda: CHANGES[change](caller, made[1], folder))
        await getattr(one, kind)()
        hooked[0].after = None
        expected = await held(tmp_path / "store")
        assert len(expected) == {"create": 4, "delete": 2, "relabel": 3}[change]
        assert await indexed(one) == await indexed(beside) == expected


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_while_a_recent_sync_reads_is_right_in_the_index_afterwards(
    hooked: list[Hooked], tmp_path: Path, folder: Path, change: str
) -> None:
    async with opening(tmp_path) as one, opening(tmp_path) as beside, opening(tmp_path, "two.db") as two:
        made = [(await one.create("blog", folder)).id for _ in range(3)]
        await two.sync()
        for wanted in made:
            await two.relabel(wanted, add=["changed"])
        hooked[0].after = once("get", lambda: CHANGES[change](beside, made[1], folder))
        await one.sync(recent=timedelta(hours=1))
        assert await indexed(one) == await held(tmp_path / "store")


async def test_a_snapshot_that_changes_each_time_it_is_read_does_not_keep_a_sync_for_ever(
    hooked: list[Hooked], tmp_path: Path, folder: Path
) -> None:
    async with opening(tmp_path) as one, opening(tmp_path) as beside, opening(tmp_path, "two.db") as two:
        made = (await one.create("blog", folder)).id
        await two.sync()
        await two.relabel(made, add=["changed"])
        numbers = itertools.count()

        async def change(what: str, key: str) -> None:
            if what == "get" and key == metadata_key(made):
                await beside.relabel(made, replace=[f"n:{next(numbers)}"])

        hooked[0].after = change
        await one.sync()
        hooked[0].after = None
        assert next(numbers) < 20
        assert await indexed(one) == await held(tmp_path / "store")  # the call itself has written what it made


async def held_back(call: Coroutine[Any, Any, Any], store: Hooked) -> tuple["asyncio.Task[Any]", asyncio.Event]:
    """A call whose metadata is written, and whose answer comes only once the event is set."""
    written, release = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        written.set()
        await release.wait()

    store.after = once("put", hold)
    task = asyncio.create_task(call)
    await written.wait()
    return task, release


def answering_once_known(
    store: SnapStore, task: "asyncio.Task[Any]", release: asyncio.Event, *, piece: int = 1
) -> None:
    """The answer comes when the store's sync has a piece of the listing, and what the index has of it."""
    left = piece
    scan_really = store._catalog.database.scan

    async def scan(sql: str, values: Any = (), **options: Any) -> Any:
        found = await scan_really(sql, values, **options)
        nonlocal left
        left -= "max(change)" in sql
        if left == 0:
            release.set()
            await task
        return found

    store._catalog.database.scan = scan  # type: ignore[method-assign]


async def test_a_create_whose_row_comes_while_a_sync_runs_is_not_listed_where_it_was_deleted_meanwhile(
    hooked: list[Hooked], tmp_path: Path, folder: Path
) -> None:
    async with opening(tmp_path) as one, opening(tmp_path) as beside, opening(tmp_path, "two.db") as two:
        await one.create("wiki", folder)
        task, release = await held_back(one.create("blog", folder), hooked[0])
        await two.sync()
        await two.delete("blog@latest")
        answering_once_known(beside, task, release, piece=2)  # what follows the last one that is listed
        await beside.sync()
        assert task.done(), "it came while the sync ran"
        assert await indexed(beside) == await held(tmp_path / "store")


async def overtaken(
    one: SnapStore, beside: SnapStore, folder: Path, hooked: Hooked
) -> tuple[asyncio.Task[Any], asyncio.Event]:
    """A relabel by ``one`` that is held back after the store has done it, and one by ``beside`` that came later."""
    made = (await one.create("blog", folder)).id
    task, release = await held_back(one.relabel(made, add=["first"]), hooked)
    await beside.relabel(made, add=["second"])
    return task, release


async def test_a_relabel_whose_row_comes_while_a_sync_runs_does_not_undo_a_later_one(
    hooked: list[Hooked], tmp_path: Path, folder: Path
) -> None:
    async with opening(tmp_path) as one, opening(tmp_path) as beside:
        task, release = await overtaken(one, beside, folder, hooked[0])
        answering_once_known(beside, task, release)
        await beside.sync()
        assert task.done(), "it came while the sync ran"
        assert await indexed(beside) == await held(tmp_path / "store")


async def test_a_snapshot_whose_time_was_changed_is_listed_at_its_new_time(tmp_path: Path) -> None:
    """The older system's metadata can be written anew by anyone."""
    path = tmp_path / "store" / "_metadata"
    path.mkdir(parents=True)
    made = [str(uuid.uuid4()) for _ in range(2)]
    times = [1_700_000_000, 1_750_000_000]
    async with opening(tmp_path) as one:
        for _ in range(2):
            for name, ts in zip(made, times, strict=True):
                (path / name).write_text(json.dumps({"uuid": name, "app_name": "old", "ts": ts, "labels": []}))
            await one.sync()
            times[0] = 1_800_000_000
        assert [snapshot.id async for snapshot in one.list()] == made
        since = datetime.fromtimestamp(1_790_000_000, UTC)
        assert [snapshot.id async for snapshot in one.list(since=since)] == made[:1]


async def test_a_change_that_came_too_late_for_one_sync_is_put_right_by_the_next(
    hooked: list[Hooked], tmp_path: Path, folder: Path
) -> None:
    async with opening(tmp_path) as one, opening(tmp_path) as beside:
        task, release = await overtaken(one, beside, folder, hooked[0])
        release.set()
        await task
        await beside.sync()
        assert await indexed(beside) == await held(tmp_path / "store")


@pytest.mark.parametrize("same_process", [True, False])
async def test_two_rebuilds_at_once_are_both_whole(tmp_path: Path, folder: Path, same_process: bool) -> None:
    async with opening(tmp_path, "two.db") as two:
        for number in range(12):
            await two.create("blog", folder, labels=[f"n:{number}"])
    async with opening(tmp_path) as one, opening(tmp_path) as beside:
        reports = await asyncio.gather(one.rebuild(), (one if same_process else beside).rebuild())
        assert [report.snapshots for report in reports] == [12, 12]
        assert await indexed(one) == await indexed(beside) == await held(tmp_path / "store")
        assert not list(tmp_path.glob("*-rebuild*"))


@pytest.mark.parametrize("kind", ["sync", "rebuild"])
async def test_what_calls_of_both_processes_do_during_it_is_right_afterwards(
    hooked: list[Hooked], tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("snapstore.storage.local._PAGE", 4)
    async with opening(tmp_path) as one, opening(tmp_path) as beside, opening(tmp_path, "two.db") as two:
        made = [(await one.create("blog", folder)).id for _ in range(24)]
        await two.sync()
        for wanted in made[::2]:
            await two.relabel(wanted, add=["changed"])
        left = iter(made)

        async def change(what: str, key: str) -> None:
            """At every request something changes, before it and after it."""
            if not key.startswith(METADATA_PREFIX) or (wanted := next(left, None)) is None:
                return
            place = made.index(wanted)
            await CHANGES[("create", "delete", "relabel")[place % 3]]((beside, one)[place % 2], wanted, folder)

        async def quietly(what: str, key: str) -> None:
            hooked[0].before = hooked[0].after = None  # requests of the change itself
            await change(what, key)
            hooked[0].before = hooked[0].after = quietly

        hooked[0].before = hooked[0].after = quietly
        await getattr(one, kind)()
        hooked[0].before = hooked[0].after = None
        assert await indexed(one) == await indexed(beside) == await held(tmp_path / "store")


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from snapstore import SnapStore
from snapstore.engine import opened as engine
from snapstore.storage import local
from snapstore.storage.urls import open_store
from tests.test_two_nodes import Hooked

local._PAGE = 10
base, kind, lives = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
log = open(base / "read", "a")

async def open_killed(*args, **options):
    store = Hooked(await open_store(*args, **options))
    left = lives

    async def kill(what, key):
        nonlocal left
        left -= what == ("list" if kind == "between" else "get") and key.startswith("_metadata/")
        if left == 0:
            log.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    async def note(what, key):
        if what == "get":
            print(key, file=log)
        if kind == "between" and what == "list":
            await kill(what, key)

    store.after = note
    if kind == "within":
        store.before = kill
    return store

async def main():
    engine.open_store = open_killed
    async with SnapStore.open(base / "store", index=base / "killed.db") as store:
        await store.sync()

asyncio.run(main())
"""


@pytest.mark.parametrize(("kind", "lives", "repeated"), [("between", 4, 0), ("within", 35, 10)])
@pytest.mark.parametrize("filled", [True, False])
async def test_a_sync_that_was_killed_is_gone_on_with(
    hooked: list[Hooked], tmp_path: Path, folder: Path, kind: str, lives: int, repeated: int, filled: bool
) -> None:
    """``repeated``: objects that may be read twice, those of the page of ten that it was killed in."""
    if filled:
        async with opening(tmp_path, "killed.db"):
            pass
    async with opening(tmp_path, "two.db") as two:
        made = {(await two.create("blog", folder)).id for _ in range(60)}
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), kind, str(lives)], cwd=Path(__file__).parents[1], timeout=60
    )
    assert ended.returncode == -signal.SIGKILL
    read = (tmp_path / "read").read_text().split()
    assert 20 < len(read) < 60

    async def note(what: str, key: str) -> None:
        if what == "get":
            read.append(key)

    killed = opening(tmp_path, "killed.db")
    opened = engine.open_store

    async def open_noted(*args: Any, **options: Any) -> Any:
        store = await opened(*args, **options)
        store.after = note
        return store

    engine.open_store = open_noted  # the fixture puts it back
    async with killed as store:
        await store.sync()
        assert await indexed(store) == await held(tmp_path / "store")
    assert {key.removeprefix(METADATA_PREFIX) for key in read} == made
    assert len(read) - 60 <= repeated
