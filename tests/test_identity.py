"""Properties over generated trees, headers and tables of contents: what goes in comes out.

Expectations come from the disk (`trees.describe`), from `tarfile` and `json`, or from FORMAT.md's rules written down
once more in the plainest way.
"""

import asyncio
import fnmatch
import io
import json
import os
import shutil
import stat
import tarfile
import tempfile
from base64 import b64decode
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
import zstandard
from blake3 import blake3
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from snapstore import Member, Snapshot, SnapshotReport, SnapStore
from snapstore.archive import tar, toc
from snapstore.archive.frames import SealedFrame
from snapstore.archive.tar import Header
from snapstore.archive.toc import TocBuilder
from tests import trees
from tests.trees import FRAME, IS_ROOT, Description, describe, differences, to_bytes, to_text


def examples(count: int) -> settings:
    """No database of examples: the tree may be read-only; a failure prints what reproduces it."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    return settings(max_examples=count, deadline=None, database=None, print_blob=True, suppress_health_check=slow)


# Trees.

_SECOND = 1_000_000_000
_XATTRS = trees.has_xattrs(tempfile.gettempdir())


class Node(NamedTuple):
    """One member to make; which folder it goes into, and which file it links to, are numbers modulo what there is."""

    folder: int
    name: bytes
    kind: str
    runs: Sequence[tuple[str, int]]
    mode: int
    mtime: int
    xattrs: Sequence[tuple[bytes, bytes]]
    link: bytes
    target: int


def _is_name(name: bytes) -> bool:
    return name not in (b".", b"..") and 0 < len(name) <= 255 and b"/" not in name and b"\0" not in name


names = st.one_of(
    st.sampled_from([b"a", b"b", b"c", b"-", b" ", b"\n", b"...", "ü".encode(), b"x" * 100, b"y" * 101, b"z" * 255]),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).map(str.encode),
    st.binary(min_size=1, max_size=20),
).filter(_is_name)
times = st.one_of(
    st.integers(-(2**31), 2**33).map(lambda seconds: seconds * _SECOND),
    st.integers(-(2**31) * _SECOND, 2**33 * _SECOND),
    st.sampled_from([0, -1, 1, _SECOND - 1, -_SECOND, -_SECOND - 1, 8**11 * _SECOND, 8**11 * _SECOND - 1]),
)
xattrs = st.lists(
    st.tuples(
        st.binary(min_size=1, max_size=30).filter(lambda name: b"\0" not in name).map(lambda name: b"user." + name),
        st.binary(max_size=40),
    ),
    max_size=3 if _XATTRS else 0,
    unique_by=lambda xattr: xattr[0],
)
runs = st.lists(
    st.tuples(
        st.sampled_from(["zeros", "noise", "text"]),
        st.sampled_from([0, 1, 511, 512, 513, 4095, 4096, 4097, 8192, 20_000]),
    ),
    max_size=4,
)
nodes = st.builds(
    Node,
    folder=st.integers(0, 20),
    name=names,
    kind=st.sampled_from("ffffdddlhp"),
    runs=runs,
    mode=st.one_of(st.sampled_from([0o644, 0o755]), st.integers(0, 0o7777)),
    mtime=times,
    xattrs=xattrs,
    link=st.binary(min_size=1, max_size=150).filter(lambda link: b"\0" not in link),
    target=st.integers(0, 20),
)
forests = st.lists(nodes, max_size=14)


def plant(root: Path, forest: Sequence[Node]) -> Description:
    """Make these members below ``root``, and say what is there then. A name that is taken is passed over."""
    base = os.fsencode(root)
    os.mkdir(base)
    folders, files = [b""], list[bytes]()
    made: list[tuple[bytes, Node]] = []
    for node in forest:
        folder = folders[node.folder % len(folders)]
        path = os.path.join(folder, node.name)
        place = os.path.join(base, path)
        if os.path.lexists(place) or len(place) > 3000:
            continue
        if node.kind == "d":
            os.mkdir(place)
            folders.append(path)
        elif node.kind == "l":
            os.symlink(node.link, place)
        elif node.kind == "p":
            os.mkfifo(place)
        elif node.kind == "h" and files:
            os.link(os.path.join(base, files[node.target % len(files)]), place)
            continue
        else:
            trees.write(place, content_of(node.runs))
            files.append(path)
        made.append((path, node))
    for path, node in sorted(made, key=lambda item: -item[0].count(b"/")):
        _dress(os.path.join(base, path), node)
    os.utime(base, ns=(0, 1_234_567_890_123_456_789))
    return describe(root)


def _dress(place: bytes, node: Node) -> None:
    if node.kind in "fdh":
        for name, value in node.xattrs:
            os.setxattr(place, name, value)
    if node.kind != "l":
        # What its owner may not read cannot be packed either, but by root.
        needed = 0 if IS_ROOT or node.kind == "p" else 0o500 if node.kind == "d" else 0o400
        os.chmod(place, node.mode | needed)
    os.utime(place, ns=(0, node.mtime), follow_symlinks=False)


def content_of(parts: Sequence[tuple[str, int]]) -> bytes:
    return b"".join(
        bytes(size) if kind == "zeros" else trees.noise(size, number) if kind == "noise" else (b"text\n" * size)[:size]
        for number, (kind, size) in enumerate(parts)
    )


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that can be removed whatever was made in it."""
    folder = Path(tempfile.mkdtemp(prefix="identity-"))
    try:
        yield folder
    finally:
        for where, _, _ in os.walk(os.fsencode(folder)):
            os.chmod(where, 0o700)
        shutil.rmtree(folder, onerror=_make_way)


def _make_way(remove: object, path: str, problem: object) -> None:
    """A folder that could not be entered before: `walk` lists a folder before it is changed."""
    os.chmod(path, 0o700)
    shutil.rmtree(path)


def part(facts: Description, kept: set[str]) -> Description:
    """A description of only these members."""
    some = {}
    for path in kept:
        left = tuple(name for name in facts[path].names if name in kept)
        some[path] = facts[path]._replace(names=left if len(left) > 1 else ())
    return some


@asynccontextmanager
async def packed(folder: Path) -> AsyncIterator[tuple[SnapStore, SnapshotReport]]:
    """A store, and a snapshot of ``folder/source`` in it."""
    async with SnapStore.open(folder / "store", index=folder / "index.db") as store:
        yield store, await store.create("app", folder / "source")


def ancestors(path: str) -> set[str]:
    parts = path.split("/")
    return {".", *("/".join(parts[:count]) for count in range(1, len(parts)))}


@examples(80)
@given(forest=forests)
def test_what_is_restored_is_what_was_packed(forest: Sequence[Node]) -> None:
    async def check(folder: Path) -> None:
        facts = plant(folder / "source", forest)
        async with packed(folder) as (store, snapshot):
            await store.restore(snapshot.id, folder / "out", trusted=True)
            members = {member.path: member async for member in store.members(snapshot.id)}
        assert differences(facts, describe(folder / "out")) == {}
        assert differences(facts, describe(folder / "source")) == {}
        assert members.keys() == facts.keys()
        for path, member in members.items():
            fact = facts[path]
            assert (member.mode, member.uid, member.gid, member.mtime) == fact[1:5]
            assert member.xattrs == (() if member.type == "h" else tuple(name for name, _ in fact.xattrs))
            assert member.type == fact.type or (member.type == "h" and member.link in fact.names)

    with scratch() as folder:
        asyncio.run(check(folder))


@examples(40)
@given(forest=forests, data=st.data())
def test_a_part_is_what_was_asked_for_and_its_folders(forest: Sequence[Node], data: st.DataObject) -> None:
    async def check(folder: Path) -> None:
        facts = plant(folder / "source", forest)
        paths = data.draw(st.lists(st.sampled_from(sorted(facts)), min_size=1, max_size=3))
        async with packed(folder) as (store, snapshot):
            await store.restore(snapshot.id, folder / "out", paths=paths, trusted=True)
        below = {path for path in facts for wanted in paths if wanted == "." or f"{path}/".startswith(f"{wanted}/")}
        kept = below | {folder for wanted in paths for folder in ancestors(wanted)}
        assert differences(part(facts, kept), describe(folder / "out")) == {}

    with scratch() as folder:
        asyncio.run(check(folder))


plain_nodes = st.builds(
    Node,
    folder=st.integers(0, 20),
    name=st.sampled_from([b"a", b"b", b"c", b"a.x", b"b.x", b"c.y"]),
    kind=st.sampled_from("ffddh"),
    runs=st.just([("text", 10)]),
    mode=st.just(0o755),
    mtime=times,
    xattrs=st.just(()),
    link=st.just(b"a"),
    target=st.integers(0, 20),
)
patterns = st.one_of(
    st.sampled_from(["a", "b", "*.x", "?.y", "[ab]"]),
    st.sampled_from(["a/", "b.x/", "*.x/"]),
    st.sampled_from(["/a", "/b", "/*.x", "/a/b"]),
)


def _matches(path: str, is_folder: bool, pattern: str) -> bool:
    """gitignore(5), as far as these patterns go."""
    if pattern.endswith("/") and not is_folder:
        return False
    wanted = pattern.strip("/").split("/")
    parts = path.split("/")
    compared = parts if pattern.startswith("/") else parts[-1:]
    return len(compared) == len(wanted) and all(map(fnmatch.fnmatchcase, compared, wanted))


@examples(40)
@given(forest=st.lists(plain_nodes, max_size=14), excluded=st.lists(patterns, min_size=1, max_size=3))
def test_excludes_leave_out_the_same_when_packing_and_when_restoring(
    forest: Sequence[Node], excluded: Sequence[str]
) -> None:
    async def check(folder: Path) -> None:
        facts = plant(folder / "source", forest)
        gone = {
            path
            for path, fact in facts.items()
            if path != "." and any(_matches(path, fact.type == "d", pattern) for pattern in excluded)
        }
        expected = part(facts, {path for path in facts if not ({path} | ancestors(path)) & gone})
        async with packed(folder) as (store, everything):
            less = await store.create("app", folder / "source", exclude=excluded)
            await store.restore(less.id, folder / "packed")
            await store.restore(everything.id, folder / "restored", exclude=excluded)
        assert differences(expected, describe(folder / "packed")) == {}
        assert differences(expected, describe(folder / "restored")) == {}

    with scratch() as folder:
        asyncio.run(check(folder))


@examples(40)
@given(forest=forests, other=st.lists(nodes, max_size=6), data=st.data())
def test_a_merge_replaces_its_own_and_leaves_others_alone(
    forest: Sequence[Node], other: Sequence[Node], data: st.DataObject
) -> None:
    async def check(folder: Path) -> None:
        target, outside = folder / "target", folder / "outside"
        trees.write(outside, b"outside")
        facts = plant(folder / "source", forest)
        mine = plant(target, [node._replace(name=b"mine " + node.name[:100]) for node in other])
        for path, fact in facts.items():
            if fact.type != "d" and "/" not in path:  # in the way, and to be replaced: a file, or a link out of here
                if data.draw(st.booleans()):
                    os.symlink(outside, to_bytes(os.path.join(target, path)))
                else:
                    trees.write(to_bytes(os.path.join(target, path)), b"old")
        async with packed(folder) as (store, snapshot):
            await store.restore(snapshot.id, target, existing="merge", trusted=True)
        found = describe(target)
        assert differences(mine | facts, found) == {}
        assert outside.read_bytes() == b"outside"

    with scratch() as folder:
        asyncio.run(check(folder))


INDEX_FILES = {f"index.db{suffix}" for suffix in ("", "-wal", "-shm", "-lock")}


@examples(30)
@given(forest=forests, other=forests)
def test_replacing_leaves_nothing_of_the_old(forest: Sequence[Node], other: Sequence[Node]) -> None:
    async def check(folder: Path) -> None:
        facts = plant(folder / "source", forest)
        plant(folder / "target", other)
        async with packed(folder) as (store, snapshot):
            await store.restore(snapshot.id, folder / "target", existing="replace", trusted=True)
        assert differences(facts, describe(folder / "target")) == {}
        assert set(os.listdir(folder)) - {"source", "target", "store"} <= INDEX_FILES

    with scratch() as folder:
        asyncio.run(check(folder))


async def test_every_kind_of_member_comes_back(store: SnapStore, tmp_path: Path) -> None:
    trees.make_every_kind(tmp_path / "source")
    facts = describe(tmp_path / "source")
    snapshot = await store.create("app", tmp_path / "source")
    assert (snapshot.sockets, snapshot.problems, snapshot.entries) == (1, (), len(facts))
    report = await store.restore(snapshot.id, tmp_path / "out", trusted=True)
    assert differences(facts, describe(tmp_path / "out")) == {}
    assert report.skipped == ()
    assert snapshot.content_size == report.content_size


async def test_zeros_that_were_written_come_back(store: SnapStore, tmp_path: Path) -> None:
    """They may come back as holes; their bytes are the same."""
    source = tmp_path / "source"
    source.mkdir()
    for size in (1, 4096, 100_000, FRAME, FRAME + 1):
        trees.write(source / str(size), bytes(size), holes=False)
    snapshot = await store.create("app", source)
    await store.restore(snapshot.id, tmp_path / "out")
    expected, found = describe(source), describe(tmp_path / "out")
    assert differences(trees.without(expected, "sparse"), trees.without(found, "sparse")) == {}


@pytest.mark.parametrize("seconds", [2**40, -(2**40)], ids=["year-36812", "before-our-era"])
async def test_times_that_only_some_file_systems_hold_come_back(seconds: int, store: SnapStore, tmp_path: Path) -> None:
    """tmpfs and btrfs keep 64 bits of seconds."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path) as folder:
        source = Path(folder) / "source"
        source.mkdir()
        trees.write(source / "file", b"content")
        os.utime(source / "file", ns=(0, seconds * _SECOND + 5))
        if os.stat(source / "file").st_mtime_ns != seconds * _SECOND + 5:
            pytest.skip("needs a file system that keeps 64 bits of seconds (tmpfs at /dev/shm)")
        snapshot = await store.create("app", source)
        await store.restore(snapshot.id, Path(folder) / "out")
        assert differences(describe(source), describe(Path(folder) / "out")) == {}


# Headers.

paths = (
    st.lists(st.one_of(names, st.binary(min_size=80, max_size=160).filter(_is_name)), min_size=1, max_size=5)
    .map(b"/".join)
    .filter(lambda path: len(path) < 1500)
)
ids = st.one_of(st.integers(0, 8**7 - 1), st.integers(8**7, 2**32 - 1))


@st.composite
def headers(draw: st.DrawFn) -> Header:
    kind = draw(st.sampled_from("fhldpcb"))
    link = b""
    if kind in "hl":
        link = draw(
            paths if kind == "h" else st.binary(min_size=1, max_size=300).filter(lambda link: b"\0" not in link)
        )
    sizes = st.one_of(st.just(0), st.integers(0, 10_000), st.integers(8**11 - 2, 8**11 + 2), st.integers(0, 2**60))
    device = st.tuples(st.integers(0, 2**12 - 1), st.integers(0, 2**20 - 1))
    named = st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name)
    return Header(
        path=draw(paths),
        type=kind,
        size=draw(sizes) if kind == "f" else 0,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(ids),
        gid=draw(ids),
        mtime=draw(st.one_of(times, st.integers(-(10**20), 10**20))),
        link=link,
        device=draw(device) if kind in "cb" else (0, 0),
        xattrs=tuple(draw(st.lists(st.tuples(named, st.binary(max_size=60)), max_size=3, unique_by=lambda x: x[0]))),
    )


@examples(400)
@given(header=headers(), before=st.sampled_from([0, 512, 1536]))
@example(header=Header(b"p" * 155 + b"/" + b"n" * 100, "f", 0, 0, 0, 0, 0), before=0)
@example(header=Header(b"p" * 156 + b"/" + b"n" * 100, "f", 0, 0, 0, 0, 0), before=0)
@example(header=Header(b"p" * 155 + b"/" + b"n" * 99, "d", 0, 0, 0, 0, 0), before=0)
@example(header=Header(b"p" * 155 + b"/" + b"n" * 100, "d", 0, 0, 0, 0, 0), before=0)
def test_a_header_is_decoded_as_it_was_encoded(header: Header, before: int) -> None:
    blocks = tar.encode(header)
    assert len(blocks) % 512 == 0
    assert tar.decode(bytes(before) + blocks, before) == (header, before + len(blocks))


@examples(400)
@given(header=headers())
@example(header=Header(b"a/b", "f", 8**11 - 1, 0o644, 8**7 - 1, 8**7 - 1, 10**18))
@example(header=Header(b"n" * 100, "f", 8**11, 0o7777, 0, 0, 1_700_000_000_123_456_789))
@example(header=Header(b"n" * 101, "f", 1, 0o600, 0, 0, 1_700_000_000_000_000_001))
@example(header=Header(b"a", "f", 1, 0o600, 0, 0, 1_700_000_000_000_000_000))
def test_a_header_of_the_usual_kind_is_encoded_like_any(header: Header) -> None:
    assert tar.encode(header) == tar.encode_any(header)


@given(header=headers())
@example(header=Header(b"p" * 155 + b"/" + b"n" * 100, "f", 0, 0, 0, 0, 0))
@example(header=Header(b"p" * 155 + b"/" + b"n" * 99, "d", 0, 0, 0, 0, 0))
@example(header=Header(b"a", "f", 0, 0, 0, 0, -1))
def test_tarfile_reads_a_header_as_it_was_encoded(header: Header) -> None:
    blocks = tar.encode(header)
    with tarfile.open(fileobj=io.BytesIO(blocks + tar.END), encoding="utf-8", errors="surrogateescape") as archive:
        info = archive.firstmember
        assert info is not None
        exact = info.pax_headers.get("mtime")
        found = Header(
            path=to_bytes(info.name),
            type=header.type,
            size=info.size,
            mode=info.mode,
            uid=info.uid,
            gid=info.gid,
            mtime=int(exact.replace(".", "")) if exact else int(info.mtime) * _SECOND,
            link=to_bytes(info.linkname),
            device=(info.devmajor, info.devminor),
            xattrs=tuple(
                (tar.decode_xattr_name(to_bytes(keyword.removeprefix("SCHILY.xattr."))), to_bytes(value))
                for keyword, value in info.pax_headers.items()
                if keyword.startswith("SCHILY.xattr.")
            ),
        )
        assert found == header
        assert info.offset_data == len(blocks)
        kinds = {tarfile.REGTYPE: "f", tarfile.LNKTYPE: "h", tarfile.SYMTYPE: "l", tarfile.DIRTYPE: "d"}
        kinds |= {tarfile.FIFOTYPE: "p", tarfile.CHRTYPE: "c", tarfile.BLKTYPE: "b"}
        assert kinds[info.type] == header.type


@examples(200)
@given(header=headers())
def test_a_pax_header_stands_only_where_ustar_falls_short(header: Header) -> None:
    path = header.path + b"/" * (header.type == "d")
    cuts = [
        cut for cut, byte in enumerate(path) if byte == ord("/") and 0 < cut <= 155 and 0 < len(path) - cut - 1 <= 100
    ]
    fits = (
        path.isascii()
        and (len(path) <= 100 or bool(cuts))
        and header.link.isascii()
        and len(header.link) <= 100
        and header.mtime % _SECOND == 0
        and 0 <= header.mtime < 8**11 * _SECOND
        and header.size < 8**11
        and max(header.uid, header.gid) < 8**7
        and not header.xattrs
    )
    assert (len(tar.encode(header)) == 512) == fits


# Tables of contents.

text_names = names.map(to_text)
members = st.builds(
    Member,
    path=paths.map(to_text),
    type=st.just("f"),
    offset=st.integers(0, FRAME),
    size=st.integers(0, 2**62),
    mode=st.integers(0, 0o7777),
    uid=ids,
    gid=ids,
    mtime=st.integers(-(2**63), 2**63 - 1),
    ctime=st.integers(-(2**63), 2**63 - 1),
    ino=st.integers(0, 2**64 - 1),
    link=st.just(""),
    xattrs=st.lists(text_names, max_size=3).map(tuple),
    warning=st.sampled_from(["", "", "changed"]),
) | st.builds(
    Member,
    path=paths.map(to_text),
    type=st.sampled_from("hldpcb"),
    offset=st.integers(0, FRAME),
    size=st.just(0),
    mode=st.integers(0, 0o7777),
    uid=ids,
    gid=ids,
    mtime=st.integers(-(2**63), 2**63 - 1),
    ctime=st.just(0),
    ino=st.integers(0, 2**64 - 1),
    link=st.one_of(st.just(""), st.binary(max_size=60).map(to_text)),
    xattrs=st.just(()),
)
labels = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), max_size=3)
moments = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9999, 1, 1), timezones=st.just(UTC))


def build(
    frames: Sequence[tuple[bytes, Sequence[Member]]], given_labels: Sequence[str], moment: datetime
) -> tuple[toc.Trailer, int]:
    builder = TocBuilder("0199aaaa-0000-7000-8000-000000000000", "app", given_labels, moment)
    for compressed, listed in frames:
        builder.add(SealedFrame(compressed, 1024, "d" * 64, list(listed), 0), toc.encode_members(listed))
    offset = builder.offset
    return builder.finish(), offset


frame_lists = st.lists(st.tuples(st.binary(min_size=1, max_size=9), st.lists(members, max_size=4)), max_size=4)


@examples(150)
@given(frames=frame_lists, given_labels=labels, moment=moments)
def test_a_table_of_contents_is_parsed_as_it_was_built(
    frames: Sequence[tuple[bytes, Sequence[Member]]], given_labels: Sequence[str], moment: datetime
) -> None:
    trailer, offset = build(frames, given_labels, moment)
    assert trailer.toc.offset == offset == sum(len(compressed) for compressed, _ in frames)
    parsed = toc.parse(trailer.content[: trailer.toc.size], trailer.root)
    assert parsed.header.labels == tuple(given_labels)
    assert parsed.header.created_at == moment
    assert [list(frame.members) for frame in parsed.frames] == [list(listed) for _, listed in frames]
    assert [frame.entry.size for frame in parsed.frames] == [len(compressed) for compressed, _ in frames]
    assert list(parsed.members()) == [member for _, listed in frames for member in listed]


@examples(100)
@given(frames=frame_lists, given_labels=labels, moment=moments)
def test_a_table_of_contents_is_what_format_md_says(
    frames: Sequence[tuple[bytes, Sequence[Member]]], given_labels: Sequence[str], moment: datetime
) -> None:
    trailer, _ = build(frames, given_labels, moment)
    document = zstandard.ZstdDecompressor().decompress(trailer.content[16 : trailer.toc.size])
    assert blake3(document).hexdigest() == trailer.root
    assert document.endswith(b"\n")
    first, *lines = [json.loads(line) for line in document.split(b"\n")[:-1]]
    assert (first["format"], first["app"], first["labels"]) == (1, "app", list(given_labels))
    for line, (_, listed) in zip(lines, frames, strict=True):
        for elements, member in zip(line["members"], listed, strict=True):
            link, found_xattrs, warning = [*elements[10:], *["", [], ""][len(elements) - 10 :]]
            assert [_name(elements[0]), *elements[1:10]] == [
                member.path, member.type, member.offset, member.size, member.mode,
                member.uid, member.gid, member.mtime, member.ctime, member.ino,
            ]  # fmt: skip
            assert (_name(link), tuple(map(_name, found_xattrs)), warning) == (
                member.link,
                member.xattrs,
                member.warning,
            )
            assert len(elements) == 10 or elements[-1] not in ("", [])


def _name(element: str | dict[str, str]) -> str:
    if isinstance(element, str):
        element.encode()  # UTF-8, or it would be in base64
        return element
    raw = b64decode(element["b64"], validate=True)
    with pytest.raises(UnicodeDecodeError):
        raw.decode()
    return to_text(raw)


# Cuts.

sizes = st.one_of(
    st.sampled_from([0, 1, 511, 512, 513, 1 << 20, FRAME // 2]),
    st.sampled_from([FRAME - 1536, FRAME - 1535, FRAME - 512, FRAME - 511, FRAME, FRAME + 1, 2 * FRAME, 2 * FRAME + 1]),
)


def expected_cuts(spans: Sequence[tuple[int, int, int, int]]) -> list[int]:
    """FORMAT.md, Archive: where members (start, content, size, end) of a tar are cut into frames, as raw sizes."""
    cuts: list[int] = []
    filled = 0
    for start, content, size, end in spans:
        if end - start > FRAME:
            cuts += [filled] * (filled > 0)
            filled = 0
            pieces = [min(FRAME, size - position) for position in range(0, size, FRAME)]
            pieces[0] += content - start
            pieces[-1] += end - content - size
            cuts += pieces
        elif filled + end - start > FRAME:
            cuts.append(filled)
            filled = end - start
        else:
            filled += end - start
    return [*cuts, *([filled] if filled else []), 1024]


@examples(12)
@given(
    files=st.lists(st.tuples(sizes, st.booleans(), st.booleans()), max_size=7),
    linked=st.booleans(),
    wide=st.sampled_from([0, 0, 0, 5000]),
)
def test_archives_are_cut_where_format_md_says(
    files: Sequence[tuple[int, bool, bool]], linked: bool, wide: int
) -> None:
    async def check(folder: Path) -> None:
        source = folder / "source"
        source.mkdir()
        for number, (size, whole_second, with_xattr) in enumerate(files):
            path = source / f"{number:02d}"
            trees.write(path, b"%d" % number if size else b"")
            os.truncate(path, size)
            if with_xattr and _XATTRS:
                os.setxattr(path, "user.note", b"note")
            os.utime(path, ns=(0, 1_600_000_000 * _SECOND + (not whole_second)))
        for number in range(wide):
            os.symlink("x" * 200, source / f"link-{number}")
        if linked and files:
            os.link(source / "00", source / "zz")
        async with packed(folder) as (_, snapshot):
            check_archive(folder / "store", snapshot)

    with scratch() as folder:
        asyncio.run(check(folder))


def check_archive(store: Path, snapshot: Snapshot) -> None:
    assert snapshot.key is not None
    assert snapshot.toc is not None
    assert snapshot.root is not None
    archive = (store / snapshot.key).read_bytes()
    assert snapshot.size == len(archive)
    contents = toc.parse(archive[snapshot.toc.offset :][: snapshot.toc.size], snapshot.root)
    raws = []
    for entry, _ in contents.frames:
        compressed = archive[entry.offset : entry.offset + entry.size]
        parameters = zstandard.get_frame_parameters(compressed)
        assert (parameters.content_size, parameters.has_checksum) == (entry.raw, True)
        raws.append(zstandard.ZstdDecompressor().decompress(compressed))
        assert blake3(raws[-1]).hexdigest() == entry.digest
    assert contents.frames[0].entry.offset == 0
    last, _ = contents.frames[-1]
    assert last.offset + last.size == snapshot.toc.offset
    assert raws[-1] == bytes(1024)

    raw = b"".join(raws)
    with tarfile.open(fileobj=io.BytesIO(raw), encoding="utf-8", errors="surrogateescape") as opened:
        infos = opened.getmembers()
    spans = [
        (info.offset, info.offset_data, info.size, info.offset_data + -(-info.size // 512) * 512) for info in infos
    ]
    assert [len(part) for part in raws] == expected_cuts(spans)
    begins = 0
    listed = []
    for frame in contents.frames:
        listed += [(member.path, begins + member.offset, member.size) for member in frame.members]
        begins += frame.entry.raw
    assert listed == [(info.name, info.offset, info.size) for info in infos]
    order = {"f": 0, "h": 1, "l": 2, "p": 3, "c": 3, "b": 3, "d": 4}
    kinds = [order[member.type] for member in contents.members()]
    assert kinds == sorted(kinds)
    assert not any(stat.S_ISREG(info.mode) and info.size for info in infos if not info.isreg())
