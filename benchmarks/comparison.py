"""``compare OLD NEW``: the same contestants in two files of results.

Two sessions differ by more than the code, so a change counts only where the spreads of both do not touch. Peers have
not changed: how much they seem to have is how far the rest is to be trusted.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from rich.table import Table

from benchmarks.figures import FEWEST_ROUNDS, Spread, Topic, spread, topics
from benchmarks.results import Session, read


def differences(old: Path, new: Path) -> list[str]:
    """What two files of results differ in besides time, so that it is known what their times say."""
    before, after = read([old]), read([new])
    told = []
    for what, of in _KEPT.items():
        earlier, later = ({of(session) for session in sessions.values()} for sessions, _ in (before, after))
        if earlier != later:
            told.append(f"{what}: {', '.join(sorted(earlier))} → {', '.join(sorted(later))}")
    digests = [{run.corpus.name: run.corpus.digest for run in runs if run.corpus} for _, runs in (before, after)]
    told += [
        f"{name} is not the same corpus in both"
        for name in digests[0]
        if digests[1].get(name, "") not in ("", digests[0][name])
    ]
    names = [{(run.benchmark, run.contestant) for run in runs} for _, runs in (before, after)]
    told += [f"only in {old}: {benchmark}, {name}" for benchmark, name in sorted(names[0] - names[1])]
    told += [f"only in {new}: {benchmark}, {name}" for benchmark, name in sorted(names[1] - names[0])]
    return told


_KEPT: Mapping[str, Callable[[Session], str]] = {
    "machine": lambda session: f"{session.machine.cpu}, {session.machine.cores} cores",
    "store": lambda session: session.store,
    "commit": lambda session: session.versions.get("commit", "?"),
}


def table(old: Path, new: Path) -> Table:
    shown = Table("benchmark", "corpus", "contestant", "old, s", "new, s", "new ÷ old", "", box=None, pad_edge=False)
    before, after = _topics(old), _topics(new)
    for key, topic in after.items():
        for name, runs in topic.contestants.items():
            earlier = spread(before[key].contestants.get(name, ())) if key in before else None
            later = spread(runs)
            if earlier and later and earlier.median:
                ratio = f"{later.median / earlier.median:.2f}"
                shown.add_row(
                    key[0], key[1], name, f"{earlier.median:.4g}", f"{later.median:.4g}", ratio, verdict(earlier, later)
                )
    return shown


def _topics(file: Path) -> dict[tuple[str, str, str], Topic]:
    sessions, runs = read([file])
    return {(topic.benchmark, topic.corpus, topic.store): topic for topic in topics(runs, sessions)}


def verdict(old: Spread, new: Spread) -> str:
    if min(old.runs, new.runs) < FEWEST_ROUNDS:
        return "too few runs"
    if new.most < old.least:
        return "faster"
    return "slower" if new.least > old.most else ""
