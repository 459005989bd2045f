"""Buckets of the older system, which we read and change; and ours, which it reads.

It is the Go service of FORMAT.md: ids are UUIDv4, metadata has four fields, an archive is one zstd stream by GNU tar,
and colons of app names and label values stand in the keys as they are. Its data can be incomplete.
"""

import asyncio
import io
import json
import logging
import os
import random
import shutil
import subprocess
import tarfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import pytest
import zstandard

from snapstore import Snapshot, SnapshotNotFound, SnapStore, keys
from snapstore.cli.commands import app as command_line
from snapstore.objectstore import Body, ObjectStore
from tests import places, servers
from tests.conftest import BUCKET
from tests.places import place_of, server_of, wrapped
from tests.trees import Description, describe, differences, write


class Older(NamedTuple):
    """A snapshot as the older system keeps it."""

    app: str
    labels: tuple[str, ...]
    value: str
    """What stands in the key for the label."""
    ts: int

    @property
    def id(self) -> str:
        return str(uuid.UUID(int=random.Random(self.ts).getrandbits(128), version=4))

    @property
    def key(self) -> str:
        return f"{self.app}:{self.id}:{self.value}:{self.ts}"

    def described(self, archive: bytes) -> dict[str, Any]:
        labels = [*self.labels, f"size:{len(archive)}"]
        return {"uuid": self.id, "app_name": self.app, "ts": self.ts, "labels": labels}

    def listed(self, archive: bytes) -> Snapshot:
        created_at = datetime.fromtimestamp(self.ts, UTC)
        return Snapshot(id=self.id, app=self.app, created_at=created_at, labels=self.labels, size=len(archive))


OLDER = (
    Older("shop", ("owner:42", "env:prod"), "42", 1_650_000_001),
    Older("shop", (), "-", 1_650_000_002),
    Older("team:shop", ("owner:42",), "42", 1_650_000_003),
    Older("shop", ("owner:a:b", "plain"), "a:b", 1_650_000_004),
    Older("team:shop", ("owner:a:b",), "a:b", 1_650_000_005),
    Older("größe & co/eins:x", ("owner:ä b/c%3A:d",), "ä b/c%3A:d", 1_650_000_006),
)
ODD_KEYS = {OLDER[2]: 5, OLDER[3]: 5, OLDER[4]: 6, OLDER[5]: 6}
"""Those whose keys have more than four parts, and how many."""


class Place(places.Place):
    async def put(self, key: str, body: bytes) -> None:
        await self.raw.put(key, body)

    async def put_older(self, older: Older, archive: bytes) -> None:
        """Metadata first, as that system does."""
        await self.describe(older.id, older.described(archive))
        await self.put(older.key, archive)

    async def describe(self, snapshot_id: str, body: bytes | dict[str, Any]) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.put(f"_metadata/{snapshot_id}", content)

    async def fields(self, snapshot_id: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((await self.raw.get(f"_metadata/{snapshot_id}")).content)
        return found

    async def keys(self) -> set[str]:
        return {info.key async for page in self.raw.list() for info in page}

    def age(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """All that is there now is two hours old."""
        if self.server is not None:
            monkeypatch.setattr("snapstore.index.archives.GRACE", -60)  # a bucket's times cannot be set
            return
        for path in Path(self.url).rglob("*:*"):
            os.utime(path, (time.time() - 7200,) * 2)


@pytest.fixture(params=["folder", "seaweedfs"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    async with place_of(Place, tmp_path, server_of(request)) as made:
        yield made


@pytest.fixture
async def bucket(place: Place, archive: bytes) -> Place:
    """With all of `OLDER`."""
    for older in OLDER:
        await place.put_older(older, archive)
    return place


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a tar of GNU's format holds: links, long names, modes, and times in whole seconds."""
    folder = tmp_path_factory.mktemp("older") / "tree"
    (folder / "static" / "empty").mkdir(parents=True)
    write(folder / "index.html", b"<h1>hello</h1>\n")
    write(folder / "static" / ("n" * 150), b"a long name")
    write(folder / "static" / "größe", random.Random(1).randbytes(300_000))
    os.link(folder / "index.html", folder / "static" / "again")
    (folder / "link").symlink_to("static/" + "n" * 150)
    (folder / "index.html").chmod(0o640)
    for number, path in enumerate(sorted(folder.rglob("*"), reverse=True)):  # folders after what is in them
        os.utime(path, (0, 1_600_000_000 + number), follow_symlinks=False)
    os.utime(folder, (0, 1_600_000_000))
    return folder


@pytest.fixture(scope="module")
def described(tree: Path) -> Description:
    return describe(tree)


@pytest.fixture(scope="module")
def archive(tree: Path) -> bytes:
    """By GNU tar and zstd, or as these would make it."""
    if shutil.which("zstd") and shutil.which("tar") and b"GNU" in subprocess.check_output(["tar", "--version"]):
        command = ["tar", "--format=gnu", "--zstd", "-cf", "-", "-C", str(tree), "."]
        return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(tree, ".")
    return zstandard.compress(made.getvalue())


async def ids(store: SnapStore, **filters: Any) -> list[str]:
    return [snapshot.id async for snapshot in store.list(**filters)]


async def content(store: SnapStore, snapshot_id: str, path: str) -> bytes:
    return b"".join([piece async for piece in store.read(snapshot_id, path)])


def fetch(url: str) -> bytes:
    with urlopen(url, timeout=30) as response:
        found: bytes = response.read()
        return found


def mentions(problems: Sequence[str], name: str) -> list[str]:
    return [problem for problem in problems if name in problem]


# What is whole


async def test_they_are_listed_by_app_label_and_time(bucket: Place, archive: bytes) -> None:
    async with bucket.node() as store:
        assert [snapshot async for snapshot in store.list()] == [older.listed(archive) for older in reversed(OLDER)]
        assert await ids(store, apps=["shop"]) == [OLDER[index].id for index in (3, 1, 0)]
        assert await ids(store, apps=["team:shop"]) == [OLDER[index].id for index in (4, 2)]
        assert await ids(store, apps=[OLDER[5].app]) == [OLDER[5].id]
        assert await ids(store, labels=["owner:a:b"]) == [OLDER[index].id for index in (4, 3)]
        assert await ids(store, labels=["owner:a:b"], apps=["shop"]) == [OLDER[3].id]
        assert await ids(store, labels=["owner:42", "env"]) == [OLDER[0].id]
        assert await ids(store, labels=["size"]) == []
        assert await ids(store, until=datetime.fromtimestamp(OLDER[2].ts, UTC)) == [OLDER[1].id, OLDER[0].id]
        assert (await store.latest("team:shop")).id == OLDER[4].id
        assert (await store.get("team:shop@latest")).id == OLDER[4].id
        assert (await store.get(OLDER[5].id[:13])).id == OLDER[5].id
        assert [(count.name, count.snapshots) for count in await store.apps()] == [
            ("größe & co/eins:x", 1),
            ("shop", 3),
            ("team:shop", 2),
        ]
        assert [(count.name, count.snapshots) for count in await store.labels("owner")] == [
            ("owner:42", 2),
            ("owner:a:b", 2),
            ("owner:ä b/c%3A:d", 1),
        ]


async def test_they_are_restored_whole_whatever_their_keys(
    bucket: Place, described: Description, tmp_path: Path
) -> None:
    async with bucket.node() as store:
        for number, older in enumerate(OLDER):
            report = await store.restore(older.id, tmp_path / f"out{number}")
            assert report.members == len(described)
            assert differences(described, describe(tmp_path / f"out{number}")) == {}


async def test_they_are_looked_into_and_read(bucket: Place, tree: Path, described: Description) -> None:
    async with bucket.node() as store:
        for older in OLDER:
            assert {member.path async for member in store.members(older.id)} == described.keys()
            assert await content(store, older.id, "static/größe") == (tree / "static" / "größe").read_bytes()
            assert await content(store, older.id, "static/again") == b"<h1>hello</h1>\n"


async def test_a_link_to_one_leads_to_its_archive(bucket: Place, archive: bytes) -> None:
    async with bucket.node() as store:
        for older in OLDER:
            assert await asyncio.to_thread(fetch, await store.download_url(older.id)) == archive


async def test_they_are_relabelled_and_keep_what_that_system_reads(bucket: Place, archive: bytes) -> None:
    async with bucket.node() as store, bucket.node("two") as other:
        for older in OLDER:
            changed = await store.relabel(older.id, add=["keep:a:b"], remove=["owner"])
            labels = [*(label for label in older.labels if not label.startswith("owner")), "keep:a:b"]
            assert changed.labels == tuple(labels)
            fields = older.described(archive) | {"labels": [*labels, f"size:{len(archive)}"], "revision": 1}
            assert await bucket.fields(older.id) == fields
        assert await ids(store, labels=["keep:a:b"]) == await ids(store) == [older.id for older in reversed(OLDER)]
        assert await ids(store, labels=["owner"]) == await ids(other, labels=["keep"]) == []
        assert (await other.sync()).read == len(OLDER)
        assert [found async for found in other.list()] == [found async for found in store.list()]
        assert {older.key for older in OLDER} < await bucket.keys()
        assert await content(other, OLDER[4].id, "index.html") == b"<h1>hello</h1>\n"


async def test_both_objects_of_a_deleted_one_go_and_no_others(bucket: Place) -> None:
    left = {older.id: older for older in OLDER}
    async with bucket.node() as store:
        for number in (4, 2, 5, 1):
            assert (await store.delete(OLDER[number].id)).id == OLDER[number].id
            del left[OLDER[number].id]
            assert await ids(store) == [*reversed(left)]
            assert await bucket.keys() == {name for old in left.values() for name in (old.key, f"_metadata/{old.id}")}
        assert [found.id for found in await store.delete_app("shop")] == [OLDER[3].id, OLDER[0].id]
    assert await bucket.keys() == set()


async def test_they_stand_beside_ours(bucket: Place, tree: Path, archive: bytes) -> None:
    async with bucket.node(index_label="owner") as store:
        made = await store.create("team:shop", tree, labels=["owner:a:b"])
        assert await ids(store, apps=["team:shop"]) == [made.id, OLDER[4].id, OLDER[2].id]
        assert await ids(store, labels=["owner:a:b"]) == [made.id, OLDER[4].id, OLDER[3].id]
        report = await store.rebuild()
        assert (report.snapshots, len(report.problems)) == (7, len(ODD_KEYS))
        assert mentions(report.problems, made.id) == []
        await store.delete(OLDER[4].id)
        assert await content(store, "team:shop@latest", "index.html") == b"<h1>hello</h1>\n"


# What is not


GOOD = Older("good", ("owner:42",), "42", 1_660_000_000)
FIELDS = ("uuid", "app_name", "ts", "labels")
WRONG = [
    ("uuid", 1),
    ("app_name", None),
    ("ts", "1650000000"),
    ("ts", 1650000000.5),
    ("ts", True),
    ("labels", None),
    ("labels", "owner:42"),
    ("labels", {"owner": "42"}),
    ("labels", ["owner:42", 7]),
]


def malformed(archive: bytes) -> Iterator[tuple[Older, bytes, str]]:
    """Metadata as it must not be, and what has to be said of it."""
    number = 1_670_000_000
    fields: dict[str, Any]

    def next_one() -> tuple[Older, dict[str, Any]]:
        nonlocal number
        number += 1
        older = Older("bad", ("owner:42",), "42", number)
        return older, older.described(archive)

    for name in FIELDS:
        older, fields = next_one()
        del fields[name]
        yield older, json.dumps(fields).encode(), f"`{name}`"
    for name, value in WRONG:
        older, fields = next_one()
        yield older, json.dumps(fields | {name: value}).encode(), f"$.{name}"
    for body in (b"", b"no JSON", b'{"uuid":', b"[]", b'{"uuid":"\xff"}'):
        older, _ = next_one()
        yield older, body, "cannot be understood"
    older, fields = next_one()
    yield older, json.dumps(fields | {"uuid": GOOD.id}).encode(), GOOD.id
    older, fields = next_one()
    yield older, json.dumps(fields | {"uuid": "seven"}).encode(), "seven"


@pytest.fixture
async def broken(place: Place, archive: bytes) -> tuple[Place, list[tuple[Older, str]]]:
    """A bucket with a good snapshot, and others whose archives are there, but whose metadata says nothing."""
    await place.put_older(GOOD, archive)
    bad = []
    for older, body, reason in malformed(archive):
        await place.describe(older.id, body)
        await place.put(older.key, archive)
        bad.append((older, reason))
    return place, bad


async def test_every_kind_of_malformed_metadata_is_told_once_and_the_rest_goes_on(
    broken: tuple[Place, list[tuple[Older, str]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place, bad = broken
    place.age(monkeypatch)
    async with place.node() as store:
        for report in (await store.sync(), await store.rebuild(), await store.rebuild(archives=False)):
            assert len(report.problems) == len(bad)
            for older, reason in bad:
                (problem,) = mentions(report.problems, f"_metadata/{older.id}")
                assert reason in problem
        status = await store.index_status()
        assert (status.snapshots, status.problems) == (1, len(bad))
        assert await ids(store) == await ids(store, apps=["good"]) == [GOOD.id]
        await store.restore(GOOD.id, tmp_path / "out")
        for older, _ in bad:
            with pytest.raises(SnapshotNotFound):
                await store.get(older.id)


class Watched:
    """A store that remembers what is read of it."""

    def __init__(self, store: ObjectStore, asked: Counter[str]) -> None:
        self._store = store
        self._asked = asked

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def get(self, key: str, **options: Any) -> Body:
        self._asked[key] += 1
        return await self._store.get(key, **options)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What stores read that are opened from now on."""
    asked: Counter[str] = Counter()
    wrapped(monkeypatch, lambda store: Watched(store, asked))
    return asked


async def test_malformed_metadata_is_read_and_logged_once_for_as_long_as_it_stays_as_it_is(
    broken: tuple[Place, list[tuple[Older, str]]], asked: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    place, bad = broken
    caplog.set_level(logging.WARNING, "snapstore")
    async with place.node() as store:
        assert asked == Counter(f"_metadata/{older.id}" for older in (GOOD, *(older for older, _ in bad)))
        assert len(caplog.messages) == len(bad)
        for older, reason in bad:
            (message,) = mentions(caplog.messages, older.id)
            assert reason in message
        asked.clear()
        caplog.clear()
        for _ in range(2):
            report = await store.sync()
            assert (report.read, report.removed, len(report.problems)) == (0, 0, len(bad))
    async with place.node() as store:
        assert len((await store.sync()).problems) == len(bad)
    assert asked == Counter()
    assert caplog.messages == []


def test_the_command_line_warns_of_each_and_ends_with_3(
    broken: tuple[Place, list[tuple[Older, str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    place, bad = broken
    for arguments in (["index", "rebuild"], ["index", "sync"]):
        with pytest.raises(SystemExit) as ended:
            command_line([*arguments, "--json", "--url", place.url, "--index", str(place.indexes / "one.db")])
        assert ended.value.code == 3
        shown = capsys.readouterr()
        assert len(json.loads(shown.out)["problems"]) == len(bad)
        warnings = [line for line in shown.err.splitlines() if line.startswith("warning: ")]
        assert len(warnings) == len(bad)
        assert all(len(mentions(warnings, f"_metadata/{older.id}: ")) == 1 for older, _ in bad)


async def test_malformed_metadata_that_changes_is_looked_at_again(
    place: Place, archive: bytes, asked: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    one, two = OLDER[:2]
    await place.put_older(one, archive)
    await place.describe(two.id, b"no JSON")
    async with place.node() as store:
        assert await ids(store) == [one.id]
        caplog.clear()
        asked.clear()
        await place.put_older(two, archive)
        await place.describe(one.id, b"no JSON either")
        report = await store.sync()
        assert (report.snapshots, report.read, report.removed, len(report.problems)) == (1, 2, 1, 1)
        assert await ids(store) == [two.id]
        assert len(mentions(caplog.messages, one.id)) == len(caplog.messages) == 1
        await place.raw.delete(f"_metadata/{one.id}")
        report = await store.sync()
        assert (report.snapshots, report.read, report.removed, report.problems) == (1, 0, 0, ())


async def test_what_has_no_ids_name_below_metadata_is_told_once_and_not_read(
    place: Place, archive: bytes, asked: Counter[str]
) -> None:
    names = ("README", GOOD.id.upper(), f"{GOOD.id}.tmp", GOOD.id.replace("-", ""), f"old/{GOOD.id}")
    for name in names:
        await place.put(f"_metadata/{name}", json.dumps(GOOD.described(archive)).encode())
    await place.put_older(GOOD, archive)
    async with place.node() as store:
        for report in (await store.sync(), await store.rebuild()):
            assert report.snapshots == 1
            assert len(report.problems) == len(names)
            for name in names:
                (problem,) = mentions(report.problems, f"_metadata/{name}: ")
                assert "no snapshot's id" in problem
    assert asked.keys() == {f"_metadata/{GOOD.id}"}


async def test_keys_with_more_than_four_parts_are_told_and_their_snapshots_listed(
    bucket: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.age(monkeypatch)
    async with bucket.node() as store:
        assert (await store.sync()).problems == ()
        report = await store.rebuild()
        assert report.snapshots == len(OLDER)
        assert len(report.problems) == len(ODD_KEYS)
        for older, parts in ODD_KEYS.items():
            (problem,) = mentions(report.problems, older.key)
            assert f"{parts} parts" in problem


async def test_halves_of_snapshots_are_told_once_each(
    place: Place, archive: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    without_archive, without_metadata = (OLDER[0], OLDER[2], OLDER[5]), (OLDER[1], Older("wiki", (), "-", 1))
    for older in (GOOD, *without_archive):
        await place.describe(older.id, older.described(archive))
    for older in (GOOD, *without_metadata):
        await place.put(older.key, archive)
    place.age(monkeypatch)
    async with place.node() as store:
        assert (await store.sync()).problems == ()
        for _ in range(2):
            caplog.clear()
            report = await store.rebuild()
            assert len(report.problems) == 5
            for older in without_archive:
                (problem,) = mentions(report.problems, older.id)
                assert problem.startswith(f"_metadata/{older.id}: the archive")
            for older in without_metadata:
                (problem,) = mentions(report.problems, older.id)
                assert problem.startswith(f"{older.key}: an archive without metadata")
            assert sorted(caplog.messages) == sorted(report.problems)
        assert (await store.rebuild(archives=False)).problems == ()

        # The one half can be deleted, the other is not listed; and the rest is as good as ever.
        assert set(await ids(store)) == {older.id for older in (GOOD, *without_archive)}
        await store.restore(GOOD.id, tmp_path / "out")
        for older in without_archive:
            with pytest.raises(SnapshotNotFound, match="archive"):
                await store.restore(older.id, tmp_path / "none")
            assert (await store.relabel(older.id, add=["seen"])).labels == (*older.labels, "seen")
            await store.delete(older.id)
        assert await ids(store) == [GOOD.id]
        assert len((await store.rebuild()).problems) == len(without_metadata)
    assert not (tmp_path / "none").exists()


async def test_objects_that_are_nothing_of_ours_are_told_of_in_one_sentence(
    place: Place, archive: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.put_older(GOOD, archive)
    place.age(monkeypatch)
    told = ["README: it is nothing of snapstore's, and left alone"]
    async with place.node() as store:
        for names, problems in (((), []), (("README",), told), (("a:b:c:d", "_other/x"), None)):
            for name in names:
                await place.put(name, b"?")
            found = (await store.rebuild()).problems
            if problems is not None:
                assert list(found) == problems
        (found_all,) = found
        assert "and 2 more: they are nothing of snapstore's" in found_all
        assert (await store.salvage()).problems == ()


async def test_an_archive_whose_metadata_may_still_come_is_not_told_of(place: Place, archive: bytes) -> None:
    await place.put(GOOD.key, archive)
    async with place.node() as store:
        assert (await store.rebuild()).problems == ()
        if place.server is None:
            moments = {3500: 0, 3700: 1}
            for age, problems in moments.items():
                os.utime(Path(place.url) / GOOD.key, (time.time() - age,) * 2)
                assert len((await store.rebuild()).problems) == problems
        await place.describe(GOOD.id, GOOD.described(archive))
        report = await store.rebuild()
        assert (report.snapshots, report.problems) == (1, ())


IMPOSSIBLE = [
    *("a\nb", "\0", "\x01/b", "\x7f", "\ufffe", ".", "..", "../../out", "a/../b", "a//b", "/root"),
    *("_metadata", "_metadata/x", "_x", ".snapstore/x", "x" * 300, "y/" * 600),
]


async def test_app_names_that_no_key_may_have_stop_nothing(
    place: Place, archive: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    odd = [Older(app, ("owner:42",), "42", 1_640_000_000 + number) for number, app in enumerate(IMPOSSIBLE)]
    await place.put_older(GOOD, archive)
    for older in odd:
        await place.describe(older.id, older.described(archive))
    place.age(monkeypatch)
    async with place.node() as store:
        report = await store.rebuild()
        assert (report.snapshots, len(report.problems)) == (1 + len(odd), len(odd))
        for older in odd:
            (problem,) = mentions(report.problems, older.id)
            assert problem.startswith(f"_metadata/{older.id}: the archive")
            assert await ids(store, apps=[older.app]) == [older.id]
            with pytest.raises(SnapshotNotFound):
                await store.restore(older.id, tmp_path / "none")
            with pytest.raises(SnapshotNotFound):
                await store.download_url(older.id)
            await store.delete(older.id)
        assert (await store.rebuild()).problems == ()
        assert await ids(store) == [GOOD.id]


# The other way round


class OlderSystem:
    """The older system's own rules, from FORMAT.md alone. Nothing of snapstore is used in here, nor may it be."""

    def __init__(self, names: Callable[[], list[str]], read: Callable[[str], bytes]) -> None:
        """``names`` are those of the bucket's root, which is not looked into."""
        self._names = names
        self._read = read

    def find(self) -> dict[str, dict[str, Any]]:
        """By their archives' keys, the metadata of all snapshots."""
        found = {}
        for key in self._names():
            parts = key.split(":")
            if len(parts) != 4:
                continue
            _, snapshot_id, _, seconds = parts
            fields = json.loads(self._read(f"_metadata/{snapshot_id}"))
            assert type(fields["uuid"]) is str
            assert type(fields["app_name"]) is str
            assert type(fields["ts"]) is int
            assert type(fields["labels"]) is list
            assert {type(label) for label in fields["labels"]} == {str}
            assert (fields["uuid"], fields["ts"]) == (snapshot_id, int(seconds))
            assert uuid.UUID(snapshot_id)
            found[key] = fields
        return found

    def restore(self, key: str, fields: dict[str, Any], target: Path) -> None:
        if not (shutil.which("tar") and shutil.which("zstd")):
            pytest.skip("tar or zstd is not installed")
        archive = self._read(key)
        assert fields["labels"][-1] == f"size:{len(archive)}"
        assert sum(label.startswith("size:") for label in fields["labels"]) == 1
        target.mkdir()
        plain = subprocess.run(["zstd", "-dc"], input=archive, stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["tar", "-xpf", "-", "-C", target], input=plain, check=True)


@pytest.fixture
def older_system(place: Place) -> Iterator[OlderSystem]:
    if place.server is None:
        root = Path(place.url)
        yield OlderSystem(lambda: [path.name for path in root.iterdir()], lambda key: (root / key).read_bytes())
        return
    prefix = place.url.rpartition("/")[2] + "/"
    with closing(servers.client(place.server)) as s3:

        def names() -> list[str]:
            listed = s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix, Delimiter="/")
            return [entry["Key"].removeprefix(prefix) for entry in listed.get("Contents", ())]

        def read(key: str) -> bytes:
            body: bytes = s3.get_object(Bucket=BUCKET, Key=prefix + key)["Body"].read()
            return body

        yield OlderSystem(names, read)


APPS = ["shop", "team:eu:shop", "größe & co/eins", ".hidden", "100%3A", "a b\\c\"d'", "日" * 14, "x" * 128]
VALUES = ["42", "a:b:c", "/", "..", "ä/b c%", "-", "", "v" * 64, "v" * 65, "日本語" * 3, "🙂" * 6]


async def test_the_older_system_finds_and_restores_what_we_make(
    place: Place, older_system: OlderSystem, tree: Path, described: Description, tmp_path: Path
) -> None:
    odd = [*((app, "a:b/c") for app in APPS), *(("team:shop", value) for value in VALUES)]
    async with place.node(index_label="owner") as store:
        made = [await store.create(app, tree, labels=[f"owner:{value}", "env:prod"]) for app, value in odd]
        found = older_system.find()
        assert found.keys() == {report.key for report in made}
        for number, report in enumerate(made):
            app, value = odd[number]
            assert report.key is not None
            assert {name: found[report.key][name] for name in FIELDS} == {
                "uuid": report.id,
                "app_name": app,
                "ts": int(report.created_at.timestamp()),
                "labels": [f"owner:{value}", "env:prod", f"size:{report.size}"],
            }
            older_system.restore(report.key, found[report.key], tmp_path / str(number))
            assert differences(described, describe(tmp_path / str(number))) == {}


async def test_the_older_system_finds_and_restores_what_we_have_relabelled(
    place: Place, older_system: OlderSystem, tree: Path, described: Description, tmp_path: Path
) -> None:
    async with place.node(index_label="owner") as store:
        made = await store.create("team:shop", tree, labels=["owner:a:b", "env:prod"])
        await store.relabel(made.id, remove=["owner"], add=["owner:another:value", "größe:ä"])
        ((key, fields),) = older_system.find().items()
        assert key == made.key
        assert fields["labels"] == ["env:prod", "owner:another:value", "größe:ä", f"size:{made.size}"]
        older_system.restore(key, fields, tmp_path / "out")
        assert differences(described, describe(tmp_path / "out")) == {}
        await store.relabel(made.id, replace=[])
        assert older_system.find()[key]["labels"] == [f"size:{made.size}"]
        await store.delete(made.id)
        assert older_system.find() == {}


async def test_the_older_system_finds_all_of_a_bucket_that_both_have_written(
    bucket: Place, older_system: OlderSystem, tree: Path, archive: bytes
) -> None:
    async with bucket.node(index_label="owner") as store:
        made = [await store.create(app, tree, labels=[f"owner:{value}"]) for app in APPS[:4] for value in VALUES[:2]]
        await store.relabel(OLDER[0].id, replace=["owner:44"])
        found = older_system.find()
        assert found.keys() == {OLDER[0].key, OLDER[1].key, *(report.key for report in made)}
        assert found[OLDER[0].key]["labels"] == ["owner:44", f"size:{len(archive)}"]
        assert found[OLDER[1].key] == OLDER[1].described(archive)
        assert set(await ids(store)) == {older.id for older in OLDER} | {report.id for report in made}


def test_the_layout_is_that_of_the_older_system() -> None:
    """Plain names give just the keys that it makes."""
    older = OLDER[0]
    assert keys.archive_key(older.app, older.id, older.value, older.ts) == older.key
    assert keys.archive_key(older.app, older.id, None, older.ts) == f"shop:{older.id}:-:{older.ts}"
    assert keys.metadata_key(older.id) == f"_metadata/{older.id}"
