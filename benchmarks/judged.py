"""The table by which snapstore is judged: each line says which runs it is made of, and how much is allowed."""

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.contestants import CAT, COMMAND_LINE, RCLONE, RESTIC, RESTIC_DUMP, RESTIC_RESTORE, SNAPSTORE, TO_NOWHERE
from benchmarks.figures import FEWEST_ROUNDS, Metric, Spread, Topic, peak, ratios, spread, wall
from benchmarks.results import CorpusUsed
from benchmarks.suite.commands import LIST, SNAPSHOTS
from benchmarks.suite.index import PAGE_OF_OLDER, PAGE_OF_OURS

MOST_MEMORY = 200 << 20
_MIXED = 25_000, 400_000_000
_LARGE = 1, 4 << 30


class Line(NamedTuple):
    measure: str
    benchmark: str
    ours: str
    theirs: str
    at_most: float | None
    """None for what is shown beside it and not judged."""
    metric: Metric = wall
    least: tuple[int, int] = (0, 0)
    """Files and bytes that a corpus has at least, for a verdict on it."""


LINES = [
    Line("create to a null sink, in process", "create-null", SNAPSTORE, TO_NOWHERE, 0.85, least=_MIXED),
    Line("create to the store, in process", "create", SNAPSTORE, RCLONE, 0.85, least=_MIXED),
    Line("the same from the command line, cold start included", "create", COMMAND_LINE, RCLONE, 1.15, least=_MIXED),
    Line("create to the store, in process", "create", SNAPSTORE, RESTIC, 0.45, least=_MIXED),
    Line("restore from the store to tmpfs, in process", "restore", SNAPSTORE, CAT, 0.85, least=_MIXED),
    Line("the same from the command line", "restore", COMMAND_LINE, CAT, None, least=_MIXED),
    Line("restore from the store to tmpfs, in process", "restore", SNAPSTORE, RESTIC_RESTORE, 0.35, least=_MIXED),
    Line("one small file out of the archive, in process", "restore-file", SNAPSTORE, RESTIC_DUMP, 0.5, least=_MIXED),
    Line("the same from the command line", "restore-file", COMMAND_LINE, RESTIC_DUMP, None, least=_MIXED),
    Line("a large random file, create, in process", "random", SNAPSTORE, "tar | rclone rcat", 1.0, least=_LARGE),
    Line("peak memory, create", "memory of create", COMMAND_LINE, RCLONE, 2.0, peak),
    Line("peak memory, restore", "memory of restore", COMMAND_LINE, CAT, 2.0, peak),
    Line("list one page by label at 1 M", "list-page", PAGE_OF_OURS, PAGE_OF_OLDER, 0.001),
    Line("`snapstore list` start to end", "start", LIST, SNAPSHOTS, 0.5),
]


class Verdict(NamedTuple):
    line: Line
    corpus: CorpusUsed | None
    ratio: Spread
    ours: Spread
    theirs: Spread

    @property
    def is_small(self) -> bool:
        files, size = self.line.least
        return self.corpus is not None and (self.corpus.files < files or self.corpus.size < size)

    @property
    def is_judged(self) -> bool:
        return self.line.at_most is not None and not self.is_small and self.ratio.runs >= FEWEST_ROUNDS

    @property
    def met(self) -> bool | None:
        """None where nothing is demanded, or not of so small a corpus or so few rounds."""
        if self.line.at_most is None or not self.is_judged:
            return None
        within = self.ratio.median <= self.line.at_most
        return within and (self.line.metric is not peak or self.ours.most <= MOST_MEMORY)


def verdicts(topics: Sequence[Topic]) -> list[Verdict]:
    """A verdict for each line and each corpus that it was measured on."""
    found = []
    for line in LINES:
        for topic in topics:
            if topic.benchmark != line.benchmark:
                continue
            ratio = ratios(topic, line.ours, line.theirs, line.metric)
            ours = spread(topic.contestants.get(line.ours, ()), line.metric)
            theirs = spread(topic.contestants.get(line.theirs, ()), line.metric)
            if ratio and ours and theirs:
                found.append(Verdict(line, topic.runs[0].corpus, ratio, ours, theirs))
    return found
