"""What `SnapStore` promises to whoever holds it: make, find, list, read, restore and delete, and how each can fail."""

import json
import os
import random
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import UUID

import pytest
import zstandard
from blake3 import blake3

from snapstore import (
    AmbiguousId,
    ArchiveDamaged,
    Caps,
    Existing,
    InvalidInput,
    Member,
    MemberNotFound,
    Page,
    Progress,
    Snapshot,
    SnapshotNotFound,
    SnapStore,
    StorageFull,
    TargetConflict,
    TargetNotEmpty,
    TargetUnwritable,
    UnsafeMember,
    UnsupportedFormat,
    keys,
)
from tests.trees import noise

FRAME = 4 << 20
BIG = 2 * FRAME + 1234
HOUR = timedelta(hours=1)
EXISTING: tuple[Existing, ...] = ("refuse", "merge", "replace")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system, or become somebody else")


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """Files in folders, a large one, links of both kinds."""
    folder = tmp_path / "app"
    (folder / "etc" / "deep").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "readme").write_text("read me")
    (folder / "etc" / "conf").write_text("a=1")
    (folder / "etc" / "deep" / "er").write_text("deep")
    (folder / "data" / "big").write_bytes(noise(BIG))
    os.link(folder / "etc" / "conf", folder / "etc" / "hard")
    (folder / "soft").symlink_to("etc/conf")
    return folder


def contents(folder: Path) -> dict[str, Any]:
    """Of all files, and where links lead."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def folder_with(path: Path, **files: str) -> Path:
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name).write_text(text)
    return path


async def ids(listing: AsyncIterator[Snapshot]) -> list[str]:
    return [snapshot.id async for snapshot in listing]


async def read(store: SnapStore, snapshot_id: str, path: str, **part: int) -> bytes:
    return b"".join([piece async for piece in store.read(snapshot_id, path, **part)])


def metadata_path(tmp_path: Path, snapshot_id: str) -> Path:
    return tmp_path / "store" / "_metadata" / snapshot_id


class Filled:
    """A store with many snapshots, as other nodes would have left them; the newest first in ``ids``."""

    def __init__(self, store: SnapStore, ids: list[str], start: datetime) -> None:
        self.store = store
        self.ids = ids
        self.start = start

    def those(self, chosen: Callable[[int], bool]) -> list[str]:
        """Ids of the snapshots whose number, counted from the oldest, is chosen."""
        return [found for number, found in enumerate(reversed(self.ids)) if chosen(number)][::-1]


@pytest.fixture
async def filled(store: SnapStore, tmp_path: Path) -> Filled:
    """60 snapshots an hour apart: of apps a, b, c in turn; every 4th with tier:gold, the rest silver; owner:0 to 4."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    made = []
    (tmp_path / "store" / "_metadata").mkdir()
    for number in range(60):
        moment = start + number * HOUR
        made.append(keys.new_id(int(moment.timestamp() * 1000)))
        labels = [f"tier:{'silver' if number % 4 else 'gold'}", f"owner:{number % 5}", *(["odd"] if number % 2 else [])]
        put_metadata(tmp_path, made[-1], app_name="abc"[number % 3], ts=int(moment.timestamp()), labels=labels)
    await store.rebuild()
    return Filled(store, made[::-1], start)


def put_metadata(tmp_path: Path, snapshot_id: str, **fields: Any) -> None:
    defaults = {"uuid": snapshot_id, "app_name": "blog", "ts": 1_700_000_000, "labels": []}
    folder = tmp_path / "store" / "_metadata"
    folder.mkdir(exist_ok=True)
    (folder / snapshot_id).write_text(json.dumps(defaults | fields))


async def test_the_metadata_object_is_what_the_format_says(tmp_path: Path, app: Path) -> None:
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db", index_label="owner") as store:
        before = datetime.now(UTC)
        made = await store.create("blog", app, labels=["owner:42", "tier:gold", "owner:42"])
        after = datetime.now(UTC)
    found = json.loads(metadata_path(tmp_path, made.id).read_bytes())
    archive = tmp_path / "store" / found["key"]
    assert found.keys() == {
        *("uuid", "app_name", "ts", "labels", "format", "created_at", "key", "size", "content_size", "entries"),
        *("toc", "root", "base", "reused", "warnings", "revision"),
    }
    assert found["uuid"] == made.id == str(UUID(made.id))
    assert UUID(made.id).version == 7
    assert found["app_name"] == "blog"
    assert found["labels"] == ["owner:42", "tier:gold", f"size:{archive.stat().st_size}"]
    assert found["format"] == 1
    created = datetime.strptime(found["created_at"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    assert before <= created <= after
    assert created == made.created_at
    assert found["ts"] == int(created.timestamp())
    assert UUID(made.id).int >> 80 == int(created.timestamp() * 1000)
    assert found["key"] == f"blog:{made.id}:42:{found['ts']}"
    assert found["size"] == archive.stat().st_size
    assert found["content_size"] == len("read me") + len("a=1") + len("deep") + BIG
    assert found["entries"] == 10
    toc = archive.read_bytes()[found["toc"]["offset"] :][: found["toc"]["size"]]
    magic, size = struct.unpack_from("<II", toc)
    assert (magic, size) == (0x184D2A55, len(toc) - 8)
    document = zstandard.decompress(toc[16:])
    assert found["root"] == blake3(document).hexdigest()
    header = json.loads(document.splitlines()[0])
    assert header == {
        "format": 1,
        "id": made.id,
        "app": "blog",
        "labels": ["owner:42", "tier:gold"],
        "created_at": found["created_at"],
    }
    assert (found["base"], found["reused"], found["warnings"], found["revision"]) == (None, 0, 0, 1)


async def test_what_was_made_is_what_is_listed_and_what_a_new_index_finds(
    store: SnapStore, tmp_path: Path, app: Path
) -> None:
    made = await store.create("blög & co", app, labels=["plain", "owner:a:b", "größe:ä"])
    found = await store.get(made.id)
    assert type(found) is Snapshot
    assert {field: getattr(made, field) for field in Snapshot.__struct_fields__} == {
        field: getattr(found, field) for field in Snapshot.__struct_fields__
    }
    assert found.labels == ("plain", "owner:a:b", "größe:ä")
    assert made.seconds > 0
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "other.db") as other:
        assert await other.get(made.id) == found


@pytest.mark.parametrize(
    ("labels", "value"),
    [
        (["owner:42"], "42"),
        (["tier:gold"], "-"),
        ([], "-"),
        (["owner:"], "-"),
        (["owner"], "-"),
        (["owner:a/b c:ü"], "a%2Fb%20c%3A%C3%BC"),
        (["owner:" + "x" * 64], "x" * 64),
        (["owner:" + "x" * 65], "-"),
        (["owner:first", "owner:second"], "first"),
    ],
)
async def test_the_index_labels_value_stands_in_the_key(
    tmp_path: Path, app: Path, labels: list[str], value: str
) -> None:
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db", index_label="owner") as store:
        made = await store.create("my app", app, labels=labels)
        assert made.key == f"my%20app:{made.id}:{value}:{int(made.created_at.timestamp())}"
        assert (await store.get(made.id)).labels == tuple(labels)
        assert await read(store, made.id, "readme") == b"read me"


@pytest.mark.parametrize("name", ["", ".", "..", "_x", "a\nb", "a\0b", "\x7f", "x" * 129, "ü" * 22, "\udcff"])
async def test_app_names_that_cannot_be_are_refused(store: SnapStore, app: Path, name: str) -> None:
    with pytest.raises(InvalidInput):
        await store.create(name, app)


@pytest.mark.parametrize("name", ["a:b", "a/b", "x" * 128, "ü" * 21, "...", "-", "a b", "%2F", "a\\b"])
async def test_app_names_may_hold_what_keys_may_not(store: SnapStore, app: Path, name: str) -> None:
    made = await store.create(name, app)
    assert (await store.latest(name)).id == made.id
    assert await read(store, f"{name}@latest", "readme") == b"read me"
    assert made.key is not None
    assert made.key.count(":") == 3
    assert len(made.key.encode()) <= 255


@pytest.mark.parametrize("label", ["", ":x", "size:3", "size", "a\nb", "x" * 1025, "\udcff"])
async def test_labels_that_cannot_be_are_refused(store: SnapStore, app: Path, label: str) -> None:
    with pytest.raises(InvalidInput):
        await store.create("blog", app, labels=[label])


async def test_options_that_cannot_be_are_refused(store: SnapStore, app: Path, tmp_path: Path) -> None:
    wrong: list[dict[str, Any]] = [{"on_error": "ignore"}, {"level": 0}, {"level": 20}, {"labels": "owner:42"}]
    for options in wrong:
        with pytest.raises(InvalidInput):
            await store.create("blog", app, **options)
    made = await store.create("blog", app)
    wrong = [
        {"existing": "overwrite"},
        {"app": "blog", "target": tmp_path / "out"},
        {"paths": "etc"},
        {"exclude": "etc"},
        {"drop": "etc"},
        {"paths": ["../etc"]},
        {"paths": ["/etc"]},
        {"drop": [".."]},
    ]
    for options in wrong:
        with pytest.raises(InvalidInput):
            await store.restore(made.id, **({"target": tmp_path / "out"} | options))
    with pytest.raises(InvalidInput):
        await store.restore(made.id)  # no folder of apps is known
    with pytest.raises(InvalidInput):
        await store.create("blog")
    for target in ("", "\0"):
        with pytest.raises(InvalidInput):
            await store.restore(made.id, target)
    assert not (tmp_path / "out").exists()
    for part in ({"start": -1}, {"size": -1}):
        with pytest.raises(InvalidInput):
            await read(store, made.id, "readme", **part)
    with pytest.raises(InvalidInput):
        await store.page(limit=0)
    for name in ("apps", "labels"):
        with pytest.raises(InvalidInput):
            await store.page(**{name: "blog"})  # type: ignore[arg-type]
    for label in ("", ":x"):
        with pytest.raises(InvalidInput):
            await store.page(labels=[label])
    for when in ("since", "until"):
        with pytest.raises(InvalidInput):
            await store.page(**{when: datetime(2026, 1, 1)})  # type: ignore[arg-type]


async def test_progress_is_told_up_to_the_end(store: SnapStore, app: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    made = await store.create("blog", app, progress=told.append)
    assert [step.phase for step in told] == sorted((step.phase for step in told), key=["scan", "pack"].index)
    assert (told[-1].members, told[-1].bytes) == (made.entries, made.content_size)
    assert (told[-1].total_members, told[-1].total_bytes) == (made.entries, made.content_size)
    told.clear()
    report = await store.restore(made.id, tmp_path / "out", progress=told.append)
    assert {step.phase for step in told} == {"restore"}
    assert (told[-1].members, told[-1].bytes) == (report.members, report.content_size)
    assert (report.members, report.content_size) == (made.entries, made.content_size)
    assert report.snapshot.id == made.id
    assert report.target == str(tmp_path / "out")
    assert report.skipped == ()


async def test_an_id_may_be_any_beginning_of_one_that_fits_only_one(store: SnapStore, tmp_path: Path) -> None:
    first, second = "0199aaaa-0000-7000-8000-000000000001", "0199aabb-0000-7000-8000-000000000002"
    for snapshot_id in (first, second):
        put_metadata(tmp_path, snapshot_id)
    await store.rebuild()
    for text in (first, first.upper(), first.replace("-", ""), first[:7], "0199aaaa-00", "0199AAA"):
        assert (await store.get(text)).id == first
    assert (await store.get("0199aab")).id == second
    for text in ("0", "0199aa"):
        with pytest.raises(AmbiguousId) as caught:
            await store.get(text)
        assert set(caught.value.candidates) == {first, second}
    for text in ("", "-", "0199aac", "f", "xyz", first + "0", "%", "0199aa%", "blog", "@latest", "nobody@latest"):
        with pytest.raises(SnapshotNotFound) as missing:
            await store.get(text)
        assert missing.value.snapshot_id == text


async def test_the_latest_of_an_app_stands_for_its_id_everywhere(store: SnapStore, tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "app", file="1")
    await store.create("user@host", folder, labels=["tier:gold"])
    (folder / "file").write_text("2")
    newest = await store.create("user@host", folder)
    assert (await store.get("user@host@latest")).id == newest.id
    assert await read(store, "user@host@latest", "file") == b"2"
    await store.restore("user@host@latest", tmp_path / "out")
    assert contents(tmp_path / "out") == {"file": b"2"}
    assert (await store.latest("user@host", labels=["tier"])).id != newest.id
    with pytest.raises(SnapshotNotFound):
        await store.latest("user@host", labels=["tier:silver"])
    assert (await store.delete("user@host@latest")).id == newest.id
    assert (await store.latest("user@host")).labels == ("tier:gold",)


async def test_a_listing_is_newest_first_and_ends_with_the_limit(filled: Filled) -> None:
    assert await ids(filled.store.list()) == filled.ids
    assert await ids(filled.store.list(limit=7)) == filled.ids[:7]
    assert await ids(filled.store.list(limit=0)) == []
    assert await ids(filled.store.list(limit=1000)) == filled.ids


@pytest.mark.parametrize(
    ("filters", "chosen"),
    [
        ({"apps": ["a"]}, lambda n: n % 3 == 0),
        ({"apps": ["a", "c", "a"]}, lambda n: n % 3 != 1),
        ({"apps": ["a", "nobody"]}, lambda n: n % 3 == 0),
        ({"apps": ["nobody"]}, lambda n: False),
        ({"labels": ["tier:gold"]}, lambda n: n % 4 == 0),
        ({"labels": ["tier"]}, lambda n: True),
        ({"labels": ["odd"]}, lambda n: n % 2 == 1),
        ({"labels": ["odd:"]}, lambda n: n % 2 == 1),
        ({"labels": ["tier:gold", "owner:3"]}, lambda n: n % 4 == 0 and n % 5 == 3),
        ({"labels": ["tier:gold", "owner", "owner:3"]}, lambda n: n % 4 == 0 and n % 5 == 3),
        ({"labels": ["tier:gold", "tier:silver"]}, lambda n: False),
        ({"labels": ["tier:nobody"]}, lambda n: False),
        ({"labels": ["gold"]}, lambda n: False),
        ({"labels": ["tier:gold"], "apps": ["b", "c"]}, lambda n: n % 4 == 0 and n % 3 != 0),
    ],
)
async def test_filters_combine(filled: Filled, filters: dict[str, Any], chosen: Callable[[int], bool]) -> None:
    assert await ids(filled.store.list(**filters)) == filled.those(chosen)
    since, until = filled.start + 10 * HOUR, filled.start + 50 * HOUR
    found = await ids(filled.store.list(**filters, since=since, until=until))
    assert found == filled.those(lambda n: 10 <= n < 50 and chosen(n))


async def test_since_is_inclusive_and_until_is_not_in_any_time_zone(filled: Filled) -> None:
    moment = (filled.start + 10 * HOUR).astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert await ids(filled.store.list(since=moment)) == filled.those(lambda n: n >= 10)
    assert await ids(filled.store.list(until=moment)) == filled.those(lambda n: n < 10)
    assert await ids(filled.store.list(since=moment, until=moment)) == []
    instant = timedelta(microseconds=1)
    assert await ids(filled.store.list(since=moment, until=moment + instant)) == filled.those(lambda n: n == 10)
    assert await ids(filled.store.list(since=moment + instant)) == filled.those(lambda n: n > 10)


@pytest.mark.parametrize("filters", [{}, {"apps": ["a", "b"]}, {"labels": ["tier:silver"]}])
async def test_pages_hold_everything_once(filled: Filled, filters: dict[str, Any]) -> None:
    whole = await ids(filled.store.list(**filters))
    for limit in (1, 7, len(whole) - 1, len(whole), len(whole) + 1):
        pages = [page async for page in pages_of(filled.store, limit, **filters)]
        assert [snapshot.id for page in pages for snapshot in page.snapshots] == whole
        assert all(len(page.snapshots) == limit for page in pages[:-1])
        assert pages[-1].snapshots


async def pages_of(store: SnapStore, limit: int, **filters: Any) -> AsyncIterator[Page]:
    page = await store.page(limit=limit, **filters)
    yield page
    while page.cursor is not None:
        page = await store.page(limit=limit, cursor=page.cursor, **filters)
        yield page


async def test_a_cursor_stays_right_while_snapshots_come_and_go(filled: Filled, app: Path) -> None:
    first = await filled.store.page(limit=10)
    assert first.cursor is not None
    await filled.store.create("a", app)
    for gone in (9, 8, 10, 12):  # the very one that the cursor names, one before it, and some behind it
        await filled.store.delete(filled.ids[gone])
    following = await ids(filled.store.list(cursor=first.cursor))
    assert following == [filled.ids[number] for number in range(10, 60) if number not in (10, 12)]
    assert await ids(filled.store.list(cursor=first.cursor, limit=3)) == following[:3]


async def test_a_cursor_of_nobodys_is_refused(store: SnapStore) -> None:
    for cursor in ("x", "1", "1.", ".", "1.x", "x.0199aaaa-0000-7000-8000-000000000001"):
        with pytest.raises(InvalidInput, match="cursor"):
            await store.page(cursor=cursor)


@pytest.mark.parametrize("position", ["9" * 30, "-" + "9" * 30])
async def test_a_cursor_beyond_all_numbers_is_refused(store: SnapStore, position: str) -> None:
    with pytest.raises(InvalidInput, match="cursor"):
        await store.page(cursor=f"{position}.0199aaaa-0000-7000-8000-000000000001")


async def test_deleting_removes_archive_and_metadata(store: SnapStore, app: Path, tmp_path: Path) -> None:
    made, kept = await store.create("blog", app), await store.create("blog", app)
    assert (await store.delete(made.id[:-1])).id == made.id
    assert await ids(store.list()) == [kept.id]
    assert {path.name for path in (tmp_path / "store").iterdir()} == {".snapstore", "_metadata", kept.key}
    assert [path.name for path in (tmp_path / "store" / "_metadata").iterdir()] == [kept.id]
    for call in (store.get, store.delete, store.download_url):
        with pytest.raises(SnapshotNotFound):
            await call(made.id)


async def test_deleting_what_another_node_has_deleted_drops_it_here(
    store: SnapStore, app: Path, tmp_path: Path
) -> None:
    made = await store.create("blog", app)
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "other.db") as other:
        await other.delete(made.id)
    await store.delete(made.id)
    assert await ids(store.list()) == []


async def test_all_snapshots_of_an_app_are_deleted_and_no_others(store: SnapStore, app: Path, tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "small", file="x")
    made = [await store.create("blog", folder) for _ in range(20)]
    kept = await store.create("blog2", folder)
    assert [snapshot.id for snapshot in await store.delete_app("blog")] == [snapshot.id for snapshot in made[::-1]]
    assert await store.delete_app("blog") == []
    assert await ids(store.list()) == [kept.id]
    assert {path.name for path in (tmp_path / "store").iterdir()} == {".snapstore", "_metadata", kept.key}


async def test_a_download_url_leads_to_a_plain_archive(store: SnapStore, app: Path) -> None:
    made = await store.create("my app", app)
    url = urlsplit(await store.download_url(made.id))
    assert url.scheme == "file"
    with open(unquote(url.path), "rb") as archive:
        reader = zstandard.ZstdDecompressor().stream_reader(archive, read_across_frames=True)
        listed = subprocess.run(["tar", "-tf", "-"], input=reader.read(), capture_output=True, check=True)
    names = {line.rstrip("/").removeprefix("./") for line in listed.stdout.decode().splitlines()}
    assert names == {member.path async for member in store.members(made.id)}


async def test_members_are_listed_in_the_archives_order(store: SnapStore, app: Path) -> None:
    made = await store.create("blog", app)
    members = [member async for member in store.members(made.id)]
    assert [(member.path, member.type) for member in members] == [
        ("etc/deep/er", "f"),
        ("readme", "f"),
        ("etc/conf", "f"),
        ("data/big", "f"),
        ("etc/hard", "h"),
        ("soft", "l"),
        ("etc/deep", "d"),
        ("data", "d"),
        ("etc", "d"),
        (".", "d"),
    ]
    by_path = {member.path: member for member in members}
    assert (by_path["etc/hard"].link, by_path["soft"].link) == ("etc/conf", "etc/conf")
    status = (app / "readme").stat()
    expected = (status.st_size, status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_mtime_ns)
    found = by_path["readme"]
    assert (found.size, found.mode, found.uid, found.gid, found.mtime) == expected
    assert (found.ctime, found.ino) == (status.st_ctime_ns, status.st_ino)


@pytest.mark.parametrize(
    ("start", "size"),
    [
        (0, None),
        (0, 0),
        (5, 0),
        (0, 10),
        (FRAME - 1, 2),
        (FRAME, FRAME),
        (FRAME - 7, FRAME + 14),
        (BIG - 1, 1),
        (BIG - 1, 100),
        (BIG, 100),
        (BIG + 5, None),
        (3, BIG * 2),
    ],
)
async def test_any_range_of_a_file_can_be_read(store: SnapStore, app: Path, start: int, size: int | None) -> None:
    made = await store.create("blog", app)
    content = (app / "data" / "big").read_bytes()
    end = len(content) if size is None else start + size
    pieces = [piece async for piece in store.read(made.id, "data/big", start=start, size=size)]
    assert b"".join(pieces) == content[start:end]
    assert all(0 < len(piece) <= FRAME for piece in pieces)


async def test_small_files_and_hard_links_are_read_by_any_of_their_names(store: SnapStore, app: Path) -> None:
    made = await store.create("blog", app)
    for path in ("etc/conf", "etc/hard", "./etc//conf", "etc/conf/"):
        assert await read(store, made.id, path) == b"a=1"
        assert await read(store, made.id, path, start=2, size=5) == b"1"
        assert await read(store, made.id, path, start=9) == b""


@pytest.mark.parametrize("path", ["etc", ".", "", "soft", "missing", "etc/conf/below", "readme ", "ETC/conf"])
async def test_what_has_no_content_cannot_be_read(store: SnapStore, app: Path, path: str) -> None:
    made = await store.create("blog", app)
    with pytest.raises(MemberNotFound) as caught:
        await read(store, made.id, path)
    assert (caught.value.path, caught.value.snapshot_id) == (path, made.id)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "etc/../readme"])
async def test_a_path_that_leads_out_cannot_be_read(store: SnapStore, app: Path, path: str) -> None:
    made = await store.create("blog", app)
    with pytest.raises(InvalidInput):
        await read(store, made.id, path)


@pytest.mark.parametrize("existing", EXISTING)
async def test_a_missing_target_is_made_with_the_folders_around_it(
    store: SnapStore, app: Path, tmp_path: Path, existing: Existing
) -> None:
    made = await store.create("blog", app)
    await store.restore(made.id, tmp_path / "new" / "er" / "out", existing=existing)
    assert contents(tmp_path / "new" / "er" / "out") == contents(app)


@pytest.mark.parametrize("existing", EXISTING)
async def test_an_empty_target_stays_the_same_folder_unless_it_is_replaced(
    store: SnapStore, app: Path, tmp_path: Path, existing: Existing
) -> None:
    made = await store.create("blog", app)
    (tmp_path / "out").mkdir()
    before = (tmp_path / "out").stat().st_ino
    await store.restore(made.id, tmp_path / "out", existing=existing)
    assert contents(tmp_path / "out") == contents(app)
    assert ((tmp_path / "out").stat().st_ino == before) == (existing != "replace")
    assert (tmp_path / "out").stat().st_mtime_ns == app.stat().st_mtime_ns


async def test_a_target_that_is_not_empty_is_refused_and_untouched(store: SnapStore, app: Path, tmp_path: Path) -> None:
    made = await store.create("blog", app)
    folder_with(tmp_path / "out", readme="mine")
    before = (tmp_path / "out").stat().st_mtime_ns
    with pytest.raises(TargetNotEmpty) as caught:
        await store.restore(made.id, tmp_path / "out")
    assert caught.value.path == str(tmp_path / "out")
    assert contents(tmp_path / "out") == {"readme": b"mine"}
    assert (tmp_path / "out").stat().st_mtime_ns == before
    assert not list(tmp_path.glob(".snapstore-*"))


async def test_merging_replaces_files_and_keeps_others(store: SnapStore, app: Path, tmp_path: Path) -> None:
    made = await store.create("blog", app)
    out = folder_with(tmp_path / "out", readme="mine", own="own")
    os.link(out / "readme", tmp_path / "linked")
    folder_with(out / "etc", own="own")
    (out / "soft").write_text("was a file")
    await store.restore(made.id, out, existing="merge")
    assert contents(out) == contents(app) | {"own": b"own", "etc/own": b"own"}
    assert (tmp_path / "linked").read_text() == "mine"
    await store.restore(made.id, out, existing="merge")
    assert contents(out) == contents(app) | {"own": b"own", "etc/own": b"own"}
    assert (out / "etc" / "conf").stat().st_ino == (out / "etc" / "hard").stat().st_ino


@pytest.mark.parametrize("there", ["folder", "file", "link"])
async def test_merging_never_turns_a_folder_into_a_file_or_back(
    store: SnapStore, app: Path, tmp_path: Path, there: str
) -> None:
    made = await store.create("blog", app)
    out = folder_with(tmp_path / "out", own="own")
    outside = folder_with(tmp_path / "outside", conf="outside")
    if there == "folder":
        folder_with(out / "readme", own="own")
    elif there == "file":
        (out / "etc").write_text("own")
    else:
        (out / "etc").symlink_to(outside)
    before = contents(out)
    with pytest.raises(TargetConflict):
        await store.restore(made.id, out, existing="merge")
    assert contents(out) == before
    assert contents(outside) == {"conf": b"outside"}


async def test_replacing_leaves_nothing_of_what_was_there(store: SnapStore, app: Path, tmp_path: Path) -> None:
    made = await store.create("blog", app)
    out = folder_with(tmp_path / "out", own="own")
    (out / "deep").mkdir(mode=0o500)
    await store.restore(made.id, out, existing="replace")
    assert contents(out) == contents(app)
    assert not list(tmp_path.glob(".snapstore-*"))


async def test_a_target_may_be_named_through_a_link(store: SnapStore, app: Path, tmp_path: Path) -> None:
    made = await store.create("blog", app)
    folder_with(tmp_path / "v1", own="own")
    (tmp_path / "current").symlink_to("v1")
    report = await store.restore(made.id, tmp_path / "current", existing="replace")
    assert (tmp_path / "current").is_symlink()
    assert report.target == str(tmp_path / "v1")
    assert contents(tmp_path / "v1") == contents(app)


@pytest.mark.parametrize("existing", EXISTING)
async def test_a_file_is_no_target(store: SnapStore, app: Path, tmp_path: Path, existing: Existing) -> None:
    made = await store.create("blog", app)
    (tmp_path / "out").write_text("mine")
    with pytest.raises(TargetConflict):
        await store.restore(made.id, tmp_path / "out", existing=existing)
    with pytest.raises(TargetUnwritable):
        await store.restore(made.id, tmp_path / "out" / "below", existing=existing)
    assert (tmp_path / "out").read_text() == "mine"
    assert not list(tmp_path.glob(".snapstore-*"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"paths": ["etc"]}, {"etc/conf", "etc/hard", "etc/deep/er"}),
        ({"paths": ["./etc/"]}, {"etc/conf", "etc/hard", "etc/deep/er"}),
        ({"paths": ["etc/deep/er"]}, {"etc/deep/er"}),
        ({"paths": ["etc/hard"]}, {"etc/hard"}),
        ({"paths": ["soft", "readme"]}, {"soft", "readme"}),
        ({"paths": ["."]}, {"etc/conf", "etc/hard", "etc/deep/er", "readme", "soft", "data/big"}),
        ({"paths": ["data/big"]}, {"data/big"}),
        ({"exclude": ["/data", "*.x"]}, {"etc/conf", "etc/hard", "etc/deep/er", "readme", "soft"}),
        ({"exclude": ["conf"]}, {"etc/hard", "etc/deep/er", "readme", "soft", "data/big"}),
        ({"exclude": ["*", "!readme"]}, {"readme"}),
        ({"paths": ["etc"], "exclude": ["deep/"]}, {"etc/conf", "etc/hard"}),
        ({"drop": ["readme", "data/big"]}, {"etc/conf", "etc/hard", "etc/deep/er", "soft"}),
        ({"drop": ["etc/conf", "missing"]}, {"etc/hard", "etc/deep/er", "readme", "soft", "data/big"}),
    ],
)
async def test_some_of_a_snapshot_can_be_restored(
    store: SnapStore, app: Path, tmp_path: Path, options: dict[str, Any], expected: set[str]
) -> None:
    made = await store.create("blog", app)
    report = await store.restore(made.id, tmp_path / "out", **options)
    whole = contents(app)
    assert contents(tmp_path / "out") == {path: whole[path] for path in expected}
    folders = {folder for folder in (tmp_path / "out").rglob("*") if folder.is_dir()}
    assert report.members == len(expected) + len(folders) + 1
    for folder in folders:
        assert folder.stat().st_mtime_ns == (app / folder.relative_to(tmp_path / "out")).stat().st_mtime_ns


async def test_names_to_drop_are_gone_from_a_merge_as_well(store: SnapStore, app: Path, tmp_path: Path) -> None:
    made = await store.create("blog", app)
    out = folder_with(tmp_path / "out", readme="mine", own="own")
    await store.restore(made.id, out, existing="merge", drop=["readme", "own", "missing", "etc/missing/file"])
    assert contents(out) == {path: content for path, content in contents(app).items() if path != "readme"}


async def test_a_path_that_is_not_in_the_snapshot_restores_nothing(store: SnapStore, app: Path, tmp_path: Path) -> None:
    made = await store.create("blog", app)
    for path in ("missing", "etc/missing", "readme/below"):
        with pytest.raises(MemberNotFound) as caught:
            await store.restore(made.id, tmp_path / "out", paths=["etc", path])
        assert caught.value.path == path
    assert not (tmp_path / "out").exists()


async def test_caps_end_a_restore_and_leave_nothing(store: SnapStore, app: Path, tmp_path: Path) -> None:
    made = await store.create("blog", app)
    for caps in (Caps(members=3), Caps(content_size=FRAME)):
        with pytest.raises(UnsafeMember):
            await store.restore(made.id, tmp_path / "new" / "out", caps=caps)
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".snapstore-*"))


async def test_an_empty_folder_can_be_kept_and_restored(store: SnapStore, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir(mode=0o750)
    os.utime(tmp_path / "empty", ns=(5, 1_234_567_890_123_456_789))
    made = await store.create("blog", tmp_path / "empty")
    assert (made.entries, made.content_size) == (1, 0)
    await store.restore(made.id, tmp_path / "out")
    status = (tmp_path / "out").stat()
    assert (status.st_mode & 0o7777, status.st_mtime_ns) == (0o750, 1_234_567_890_123_456_789)
    assert list((tmp_path / "out").iterdir()) == []


@asynccontextmanager
async def with_apps(tmp_path: Path) -> AsyncIterator[SnapStore]:
    (tmp_path / "apps").mkdir()
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db", apps=tmp_path / "apps") as store:
        yield store


async def test_apps_live_in_the_folder_of_apps(tmp_path: Path) -> None:
    async with with_apps(tmp_path) as store:
        folder_with(tmp_path / "apps" / "blog", file="1")
        folder_with(tmp_path / "elsewhere", file="2")
        made = await store.create("blog")
        await store.restore(made.id, app="blog-copy")
        assert contents(tmp_path / "apps" / "blog-copy") == {"file": b"1"}
        given = await store.create("blog", tmp_path / "elsewhere")
        assert await read(store, given.id, "file") == b"2"
        with pytest.raises(TargetNotEmpty):
            await store.restore(given.id)
        await store.restore(given.id, existing="replace")
        assert contents(tmp_path / "apps" / "blog") == {"file": b"2"}
        await store.restore(given.id, tmp_path / "out")
        assert contents(tmp_path / "out") == {"file": b"2"}


@pytest.mark.parametrize("name", ["..", ".", "../outside", "/etc", "a/b", "a/../../outside", "_x", "a\0"])
async def test_an_app_name_never_leads_out_of_the_folder_of_apps(tmp_path: Path, name: str) -> None:
    async with with_apps(tmp_path) as store:
        outside = folder_with(tmp_path / "outside", file="mine")
        folder_with(tmp_path / "apps" / "a" / "b", file="x")
        made = await store.create("blog", outside)
        with pytest.raises(InvalidInput):
            await store.create(name)
        with pytest.raises(InvalidInput):
            await store.restore(made.id, app=name, existing="replace")
        assert contents(outside) == {"file": b"mine"}


async def test_an_app_name_from_the_bucket_never_leads_out_either(tmp_path: Path) -> None:
    async with with_apps(tmp_path) as store:
        outside = folder_with(tmp_path / "outside", file="mine")
        made = await store.create("blog", outside)
        for number, name in enumerate(["..", "../outside", "/tmp", "a/b"]):
            snapshot_id = str(UUID(int=number + 1, version=4))
            put_metadata(tmp_path, snapshot_id, app_name=name, key=made.key)
            await store.rebuild()
            with pytest.raises(InvalidInput):
                await store.restore(snapshot_id, existing="replace")
        assert contents(outside) == {"file": b"mine"}


async def test_a_newer_format_is_listed_and_refused(store: SnapStore, app: Path, tmp_path: Path) -> None:
    made = await store.create("blog", app)
    fields = json.loads(metadata_path(tmp_path, made.id).read_text()) | {"format": 2, "revision": 2, "novel": {"a": 1}}
    metadata_path(tmp_path, made.id).write_text(json.dumps(fields))
    assert (await store.rebuild()).problems == ()
    assert (await store.get(made.id)).format == 2
    for call in (
        lambda: store.restore(made.id, tmp_path / "out"),
        lambda: read(store, made.id, "readme"),
        lambda: anext(aiter(store.members(made.id))),
    ):
        with pytest.raises(UnsupportedFormat, match="upgrade"):
            await call()
    assert not (tmp_path / "out").exists()
    await store.delete(made.id)
    assert await ids(store.list()) == []


def damage(archive: Path, change: Callable[[bytearray], Any]) -> None:
    body = bytearray(archive.read_bytes())
    change(body)
    archive.write_bytes(body)


def flip(position: int) -> Callable[[bytearray], Any]:
    def change(body: bytearray) -> None:
        body[position] ^= 0x40

    return change


async def test_a_flipped_byte_anywhere_but_in_the_seek_table_is_found_and_nothing_is_left(
    store: SnapStore, app: Path, tmp_path: Path
) -> None:
    """At the edges of frames and at places drawn by lot. The end frame holds no member, so nobody asks for it."""
    made = await store.create("blog", app)
    assert made.toc is not None
    assert made.key is not None
    archive = tmp_path / "store" / made.key
    whole = archive.read_bytes()
    toc_end = made.toc.offset + made.toc.size
    drawn = random.Random(7)
    frames = list(struct.iter_unpack("<II", whole[toc_end + 8 : -9]))
    assert sum(size for size, _ in frames[:-1]) == made.toc.offset
    end_frame = made.toc.offset - frames[-2][0]
    places = {0, 1, 4, 5, frames[0][0], end_frame - 1, toc_end - 1, *range(made.toc.offset, made.toc.offset + 30)}
    places |= {drawn.randrange(end_frame) for _ in range(12)}
    for place in sorted(places):
        damage(archive, flip(place))
        with pytest.raises(ArchiveDamaged):
            await store.restore(made.id, tmp_path / "new" / "out")
        assert not (tmp_path / "new").exists(), place
        archive.write_bytes(whole)
    damage(archive, flip(toc_end + 20))
    await store.restore(made.id, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(app)


async def test_a_damaged_archive_merges_only_whole_files(store: SnapStore, app: Path, tmp_path: Path) -> None:
    made = await store.create("blog", app)
    out = folder_with(tmp_path / "out", readme="mine", own="own")
    assert made.toc is not None
    damage(tmp_path / "store" / str(made.key), flip(made.toc.offset // 2))
    with pytest.raises(ArchiveDamaged):
        await store.restore(made.id, out, existing="merge")
    whole = contents(app) | {"own": b"own"}
    for path, content in contents(out).items():
        assert content in (whole[path], b"mine")
    assert not list(out.rglob(".snapstore-*"))


async def test_an_archive_cut_anywhere_is_damaged(store: SnapStore, app: Path, tmp_path: Path) -> None:
    made = await store.create("blog", app)
    assert made.toc is not None
    archive = tmp_path / "store" / str(made.key)
    whole = archive.read_bytes()
    for left in (0, 1, 100, made.toc.offset, made.toc.offset + 9, made.toc.offset + made.toc.size - 1):
        archive.write_bytes(whole[:left])
        with pytest.raises(ArchiveDamaged):
            await store.restore(made.id, tmp_path / "out")
        with pytest.raises(ArchiveDamaged):
            await read(store, made.id, "readme")
    archive.write_bytes(whole[: made.toc.offset + made.toc.size])
    await store.restore(made.id, tmp_path / "out")


async def test_damage_elsewhere_does_not_keep_one_from_a_file(store: SnapStore, app: Path, tmp_path: Path) -> None:
    made = await store.create("blog", app)
    assert made.toc is not None
    damage(tmp_path / "store" / str(made.key), flip(made.toc.offset // 2))
    assert await read(store, made.id, "readme") == b"read me"
    await store.restore(made.id, tmp_path / "out", paths=["etc"])
    with pytest.raises(ArchiveDamaged):
        await read(store, made.id, "data/big")


@pytest.mark.parametrize(
    "fields",
    [
        {"root": "0" * 64},
        {"root": None},
        {"toc": {"offset": 0, "size": 10}},
        {"toc": {"offset": 10**12, "size": 10}},
        {"toc": {"offset": 0, "size": 0}},
        {"toc": {"offset": -5, "size": 10}},
        {"toc": {"offset": 5, "size": -10}},
        {"toc": {"offset": 0, "size": 1 << 60}},
    ],
)
async def test_metadata_that_does_not_fit_its_archive_is_damage(
    store: SnapStore, app: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    """Or it is reported as no metadata at all."""
    made = await store.create("blog", app)
    described = json.loads(metadata_path(tmp_path, made.id).read_text())
    metadata_path(tmp_path, made.id).write_text(json.dumps(described | fields))
    report = await store.rebuild()
    expected = ArchiveDamaged if report.snapshots else SnapshotNotFound
    assert report.snapshots + len(report.problems) == 1
    with pytest.raises(expected):
        await store.restore(made.id, tmp_path / "out")
    assert not (tmp_path / "out").exists()


async def test_an_archive_that_was_exchanged_for_another_is_damaged(
    store: SnapStore, app: Path, tmp_path: Path
) -> None:
    made = await store.create("blog", app)
    (app / "readme").write_text("another")
    other = await store.create("blog", app)
    (tmp_path / "store" / str(other.key)).replace(tmp_path / "store" / str(made.key))
    with pytest.raises(ArchiveDamaged):
        await store.restore(made.id, tmp_path / "out")


@pytest.mark.parametrize("call", ["restore", "read", "members"])
async def test_a_snapshot_that_another_node_has_deleted_is_dropped_here(
    store: SnapStore, app: Path, tmp_path: Path, call: str
) -> None:
    made = await store.create("blog", app)
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "other.db") as other:
        await other.delete(made.id)
    assert await ids(store.list()) == [made.id]
    with pytest.raises(SnapshotNotFound):
        await use(store, call, made.id, tmp_path / "out")
    assert await ids(store.list()) == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("call", ["restore", "read", "members", "download_url"])
async def test_a_snapshot_of_the_older_system_that_was_deleted_is_dropped_too(
    store: SnapStore, tmp_path: Path, call: str
) -> None:
    """Its metadata does not say what its archive is called, so that is found to be missing in another way."""
    snapshot_id = "11111111-1111-4111-8111-111111111111"
    put_metadata(tmp_path, snapshot_id)
    await store.rebuild()
    metadata_path(tmp_path, snapshot_id).unlink()
    with pytest.raises(SnapshotNotFound):
        await use(store, call, snapshot_id, tmp_path / "out")
    assert await ids(store.list()) == []


async def test_metadata_without_its_archive_stays_listed(store: SnapStore, app: Path, tmp_path: Path) -> None:
    """Only its metadata says whether a snapshot exists."""
    made = await store.create("blog", app)
    (tmp_path / "store" / str(made.key)).unlink()
    with pytest.raises(SnapshotNotFound, match="archive"):
        await store.restore(made.id, tmp_path / "out")
    assert await ids(store.list()) == [made.id]
    await store.delete(made.id)
    assert await ids(store.list()) == []


async def use(store: SnapStore, call: str, snapshot_id: str, target: Path) -> None:
    if call == "restore":
        await store.restore(snapshot_id, target)
    elif call == "read":
        await read(store, snapshot_id, "readme")
    elif call == "members":
        await anext(aiter(store.members(snapshot_id)))
    else:
        await store.download_url(snapshot_id)


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def used(folder: Path) -> int:
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


@root_only
@pytest.mark.parametrize("size", [3 << 20, 20 << 20])
async def test_a_full_store_makes_no_snapshot_and_keeps_nothing_of_it(tmp_path: Path, size: int) -> None:
    """In a single put, and in a multipart upload."""
    folder = folder_with(tmp_path / "app", small="x")
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as elsewhere:
        await elsewhere.create("blog", folder)
    with small_disk(tmp_path / "disk", (size >> 20) - 1) as disk:
        async with SnapStore.open(disk / "store", index=tmp_path / "disk.db") as store:
            kept = await store.create("blog", folder)
            before = used(disk)
            (folder / "large").write_bytes(noise(size))
            with pytest.raises(StorageFull):
                await store.create("blog", folder)
            assert await ids(store.list()) == [kept.id]
            assert used(disk) == before
            assert {path.name for path in (disk / "store").iterdir()} == {".snapstore", "_metadata", kept.key}
            assert await read(store, kept.id, "small") == b"x"


@root_only
@pytest.mark.parametrize("size", [3 << 20, 20 << 20])
@pytest.mark.parametrize("existing", EXISTING)
async def test_a_full_target_is_left_as_it_was(store: SnapStore, tmp_path: Path, existing: Existing, size: int) -> None:
    folder = folder_with(tmp_path / "app", small="x")
    (folder / "large").write_bytes(noise(size))
    made = await store.create("blog", folder)
    with small_disk(tmp_path / "disk", (size >> 20) - 1) as disk:
        target = disk / "out"
        if existing != "refuse":
            folder_with(target, own="own")
        before, kept = used(disk), contents(disk)
        with pytest.raises(TargetUnwritable, match="space"):
            await store.restore(made.id, target, existing=existing)
        found = contents(disk)
        found.pop("out/small", None)
        assert found == kept
        assert used(disk) - before <= 4096
        assert existing == "merge" or used(disk) == before
        assert [path.name for path in disk.rglob(".snapstore-*")] == []


@root_only
async def test_a_mount_point_is_filled_and_merged_but_not_replaced(store: SnapStore, tmp_path: Path) -> None:
    made = await store.create("blog", folder_with(tmp_path / "app", file="x"))
    with small_disk(tmp_path / "disk", 1) as disk:
        await store.restore(made.id, disk)
        assert contents(disk) == {"file": b"x"}
        with pytest.raises(TargetConflict, match="mount point"):
            await store.restore(made.id, disk, existing="replace")
        await store.restore(made.id, disk, existing="merge")
        assert contents(disk) == {"file": b"x"}


AS_NOBODY = """
import asyncio, os, sys, traceback
import snapstore, snapstore.archive.select, encodings.idna
from snapstore.index import migrations
from snapstore import SnapStore, TargetUnwritable, SourceUnreadable, StorageError, CatalogError

base, code = sys.argv[1:]
migrations.scripts()  # while the sources can be read
os.setgroups([])
os.setgid(65534)
os.setuid(65534)

async def main():
    async with SnapStore.open(base + "/store", index=base + "/index.db") as store:
        await globals()["__test"](store)

exec("async def __test(store):\\n" + "".join("    " + line + "\\n" for line in code.splitlines()))
asyncio.run(main())
"""


@pytest.fixture
def nobodys() -> Iterator[Path]:
    """A folder that belongs to somebody without any rights."""
    with tempfile.TemporaryDirectory() as name:
        os.chown(name, 65534, 65534)
        yield Path(name)


def as_nobody(base: Path, code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(base), code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")


@root_only
def test_a_target_that_cannot_be_written_to_is_told(nobodys: Path) -> None:
    folder_with(nobodys / "app", file="x")
    folder_with(nobodys / "closed", file="mine")
    (nobodys / "closed" / "empty").mkdir(mode=0o555)
    (nobodys / "closed").chmod(0o555)
    as_nobody(
        nobodys,
        """
made = await store.create("blog", base + "/app")
for target in ("/closed/new", "/closed/new/er", "/closed/empty", "/closed"):
    for existing in ("refuse", "merge", "replace"):
        if target == "/closed" and existing != "merge":
            continue
        try:
            await store.restore(made.id, base + target, existing=existing)
        except TargetUnwritable as error:
            assert "permission denied" in str(error), error
        else:
            raise AssertionError(target)
""",
    )
    assert not list(nobodys.rglob(".snapstore-*"))
    assert contents(nobodys / "closed") == {"file": b"mine"}


@root_only
def test_a_replaced_folder_that_may_not_be_removed_is_told(nobodys: Path) -> None:
    """It stood in a folder of the user's own, but what is in it is somebody else's: the new one is in its place."""
    folder_with(nobodys / "app", file="x")
    folder_with(nobodys / "out" / "others", file="others")
    os.chown(nobodys / "out", 65534, 65534)
    as_nobody(
        nobodys,
        """
made = await store.create("blog", base + "/app")
try:
    told = str((await store.restore(made.id, base + "/out", existing="replace")).skipped)
except TargetUnwritable as error:
    told = str(error)
(left,) = [name for name in os.listdir(base) if name.startswith(".snapstore-")] or [""]
assert left in told, (left, told)
""",
    )
    assert contents(nobodys / "out") in ({"file": b"x"}, {"others/file": b"others"})


@root_only
def test_what_a_user_may_not_read_fails_the_snapshot_or_is_reported(nobodys: Path) -> None:
    folder_with(nobodys / "app", file="x", secret="s")
    (nobodys / "app" / "secret").chmod(0o600)
    folder_with(nobodys / "app" / "closed", inner="i").chmod(0o700)
    as_nobody(
        nobodys,
        """
try:
    await store.create("blog", base + "/app")
except SourceUnreadable as error:
    assert error.path in ("secret", "closed"), error
else:
    raise AssertionError
import logging
logging.getLogger("snapstore").setLevel(logging.CRITICAL)
made = await store.create("blog", base + "/app", on_error="skip")
assert {(problem.path, problem.kind) for problem in made.problems} == {
    ("secret", "unreadable"), ("closed", "unreadable")}, made
assert made.warnings == 2, made
assert {member.path async for member in store.members(made.id)} in ({".", "file"}, {".", "file", "closed"})
excluded = await store.create("blog", base + "/app", exclude=["/secret", "/closed"])
assert excluded.problems == ()
""",
    )


@root_only
def test_a_user_restores_read_only_folders_without_owners(nobodys: Path) -> None:
    app = folder_with(nobodys / "app", file="x")
    folder_with(app / "closed" / "er", inner="i")
    os.chown(app / "file", 1234, 1234)
    (app / "closed" / "er").chmod(0o555)
    (app / "closed").chmod(0o555)
    as_nobody(
        nobodys,
        """
made = await store.create("blog", base + "/app")
for existing in ("refuse", "merge", "replace", "replace"):
    await store.restore(made.id, base + "/out", existing=existing)
    assert open(base + "/out/closed/er/inner").read() == "i"
    assert os.stat(base + "/out/closed").st_mode & 0o777 == 0o555
    assert os.stat(base + "/out/file").st_uid == 65534
    if existing == "refuse":
        os.chmod(base + "/out/closed", 0o755)
        os.chmod(base + "/out/closed/er", 0o755)
""",
    )
    assert not list(nobodys.glob(".snapstore-*"))


@root_only
def test_a_store_that_cannot_be_written_to_is_told(nobodys: Path) -> None:
    folder_with(nobodys / "app", file="x")
    as_nobody(
        nobodys,
        """
made = await store.create("blog", base + "/app")
os.chmod(base + "/store", 0o555)
try:
    await store.create("blog", base + "/app")
except StorageError as error:
    assert "ermission denied" in str(error), error
else:
    raise AssertionError
os.chmod(base + "/store", 0o755)
assert [found.id async for found in store.list()] == [made.id]
os.chmod(base + "/store/_metadata", 0o555)
import logging
logging.getLogger("snapstore").setLevel(logging.CRITICAL)
try:
    await store.create("blog", base + "/app")
except StorageError as error:
    pass
else:
    raise AssertionError
assert [name for name in os.listdir(base + "/store") if name[0] not in "._"] == [made.key]
""",
    )


def test_members_know_their_numbers() -> None:
    """They are arrays in the archive: a new field may only come last (FORMAT.md, Table of contents)."""
    assert Member.__struct_fields__ == (
        *("path", "type", "offset", "size", "mode", "uid", "gid", "mtime", "ctime", "ino"),
        *("link", "xattrs", "warning"),
    )
