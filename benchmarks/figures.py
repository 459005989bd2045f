"""From runs to figures: medians, spreads, and ratios that are taken within a round."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from benchmarks.processes import Failed
from benchmarks.results import Run, Session

Metric = Callable[[Run], float | None]


class Spread(NamedTuple):
    median: float
    least: float
    most: float
    runs: int


USUAL_STORE = "seaweedfs"
FEWEST_ROUNDS = 3
"""From which anything is judged or compared."""


class Topic(NamedTuple):
    """One benchmark on one corpus: what has been measured together."""

    benchmark: str
    corpus: str
    store: str
    contestants: Mapping[str, Sequence[Run]]

    @property
    def runs(self) -> list[Run]:
        return [run for runs in self.contestants.values() for run in runs]


def title(topic: Topic) -> str:
    corpus = f" of {topic.corpus}" if topic.corpus else ""
    return f"{topic.benchmark}{corpus}" + ("" if topic.store == USUAL_STORE else f" ({topic.store})")


def topics(runs: Iterable[Run], sessions: Mapping[str, Session]) -> list[Topic]:
    """All of them; of one that was measured in several sessions, the latest. Failed for runs of an unknown session."""
    order = {session: place for place, session in enumerate(sessions)}
    grouped: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for run in runs:
        if run.session not in sessions:
            raise Failed(f"these results lack the line of session {run.session}: give the whole file")
        corpus = run.corpus.name if run.corpus else ""
        grouped[run.benchmark, corpus, sessions[run.session].store].append(run)
    found = []
    for key, together in grouped.items():
        latest = max((run.session for run in together), key=order.__getitem__)
        contestants: dict[str, list[Run]] = defaultdict(list)
        for run in together:
            if run.session == latest:
                contestants[run.contestant].append(run)
        found.append(Topic(*key, contestants))
    return found


def wall(run: Run) -> float | None:
    return run.wall


def peak(run: Run) -> float | None:
    return None if run.peak is None else float(run.peak)


def spread(runs: Iterable[Run], metric: Metric = wall) -> Spread | None:
    """None where nothing was measured."""
    found = [value for run in runs if (value := metric(run)) is not None]
    return Spread(median(found), min(found), max(found), len(found)) if found else None


def ratios(topic: Topic, ours: str, theirs: str, metric: Metric = wall) -> Spread | None:
    """Ours by theirs, round by round."""
    by_round = {run.round: metric(run) for run in topic.contestants.get(theirs, ())}
    found = []
    for run in topic.contestants.get(ours, ()):
        mine, other = metric(run), by_round.get(run.round)
        if mine is not None and other:
            found.append(mine / other)
    return Spread(median(found), min(found), max(found), len(found)) if found else None


def shown(value: float) -> str:
    """As a table shows it."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
