"""What we write, read by programs that others wrote; and what they write, read by us.

Every oracle gets the same folder, with every kind of member. Where one cannot hold a fact, the test says which and why;
all other facts must be those of the source.
"""

import asyncio
import io
import json
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import zstandard

from snapstore import ArchiveError, Member, SnapStore
from snapstore.archive import tar, toc
from snapstore.archive.toc import Toc
from tests import trees
from tests.trees import FRAME, IS_ROOT, Description, Facts, describe, differences, without

_ENVIRONMENT = {**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC"}


class Example(NamedTuple):
    """A folder, its snapshot, and the archive of it."""

    source: Path
    facts: Description
    archive: Path
    toc: Toc
    raw: bytes
    """The archive, decompressed."""


def make_example(folder: Path, *, only_utf_8: bool = False) -> Example:
    source = folder / "source"
    trees.make_every_kind(source, only_utf_8=only_utf_8)

    async def create() -> tuple[Path, Toc]:
        async with SnapStore.open(folder / "store", index=folder / "index.db") as store:
            snapshot = await store.create("example", source)
        assert snapshot.key is not None
        assert snapshot.toc is not None
        assert snapshot.root is not None
        archive = folder / "store" / snapshot.key
        frame = archive.read_bytes()[snapshot.toc.offset :][: snapshot.toc.size]
        return archive, toc.parse(frame, snapshot.root)

    archive, contents = asyncio.run(create())
    compressed = archive.read_bytes()
    frames = (compressed[entry.offset :][: entry.size] for entry, _ in contents.frames)
    raw = b"".join(zstandard.ZstdDecompressor().decompress(frame) for frame in frames)
    return Example(source, describe(source), archive, contents, raw)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return make_example(tmp_path_factory.mktemp("example"))


@pytest.fixture(scope="module")
def utf_8_example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return make_example(tmp_path_factory.mktemp("utf-8"), only_utf_8=True)


def needs(program: str, package: str) -> str:
    found = shutil.which(program, path=f"{os.environ['PATH']}:{Path(sys.executable).parent}")
    if found is None:
        pytest.skip(f"needs {program} (package {package})")
    return found


def gnu_tar() -> str:
    found = needs("tar", "tar of Debian and Ubuntu")
    if b"GNU tar" not in subprocess.run([found, "--version"], check=True, capture_output=True).stdout:
        pytest.skip("needs GNU tar (package tar of Debian and Ubuntu)")
    needs("zstd", "zstd of Debian and Ubuntu")
    return found


def bsdtar() -> str:
    return needs("bsdtar", "libarchive-tools of Debian and Ubuntu")


def run(*command: str | Path, stdin: bytes | None = None, folder: Path | None = None) -> bytes:
    """What a program writes to its standard output; it must end well."""
    done = subprocess.run(command, check=False, capture_output=True, input=stdin, cwd=folder, env=_ENVIRONMENT)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    return done.stdout


# What others read of ours.


def test_gnu_tar_restores_all_but_holes(example: Example, tmp_path: Path) -> None:
    """Holes come out as zeros. ACLs stand among the attributes, so --acls, which looks elsewhere, would remove them."""
    xattrs = ["--xattrs", "--xattrs-include=*"] if IS_ROOT else []
    run(gnu_tar(), "--zstd", "-xpPf", example.archive, "-C", tmp_path, "--numeric-owner", *xattrs)
    # GNU tar refuses, as a user, to set an attribute of a read-only file.
    cannot = ("sparse",) if IS_ROOT else ("sparse", "xattrs")
    assert differences(without(example.facts, *cannot), without(describe(tmp_path), *cannot)) == {}


def test_gnu_tar_as_people_call_it(example: Example, tmp_path: Path) -> None:
    """Without -P it makes links that are absolute or lead upwards at its very end, and touches their folders so."""
    run(gnu_tar(), "--zstd", "-xf", example.archive, "-C", tmp_path, *(() if IS_ROOT else ("-p",)))
    found = describe(tmp_path)
    late = found["links"]._replace(mtime=example.facts["links"].mtime)
    cannot = ("sparse", "xattrs")
    assert differences(without(example.facts, *cannot), without(found | {"links": late}, *cannot)) == {}


def test_bsdtar_restores_all_but_acls_and_a_few(example: Example, tmp_path: Path) -> None:
    """Not held by libarchive 3.6: ACLs in attributes, the escapes of GNU tar in attributes' names, and times before
    1970 that have nanoseconds (it adds their fraction, where it belongs below)."""
    run(bsdtar(), "-xpf", example.archive, "-C", tmp_path, "--numeric-owner")
    expected, found = dict(example.facts), describe(tmp_path)
    for path, facts in expected.items():
        kept = {tar.decode_xattr_name(trees.to_bytes(name)): value for name, value in found[path].xattrs}
        ours = {trees.to_bytes(name): value for name, value in facts.xattrs if not name.startswith("system.")}
        assert kept == ours
        if facts.mtime < 0 and facts.mtime % 1_000_000_000:
            expected[path] = facts._replace(mtime=found[path].mtime)
    assert differences(without(expected, "sparse", "xattrs"), without(found, "sparse", "xattrs")) == {}


def test_zstd_finds_every_checksum_right(example: Example) -> None:
    run(needs("zstd", "zstd of Debian and Ubuntu"), "-t", example.archive)


def test_zstd_decompresses_to_the_tar(example: Example) -> None:
    assert run(needs("zstd", "zstd of Debian and Ubuntu"), "-dc", example.archive) == example.raw


def test_tarfile_finds_every_fact_but_holes(example: Example) -> None:
    with tarfile.open(fileobj=io.BytesIO(example.raw), encoding="utf-8", errors="surrogateescape") as archive:
        found = {info.name: _facts_of(archive, info) for info in archive}
    for path, facts in found.items():
        if facts.type == "h":
            found[path] = found[facts.link]
    expected = {path: facts._replace(names=(), sparse=False) for path, facts in example.facts.items()}
    assert differences(expected, found) == {}


def _facts_of(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Facts:
    kinds = {
        tarfile.REGTYPE: "f",
        tarfile.LNKTYPE: "h",
        tarfile.SYMTYPE: "l",
        tarfile.DIRTYPE: "d",
        tarfile.FIFOTYPE: "p",
        tarfile.CHRTYPE: "c",
        tarfile.BLKTYPE: "b",
    }
    exact = info.pax_headers.get("mtime")
    content = archive.extractfile(info) if info.isreg() else None
    return Facts(
        type=kinds[info.type],
        mode=info.mode,
        uid=info.uid,
        gid=info.gid,
        mtime=int(exact.replace(".", "")) if exact else int(info.mtime) * 1_000_000_000,
        size=info.size,
        sha256=trees.digest(content) if content else "",
        link=info.linkname,
        device=(info.devmajor, info.devminor),
        xattrs=tuple(
            (tar.decode_xattr_name(trees.to_bytes(key[13:])).decode("utf-8", "surrogateescape"), trees.to_bytes(value))
            for key, value in info.pax_headers.items()
            if key.startswith("SCHILY.xattr.")
        ),
    )


def test_tarfile_extracts_the_tree(example: Example, tmp_path: Path) -> None:
    """It restores no attributes, no holes, no times of symbolic links, and other times as floats."""
    with tarfile.open(fileobj=io.BytesIO(example.raw), encoding="utf-8", errors="surrogateescape") as archive:
        archive.extraction_filter = lambda member, path: member  # the archive is ours; Python 3.11.3 has no `filter=`
        archive.extractall(tmp_path, numeric_owner=True)
    found = describe(tmp_path)
    timed = {path: facts for path, facts in example.facts.items() if facts.type != "l"}
    assert max(abs(found[path].mtime - facts.mtime) for path, facts in timed.items()) < 2_000
    cannot = ("sparse", "xattrs", "mtime")
    assert differences(without(example.facts, *cannot), without(found, *cannot)) == {}


def test_pyzstd_seeks_anywhere(example: Example) -> None:
    pyzstd = pytest.importorskip("pyzstd")
    places = random.Random(7)
    with pyzstd.SeekableZstdFile(example.archive) as file:
        assert file.seek(0, io.SEEK_END) == len(example.raw)
        for _ in range(60):
            start, size = places.randrange(len(example.raw) + 1), places.choice((1, 512, 5000, FRAME + 1))
            file.seek(start)
            assert file.read(size) == example.raw[start : start + size]


def test_the_seek_table_lists_the_frames_of_the_table_of_contents(example: Example) -> None:
    pyzstd = pytest.importorskip("pyzstd")
    assert pyzstd.SeekableZstdFile.is_seekable_format_file(example.archive)
    with pyzstd.SeekableZstdFile(example.archive) as file:
        file.seek(0, io.SEEK_END)
        frames, compressed, raw = file.seek_table_info
    last, _ = example.toc.frames[-1]
    assert frames == len(example.toc.frames) + 1  # and the TOC frame itself, with no content
    assert last.offset + last.size < compressed < example.archive.stat().st_size
    assert raw == len(example.raw)


def test_ratarmount_shows_the_tree(utf_8_example: Example) -> None:
    """Through its API. Its index holds no names that are not UTF-8 (in attributes' names, none at all), times as
    floats, no owners, FIFOs and devices as files, and hard links as links to follow."""
    factory = pytest.importorskip("ratarmountcore.mountsource.factory")
    with factory.open_mount_source(os.fspath(utf_8_example.archive), indexFilePath=":memory:") as mounted:
        for path, facts in utf_8_example.facts.items():
            if path == ".":
                continue
            found = mounted.lookup("/" + path)
            assert found is not None, path
            linked = found.linkname if facts.type == "f" else ""
            content = mounted.lookup("/" + linked) if linked else found
            assert stat.S_IMODE(found.mode) & 0o777 == facts.mode & 0o777, path
            if facts.type == "f":
                assert linked in ("", *facts.names), path
                with mounted.open(content) as file:
                    assert trees.digest(file) == facts.sha256, path
            elif facts.type == "d":
                assert stat.S_ISDIR(found.mode), path
            elif facts.type == "l":
                assert stat.S_ISLNK(found.mode), path
                assert found.linkname == facts.link
            if facts.mtime >= 0:
                assert found.mtime == pytest.approx(facts.mtime / 1e9, abs=2e-6), path


def test_ratarmount_mounts_it(utf_8_example: Example, tmp_path: Path) -> None:
    """Through FUSE, with the limits of its API."""
    ratarmount = needs("ratarmount", "ratarmount of PyPI")
    unmount = needs("fusermount", "fuse or fuse3 of Debian and Ubuntu")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("needs a /dev/fuse that this user may open")
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    done = subprocess.run(
        [ratarmount, "--index-file", ":memory:", utf_8_example.archive, mounted],
        check=False,
        capture_output=True,
        env=_ENVIRONMENT,
        timeout=60,
    )
    if done.returncode:
        pytest.skip(f"FUSE cannot be used here: {done.stderr.decode(errors='replace')[-300:]}")
    try:
        names = {path for path in utf_8_example.facts if path != "."}
        found = {os.path.relpath(entry, mounted) for entry in _everything(mounted)}
        assert found == names
        for path, facts in utf_8_example.facts.items():
            if facts.type == "f":
                with open(mounted / path, "rb") as file:
                    assert trees.digest(file) == facts.sha256, path
    finally:
        run(unmount, "-u", mounted)


def _everything(folder: Path) -> Iterator[str]:
    for where, folders, files in os.walk(folder):
        yield from (os.path.join(where, name) for name in folders + files)


def test_the_table_of_contents_agrees_with_gnu_tar(utf_8_example: Example) -> None:
    listing = run(
        gnu_tar(), "-tvf", "-", "--numeric-owner", "--full-time", "--quoting-style=escape", stdin=utf_8_example.raw
    )
    lines = listing.decode().splitlines()
    members = list(utf_8_example.toc.members())
    assert len(lines) == len(members)
    assert [_listed(line) for line in lines] == [_as_gnu_tar_lists(member) for member in members]


def _listed(line: str) -> tuple[str, ...]:
    mode, owner, size, _, _, name = re.split(" +", line, maxsplit=5)
    return mode, owner, "" if mode[0] in "cb" else size, name


def _as_gnu_tar_lists(member: Member) -> tuple[str, ...]:
    kinds = {"f": stat.S_IFREG, "h": stat.S_IFREG, "l": stat.S_IFLNK, "d": stat.S_IFDIR}
    kinds |= {"p": stat.S_IFIFO, "c": stat.S_IFCHR, "b": stat.S_IFBLK}
    mode = stat.filemode(kinds[member.type] | member.mode)
    name = _escaped(member.path) + ("/" if member.type == "d" else "")
    joined = {"h": " link to ", "l": " -> "}.get(member.type)
    size = "" if member.type in "cb" else str(member.size)
    shown = name + joined + _escaped(member.link) if joined else name
    return ("h" + mode[1:] if member.type == "h" else mode), f"{member.uid}/{member.gid}", size, shown


def _escaped(name: str) -> str:
    known = {"\n": r"\n", "\t": r"\t", "\\": "\\\\", "\x7f": r"\177", "\x01": r"\001"}
    return "".join(known.get(character, character) for character in name)


def test_any_frames_with_the_end_frame_are_a_tar(example: Example, tmp_path: Path) -> None:
    """Cut where a frame begins with a member: in the middle of a large file there is no whole tar to cut."""
    tool = gnu_tar()
    compressed = example.archive.read_bytes()
    *data, (end, _) = example.toc.frames
    end_frame = compressed[end.offset :][: end.size]
    listed: list[tuple[str, bool]] = []
    for number, (entry, _) in enumerate((*data, example.toc.frames[-1])):
        if example.toc.frames[number].members or entry == end:
            prefix = tmp_path / "prefix.tar.zst"
            prefix.write_bytes(compressed[: entry.offset] + end_frame)
            shown = run(tool, "--zstd", "-tPf", prefix, "--quoting-style=literal")
            assert shown == b"".join(
                trees.to_bytes(name) + (b"/\n" if is_folder else b"\n") for name, is_folder in listed
            )
            raw = run("zstd", "-dc", prefix)
            with tarfile.open(fileobj=io.BytesIO(raw), encoding="utf-8", errors="surrogateescape") as archive:
                assert archive.getnames() == [name for name, _ in listed]
        listed += [(member.path, member.type == "d") for member in example.toc.frames[number].members]
    assert len(listed) == len(example.facts)


def test_every_frame_stands_alone(example: Example) -> None:
    """Any one frame of small members, with the end frame, is a tar of these members."""
    decompress = zstandard.ZstdDecompressor().decompress
    compressed = example.archive.read_bytes()
    for frame in example.toc.frames:
        entry = frame.entry
        if frame.members and all(member.size <= FRAME - 4096 for member in frame.members):
            raw = decompress(compressed[entry.offset :][: entry.size]) + tar.END
            with tarfile.open(fileobj=io.BytesIO(raw), encoding="utf-8", errors="surrogateescape") as archive:
                assert archive.getnames() == [member.path for member in frame.members]


def test_the_header_line_of_the_table_of_contents_is_json_of_its_own(example: Example) -> None:
    """FORMAT.md, read by hand: a skippable frame, a tag, a zstd frame, JSON lines."""
    content = example.archive.read_bytes()
    last, _ = example.toc.frames[-1]
    start = last.offset + last.size
    assert content[start : start + 4] == bytes.fromhex("552a4d18")
    assert content[start + 8 : start + 16] == b"SNAPTOC1"
    size = int.from_bytes(content[start + 4 : start + 8], "little")
    lines = zstandard.ZstdDecompressor().decompress(content[start + 16 : start + 8 + size]).splitlines()
    first, *frames = map(json.loads, lines)
    assert list(first) == ["format", "id", "app", "labels", "created_at"]
    assert [list(frame) for frame in frames] == [["offset", "size", "raw", "digest", "members"]] * len(frames)
    assert frames[-1]["members"] == []
    assert frames[-1]["raw"] == 1024
    assert content[-9:] == (len(frames) + 1).to_bytes(4, "little") + b"\0" + bytes.fromhex("b1ea928f")


# What we read of others.


class Foreign(NamedTuple):
    """How an archive is written by somebody else, and what that cannot hold."""

    name: str
    program: str
    arguments: Sequence[str]
    whole_seconds: bool = True
    xattrs: bool = False
    everything: bool = False
    """Whether it holds what ustar cannot: long names, large ids, times before 1970."""


_FOREIGN = (
    Foreign("gnu-tar-gnu", "tar", ["-H", "gnu"], everything=True),
    Foreign("gnu-tar-gnu-sparse", "tar", ["-H", "gnu", "-S"], everything=True),
    Foreign("gnu-tar-oldgnu", "tar", ["-H", "oldgnu", "-S"], everything=True),
    Foreign(
        "gnu-tar-pax",
        "tar",
        ["-H", "pax", "--xattrs", "--xattrs-include=*"],
        whole_seconds=False,
        xattrs=True,
        everything=True,
    ),
    Foreign("gnu-tar-pax-sparse-1.0", "tar", ["-H", "pax", "-S"], whole_seconds=False, everything=True),
    Foreign(
        "gnu-tar-pax-sparse-0.1",
        "tar",
        ["-H", "pax", "-S", "--sparse-version=0.1"],
        whole_seconds=False,
        everything=True,
    ),
    Foreign(
        "gnu-tar-pax-sparse-0.0",
        "tar",
        ["-H", "pax", "-S", "--sparse-version=0.0"],
        whole_seconds=False,
        everything=True,
    ),
    Foreign("gnu-tar-ustar", "tar", ["-H", "ustar"]),
    Foreign("gnu-tar-v7", "tar", ["-H", "v7"]),
    Foreign("bsdtar-gnu", "bsdtar", ["--format", "gnutar", "--no-acls"], everything=True),
    Foreign("bsdtar-pax", "bsdtar", ["--format", "pax", "--no-acls"], whole_seconds=False, everything=True),
    Foreign("bsdtar-ustar", "bsdtar", ["--format", "ustar"]),
    Foreign("bsdtar-v7", "bsdtar", ["--format", "v7"]),
)


def make_plain_tree(root: Path) -> None:
    """What every tar there ever was can hold."""
    (root / "folder" / "inner").mkdir(parents=True)
    (root / "empty").mkdir()
    trees.write(root / "file", b"content")
    trees.write(root / "large", trees.noise(FRAME + 5000))
    trees.write(root / "hole", b"a" * 4096 + bytes(1 << 20) + b"b" * 4096)
    trees.write(root / "folder" / "nothing", b"")
    trees.write(root / "folder" / "inner" / "read-only", b"r")
    os.link(root / "file", root / "folder" / "inner" / "again")
    os.symlink("../file", root / "folder" / "link")
    os.chmod(root / "folder" / "inner" / "read-only", 0o400)
    os.chmod(root / "folder" / "inner", 0o555)
    for number, path in enumerate(sorted(describe(root), key=lambda path: -path.count("/"))):
        os.utime(root / path, ns=(0, (1_600_000_000 + number) * 1_000_000_000), follow_symlinks=False)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Description]:
    root = tmp_path_factory.mktemp("plain") / "source"
    make_plain_tree(root)
    return root, describe(root)


def program(name: str) -> str:
    needs("zstd", "zstd of Debian and Ubuntu")
    return gnu_tar() if name == "tar" else bsdtar()


async def put_as_the_older_system(store: SnapStore, folder: Path, archive: bytes, label: str = "-") -> str:
    """The object and the metadata as the older system writes them (FORMAT.md); returns the id."""
    found = str(uuid.uuid4())
    seconds = 1_650_000_000
    metadata = {
        "uuid": found,
        "app_name": "old",
        "ts": seconds,
        "labels": [*([] if label == "-" else [f"owner:{label}"]), f"size:{len(archive)}"],
    }
    (folder / f"old:{found}:{label}:{seconds}").write_bytes(archive)
    (folder / "_metadata").mkdir(exist_ok=True)
    (folder / "_metadata" / found).write_text(json.dumps(metadata))
    report = await store.rebuild()
    assert report.problems == ()
    return found


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the fixture `store` keeps its objects."""
    return tmp_path / "store"


@pytest.mark.parametrize("foreign", _FOREIGN, ids=lambda foreign: foreign.name)
async def test_restores_what_others_wrote(
    foreign: Foreign, store: SnapStore, place: Path, example: Example, plain: tuple[Path, Description], tmp_path: Path
) -> None:
    source, facts = (example.source, example.facts) if foreign.everything else plain
    left_out = _left_out(foreign)
    raw = run(program(foreign.program), *foreign.arguments, "-cf", "-", "-C", source, *left_out, ".")
    snapshot = await put_as_the_older_system(store, place, run("zstd", "-3", "-c", stdin=raw), "42")

    listed = [found async for found in store.list(apps=["old"], labels=["owner:42"])]
    assert [(found.id, found.labels) for found in listed] == [(snapshot, ("owner:42",))]

    report = await store.restore(snapshot, tmp_path / "out", trusted=True)
    found = describe(tmp_path / "out")
    expected = {path: _as_held(foreign, fact) for path, fact in facts.items() if not _is_left_out(path, left_out)}
    if not foreign.xattrs:
        found = without(found, "xattrs")
    assert differences(expected, found) == {}
    assert report.members == len(expected)

    members = {member.path: member async for member in store.members(snapshot)}
    assert members.keys() == expected.keys()
    for path, fact in expected.items():
        member = members[path]
        assert (member.mode, member.uid, member.gid, member.mtime) == (fact.mode, fact.uid, fact.gid, fact.mtime), path
        if member.type == "f":
            assert member.size == fact.size
        elif member.type == "h":
            assert member.link in fact.names
        elif member.type == "l":
            assert member.link == fact.link


def _left_out(foreign: Foreign) -> list[str]:
    """bsdtar 3.6 writes no times with nanoseconds before 1970, and in the gnu format none beyond 2242."""
    patterns = ["specials/socket"]
    if foreign.program == "bsdtar":
        patterns += ["times/*before-1970*", "times/*beyond-2242", "times/*far-future"]
    return [f"--exclude=./{pattern}" for pattern in patterns]


def _is_left_out(path: str, patterns: list[str]) -> bool:
    return any(Path(path).match(pattern.removeprefix("--exclude=./")) for pattern in patterns)


def _as_held(foreign: Foreign, facts: Facts) -> Facts:
    if foreign.whole_seconds:
        facts = facts._replace(mtime=facts.mtime // 1_000_000_000 * 1_000_000_000)
    return facts if foreign.xattrs else facts._replace(xattrs=())


@pytest.mark.parametrize("name", ["tar", "bsdtar"])
async def test_restores_archives_without_entries_for_folders(
    name: str, store: SnapStore, place: Path, plain: tuple[Path, Description], tmp_path: Path
) -> None:
    source, facts = plain
    files = {path: fact for path, fact in facts.items() if fact.type != "d"}
    names = "\0".join(files).encode()
    raw = run(program(name), "-cf", "-", "-C", source, "--null", "-T", "-", stdin=names)
    snapshot = await put_as_the_older_system(store, place, run("zstd", "-c", stdin=raw))
    await store.restore(snapshot, tmp_path / "out", trusted=True)
    found = describe(tmp_path / "out")
    assert differences(files, {path: fact for path, fact in found.items() if fact.type != "d"}) == {}
    assert {found[path].mode for path in ("folder", "folder/inner")} == {0o755}


async def test_reads_one_file_of_what_others_wrote(
    store: SnapStore, place: Path, plain: tuple[Path, Description]
) -> None:
    source, _ = plain
    raw = run(program("tar"), "-cf", "-", "-C", source, ".")
    snapshot = await put_as_the_older_system(store, place, run("zstd", "-c", stdin=raw))
    content = (source / "large").read_bytes()
    assert b"".join([piece async for piece in store.read(snapshot, "large")]) == content
    some = [piece async for piece in store.read(snapshot, "./large", start=FRAME - 10, size=100)]
    assert b"".join(some) == content[FRAME - 10 : FRAME + 90]


async def test_restores_parts_of_what_others_wrote(
    store: SnapStore, place: Path, plain: tuple[Path, Description], tmp_path: Path
) -> None:
    source, facts = plain
    raw = run(program("tar"), "-cf", "-", "-C", source, ".")
    snapshot = await put_as_the_older_system(store, place, run("zstd", "-c", stdin=raw))
    await store.restore(snapshot, tmp_path / "out", paths=["folder"], exclude=["again"])
    expected = {path for path in facts if (path + "/").startswith(("./", "folder/"))} - {"folder/inner/again"}
    assert describe(tmp_path / "out").keys() == expected


async def test_restores_a_foreign_hard_link_without_its_first_name(
    store: SnapStore, place: Path, plain: tuple[Path, Description], tmp_path: Path
) -> None:
    """Its content stands with its first name, which was not asked for."""
    source, _ = plain
    raw = run(program("tar"), "-cf", "-", "-C", source, "file", "folder/inner/again")
    snapshot = await put_as_the_older_system(store, place, run("zstd", "-c", stdin=raw))
    await store.restore(snapshot, tmp_path / "out", paths=["folder/inner/again"])
    assert (tmp_path / "out" / "folder" / "inner" / "again").read_bytes() == b"content"


async def test_reads_a_foreign_hard_link(store: SnapStore, place: Path, plain: tuple[Path, Description]) -> None:
    raw = run(program("tar"), "-cf", "-", "-C", plain[0], "file", "folder/inner/again")
    snapshot = await put_as_the_older_system(store, place, run("zstd", "-c", stdin=raw))
    assert [piece async for piece in store.read(snapshot, "folder/inner/again")] == [b"content"]


async def test_restores_hard_links_to_symbolic_links(store: SnapStore, place: Path, tmp_path: Path) -> None:
    """`cp -al` makes them, and GNU tar keeps them."""
    source = tmp_path / "source"
    source.mkdir()
    os.symlink("somewhere", source / "a")
    os.link(source / "a", source / "b", follow_symlinks=False)
    raw = run(program("tar"), "-cf", "-", "-C", source, ".")
    snapshot = await put_as_the_older_system(store, place, run("zstd", "-c", stdin=raw))
    await store.restore(snapshot, tmp_path / "out")
    assert [os.readlink(tmp_path / "out" / name) for name in "ab"] == ["somewhere"] * 2


async def refuses(store: SnapStore, snapshot: str, target: Path) -> None:
    with pytest.raises(ArchiveError):
        await store.restore(snapshot, target)
    assert not target.exists()
    assert not [name for name in os.listdir(target.parent) if name.startswith(".snapstore-")]


async def test_refuses_foreign_archives_that_are_cut_short(
    store: SnapStore, place: Path, plain: tuple[Path, Description], tmp_path: Path
) -> None:
    raw = run(program("tar"), "-cf", "-", "-C", plain[0], ".")
    archive = run("zstd", "-c", stdin=raw)
    for cut in (0, 1, 4, 100, len(archive) // 2, len(archive) - 4, len(archive) - 1):
        await refuses(store, await put_as_the_older_system(store, place, archive[:cut]), tmp_path / "out")


@pytest.mark.parametrize("where", ["in a header", "in a content", "before a header", "in the end"])
async def test_refuses_foreign_archives_whose_tar_was_cut_short(
    where: str, store: SnapStore, place: Path, plain: tuple[Path, Description], tmp_path: Path
) -> None:
    """`tar | zstd` where tar was killed: zstd then ends its frame as if all were well."""
    raw = run(program("tar"), "-cf", "-", "-C", plain[0], ".")
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        infos = archive.getmembers()
    last = next(info for info in reversed(infos) if info.size)
    end = infos[-1].offset_data + -(-infos[-1].size // 512) * 512
    cut = {
        "in a header": last.offset + 200,
        "in a content": last.offset_data + 5,
        "before a header": last.offset,
        "in the end": end + 512,
    }[where]
    snapshot = await put_as_the_older_system(store, place, run("zstd", "-c", stdin=raw[:cut]))
    if where == "in the end":  # one zero block of two: nothing is missing but that, and GNU tar only warns
        await store.restore(snapshot, tmp_path / "out")
        assert describe(tmp_path / "out").keys() == plain[1].keys()
    else:
        await refuses(store, snapshot, tmp_path / "out")


async def test_refuses_foreign_archives_with_a_damaged_header(
    store: SnapStore, place: Path, plain: tuple[Path, Description], tmp_path: Path
) -> None:
    """Damaged before it was compressed, so that only the header's own checksum tells."""
    raw = bytearray(run(program("tar"), "-cf", "-", "-C", plain[0], "."))
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        raw[archive.getmembers()[3].offset] ^= 1
    snapshot = await put_as_the_older_system(store, place, run("zstd", "-c", stdin=bytes(raw)))
    await refuses(store, snapshot, tmp_path / "out")


async def test_refuses_foreign_archives_with_flipped_bits(
    store: SnapStore, place: Path, plain: tuple[Path, Description], tmp_path: Path
) -> None:
    raw = run(program("tar"), "-cf", "-", "-C", plain[0], ".")
    archive = run("zstd", "-c", stdin=raw)
    chance = random.Random(11)
    for position in [0, 3, 6, 20, len(archive) - 1, *(chance.randrange(6, len(archive)) for _ in range(12))]:
        damaged = bytearray(archive)
        damaged[position] ^= 1 << chance.randrange(8)
        await refuses(store, await put_as_the_older_system(store, place, bytes(damaged)), tmp_path / "out")


async def test_a_refused_archive_leaves_an_older_target_alone(
    store: SnapStore, place: Path, plain: tuple[Path, Description], tmp_path: Path
) -> None:
    raw = run(program("tar"), "-cf", "-", "-C", plain[0], ".")
    archive = run("zstd", "-c", stdin=raw)
    target = tmp_path / "out"
    target.mkdir()
    trees.write(target / "old", b"old")
    before = describe(target)
    snapshot = await put_as_the_older_system(store, place, archive[:-1])
    with pytest.raises(ArchiveError):
        await store.restore(snapshot, target, existing="replace")
    assert describe(target) == before
