"""One restore on the disk's side: a target, the writer of its tree, and what has to happen in which order."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from snapstore.archive.attributes import Policy
from snapstore.archive.extract import TreeWriter, find_conflict
from snapstore.archive.removal import remove
from snapstore.archive.select import clean_drop
from snapstore.archive.target import Target
from snapstore.model import Caps, Existing, MemberType


class RestoreOptions(NamedTuple):
    """What `SnapStore.restore` was asked for, checked."""

    target: str
    paths: Sequence[str]
    exclude: Sequence[str]
    drop: Sequence[str]
    existing: Existing
    policy: Policy
    caps: Caps
    keep: Sequence[str]
    """Paths that a replacement must not take along."""

    @property
    def all(self) -> bool:
        """Whether everything is restored."""
        return not (self.paths or self.exclude or self.drop)


class Restoration:
    """`open`, write through `writer`, `finish`, `publish`; `close` in any case, to remove what was not published."""

    def __init__(self, options: RestoreOptions) -> None:
        self._options = options
        self._target: Target | None = None
        self._writer: TreeWriter | None = None

    def open(self) -> None:
        """TargetNotEmpty and the like come out here, before anything is fetched. InUse: to be tried again."""
        target = self._target = Target(self._options.target, self._options.existing, keep=self._options.keep)
        self._writer = TreeWriter(
            target.root, self._options.policy, merge=target.merges, caps=self._options.caps, target=target.path
        )

    @property
    def writer(self) -> TreeWriter:
        assert self._writer is not None, "open comes first"
        return self._writer

    @property
    def target(self) -> Target:
        assert self._target is not None, "open comes first"
        return self._target

    def check_conflicts(self, members: Iterable[tuple[str, MemberType]]) -> None:
        """In a merge, TargetConflict where the target and the snapshot disagree what is a folder."""
        if self.target.merges:
            find_conflict(self.target.root, members, self.target.path)

    def finish(self) -> None:
        """Links, folders' metadata, names to drop."""
        if self.target.merges:
            for path in self._options.drop:
                remove(self.target.root, clean_drop(path))
        self.writer.finish()

    def publish(self) -> None:
        """All of it appears. InUse, where another restore is in the way: to be tried again."""
        self.target.claim()
        self.target.publish(self.writer)

    def revert(self) -> None:
        """Take back what `publish` has let appear; in a merge, nothing can be."""
        self.target.revert()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._target is not None:
            self._target.close()
            if self._writer is not None and self._target.left is not None:
                self._writer.notes.add(f"could not remove what stood there before, now {self._target.left}", ".")
