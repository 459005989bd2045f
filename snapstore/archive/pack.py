"""A walk into raw frames: headers and file bytes, read straight into the buffers that will be compressed.

The cuts are FORMAT.md's: members that fit share frames of up to 4 MiB; a larger file has frames of its own, cut every
4 MiB of its content. A file that fits is read until two looks at it agree, three times at most; a larger one is padded
or cut to the size that its header already gives. Both are reported when they changed.
"""

import errno
import os
from collections import deque
from collections.abc import Generator, Iterator
from mmap import mmap
from stat import S_IFREG

import msgspec

from snapstore.archive import tar
from snapstore.archive.frames import FRAME, Buffer, RawFrame
from snapstore.archive.names import to_text
from snapstore.archive.source import FILE_FLAGS, NotRegular, Source, Xattrs, has_xattrs, is_exhausted, read_xattrs
from snapstore.archive.walk import Walk, hard_link, member_of
from snapstore.errors import SourceUnreadable, reason_of
from snapstore.model import Member, OnError, Problem

_HEADROOM = 64 << 10
_TRIES = 3
_USUAL_HEADERS = 4 * tar.BLOCK
"""A file's own header, one for its time, and the padding of its content."""
_ZEROS = bytes(FRAME)


class Buffers:
    """Frame buffers, used again and again: making one costs more than filling it. Any thread may take and give.

    They come from the system and go back to it at once: malloc keeps blocks of this size, in an arena for each thread,
    and thirty snapshots and restores together took 226 MiB in place of 152.
    """

    def __init__(self) -> None:
        self._free: deque[Buffer] = deque()

    def take(self, size: int = FRAME) -> Buffer:
        if size > FRAME + _HEADROOM:
            return mmap(-1, size)  # headers with large attributes; rare, so not kept
        try:
            return self._free.pop()
        except IndexError:
            return mmap(-1, FRAME + _HEADROOM)

    def give(self, buffer: Buffer) -> None:
        if len(buffer) == FRAME + _HEADROOM:
            self._free.append(buffer)


class Packer:
    """Reads what a walk has found from its source; `frames` is run once, in one thread at a time.

    The walk may be ahead, and may go on whenever a frame was given; where it is not ahead, it is taken further.
    """

    def __init__(self, source: Source, walk: Walk, buffers: Buffers, *, on_error: OnError = "fail") -> None:
        self._source = source
        self._walk = walk
        self.buffers = buffers
        """Those of its frames, to be given back."""
        self._on_error = on_error
        self._begin_frame(buffers.take())
        self._folder = -1
        self._parent: str | None = None
        """The folder that was used last, and its path."""
        self.problems: list[Problem] = []
        self.entries = 0
        self.content_size = 0

    def frames(self) -> Generator[RawFrame | None, None, None]:
        """All frames in order, the end frame last; None where a moment was spent on the walk, and nothing is full yet.

        SourceUnreadable with ``on_error="fail"``.
        """
        walk = self._walk
        while walk.files or not walk.over:
            if not walk.files:
                walk.go_on()
                self._parent = None  # its descriptor may be closed by now
                yield None
                continue
            # Taken from there as they are packed, so that less is kept of the walk as the table of contents grows.
            found = walk.files.popleft()
            if not self._pack_usual(found):
                yield from self._pack_file(found)
                self._parent = None
        for member in self._exchanged_links():
            yield from self._pack_file(member)
        for links in walk.links.values():
            for member in links:
                yield from self._add(member, self._encode(member))
        for member in walk.others:
            yield from self._pack_other(member)
        if self._frame.length:
            yield self._next_frame()
        self._frame.append(tar.END)
        yield self._frame

    def _pack_usual(self, found: Member) -> bool:
        """A file that fits the frame, has one name and no attributes, and is as the walk found it, as most are.

        `_pack_file` in a third of the time. Whatever is unusual is left to it, with nothing in the frame yet. What the
        walk found is the first look at the file: in a busy service each system call costs more than its own time, since
        the interpreter may be somebody else's when it is done.
        """
        path, size, mode = found.path, found.size, found.mode
        frame = self._frame
        ahead = frame.length
        if size > FRAME - ahead - _USUAL_HEADERS or path in self._walk.links or not path.isascii():
            return False
        blocks = tar.encode_usual(path.encode(), size, mode, found.uid, found.gid, found.mtime)
        if not blocks:
            return False
        start = ahead + len(blocks)
        try:
            parent, _, name = path.rpartition("/")
            if parent != self._parent:
                self._folder, self._parent = self._source.folder(parent), parent
            descriptor = os.open(name, FILE_FLAGS, dir_fd=self._folder)
        except OSError:
            return False
        try:
            if has_xattrs(descriptor) or (
                size and os.preadv(descriptor, [self._view[start : start + size]], 0) != size
            ):
                return False
            after = os.fstat(descriptor)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        if (
            after.st_ctime_ns != found.ctime
            or after.st_mtime_ns != found.mtime
            or after.st_size != size
            or after.st_ino != found.ino
            or after.st_mode != S_IFREG | mode
        ):
            return False
        self._list(Member(path, "f", ahead, size, mode, found.uid, found.gid, found.mtime, found.ctime, found.ino))
        frame.append(blocks)
        frame.skip(size)
        frame.pad(size)
        return True

    def _pack_file(self, found: Member) -> Iterator[RawFrame]:
        """One file; where its name is gone or unreadable, or another file's by now, the next of its hard links stands
        in for it."""
        names = deque([found, *self._walk.links.pop(found.path, ())])
        while names:
            path = names.popleft().path
            try:
                descriptor = self._source.open_file(path)
            except OSError as error:
                self._report(path, error)
                continue
            try:
                is_another = names and os.fstat(descriptor).st_ino != found.ino
                yield from self._read_file(path, descriptor)
                if is_another:
                    continue
                if names:
                    self._walk.links[path] = [hard_link(member, path) for member in names]
                return
            except OSError as error:
                # Nothing of it is in a frame yet: content is read before it is listed.
                self._report(path, error)
            finally:
                os.close(descriptor)

    def _exchanged_links(self) -> list[Member]:
        """Names of hard links that are those of other files by now, taken out of the links. Those that are gone stay:
        when they were found, they were there."""
        exchanged: list[Member] = []
        for links in self._walk.links.values():
            kept: list[Member] = []
            for member in links:
                (exchanged if self._is_exchanged(member) else kept).append(member)
            links[:] = kept
        return exchanged

    def _is_exchanged(self, member: Member) -> bool:
        try:
            return self._source.lstat(member.path).st_ino != member.ino
        except OSError:
            return False

    def _read_file(self, path: str, descriptor: int) -> Iterator[RawFrame]:
        for _ in range(_TRIES):
            before = os.fstat(descriptor)
            xattrs = read_xattrs(descriptor)
            member = member_of(path, "f", before, xattrs=_names(xattrs))
            blocks = self._encode(member, xattrs)
            total = len(blocks) + member.size + tar.padding(member.size)
            if total > FRAME:
                yield from self._read_large(member, blocks, descriptor, before)
                return
            if self._frame.length + total > FRAME:
                yield self._next_frame()
            size = self._read_chunk(len(blocks), member.size, descriptor)
            if size == member.size and _same(before, os.fstat(descriptor)):
                break
        else:
            member = msgspec.structs.replace(member, size=size, warning="changed")
            blocks = self._encode(member, xattrs)
            self.problems.append(Problem(path, "changed", "it kept changing while it was read"))
        self._list(self._placed(member))
        self._frame.append(blocks)
        self._frame.skip(size)
        self._frame.pad(size)

    def _read_large(self, member: Member, blocks: bytes, descriptor: int, before: os.stat_result) -> Iterator[RawFrame]:
        if self._frame.length:
            yield self._next_frame()
        if len(blocks) > _HEADROOM:
            self.buffers.give(self._frame.buffer)
            self._begin_frame(self.buffers.take(FRAME + len(blocks)))
        sparse = before.st_blocks * 512 < before.st_size
        length = min(FRAME, member.size)  # less than a frame where it was the headers that did not fit as well
        missing = self._read_chunk(len(blocks), length, descriptor, sparse=sparse) < length
        self._list(self._placed(member))
        members = self._frame.members
        self._frame.append(blocks)
        self._frame.skip(length)
        failed = False
        for position in range(FRAME, member.size, FRAME):
            yield self._next_frame()
            length = min(FRAME, member.size - position)
            try:
                if not failed:
                    missing |= self._read_chunk(0, length, descriptor, position, sparse=sparse) < length
            except OSError as error:
                # Its header is on its way and cannot be taken back: the rest is padded like that of a file cut short.
                self._report(member.path, error)
                failed = True
            if failed:
                self._frame.buffer[:length] = bytes(length)
            self._frame.skip(length)
        self._frame.pad(member.size)
        changed = missing or not _same(before, os.fstat(descriptor))
        if changed and not failed:
            self.problems.append(Problem(member.path, "changed", "it was written to while it was read"))
        if changed or failed:
            members[0] = msgspec.structs.replace(members[0], warning="changed")
        yield self._next_frame()

    def _read_chunk(self, ahead: int, length: int, descriptor: int, position: int = 0, *, sparse: bool = False) -> int:
        """Read content to where it will stand, ``ahead`` bytes on in the frame; returns how much there was.

        What is missing, and holes, become zeros. Whatever is read counts only once the frame's length is moved.
        """
        start = self._frame.length + ahead
        with memoryview(self._frame.buffer) as whole, whole[start : start + length] as view:
            if sparse:
                return _read_sparse(descriptor, view, position)
            read = _read_dense(descriptor, view, position)
            if read < length:
                view[read:] = bytes(length - read)
            return read

    def _pack_other(self, member: Member) -> Iterator[RawFrame]:
        device = (0, 0)
        xattrs: Xattrs = ()
        try:
            if member.type == "d":
                xattrs = self._source.folder_xattrs(member.path)
            elif member.type in ("c", "b"):
                number = self._source.lstat(member.path).st_rdev
                device = (os.major(number), os.minor(number))
            if member.type in ("p", "c", "b"):
                xattrs = self._source.special_xattrs(member.path)
        except OSError as error:
            # A folder that could not be listed is among the problems already.
            if member.path not in {problem.path for problem in self._walk.problems}:
                self._report(member.path, error)
            return
        if xattrs:
            member = msgspec.structs.replace(member, xattrs=_names(xattrs))
        yield from self._add(member, self._encode(member, xattrs, device))

    def _add(self, member: Member, blocks: bytes) -> Iterator[RawFrame]:
        """A member without content."""
        if self._frame.length + len(blocks) > FRAME:
            yield self._next_frame()
        self._list(self._placed(member))
        self._frame.append(blocks)

    def _placed(self, member: Member) -> Member:
        return msgspec.structs.replace(member, offset=self._frame.length)

    def _list(self, member: Member) -> None:
        self._frame.members.append(member)
        self.entries += 1
        self.content_size += member.size

    def _next_frame(self) -> RawFrame:
        """The frame that is full; a new one takes its place."""
        full = self._frame
        self._begin_frame(self.buffers.take())
        return full

    def _begin_frame(self, buffer: Buffer) -> None:
        self._frame = RawFrame(buffer)
        self._view = memoryview(buffer)

    @staticmethod
    def _encode(member: Member, xattrs: Xattrs = (), device: tuple[int, int] = (0, 0)) -> bytes:
        return tar.encode(tar.header_of(member, device=device, xattrs=xattrs))

    def _report(self, path: str, error: OSError) -> None:
        reason = reason_of(error)
        if self._on_error == "fail" or is_exhausted(error):
            raise SourceUnreadable(path, reason) from error
        gone = isinstance(error, FileNotFoundError | NotRegular)
        self.problems.append(Problem(path, "vanished" if gone else "unreadable", reason))


def _names(xattrs: Xattrs) -> tuple[str, ...]:
    return tuple(to_text(name) for name, _ in xattrs)


def _same(before: os.stat_result, after: os.stat_result) -> bool:
    return (
        before.st_mtime_ns == after.st_mtime_ns
        and before.st_ctime_ns == after.st_ctime_ns
        and before.st_size == after.st_size
    )


def _read_dense(descriptor: int, view: memoryview, position: int) -> int:
    done = 0
    while done < len(view):
        with view[done:] as rest:
            read = os.preadv(descriptor, [rest], position + done)
        if read == 0:
            break
        done += read
    return done


def _read_sparse(descriptor: int, view: memoryview, position: int) -> int:
    """Read data where there is data, and write zeros for holes without asking the disk for them."""
    done, end = 0, len(view)
    while done < end:
        try:
            data = os.lseek(descriptor, position + done, os.SEEK_DATA) - position
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            data = end  # nothing but a hole up to the file's end
        hole_end = min(data, end)
        view[done:hole_end] = _ZEROS[: hole_end - done]
        done = hole_end
        if done < end:
            try:
                data_end = min(os.lseek(descriptor, position + done, os.SEEK_HOLE) - position, end)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                data_end = end  # cut short meanwhile, as the read will find
            with view[done:data_end] as part:
                read = _read_dense(descriptor, part, position + done)
            if done + read < data_end:
                view[done + read :] = bytes(end - done - read)
                return done + read
            done = data_end
    return done
