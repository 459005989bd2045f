"""Folders that change while they are packed, members that cannot be read, and what is left out on purpose.

Nothing here waits for luck: the change is made between the very system calls that it must come between.
"""

import errno
import os
import random
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from snapstore import InvalidInput, Member, SnapshotReport, SnapStore, SourceNotFound, SourceUnreadable
from snapstore.archive import walk
from snapstore.archive.source import Source

FRAME = 4 << 20
Change = Callable[[Path], None]


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app").mkdir()
    return tmp_path / "app"


async def members_of(store: SnapStore, snapshot_id: str) -> dict[str, Member]:
    return {member.path: member async for member in store.members(snapshot_id)}


async def paths_of(store: SnapStore, snapshot_id: str) -> set[str]:
    return set(await members_of(store, snapshot_id)) - {"."}


async def content_of(store: SnapStore, snapshot_id: str, path: str) -> bytes:
    return b"".join([piece async for piece in store.read(snapshot_id, path)])


async def restored(store: SnapStore, report: SnapshotReport, tmp_path: Path) -> Path:
    """All of it, so that every header and digest was found right."""
    await store.restore(report.id, tmp_path / "out")
    return tmp_path / "out"


class Reads:
    """Makes changes before or after the ``preadv`` calls on one file, counting from 0."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
        self._file = file.stat().st_ino
        self._read = os.preadv
        self.before: Callable[[int], Any] = lambda number: None
        self.after: Callable[[int], Any] = lambda number: None
        self.count = 0
        monkeypatch.setattr(os, "preadv", self._preadv)

    def _preadv(self, descriptor: int, buffers: Sequence[Any], offset: int) -> int:
        if os.fstat(descriptor).st_ino != self._file:
            return self._read(descriptor, buffers, offset)
        number = self.count
        self.count += 1
        self.before(number)
        read = self._read(descriptor, buffers, offset)
        self.after(number)
        return read


def between_walk_and_read(monkeypatch: pytest.MonkeyPatch, change: Callable[[], Any]) -> None:
    """``change`` comes when all of the folder is listed, and nothing of it is read."""

    def end_and_change(self: Any) -> None:
        end(self)
        change()

    end = walk.Walk._end
    monkeypatch.setattr(walk.Walk, "_end", end_and_change)


def only(report: SnapshotReport) -> tuple[str, str]:
    """The one problem, which is counted as one in the metadata too."""
    (problem,) = report.problems
    assert report.warnings == 1
    assert problem.reason
    return problem.path, problem.kind


async def test_a_small_file_that_changes_once_is_read_again_and_is_whole(
    store: SnapStore, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (app / "file").write_bytes(b"old" * 1000)
    reads = Reads(monkeypatch, app / "file")
    reads.after = lambda number: (app / "file").write_bytes(b"newer" * 2000) if number == 0 else None
    report = await store.create("blog", app)
    assert report.problems == ()
    assert report.warnings == 0
    assert report.content_size == 10_000
    assert await content_of(store, report.id, "file") == b"newer" * 2000
    assert (await members_of(store, report.id))["file"].warning == ""


@pytest.mark.parametrize("step", [-100, 0, 100])
async def test_a_small_file_that_keeps_changing_is_reported(
    store: SnapStore, app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    (app / "a").write_text("before")
    (app / "file").write_bytes(b"0" * 1000)
    (app / "z").write_text("behind")
    reads = Reads(monkeypatch, app / "file")
    reads.after = lambda number: (app / "file").write_bytes(b"%d" % (number % 10) * (1000 + step * (number + 1)))
    report = await store.create("blog", app)
    assert only(report) == ("file", "changed")
    members = await members_of(store, report.id)
    assert members["file"].warning == "changed"
    assert (members["a"].warning, members["z"].warning) == ("", "")
    assert (await store.get(report.id)).warnings == 1
    out = await restored(store, report, tmp_path)
    assert (out / "a").read_text() == "before"
    assert (out / "z").read_text() == "behind"
    assert (out / "file").stat().st_size == members["file"].size


@pytest.mark.parametrize(("old", "new"), [(100, 2 * FRAME + 5), (2 * FRAME + 5, 100)])
async def test_a_file_that_becomes_large_or_small_between_walk_and_read_is_whole(
    store: SnapStore, app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: int, new: int
) -> None:
    (app / "file").write_bytes(b"o" * old)
    (app / "next").write_text("next")
    between_walk_and_read(monkeypatch, lambda: (app / "file").write_bytes(b"n" * new))
    report = await store.create("blog", app)
    assert report.problems == ()
    out = await restored(store, report, tmp_path)
    assert (out / "file").read_bytes() == b"n" * new
    assert (out / "next").read_text() == "next"


async def test_a_small_file_that_becomes_large_while_it_is_read_is_whole(
    store: SnapStore, app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (app / "file").write_bytes(b"small")
    reads = Reads(monkeypatch, app / "file")
    reads.after = lambda number: (app / "file").write_bytes(b"l" * (FRAME + 1)) if number == 0 else None
    report = await store.create("blog", app)
    assert report.problems == ()
    assert (await restored(store, report, tmp_path) / "file").read_bytes() == b"l" * (FRAME + 1)


async def test_a_large_file_that_grows_is_cut_to_the_size_that_its_header_gives(
    store: SnapStore, app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 2 * FRAME + 100
    (app / "file").write_bytes(b"x" * size)
    (app / "next").write_bytes(b"y" * (FRAME + 1))
    reads = Reads(monkeypatch, app / "file")

    def grow(number: int) -> None:
        with open(app / "file", "ab") as file:
            file.write(b"more")

    reads.after = grow
    report = await store.create("blog", app)
    assert only(report) == ("file", "changed")
    members = await members_of(store, report.id)
    assert (members["file"].size, members["file"].warning) == (size, "changed")
    assert members["next"].warning == ""
    out = await restored(store, report, tmp_path)
    assert (out / "file").read_bytes() == b"x" * size
    assert (out / "next").read_bytes() == b"y" * (FRAME + 1)


@pytest.mark.parametrize("left", [0, 10, FRAME - 1, FRAME, FRAME + 10])
async def test_a_large_file_that_shrinks_is_padded_with_zeros(
    store: SnapStore, app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    size = 2 * FRAME + 100
    (app / "file").write_bytes(b"x" * size)
    reads = Reads(monkeypatch, app / "file")
    reads.before = lambda number: os.truncate(app / "file", left) if number == 1 else None
    report = await store.create("blog", app)
    assert only(report) == ("file", "changed")
    kept = max(FRAME, left)
    content = (await restored(store, report, tmp_path) / "file").read_bytes()
    assert len(content) == size
    assert content == b"x" * kept + bytes(size - kept)


async def test_a_large_file_that_cannot_be_read_to_its_end_is_padded_with_zeros_alone(
    store: SnapStore, app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buffers are used again and again: what stands in them is another file's, and nobody's business."""
    (app / "earlier").write_bytes(b"secret" * (3 * FRAME))
    size = 3 * FRAME + 100
    (app / "file").write_bytes(b"x" * size)
    reads = Reads(monkeypatch, app / "file")

    def fail(number: int) -> None:
        if number >= 1:
            raise OSError(errno.EIO, "Input/output error")

    reads.before = fail
    report = await store.create("blog", app, on_error="skip")
    assert {problem.path for problem in report.problems} == {"file"}
    content = (await restored(store, report, tmp_path) / "file").read_bytes()
    assert len(content) == size
    assert content[:FRAME] == b"x" * FRAME
    assert not content[FRAME:].strip(b"\0")
    assert (await members_of(store, report.id))["file"].warning == "changed"


async def test_a_member_with_several_troubles_is_counted_once(
    store: SnapStore, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`warnings` is how many members were changed or unreadable."""
    (app / "file").write_bytes(b"x" * (3 * FRAME))
    reads = Reads(monkeypatch, app / "file")

    def fail(number: int) -> None:
        if number >= 1:
            raise OSError(errno.EIO, "Input/output error")

    reads.before = fail
    report = await store.create("blog", app, on_error="skip")
    assert report.warnings == 1


async def test_a_large_file_that_fails_half_way_makes_no_snapshot(
    store: SnapStore, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (app / "file").write_bytes(b"x" * (2 * FRAME))
    reads = Reads(monkeypatch, app / "file")

    def fail(number: int) -> None:
        if number == 1:
            raise OSError(errno.EIO, "Input/output error")

    reads.before = fail
    with pytest.raises(SourceUnreadable, match=r"'file'.*input/output error"):
        await store.create("blog", app)
    assert [snapshot async for snapshot in store.list()] == []


async def test_a_small_file_that_fails_is_left_out_with_nothing_of_it(
    store: SnapStore, app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "file", "z"):
        (app / name).write_text(name)
    reads = Reads(monkeypatch, app / "file")

    def fail(number: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    reads.after = fail
    report = await store.create("blog", app, on_error="skip")
    assert only(report) == ("file", "unreadable")
    assert sorted(path.name for path in (await restored(store, report, tmp_path)).iterdir()) == ["a", "z"]
    assert report.entries == 3


@pytest.mark.parametrize("size", [10, FRAME + 1])
@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "Permission denied"), OSError(errno.EIO, "I/O error")])
async def test_an_unreadable_file_fails_the_snapshot_or_is_reported(
    store: SnapStore, app: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, size: int
) -> None:
    (app / "bad").write_bytes(b"b" * size)
    (app / "good").write_text("good")
    whole = os.open

    def refuse(path: Any, *args: Any, **kwargs: Any) -> int:
        if path in ("bad", b"bad"):
            raise error
        return whole(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SourceUnreadable) as caught:
        await store.create("blog", app)
    assert caught.value.path == "bad"
    assert caught.value.__cause__ is error
    assert [snapshot async for snapshot in store.list()] == []
    report = await store.create("blog", app, on_error="skip")
    assert only(report) == ("bad", "unreadable")
    assert await paths_of(store, report.id) == {"good"}
    assert report.content_size == 4


async def test_a_file_that_vanished_fails_the_snapshot_or_is_reported(
    store: SnapStore, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gone", "stays"):
        (app / name).write_text(name)
    between_walk_and_read(monkeypatch, lambda: (app / "gone").unlink(missing_ok=True))
    with pytest.raises(SourceUnreadable, match="'gone'"):
        await store.create("blog", app)
    assert [snapshot async for snapshot in store.list()] == []
    (app / "gone").write_text("gone")
    report = await store.create("blog", app, on_error="skip")
    assert only(report) == ("gone", "vanished")
    assert await paths_of(store, report.id) == {"stays"}


@pytest.mark.parametrize("exchanged", ["a", "b", "c"])
async def test_a_hard_link_that_is_exchanged_for_another_file_is_that_file(
    store: SnapStore, app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanged: str
) -> None:
    """As rsync does it. The others are still links of one file, and nobody has the content of another."""
    (app / "a").write_text("old")
    for name in ("b", "c"):
        (app / name).hardlink_to(app / "a")

    def exchange() -> None:
        (app / "new").write_text("newer")
        (app / "new").rename(app / exchanged)

    between_walk_and_read(monkeypatch, exchange)
    report = await store.create("blog", app)
    out = await restored(store, report, tmp_path)
    assert {name: (out / name).read_text() for name in "abc"} == {**dict.fromkeys("abc", "old"), exchanged: "newer"}
    first, second = (name for name in "abc" if name != exchanged)
    assert (out / first).stat().st_ino == (out / second).stat().st_ino != (out / exchanged).stat().st_ino
    assert [member.type async for member in store.members(report.id)] == ["f", "f", "h", "d"]


async def test_a_file_that_vanishes_during_the_walk_is_reported(
    store: SnapStore, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gone", "stays"):
        (app / name).write_text(name)
    whole = os.scandir

    @contextmanager
    def scandir(path: Any) -> Iterator[Sequence[os.DirEntry[str]]]:
        with whole(path) as entries:
            listed = list(entries)
        (app / "gone").unlink(missing_ok=True)
        yield listed

    monkeypatch.setattr(os, "scandir", scandir)
    report = await store.create("blog", app, on_error="skip")
    monkeypatch.undo()
    assert only(report) == ("gone", "vanished")
    assert await paths_of(store, report.id) == {"stays"}


async def test_a_folder_that_cannot_be_listed_fails_the_snapshot_or_is_reported(
    store: SnapStore, app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (app / "closed").mkdir()
    (app / "closed" / "file").write_text("x")
    (app / "file").write_text("y")
    whole = Source.folder

    def folder(self: Source, path: str) -> int:
        if path == "closed":
            raise PermissionError(errno.EACCES, "Permission denied")
        return whole(self, path)

    monkeypatch.setattr(Source, "folder", folder)
    with pytest.raises(SourceUnreadable, match="'closed'"):
        await store.create("blog", app)
    report = await store.create("blog", app, on_error="skip")
    assert {(problem.path, problem.kind) for problem in report.problems} == {("closed", "unreadable")}
    assert (await restored(store, report, tmp_path) / "file").read_text() == "y"


async def test_a_folder_that_vanished_takes_what_is_in_it_along(
    store: SnapStore, app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (app / "gone").mkdir()
    (app / "gone" / "file").write_text("x")
    (app / "file").write_text("y")
    between_walk_and_read(monkeypatch, lambda: subprocess.run(["rm", "-r", str(app / "gone")], check=True))
    report = await store.create("blog", app, on_error="skip")
    assert ("gone/file", "vanished") in {(problem.path, problem.kind) for problem in report.problems}
    out = await restored(store, report, tmp_path)
    assert {path.name for path in out.rglob("*") if path.is_file()} == {"file"}


def to_fifo(path: Path) -> None:
    os.mkfifo(path)


def to_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def to_folder(path: Path) -> None:
    path.mkdir()


def to_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize("change", [to_fifo, to_link, to_folder, to_socket])
async def test_a_file_that_became_something_else_is_neither_waited_for_nor_followed(
    store: SnapStore, app: Path, monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    (app / "file").write_text("x")
    (app / "other").write_text("y")

    def swap() -> None:
        subprocess.run(["rm", "-rf", str(app / "file")], check=True)
        monkeypatch.chdir(app)  # a socket's path is short
        change(Path("file"))

    between_walk_and_read(monkeypatch, swap)
    with pytest.raises(SourceUnreadable, match="'file'"):
        await store.create("blog", app)
    subprocess.run(["rm", "-rf", str(app / "file")], check=True)
    (app / "file").write_text("x")
    report = await store.create("blog", app, on_error="skip")
    assert only(report)[0] == "file"
    assert await paths_of(store, report.id) == {"other"}


async def test_a_folder_that_became_a_link_is_not_followed(
    store: SnapStore, app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (app / "folder", tmp_path / "outside"):
        folder.mkdir()
        (folder / "file").write_text(folder.name)

    def swap() -> None:
        (app / "folder").rename(tmp_path / "moved")
        (app / "folder").symlink_to(tmp_path / "outside")

    whole = Source.folder

    def folder(self: Source, path: str) -> int:
        self._folders.close()  # what is open already is the old folder, rightly
        return whole(self, path)

    monkeypatch.setattr(Source, "folder", folder)
    between_walk_and_read(monkeypatch, swap)
    report = await store.create("blog", app, on_error="skip")
    assert "folder/file" in {problem.path for problem in report.problems}
    assert "folder/file" not in await paths_of(store, report.id)


@pytest.mark.parametrize("gone", [1, 2, 3])
async def test_another_hard_link_takes_over_when_the_first_names_vanished(
    store: SnapStore, app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: int
) -> None:
    names = ["a", "b", "c"]
    (app / "a").write_text("content")
    for name in names[1:]:
        os.link(app / "a", app / name)

    def vanish() -> None:
        for name in names[:gone]:
            (app / name).unlink()

    between_walk_and_read(monkeypatch, vanish)
    report = await store.create("blog", app, on_error="skip")
    assert [problem.path for problem in report.problems] == names[:gone]
    members = await members_of(store, report.id)
    left = names[gone:]
    assert members.keys() == {".", *left}
    out = await restored(store, report, tmp_path)
    assert {(out / name).read_text() for name in left} <= {"content"}
    assert len({(out / name).stat().st_ino for name in left}) == min(1, len(left))
    assert report.content_size == (7 if left else 0)
    assert report.entries == len(members)


async def test_sockets_are_counted_and_left_out(store: SnapStore, app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(app)
    for name in ("one", "two"):
        to_socket(Path(name))
    (app / "file").write_text("x")
    report = await store.create("blog", app)
    assert report.sockets == 2
    assert report.problems == ()
    assert report.warnings == 0
    assert await paths_of(store, report.id) == {"file"}


TREE = (
    "a.log",
    "keep.log",
    "a.txt",
    "#hash",
    "!bang",
    "with space",
    "trailing ",
    "ünïcode",
    "build",
    "cache/deep/x.bin",
    "cache/keep/y.bin",
    "sub/a.log",
    "sub/build/out.o",
    "sub/cache/z",
    "sub/deep/er/a.log",
    "sub/deep/er/a.txt",
    "doc/frotz/file",
    "a/doc/frotz/file",
    "foo/bar/x",
    "foo/baz/x",
    "logs/debug.log",
    "logs/important.log",
    "[brackets]",
    "file1",
    "file2",
    "filea",
)

PATTERNS: list[list[str]] = [
    ["*.log"],
    ["*.log", "!keep.log"],
    ["!keep.log", "*.log"],
    ["/*.log"],
    ["/a.log"],
    ["sub/a.log"],
    ["build"],
    ["build/"],
    ["/build"],
    ["cache/"],
    ["/cache/"],
    ["cache/*", "!cache/keep"],
    ["cache/", "!cache/keep/"],
    ["**/a.log"],
    ["sub/**"],
    ["sub/**/a.log"],
    ["**/deep/**"],
    ["a/**/file"],
    ["/*", "!/foo", "/foo/*", "!/foo/bar"],
    ["foo/*", "!foo/bar/"],
    ["doc/frotz"],
    ["doc/frotz/"],
    ["frotz/"],
    ["logs/*.log", "!logs/important.log"],
    ["logs/", "!logs/important.log"],
    ["*", "!*/", "!*.txt"],
    ["*", "!*/", "!keep.log", "!/sub/deep/**"],
    ["sub/**", "!sub/a.log"],
    ["sub/**", "!sub/deep/", "!sub/deep/er/", "!a.txt"],
    ["*"],
    ["**"],
    ["/"],
    ["", "   ", "# a comment", "*.txt"],
    ["\\#hash"],
    ["\\!bang"],
    ["#hash", "!bang"],
    ["with space"],
    ["with\\ space"],
    ["trailing\\ "],
    ["trailing   "],
    ["ünïcode"],
    ["\\[brackets\\]"],
    ["file[0-9]"],
    ["file[!0-9]"],
    ["file?"],
    ["sub", "!sub"],
    ["sub", "!sub/deep/er/a.txt"],
    ["sub/*", "!sub/deep/", "sub/deep/*"],
    ["*.log", "!/sub/**"],
    ["x.bin", "cache/**/y.bin"],
    ["A.LOG"],
    ["foo/bar"],
    ["foo/"],
    ["*/"],
    ["er/*.txt"],
]


@pytest.mark.parametrize("where", ["call", ".snapignore"])
async def test_exclude_patterns_mean_what_git_says(store: SnapStore, app: Path, tmp_path: Path, where: str) -> None:
    for path in TREE:
        (app / path).parent.mkdir(parents=True, exist_ok=True)
        (app / path).write_text(path)
    wrong = {}
    for patterns in PATTERNS:
        expected = kept_by_git(app, patterns, tmp_path)
        if where == "call":
            report = await store.create("blog", app, exclude=patterns)
        else:
            (app / ".snapignore").write_text("\n".join(patterns) + "\n")
            report = await store.create("blog", app)
            (app / ".snapignore").unlink()
        found = {member.path async for member in store.members(report.id) if member.type == "f"} - {".snapignore"}
        if found != expected:
            wrong[" ".join(patterns)] = {"not": found - expected, "missing": expected - found}
    assert wrong == {}


def kept_by_git(folder: Path, patterns: list[str], tmp_path: Path) -> set[str]:
    exclude = tmp_path / "patterns"
    exclude.write_text("\n".join(patterns) + "\n")
    repository = tmp_path / "repository"
    if not repository.is_dir():
        subprocess.run(["git", "init", "-q", "--bare", str(repository)], check=True)
    where = ["-c", "core.bare=false", f"--git-dir={repository}", f"--work-tree={folder}"]
    listed = subprocess.run(
        ["git", *where, "ls-files", "--others", "-z", "--exclude-from", str(exclude)],
        cwd=folder,
        capture_output=True,
        check=True,
    )
    return {os.fsdecode(path) for path in listed.stdout.split(b"\0") if path}


async def test_patterns_of_the_call_come_after_those_of_the_folder(store: SnapStore, app: Path) -> None:
    (app / ".snapignore").write_text("*.log\n/secret\n")
    for name in ("a.log", "b.log", "secret"):
        (app / name).write_text(name)
    report = await store.create("blog", app, exclude=["!a.log"])
    assert await paths_of(store, report.id) == {".snapignore", "a.log"}
    assert (await store.create("blog", app, exclude=[".snapignore"])).entries == 1


@pytest.mark.parametrize("patterns", [["closed/"], ["closed"], ["/closed", "!closed/file"], ["*", "!file"]])
async def test_excluded_folders_are_not_walked(
    store: SnapStore, app: Path, monkeypatch: pytest.MonkeyPatch, patterns: list[str]
) -> None:
    (app / "closed").mkdir()
    (app / "closed" / "file").write_text("x")
    (app / "file").write_text("y")
    opened: list[str] = []
    whole = Source.folder

    def folder(self: Source, path: str) -> int:
        opened.append(path)
        return whole(self, path)

    monkeypatch.setattr(Source, "folder", folder)
    report = await store.create("blog", app, exclude=patterns)
    assert "closed" not in opened
    assert await paths_of(store, report.id) == {"file"}
    assert report.problems == ()


async def test_excluded_files_are_not_read(store: SnapStore, app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (app / "secret").write_text("x")
    (app / "file").write_text("y")
    reads = Reads(monkeypatch, app / "secret")
    await store.create("blog", app, exclude=["secret"])
    assert reads.count == 0


async def test_a_hard_link_to_an_excluded_name_keeps_the_content(store: SnapStore, app: Path) -> None:
    (app / "a.log").write_text("content")
    os.link(app / "a.log", app / "b.txt")
    report = await store.create("blog", app, exclude=["*.log"])
    assert await content_of(store, report.id, "b.txt") == b"content"


@pytest.mark.parametrize("change", [to_fifo, to_link, to_folder])
async def test_an_ignore_file_that_is_no_file_is_an_error(store: SnapStore, app: Path, change: Change) -> None:
    change(app / ".snapignore")
    with pytest.raises(SourceUnreadable, match=r"\.snapignore"):
        await store.create("blog", app)


async def test_an_ignore_file_may_hold_any_bytes(store: SnapStore, app: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    (app / ".snapignore").write_bytes(b"caf\xe9\r\n*.log\r\n")
    for path in (name, "a.log", "file"):
        (app / path).write_text("x")
    assert await paths_of(store, (await store.create("blog", app)).id) == {".snapignore", "file"}


async def test_an_ignore_file_that_is_no_list_of_patterns_is_refused(store: SnapStore, app: Path) -> None:
    (app / ".snapignore").write_bytes(random.Random(1).randbytes(2 << 20))
    with pytest.raises(InvalidInput, match=r"\.snapignore"):
        await store.create("blog", app)


async def test_patterns_that_cannot_be_understood_are_refused_before_anything_is_read(
    store: SnapStore, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="exclude"):
        await store.create("blog", tmp_path / "missing", exclude=["!"])
    with pytest.raises(InvalidInput, match="exclude"):
        await store.create("blog", tmp_path / "missing", exclude="*.log")


async def test_a_missing_folder_and_a_file_are_no_source(store: SnapStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to("nowhere")
    for path in ("missing", "file", "dangling", "file/below"):
        with pytest.raises(SourceNotFound) as caught:
            await store.create("blog", tmp_path / path)
        assert caught.value.path == str(tmp_path / path)
    with pytest.raises(InvalidInput):
        await store.create("blog", str(tmp_path) + "\0")
    with pytest.raises(SourceNotFound):
        await store.create("blog", "")


async def test_a_source_may_be_named_through_a_link(store: SnapStore, app: Path, tmp_path: Path) -> None:
    (app / "file").write_text("x")
    (tmp_path / "current").symlink_to("app")
    assert await paths_of(store, (await store.create("blog", tmp_path / "current")).id) == {"file"}
