"""Changing labels: what each option means, what else of the metadata stays, and what nodes do to each other."""

import asyncio
import json
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from snapstore import InvalidInput, MetadataInvalid, Snapshot, SnapshotNotFound, SnapStore, UnsupportedFormat, keys
from snapstore.objectstore import ObjectInfo
from snapstore.storage.local import LocalStore
from tests import places
from tests.places import place_of, server_of

OLDER = "11111111-1111-4111-8111-111111111111"
LABELS = ("owner:42", "tier:gold", "plain", "owner:43")


class Place(places.Place):
    async def body(self, snapshot_id: str) -> bytes:
        return (await self.raw.get(keys.metadata_key(snapshot_id))).content

    async def fields(self, snapshot_id: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await self.body(snapshot_id))
        return found

    async def etag(self, snapshot_id: str) -> str:
        return (await self.raw.head(keys.metadata_key(snapshot_id))).etag

    async def put(self, snapshot_id: str, content: bytes | dict[str, Any]) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        await self.raw.put(keys.metadata_key(snapshot_id), body)


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Place]:
    async with place_of(Place, tmp_path) as made:
        yield made


@pytest.fixture(params=["folder", "seaweedfs"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """On either kind of store that knows conditional writes."""
    async with place_of(Place, tmp_path, server_of(request)) as made:
        yield made


@pytest.fixture
async def node(folder: Place) -> AsyncIterator[SnapStore]:
    async with folder.node() as store:
        yield store


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "file").write_text("content")
    return tmp_path / "app"


async def listed(store: SnapStore, *labels: str) -> list[Snapshot]:
    return [snapshot async for snapshot in store.list(labels=labels)]


@pytest.mark.parametrize(
    ("change", "after"),
    [
        ({"add": ["env:prod"]}, (*LABELS, "env:prod")),
        ({"add": ["b:2", "a:1", "b:2"]}, (*LABELS, "b:2", "a:1")),
        ({"add": ["plain", "new"]}, (*LABELS, "new")),
        ({"remove": ["owner:42"]}, ("tier:gold", "plain", "owner:43")),
        ({"remove": ["owner"]}, ("tier:gold", "plain")),
        ({"remove": ["plain"]}, ("owner:42", "tier:gold", "owner:43")),
        ({"remove": ["owner", "tier:gold", "plain", "not there"]}, ()),
        ({"remove": ["owner:4"], "add": ["new"]}, (*LABELS, "new")),
        ({"remove": ["owner"], "add": ["owner:44"]}, ("tier:gold", "plain", "owner:44")),
        ({"remove": ["owner:42"], "add": ["owner:42"]}, ("tier:gold", "plain", "owner:43", "owner:42")),
        ({"remove": ["size"], "add": ["new"]}, (*LABELS, "new")),
        ({"replace": ["b", "a", "b"]}, ("b", "a")),
        ({"replace": []}, ()),
        ({"replace": ["tier:lead", "x:1"], "remove": ["tier"], "add": ["y:2"]}, ("x:1", "y:2")),
        ({"replace": reversed(LABELS)}, LABELS[::-1]),
        ({"add": ["größe:ä", "owner:a:b"]}, (*LABELS, "größe:ä", "owner:a:b")),
    ],
)
async def test_what_is_added_removed_and_replaced(
    folder: Place, node: SnapStore, app: Path, change: dict[str, Any], after: Sequence[str]
) -> None:
    made = await node.create("blog", app, labels=LABELS)
    before = await folder.fields(made.id)
    changed = await node.relabel(made.id, **change)
    assert changed.labels == after
    assert changed.revision == made.revision + 1
    assert await node.get(made.id) == changed
    for label in after:
        assert await listed(node, label) == [changed]
    for label in {*LABELS} - {*after}:
        assert await listed(node, label) == []
    assert await folder.fields(made.id) == before | {"labels": [*after, f"size:{made.size}"], "revision": 2}
    async with folder.node("two") as other:
        assert await other.get(made.id) == changed


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"add": []},
        {"add": ["plain", "owner:42"]},
        {"remove": ["not there", "owner:4", "size", f"{LABELS[0]}0"]},
        {"replace": LABELS},
        {"replace": LABELS[:2], "add": LABELS[2:]},
    ],
)
async def test_where_nothing_changes_nothing_is_written(
    folder: Place, node: SnapStore, app: Path, change: dict[str, Any]
) -> None:
    made = await node.create("blog", app, labels=LABELS)
    etag = await folder.etag(made.id)
    same = await node.relabel(made.id, **change)
    assert (same.labels, same.revision) == (LABELS, 1)
    assert await folder.etag(made.id) == etag


async def test_any_name_of_a_snapshot_does(node: SnapStore, app: Path) -> None:
    made = await node.create("blog", app)
    assert (await node.relabel(made.id[:13], add=["a"])).labels == ("a",)
    assert (await node.relabel("blog@latest", add=["b"])).labels == ("a", "b")


async def test_the_revision_grows_by_one_each_time_and_the_archive_stays(
    folder: Place, app: Path, tmp_path: Path
) -> None:
    async with SnapStore.open(folder.url, index=tmp_path / "index.db", index_label="owner") as store:
        made = await store.create("blog", app, labels=["owner:42"])
        for number in range(2, 6):
            changed = await store.relabel(made.id, replace=[f"owner:{number}"])
            assert changed.revision == number
            assert (await folder.fields(made.id))["revision"] == number
        assert changed.key == made.key
        assert made.key is not None
        assert ":42:" in made.key
        await store.restore(made.id, tmp_path / "out")
        assert (tmp_path / "out" / "file").read_text() == "content"


UNKNOWN = {"text": "grüße 🙂", "list": [1, 2.5, None, {"deep": [True]}], "object": {"b": 1, "a": 2}, "": None}


async def test_fields_that_are_not_known_here_stay(folder: Place, node: SnapStore, app: Path) -> None:
    made = await node.create("blog", app)
    before = await folder.fields(made.id) | {"newer": UNKNOWN, "large": 10**29}
    await folder.put(made.id, before)
    await node.relabel(made.id, add=["a"])
    await node.relabel(made.id, add=["b"])
    assert await folder.fields(made.id) == before | {"labels": ["a", "b", f"size:{made.size}"], "revision": 3}


@pytest.mark.parametrize("number", ["1e400", "0.10000000000000000555", "1E5"])
async def test_numbers_that_are_not_known_here_stay_to_the_letter(
    folder: Place, node: SnapStore, app: Path, number: str
) -> None:
    made = await node.create("blog", app)
    text = (await folder.body(made.id)).decode()
    await folder.put(made.id, f'{text[:-1]},"newer":{number}}}'.encode())
    await node.relabel(made.id, add=["a"])
    assert f'"newer":{number}' in (await folder.body(made.id)).decode()


async def test_metadata_that_could_not_be_read_again_is_not_written(folder: Place, node: SnapStore, app: Path) -> None:
    made = await node.create("blog", app)
    await folder.put(made.id, await folder.fields(made.id) | {"revision": (1 << 60) - 1})
    before = await folder.body(made.id)
    with pytest.raises(MetadataInvalid):
        await node.relabel(made.id, add=["a"])
    assert await folder.body(made.id) == before


@pytest.mark.parametrize(
    ("labels", "change", "after"),
    [
        (["owner:7", "size:123"], {"add": ["new"]}, ["owner:7", "new", "size:123"]),
        (["owner:7", "size:123"], {"replace": []}, ["size:123"]),
        (["owner:7", "size:123"], {"remove": ["size", "owner"]}, ["size:123"]),
        (["owner:7"], {"add": ["new"]}, ["owner:7", "new"]),
        ([], {"add": ["new"]}, ["new"]),
        (["twice", "twice", "size:5"], {"add": ["new"]}, ["twice", "new", "size:5"]),
    ],
)
async def test_metadata_of_the_older_system_keeps_what_it_had(
    folder: Place, node: SnapStore, labels: list[str], change: dict[str, Any], after: list[str]
) -> None:
    older = {"uuid": OLDER, "app_name": "an app: of old", "ts": 1_700_000_000, "labels": labels}
    await folder.put(OLDER, older)
    await node.rebuild()
    size = (await node.get(OLDER)).size
    changed = await node.relabel(OLDER, **change)
    assert await folder.fields(OLDER) == older | {"labels": after, "revision": 1}
    assert (changed.format, changed.key, changed.size, changed.revision) == (0, None, size, 1)
    assert list(changed.labels) == [label for label in after if not label.startswith("size:")]
    assert await listed(node) == [changed]


@pytest.mark.parametrize("label", ["", ":x", "size:3", "size", "a\nb", "x" * 1025, "\udcff"])
@pytest.mark.parametrize("option", ["add", "replace"])
async def test_labels_that_cannot_be_are_refused(
    folder: Place, node: SnapStore, app: Path, option: str, label: str
) -> None:
    made = await node.create("blog", app, labels=LABELS)
    etag = await folder.etag(made.id)
    with pytest.raises(InvalidInput):
        await node.relabel(made.id, **{option: ["fine", label]})  # type: ignore[arg-type]
    assert await folder.etag(made.id) == etag


@pytest.mark.parametrize("option", ["add", "remove", "replace"])
async def test_one_string_is_no_list_of_labels(node: SnapStore, app: Path, option: str) -> None:
    made = await node.create("blog", app)
    with pytest.raises(InvalidInput):
        await node.relabel(made.id, **{option: "owner:42"})  # type: ignore[arg-type]


async def test_what_is_not_there_cannot_be_labelled(node: SnapStore) -> None:
    for unknown in (str(uuid.uuid4()), "blog@latest", "x"):
        with pytest.raises(SnapshotNotFound):
            await node.relabel(unknown, add=["a"])


async def test_a_format_that_is_not_known_is_left_alone(folder: Place, node: SnapStore, app: Path) -> None:
    made = await node.create("blog", app)
    await folder.put(made.id, await folder.fields(made.id) | {"format": 2})
    await node.rebuild()
    etag = await folder.etag(made.id)
    with pytest.raises(UnsupportedFormat):
        await node.relabel(made.id, add=["a"])
    assert await folder.etag(made.id) == etag


async def test_a_format_that_is_not_known_to_the_index_yet_is_left_alone(
    folder: Place, node: SnapStore, app: Path
) -> None:
    made = await node.create("blog", app)
    await folder.put(made.id, await folder.fields(made.id) | {"format": 2})
    etag = await folder.etag(made.id)
    with pytest.raises(UnsupportedFormat):
        await node.relabel(made.id, add=["a"])
    assert await folder.etag(made.id) == etag


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b"{}", b'{"uuid": "x"}', b"\xff", b"null"])
async def test_garbage_is_reported_and_stays_as_it_is(
    folder: Place, node: SnapStore, app: Path, garbage: bytes
) -> None:
    made = await node.create("blog", app)
    await folder.put(made.id, garbage)
    with pytest.raises(MetadataInvalid) as caught:
        await node.relabel(made.id, add=["a"])
    assert caught.value.key == keys.metadata_key(made.id)
    assert await folder.body(made.id) == garbage


async def test_metadata_of_another_snapshot_is_no_metadata_of_this_one(
    folder: Place, node: SnapStore, app: Path
) -> None:
    one, other = await node.create("blog", app), await node.create("blog", app)
    body = await folder.body(other.id)
    await folder.put(one.id, body)
    with pytest.raises(MetadataInvalid):
        await node.relabel(one.id, add=["a"])
    assert await folder.body(one.id) == body


async def test_what_another_node_has_deleted_is_dropped(place: Place, app: Path) -> None:
    async with place.node("one") as one, place.node("two") as two:
        made = await one.create("blog", app)
        await two.rebuild()
        await two.delete(made.id)
        assert len(await listed(one)) == 1
        with pytest.raises(SnapshotNotFound):
            await one.relabel(made.id, add=["a"])
        assert await listed(one) == []
        assert [info async for page in place.raw.list() for info in page] == []


async def test_what_another_node_has_changed_is_what_is_changed(place: Place, app: Path) -> None:
    """Also where nothing is left to do: then this node's index learns of it."""
    async with place.node("one") as one, place.node("two") as two:
        made = await one.create("blog", app, labels=["a"])
        await two.rebuild()
        await two.relabel(made.id, add=["b"])
        assert (await one.relabel(made.id, remove=["a"])).labels == ("b",)
        same = await two.relabel(made.id, remove=["a"])
        assert (same.labels, same.revision) == (("b",), 3)
        assert await listed(one) == await listed(two) == [same]


async def test_nodes_that_label_at_once_lose_nothing(place: Place, app: Path) -> None:
    async with place.node("one") as one, place.node("two") as two:
        made = await one.create("blog", app, labels=["first"])
        await two.rebuild()
        await asyncio.gather(*(([one, two][number % 2]).relabel(made.id, add=[f"n:{number}"]) for number in range(8)))
        found = await place.fields(made.id)
        assert {*found["labels"]} == {"first", f"size:{made.size}", *(f"n:{number}" for number in range(8))}
        assert found["revision"] == 9
        await one.rebuild()
        await two.rebuild()
        assert await listed(one, "n") == await listed(two, "n") == [await one.get(made.id)]


async def test_labelling_and_deleting_at_once_leaves_a_snapshot_or_nothing(place: Place, app: Path) -> None:
    async with place.node("one") as one, place.node("two") as two:
        for number in range(5):
            made = await one.create("blog", app)
            await two.rebuild()
            changed, deleted = await asyncio.gather(
                one.relabel(made.id, add=[f"n:{number}"]), two.delete(made.id), return_exceptions=True
            )
            assert isinstance(changed, Snapshot | SnapshotNotFound), changed
            assert isinstance(deleted, Snapshot), deleted
            assert [info async for page in place.raw.list() for info in page] == []


async def test_a_cancellation_leaves_bucket_and_index_consistent(place: Place, app: Path) -> None:
    async with place.node() as store:
        made = await store.create("blog", app)
        cancelled = 0
        for number in range(25):
            before = await place.fields(made.id)
            call = asyncio.create_task(store.relabel(made.id, add=[f"n:{number}"]))
            for _ in range(number):
                await asyncio.sleep(0)
            if number % 5 == 4:
                await asyncio.sleep(0.002)
            call.cancel()
            try:
                await call
            except asyncio.CancelledError:
                cancelled += 1
            after = await place.fields(made.id)
            assert after["revision"] - before["revision"] in (0, 1)
            assert after["labels"] in (
                before["labels"],
                [*before["labels"][:-1], f"n:{number}", before["labels"][-1]],
            )
            found = await store.get(made.id)
            assert (found.revision, [*found.labels]) == (after["revision"], after["labels"][:-1])
        assert cancelled
        rows = await listed(store)
        await store.rebuild()
        assert await listed(store) == rows


class SlowAnswer:
    """The first write of a label is applied at once, and answered late."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.applied, self.answer = asyncio.Event(), asyncio.Event()
        put = LocalStore.put

        async def late(store: LocalStore, key: str, body: bytes, **conditions: Any) -> ObjectInfo:
            info = await put(store, key, body, **conditions)
            if b"slow" in body and not self.applied.is_set():
                self.applied.set()
                await self.answer.wait()
            return info

        monkeypatch.setattr(LocalStore, "put", late)


async def relabelled_slowly(
    node: SnapStore, snapshot_id: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[SlowAnswer, "asyncio.Task[Snapshot]"]:
    """A relabel that the store has done, and not answered yet."""
    slow = SlowAnswer(monkeypatch)
    changing = asyncio.create_task(node.relabel(snapshot_id, add=["slow"]))
    await slow.applied.wait()
    return slow, changing


async def test_an_answer_that_comes_late_does_not_undo_the_index(
    node: SnapStore, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await node.create("blog", app)
    slow, first = await relabelled_slowly(node, made.id, monkeypatch)
    second = asyncio.create_task(node.relabel(made.id, add=["quick"]))
    await asyncio.wait([second], timeout=0.3)  # it may also wait for its turn
    slow.answer.set()
    await first
    assert (await second).labels == ("slow", "quick")
    assert await listed(node, "quick") == [await second]


async def test_an_answer_that_comes_late_does_not_bring_a_deleted_snapshot_back(
    node: SnapStore, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await node.create("blog", app)
    slow, first = await relabelled_slowly(node, made.id, monkeypatch)
    second = asyncio.create_task(node.delete(made.id))
    await asyncio.wait([second], timeout=0.3)  # it may also wait for its turn
    slow.answer.set()
    await asyncio.gather(first, second)
    assert await listed(node) == []


async def test_a_cancelled_change_waits_for_its_answer_no_longer_than_it_may(
    node: SnapStore, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapstore.aio.TIDY_SECONDS", 0.05)
    made = await node.create("blog", app)
    _, changing = await relabelled_slowly(node, made.id, monkeypatch)
    changing.cancel()
    async with asyncio.timeout(30):
        with pytest.raises(asyncio.CancelledError):
            await changing
    await node.sync()
    assert (await node.get(made.id)).labels == ("slow",)
    assert (await node.relabel(made.id, add=["next"])).labels == ("slow", "next")


async def test_a_change_that_waits_for_its_turn_is_cancelled_at_once(
    folder: Place, node: SnapStore, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await node.create("blog", app)
    slow, first = await relabelled_slowly(node, made.id, monkeypatch)
    waiting = [
        asyncio.create_task(node.relabel(made.id, add=["never"])),
        asyncio.create_task(node.delete(made.id)),
    ]
    await asyncio.sleep(0.05)
    for task in waiting:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    slow.answer.set()
    assert (await first).labels == ("slow",)
    assert await listed(node) == [await first]
    assert (await folder.fields(made.id))["labels"][0] == "slow"


def test_the_command(tmp_path: Path, app: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "snapstore", *arguments, "--url", "store", "--index", "index.db"],
            cwd=tmp_path,
            env={"HOME": str(tmp_path), "PATH": ""},
            capture_output=True,
            text=True,
            timeout=60,
        )

    assert run("create", "blog", "app", "--label", "owner:42", "--label", "tier:gold").returncode == 0
    done = run("label", "blog@latest", "--add", "env:prod", "-r", "owner")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(" of blog: tier:gold env:prod\n")
    document = json.loads(run("label", "blog@latest", "--set", "a:1", "-a", "b:2", "--json").stdout)
    assert (document["labels"], document["revision"]) == (["a:1", "b:2"], 3)
    assert run("label", "blog@latest", "-r", "a", "-r", "b").stdout.endswith(" of blog: no labels\n")
    for arguments, status, told in (
        (["blog@latest"], 2, "--add"),
        (["blog@latest", "--add", "size:3"], 2, "written by snapstore itself"),
        (["blog@latest", "--add", ":x"], 2, "key:value"),
        (["0199", "--add", "a"], 1, "snapstore list"),
    ):
        failed = run("label", *arguments)
        assert (failed.returncode, failed.stdout) == (status, "")
        assert told in failed.stderr
