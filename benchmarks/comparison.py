"""``compare OLD NEW``: the same contestants in two files of results.

Two sessions differ by more than the code, so a change counts only where the spreads of both do not touch. Peers have
not changed: how much they seem to have is how far the rest is to be trusted.
"""

from pathlib import Path

from rich.table import Table

from benchmarks.figures import FEWEST_ROUNDS, Spread, Topic, spread, topics
from benchmarks.results import read


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
                    *key, name, f"{earlier.median:.4g}", f"{later.median:.4g}", ratio, verdict(earlier, later)
                )
    return shown


def _topics(file: Path) -> dict[tuple[str, str], Topic]:
    sessions, runs = read([file])
    return {(topic.benchmark, topic.corpus): topic for topic in topics(runs, sessions)}


def verdict(old: Spread, new: Spread) -> str:
    if min(old.runs, new.runs) < FEWEST_ROUNDS:
        return "too few runs"
    if new.most < old.least:
        return "faster"
    return "slower" if new.least > old.most else ""
