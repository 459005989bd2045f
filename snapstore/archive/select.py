"""Which members of an archive are wanted, and in which frames they lie."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from snapstore.archive.exclude import Excludes
from snapstore.archive.frames import FRAME
from snapstore.archive.names import clean_path, is_below, parent_of, to_bytes, to_text
from snapstore.archive.tar import Header
from snapstore.archive.toc import Frame, Toc
from snapstore.errors import ArchiveDamaged, InvalidInput, MemberNotFound
from snapstore.model import Member, MemberType


class Piece(NamedTuple):
    """What a frame holds of one member."""

    member: Member
    position: int
    """Of these bytes in the member's content."""
    length: int
    begins: bool
    """Whether the member's headers are in this frame too."""


class FramePieces(NamedTuple):
    """A frame, and what is wanted of it; worked out when it is asked for, like the frame's members."""

    frame: Frame
    continues: Piece | None
    choice: "Choice"

    def pieces(self) -> Iterator[Piece]:
        if self.continues is not None:
            yield self.continues
        for member in self.frame.members:
            if member.path in self.choice:
                yield Piece(member, 0, min(FRAME, member.size), True)


class Choice(NamedTuple):
    """Which paths are written."""

    wanted: Collection[str] | None
    """None for all."""
    stand_ins: Mapping[str, str]
    """Files that are written under another path: that of a wanted hard link to them, where they are not wanted."""

    def __contains__(self, path: object) -> bool:
        return self.wanted is None or path in self.wanted

    def renamed(self, header: Header) -> Header:
        """A file or a link under the name that stands in for it, where its own was not asked for."""
        if header.type == "f" and (name := self.stand_ins.get(to_text(header.path))):
            return header._replace(path=to_bytes(name))
        if header.type == "h" and (name := self.stand_ins.get(to_text(header.link))):
            return header._replace(link=to_bytes(name))
        return header


EVERYTHING = Choice(None, {})


class Selection(NamedTuple):
    frames: Sequence[FramePieces]
    """Those that hold something that is wanted, in the archive's order."""
    choice: Choice
    members: int
    content_size: int


def select(
    toc: Toc, snapshot_id: str, *, paths: Collection[str] = (), excludes: Excludes, drop: Collection[str] = ()
) -> Selection:
    """What `choose` chooses, and the frames that hold it."""
    if not (paths or excludes or drop):
        return _selection(toc, EVERYTHING)
    kinds: dict[str, tuple[MemberType, str]] = {member.path: (member.type, member.link) for member in toc.members()}
    return _selection(toc, choose(kinds, snapshot_id, paths=paths, excludes=excludes, drop=drop))


def choose(
    kinds: Mapping[str, tuple[MemberType, str]],
    snapshot_id: str,
    *,
    paths: Collection[str],
    excludes: Excludes,
    drop: Collection[str],
) -> Choice:
    """The members at and below ``paths`` (all, where there are none), without what is excluded or dropped.

    ``kinds`` gives each member's type and link. The folders on the way to a path are chosen with it. MemberNotFound for
    a path that is not in the snapshot.
    """
    wanted = _below(kinds, [clean_path(path) for path in paths], snapshot_id) if paths else set(kinds)
    dropped = [clean_drop(path) for path in drop]
    wanted = {path for path in wanted if not any(is_below(path, folder) for folder in dropped)}
    if excludes:
        wanted = _without_excluded(kinds, wanted, excludes)
    stand_ins: dict[str, str] = {}
    for path in sorted(wanted):
        kind, link = kinds[path]
        if kind == "h" and link not in wanted:
            stand_ins.setdefault(link, path)
    return Choice((wanted | stand_ins.keys()) - set(stand_ins.values()), stand_ins)


def select_one(toc: Toc, path: str, snapshot_id: str) -> tuple[Member, Selection]:
    """One file and the frames that hold it, which keep nothing else of ``toc``; a hard link is followed.

    MemberNotFound for anything but a file.
    """
    member = find(toc, path, snapshot_id)
    if member.type == "h":
        member = find(toc, member.link, snapshot_id)
    if member.type != "f":
        kinds = {"d": "a folder", "l": f"a symbolic link to {member.link!r}"}
        raise MemberNotFound(path, snapshot_id, f"{path!r} is {kinds.get(member.type, 'no file')}: it has no content")
    selection = _selection(toc, Choice({member.path}, {}))
    alone = [pieces._replace(frame=pieces.frame.alone()) for pieces in selection.frames]
    return member, selection._replace(frames=alone)


def find(toc: Toc, path: str, snapshot_id: str) -> Member:
    """The member at a path as a person writes it. MemberNotFound where there is none."""
    wanted = clean_path(path)
    for member in toc.members():
        if member.path == wanted:
            return member
    raise MemberNotFound(path, snapshot_id)


def clean_drop(path: str) -> str:
    """The path of something to drop, which cannot be everything."""
    cleaned = clean_path(path)
    if cleaned == ".":
        raise InvalidInput(f"{path!r} is all of the snapshot: name a member of it to drop")
    return cleaned


def _selection(toc: Toc, choice: Choice) -> Selection:
    """Look at every frame once. ArchiveDamaged where they do not add up."""
    found: list[FramePieces] = []
    seen: set[str] = set()
    large: Member | None = None
    position = count = content = listed = 0
    for frame in toc.frames:
        members = frame.members
        continues = None
        if large is not None:
            if members:
                raise ArchiveDamaged(f"the table of contents ends {large.path!r} too early")
            continues = Piece(large, position, min(FRAME, large.size - position), False)
            position += continues.length
            if large.path not in choice:
                continues = None
        is_wanted = continues is not None
        listed += len(members)
        for member in members:
            seen.add(member.path)
            if member.path in choice:
                is_wanted = True
                count += 1
                content += member.size
            if member.size > FRAME:
                large, position = member, FRAME
        if large is not None and position == large.size:
            large = None
        if is_wanted:
            found.append(FramePieces(frame, continues, choice))
    if large is not None:
        raise ArchiveDamaged(f"the table of contents ends in the middle of {large.path!r}")
    if len(seen) != listed:
        raise ArchiveDamaged("the table of contents lists a member twice")
    return Selection(found, choice, count, content)


def _below(kinds: Collection[str], paths: Iterable[str], snapshot_id: str) -> set[str]:
    wanted: set[str] = set()
    for path in paths:
        if path not in kinds:
            raise MemberNotFound(path, snapshot_id)
        wanted |= {found for found in kinds if is_below(found, path)}
        folder = parent_of(path)
        while folder:
            if folder in kinds:
                wanted.add(folder)
            folder = parent_of(folder)
    return wanted | ({"."} if "." in kinds else set())


def _without_excluded(
    kinds: Mapping[str, tuple[MemberType, str]], wanted: Iterable[str], excludes: Excludes
) -> set[str]:
    """A folder that is excluded takes along all that is in it, as when packing."""
    gone: set[str] = set()
    kept: set[str] = set()
    for path in sorted(wanted):
        shown = path + "/" if kinds[path][0] == "d" else path
        if path != "." and (parent_of(path) in gone or shown in excludes):
            gone.add(path)
        else:
            kept.add(path)
    return kept
