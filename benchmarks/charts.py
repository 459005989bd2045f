"""Charts of what was measured: a bar a contestant, with its spread; and the index over the number of snapshots."""

import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.figures import Spread, Topic, spread, title, wall
from benchmarks.results import Run

_OURS, _OTHERS = "#2a7f62", "#9aa5b1"
_INDEX = "index over its size"


def draw(topics: Sequence[Topic], to: Path) -> dict[str, Path]:
    """Each chart's file by its title."""
    drawn = {
        title(topic): _bars(topic, to)
        for topic in topics
        if len(topic.contestants) > 1 and not topic.benchmark.startswith("index ")
    }
    indexes = [topic for topic in topics if topic.benchmark.startswith("index ")]
    if len(indexes) > 1:
        last = title(indexes[-1])
        drawn[last] = _index(indexes, to)
    return drawn


def _bars(topic: Topic, to: Path) -> Path:
    names = list(topic.contestants)
    metric, unit = (_mebibytes, "MiB") if topic.benchmark.startswith("memory") else (wall, "seconds")
    found = [spread(topic.contestants[name], metric) or Spread(0, 0, 0, 0) for name in names]
    height = 0.9 + 0.42 * len(names)
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots()
    errors = [[one.median - one.least for one in found], [one.most - one.median for one in found]]
    colours = [_OURS if name.startswith("snapstore") else _OTHERS for name in names]
    axes.barh(names, [one.median for one in found], xerr=errors, color=colours, capsize=3)
    axes.invert_yaxis()
    axes.set_xlabel(f"{unit}: median, least and most")
    axes.set_title(title(topic))
    return _saved(figure, to / f"{_slug(title(topic))}.png")


def _mebibytes(run: Run) -> float | None:
    return None if run.peak is None else run.peak / 2**20


def _index(topics: Sequence[Topic], to: Path) -> Path:
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    ordered = sorted(topics, key=_size)
    for name in dict.fromkeys(name for topic in ordered for name in topic.contestants):
        points = [
            (_size(topic), found.median)
            for topic in ordered
            if (found := spread(topic.contestants.get(name, ()))) and found.median
        ]
        if len(points) > 1:
            axes.plot([size for size, _ in points], [seconds for _, seconds in points], marker="o", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("snapshots")
    axes.set_ylabel("seconds")
    axes.set_title(_INDEX)
    axes.legend(fontsize="small")
    return _saved(figure, to / f"{_slug(_INDEX)}.png")


def _size(topic: Topic) -> int:
    return int(topic.benchmark.split()[1])


def _saved(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=110)
    return path


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
