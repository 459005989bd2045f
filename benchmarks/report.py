"""``report``: a page in Markdown of all that was measured, with charts beside it. Nothing in it is written by hand."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks import prices
from benchmarks.contestants import SNAPSTORE
from benchmarks.figures import Metric, Spread, Topic, peak, ratios, shown, spread, title, topics
from benchmarks.judged import Verdict, verdicts
from benchmarks.results import Run, Session, read

_ROWS = ("user", "system", "peak", "peak_shared_once", "sent", "received")


def write(sources: Sequence[Path], to: Path) -> list[Path]:
    """The report and its charts, in the folder ``to``."""
    to.mkdir(parents=True, exist_ok=True)
    sessions, runs = read(sources)
    measured = topics(runs, sessions)
    drawn = _drawn(measured, to)
    text = "\n".join(_report(sessions, runs, measured, drawn)) + "\n"
    page = to / "report.md"
    page.write_text(text)
    return [page, *drawn.values()]


def _drawn(measured: Sequence[Topic], to: Path) -> Mapping[str, Path]:
    """Charts, where there is a library to draw them with."""
    if find_spec("matplotlib") is None:
        return {}
    from benchmarks import charts

    return charts.draw(measured, to)


def judged_table(sources: Sequence[Path]) -> str:
    """The table by which snapstore is judged, with what it was measured on."""
    sessions, runs = read(sources)
    found = verdicts(topics(runs, sessions))
    used = {run.session for run in runs}
    return "\n".join([*_judged(found), "", *(_about(session) for session in sessions.values() if session.id in used)])


def _report(
    sessions: Mapping[str, Session], runs: Sequence[Run], measured: Sequence[Topic], drawn: Mapping[str, Path]
) -> Iterator[str]:
    yield "# Measurements\n"
    yield from (_about(session) for session in sessions.values())
    yield (
        "\nRatios are of runs of one round, which followed each other. Spreads are from least to most. What is"
        " “in process”, and `tarfile` and the older system's way as well, is a call in a process that was warm already;"
        " all else is a whole process from start to end (docs/benchmarks.md).\n"
    )
    yield from _left_out(measured, runs, sessions)
    if found := verdicts(measured):
        yield "## How it is judged\n"
        yield from _judged(found)
    for topic in measured:
        yield f"\n## {title(topic)}\n"
        corpus = topic.runs[0].corpus
        if corpus:
            yield f"{corpus.files:,} files, {_bytes(corpus.size)}, digest `{corpus.digest[:16]}`\n"
        yield from _topic(topic)
        if chart := drawn.get(title(topic)):
            yield f"\n![{title(topic)}]({chart.name})"
        if topic.benchmark == "cost":
            yield from _cost(topic)


def _left_out(measured: Sequence[Topic], runs: Sequence[Run], sessions: Mapping[str, Session]) -> Iterator[str]:
    """Ratios are of one session, so a later one takes an earlier one's place, though it may have measured less."""
    shown = {(topic.benchmark, name) for topic in measured for name in topic.contestants}
    if gone := sorted({(run.benchmark, run.contestant) for run in runs} - shown):
        names = "; ".join(f"{benchmark}: {contestant}" for benchmark, contestant in gone)
        yield f"Left out, as a later session measured the benchmark without them: {names}.\n"


def _judged(found: Sequence[Verdict]) -> Iterator[str]:
    yield "| measure | corpus | ours | against | theirs | ratio | spread | rounds | at most | |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for verdict in found:
        line = verdict.line
        show = _bytes if line.metric is peak else _seconds
        limit = "" if line.at_most is None else f"{line.at_most:g}"
        corpus = verdict.corpus.name if verdict.corpus else ""
        unjudged = "too small to judge" if verdict.is_small else "too few rounds to judge"
        mark = {True: "met", False: "**not met**", None: unjudged if limit else ""}[verdict.met]
        against = _cell(line.theirs)
        yield (
            f"| {line.measure} | {corpus} | {show(verdict.ours.median)} | {against} |"
            f" {show(verdict.theirs.median)} | {_ratio(verdict.ratio.median)} |"
            f" {_ratio(verdict.ratio.least)} to {_ratio(verdict.ratio.most)} | {verdict.ratio.runs} |"
            f" {limit} | {mark} |"
        )


def _about(session: Session) -> str:
    machine = session.machine
    versions = ", ".join(f"{name} {version}" for name, version in session.versions.items())
    return (
        f"{session.started_at}: {machine.cpu}, {machine.cores} cores, {_bytes(machine.memory)}, Linux {machine.kernel},"
        f" load {session.load:.1f} before; store {session.store}; {versions}."
    )


def _topic(topic: Topic) -> Iterator[str]:
    names = sorted({name for run in topic.runs for name in run.values})
    fields = [field for field in _ROWS if any(getattr(run, field) is not None for run in topic.runs)]
    asked = any(run.requests is not None for run in topic.runs)
    against = SNAPSTORE in topic.contestants and len(topic.contestants) > 1
    titles = ["contestant", "runs", "wall", "spread"] + ["snapstore ÷ it"] * against
    titles += [field.replace("_", " ") for field in fields] + ["requests"] * asked + [_cell(name) for name in names]
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"
    for name, runs in topic.contestants.items():
        time = spread(runs)
        assert time is not None
        cells = [_cell(name), str(time.runs), _seconds(time.median), f"{_seconds(time.least)} to {_seconds(time.most)}"]
        if against:
            ratio = ratios(topic, SNAPSTORE, name)
            cells.append(_ratio(ratio.median) if ratio else "")
        cells += [
            _shown(spread(runs, _field(field)), _seconds if field in ("user", "system") else _bytes) for field in fields
        ]
        if asked:
            cells.append(_requests(runs))
        cells += [_shown(spread(runs, _value(value)), shown) for value in names]
        yield f"| {' | '.join(cells)} |"


def _cost(topic: Topic) -> Iterator[str]:
    yield f"\nA month of {prices.APPS:,} apps, each night one snapshot of this. {prices.PRICES}. Neither storage"
    yield "and traffic nor what a tool does besides (listings, locks, prunes) is in it.\n"
    yield "| contestant | requests a snapshot | dollars a month |"
    yield "|---|---|---|"
    for name, (requests, dollars) in prices.month(topic).items():
        yield f"| {_cell(name)} | {requests:,.0f} | {dollars:,.2f} |"


def _field(name: str) -> Metric:
    return lambda run: getattr(run, name)


def _value(name: str) -> Metric:
    return lambda run: run.values.get(name)


def _requests(runs: Iterable[Run]) -> str:
    """All of one run, and who has counted them."""
    run = next((run for run in runs if run.requests is not None), None)
    if run is None or run.requests is None:
        return ""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(run.requests.items())) or "none"
    return f"{kinds} ({run.counted_by})" if run.counted_by else kinds


def _shown(found: Spread | None, show: Callable[[float], str]) -> str:
    return show(found.median) if found else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} GiB"
