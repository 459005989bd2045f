"""Folders for tests: one with every kind of member, and a description by which two folders compare.

`describe` reads all that FORMAT.md promises to keep, from the disk and with nothing of ours in between, so that
two folders are the same exactly where their descriptions are equal.
"""

import functools
import hashlib
import os
import random
import shutil
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

FRAME = 4 << 20
BLOCK = 4096
IS_ROOT = os.geteuid() == 0

_KINDS = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFIFO: "p",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
}


class Facts(NamedTuple):
    """What is kept of one member."""

    type: str
    mode: int
    uid: int
    gid: int
    mtime: int
    """Nanoseconds since 1970."""
    size: int = 0
    sha256: str = ""
    link: str = ""
    """Where a symbolic link leads."""
    names: tuple[str, ...] = ()
    """All names of a regular file that has several."""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[str, bytes], ...] = ()
    sparse: bool = False
    """Whether a regular file has a hole of at least a block."""


Description = dict[str, Facts]


def describe(root: str | os.PathLike[str]) -> Description:
    """All members below ``root`` by their paths, the root itself as ``.``; links are not followed. No sockets."""
    base = os.fsencode(root)
    found: Description = {}
    groups: dict[tuple[int, int], list[str]] = {}
    for path in _walk(base):
        status = os.lstat(os.path.join(base, path))
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            continue
        name = to_text(path)
        found[name] = _facts(os.path.join(base, path), kind, status)
        if kind == "f" and status.st_nlink > 1:
            groups.setdefault((status.st_dev, status.st_ino), []).append(name)
    for names in groups.values():
        for name in names:
            if len(names) > 1:
                found[name] = found[name]._replace(names=tuple(sorted(names)))
    return found


def without(description: Description, *fields: str) -> Description:
    """A description without what an oracle cannot hold."""
    blank = {field: Facts._field_defaults.get(field, 0) for field in fields}
    return {path: facts._replace(**blank) for path, facts in description.items()}


def differences(expected: Description, found: Description) -> dict[str, tuple[Facts | None, Facts | None]]:
    """Only those members that differ: pytest would take minutes to show two descriptions of hundreds."""
    paths = expected.keys() | found.keys()
    return {path: (expected.get(path), found.get(path)) for path in paths if expected.get(path) != found.get(path)}


def digest(file: IO[bytes]) -> str:
    """SHA-256 of a file's content, in hex."""
    found = hashlib.sha256()
    while piece := file.read(1 << 20):
        found.update(piece)
    return found.hexdigest()


def to_text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def to_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _is_utf_8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _walk(base: bytes) -> Iterator[bytes]:
    yield b"."
    pending = [b""]
    while pending:
        folder = pending.pop()
        with os.scandir(os.path.join(base, folder)) as entries:
            for entry in entries:
                path = os.path.join(folder, entry.name)
                yield path
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)


def _facts(path: bytes, kind: str, status: os.stat_result) -> Facts:
    facts = Facts(
        kind,
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        xattrs=tuple(
            (name, os.getxattr(path, name, follow_symlinks=False))
            for name in sorted(os.listxattr(path, follow_symlinks=False))
        ),
    )
    if kind == "f":
        with open(path, "rb", opener=_open_quietly) as file:
            # The first hole, or the end. What is smaller than a block is none: nothing would be saved by it.
            sparse = (
                os.lseek(file.fileno(), 0, os.SEEK_HOLE) < status.st_size // BLOCK * BLOCK if status.st_size else False
            )
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            return facts._replace(size=status.st_size, sha256=digest(file), sparse=sparse)
    if kind == "l":
        return facts._replace(link=to_text(os.readlink(path)))
    if kind in "cb":
        return facts._replace(device=(os.major(status.st_rdev), os.minor(status.st_rdev)))
    return facts


def _open_quietly(path: bytes, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def write(path: str | bytes | os.PathLike[str], content: bytes, *, holes: bool = True) -> None:
    """A file with this content; blocks of zeros become holes, unless ``holes`` says not to."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        step = BLOCK if holes and bytes(BLOCK)[: len(content)] in content else max(1, len(content))
        for start in range(0, len(content), step):
            block = content[start : start + step]
            if not holes or block.strip(b"\0"):
                _write_all(descriptor, block, start)
        os.truncate(descriptor, len(content))
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, content: bytes, start: int) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(descriptor, memoryview(content)[done:], start + done)


@functools.lru_cache(maxsize=8)  # drawing 8 MiB takes longer than most tests
def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that do not compress away, the same each time."""
    return random.Random(seed).randbytes(size)


def has_xattrs(folder: str | os.PathLike[str]) -> bool:
    """Whether the file system keeps attributes of users."""
    with tempfile.NamedTemporaryFile(dir=folder) as probe:
        try:
            os.setxattr(probe.fileno(), "user.probe", b"1")
        except OSError:
            return False
    return True


def set_acl(path: str | os.PathLike[str], entries: str, *, default: bool = False) -> bool:
    """Give ACL entries by setfacl(1); whether that worked."""
    tool = shutil.which("setfacl")
    if tool is None:
        return False
    command = [tool, *(["-d"] if default else []), "-m", entries, "--", os.fspath(path)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


EDGES = {
    "one-block-header-fits": FRAME - 512,
    "one-block-header-does-not": FRAME - 511,
    "pax-header-fits": FRAME - 1536,
    "pax-header-does-not": FRAME - 1535,
    "a-frame": FRAME,
    "a-frame-and-a-byte": FRAME + 1,
    "two-frames": 2 * FRAME,
    "two-frames-and-more": 2 * FRAME + 777,
}
"""Sizes of files around the cuts of FORMAT.md, by name; those with a pax header have a time with nanoseconds."""

NAMES = (
    b"-rf",
    b" leading and trailing ",
    b"new\nline",
    b"tab\tand\\backslash",
    b"'quotes\" and *?[stars]",
    b"%41=percent",
    b"...",
    b"\x01control\x7f",
    "grüße-日本語-🙂".encode(),
    b"latin-1-gr\xfc\xdfe",
    b"a" * 100,
    b"b" * 101,
    b"c" * 255,
    "ü".encode() * 127,
)
"""File names that tars have stumbled over."""

TIMES = {
    "nanoseconds": 1_700_000_000_123_456_789,
    "one-nanosecond": 1_700_000_000_000_000_001,
    "epoch": 0,
    "before-1970": -1_000_000_000,
    "before-1970-with-nanoseconds": -1_234_567_890_123_456_789,
    "just-before-1970": -1,
    "beyond-2038": 2_147_483_648 * 1_000_000_000,
    "last-of-ustar": (8**11 - 1) * 1_000_000_000,
    "beyond-2242": 8**11 * 1_000_000_000,
    "far-future": 9_500_000_000 * 1_000_000_000 + 500,
}
"""Modification times in nanoseconds. All but what the file system cuts short are kept."""


def make_every_kind(root: str | os.PathLike[str], *, as_root: bool = IS_ROOT, only_utf_8: bool = False) -> None:
    """Fill ``root`` (made if missing) with every kind of member; what only root can make, ``as_root`` only.

    With ``only_utf_8``, without names (of files, of attributes, in links) that are not UTF-8.
    """
    base = Path(root)
    base.mkdir(parents=True, exist_ok=True)
    _make_contents(base / "contents")
    _make_names(base / "names", only_utf_8)
    _make_links(base / "links", only_utf_8)
    _make_specials(base / "specials", as_root)
    _make_attributes(base / "attributes", as_root, only_utf_8)
    if as_root:
        _make_owners(base / "owners")
    # Modes before times, and folders from the inside out: each step would undo a later one's.
    _make_modes(base / "modes", as_root)
    _settle_times(base)
    _make_times(base / "times")
    for number, folder in enumerate((base / "times", base)):
        os.utime(folder, ns=(0, 1_500_000_000_000_000_000 + number))


def _make_contents(folder: Path) -> None:
    folder.mkdir()
    write(folder / "empty", b"")
    write(folder / "one-byte", b"x")
    write(folder / "a-block", noise(512, 1))
    write(folder / "text", b"some text\n" * 1000)
    for number, (name, size) in enumerate(EDGES.items()):
        # The ends are noise and the middle repeats: enough to tell bytes apart, and cheap.
        write(
            folder / name, noise(1000, number) + (noise(4096, number) * (size // 4096 + 1))[: size - 2000] + b"e" * 1000
        )
    write(folder / "hole-first", bytes(1 << 20) + b"end")
    write(folder / "hole-last", b"start" + bytes(1 << 20))
    write(folder / "only-a-hole", bytes(300_000))
    write(folder / "small-hole", bytes(100))
    with open(folder / "holes-over-frames", "wb") as file:
        for megabyte in (0, 3, 4, 9):
            os.pwrite(file.fileno(), noise(5000, megabyte), megabyte << 20)
        file.truncate(13 << 20)


def _make_names(folder: Path, only_utf_8: bool) -> None:
    folder.mkdir()
    for number, name in enumerate(NAMES):
        if not only_utf_8 or _is_utf_8(name):
            write(os.path.join(os.fsencode(folder), name), b"file %d" % number)
    # Paths around the limits of ustar, whose prefix holds 155 bytes and whose name 100: "names/" is 6 of them.
    for first, last in ((149, 99), (149, 100), (149, 101), (150, 100), (148, 100)):
        inner = folder / ("p" * first)
        inner.mkdir(exist_ok=True)
        write(inner / ("n" * last), b"%d %d" % (first, last))
    deep = folder
    for level in range(12):
        deep = deep / f"level-{level:02d}-{'x' * 40}"
    deep.mkdir(parents=True)
    write(deep / "deep", b"deep down")
    odd = os.path.join(os.fsencode(folder), b"folder \n-" if only_utf_8 else b"folder \xff\n-")
    os.mkdir(odd)
    os.mkdir(os.path.join(odd, b"empty"))
    write(os.path.join(odd, b"inside" if only_utf_8 else b"inside \xfe"), b"inside")


def _make_links(folder: Path, only_utf_8: bool) -> None:
    folder.mkdir()
    (folder / "a").mkdir()
    (folder / "b" / "c").mkdir(parents=True)
    write(folder / "a" / "first", b"three names, one file")
    os.link(folder / "a" / "first", folder / "a" / "second")
    os.link(folder / "a" / "first", folder / "b" / "c" / "third")
    write(folder / "b" / "large", noise(5000) * 1000)
    os.link(folder / "b" / "large", folder / "a" / "large")
    odd = os.path.join(os.fsencode(folder), (b"odd " if only_utf_8 else b"odd \xe9 ") + b"o" * 120)
    write(odd, b"a link's target with a long name")
    os.link(odd, odd + b" again")
    targets = {
        "to-file": "a/first",
        "to-folder": "b",
        "up-and-down": "../links/a/../b",
        "absolute": "/etc/hostname",
        "dangling": "nowhere/at all",
        "to-itself": "to-itself",
        "of-100": "t" * 100,
        "of-101": "t" * 101,
        "of-4000": "d/" * 2000,
        "utf-8": "grüße",
        "newline": "a\nb",
    }
    for name, target in targets.items():
        os.symlink(target, folder / name)
    if not only_utf_8:
        os.symlink(b"not \xff UTF-8", os.fsencode(folder / "not-utf-8"))
        os.symlink(b"not \xfd UTF-8", os.path.join(os.fsencode(folder), "grüße".encode()))


def _make_specials(folder: Path, as_root: bool) -> None:
    folder.mkdir()
    (folder / "empty-folder").mkdir()
    (folder / "folder" / "in-folder" / "empty").mkdir(parents=True)
    os.mkfifo(folder / "fifo", 0o640)
    os.mkfifo(folder / ("fifo-" + "f" * 120), 0o600)
    os.mknod(folder / "socket", stat.S_IFSOCK | 0o600)
    if as_root:
        os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(folder / "block", stat.S_IFBLK | 0o660, os.makedev(7, 200))
        os.mknod(folder / "large-numbers", stat.S_IFCHR | 0o600, os.makedev(511, 70_000))


def _make_attributes(folder: Path, as_root: bool, only_utf_8: bool) -> None:
    folder.mkdir()
    (folder / "folder").mkdir()
    for name in ("file", "large", "read-only", "acl", "many", "empty"):
        write(folder / name, noise(9 << 20, 5) if name == "large" else b"" if name == "empty" else b"has attributes")
    if has_xattrs(folder):
        for name in ("file", "large", "read-only", "folder", "empty"):
            os.setxattr(folder / name, "user.plain", b"value")
        os.setxattr(folder / "file", "user.a=b=", b"=")
        os.setxattr(folder / "file", "user.100%", b"%25")
        os.setxattr(folder / "file", "user.%3D", b"looks like an escape")
        os.setxattr(folder / "file", "user.binary", bytes(range(256)))
        os.setxattr(folder / "file", "user.newline", b"\n\n10 a=b\n")
        os.setxattr(folder / "file", "user.empty", b"")
        os.setxattr(folder / "file", "user.grüße".encode(), b"name in UTF-8")
        if not only_utf_8:
            os.setxattr(folder / "file", b"user.not-\xff", b"name not in UTF-8")
        for number in range(20):
            os.setxattr(folder / "many", f"user.number-{number:02d}", noise(100, number))
    os.chmod(folder / "read-only", 0o444)
    set_acl(folder / "acl", "u:1:rw,g:2:r,m::rw")
    set_acl(folder / "folder", "u:3:rwx,g:4:rx")
    set_acl(folder / "folder", "u:5:rwx,g:6:-", default=True)
    if as_root:
        os.mkfifo(folder / "fifo")
        for name in ("file", "folder", "fifo"):
            os.setxattr(folder / name, "trusted.note", b"\0trusted\xff")
        # capabilities(7): version 2, effective, CAP_NET_BIND_SERVICE
        os.setxattr(folder / "file", "security.capability", struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0))


def _make_owners(folder: Path) -> None:
    folder.mkdir()
    ids = (
        (1, 2),
        (65534, 65534),
        (2_097_151, 2_097_151),
        (2_097_152, 3),
        (4, 2_097_152),
        (4_294_967_294, 4_000_000_000),
    )
    for uid, gid in ids:
        name = folder / f"{uid}-{gid}"
        name.mkdir()
        write(name / "file", b"owned")
        os.symlink("file", name / "link")
        os.mkfifo(name / "fifo")
        for path in (name / "file", name / "link", name / "fifo", name):
            os.chown(path, uid, gid, follow_symlinks=False)
    os.chmod(folder / "1-2" / "file", 0o6755)


def _make_modes(folder: Path, as_root: bool) -> None:
    folder.mkdir()
    modes = (0o400, 0o444, 0o600, 0o644, 0o755, 0o777, 0o1644, 0o2755, 0o4755, 0o6711, 0o7777)
    for mode in (*modes, *((0o000, 0o222) if as_root else ())):
        write(folder / f"file-{mode:04o}", b"mode")
        os.chmod(folder / f"file-{mode:04o}", mode)
    for mode in (0o500, 0o555, 0o700, 0o755, 0o777, 0o1777, 0o2775, 0o4755, *((0o000,) if as_root else ())):
        inner = folder / f"folder-{mode:04o}"
        (inner / "inner").mkdir(parents=True)
        write(inner / "inner" / "file", b"below")
        os.chmod(inner / "inner", mode)
        os.chmod(inner, mode)


def _settle_times(base: Path) -> None:
    """A time of its own for every member, with nanoseconds for every second one."""
    paths = sorted(_walk(os.fsencode(base)), key=lambda path: (-path.count(b"/"), path))
    for number, path in enumerate(paths):
        seconds = 1_600_000_000 + number
        whole = number % 2 == 0 or b"one-block-header" in path
        nanoseconds = 0 if whole and b"pax-header" not in path else 1 + number
        os.utime(
            os.path.join(os.fsencode(base), path),
            ns=(0, seconds * 1_000_000_000 + nanoseconds),
            follow_symlinks=False,
        )


def _make_times(folder: Path) -> None:
    folder.mkdir()
    for name, time in TIMES.items():
        write(folder / name, b"time")
        os.symlink("nowhere", folder / f"link-{name}")
        (folder / f"folder-{name}").mkdir()
        for path in (name, f"link-{name}", f"folder-{name}"):
            os.utime(folder / path, ns=(0, time), follow_symlinks=False)
