"""What a measurement leaves behind: JSON lines, one for each session (where and with what) and one for each run.

A number that could not be measured is null, never a guess.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from benchmarks.processes import Failed


class Machine(msgspec.Struct, frozen=True):
    cpu: str
    cores: int
    kernel: str
    memory: int
    """Bytes."""


class Session(msgspec.Struct, frozen=True, tag="session", tag_field="kind"):
    """One call of ``run``: all that its runs have in common."""

    id: str
    started_at: str
    machine: Machine
    versions: Mapping[str, str]
    """Of snapstore, its commit, Python, and each peer."""
    store: str
    load: float
    """What the machine had to do besides, a minute's average before the start."""


class CorpusUsed(msgspec.Struct, frozen=True):
    name: str
    digest: str
    files: int
    size: int
    """Bytes of content."""


class Run(msgspec.Struct, frozen=True, tag="run", tag_field="kind"):
    """One contestant, once."""

    session: str
    benchmark: str
    contestant: str
    round: int
    """Contestants of one round ran right after each other; ratios are taken within a round."""
    corpus: CorpusUsed | None
    wall: float
    """Seconds, as are the next two; of the call alone where it ran inside a process that was warm already."""
    user: float | None = None
    system: float | None = None
    peak: int | None = None
    """Bytes that the whole process tree held at once: sampled RSS, summed, or the kernel's own peak where larger."""
    peak_shared_once: int | None = None
    """The same by PSS, which counts shared pages once; of runs that were long enough for it."""
    largest_process: int | None = None
    """Bytes: the kernel's ``ru_maxrss`` of the largest process."""
    sent: int | None = None
    """Bytes of bodies to the store, as is the next from it."""
    received: int | None = None
    requests: Mapping[str, int] | None = None
    """By S3 operation (counted inside the process), or by HTTP method and LIST (counted by the server)."""
    counted_by: str | None = None
    server_cpu: float | None = None
    """Seconds that the local server took of the same processors meanwhile."""
    values: Mapping[str, float] = {}
    """What a benchmark measures besides, by name with its unit: ``p99_ms``."""


class Withdrawn(msgspec.Struct, frozen=True, tag="withdrawn", tag_field="kind"):
    """A run of this benchmark failed, or gave a wrong result: none that this session made of it is to be used."""

    session: str
    benchmark: str


Line = Session | Run | Withdrawn


class Results:
    """A file of results that grows; lines are added as they come, so an interrupted run loses nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, line: Line) -> None:
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")


def read(paths: Iterable[Path]) -> tuple[dict[str, Session], list[Run]]:
    """All sessions by their ids, and all runs that may be used, of these files. Failed."""
    sessions: dict[str, Session] = {}
    runs: list[Run] = []
    withdrawn: set[tuple[str, str]] = set()
    for line in _lines(paths):
        match line:
            case Session():
                sessions[line.id] = line
            case Run():
                runs.append(line)
            case Withdrawn():
                withdrawn.add((line.session, line.benchmark))
    return sessions, [run for run in runs if (run.session, run.benchmark) not in withdrawn]


def _lines(paths: Iterable[Path]) -> Iterator[Line]:
    decoder = msgspec.json.Decoder(Line)
    for path in paths:
        for number, text in enumerate(_content(path).splitlines(keepends=True), 1):
            if not text.strip() or not text.endswith(b"\n"):
                continue  # whoever wrote the last one was stopped
            try:
                yield decoder.decode(text)
            except msgspec.DecodeError as error:
                raise Failed(f"{path}, line {number}: {error}") from error


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Failed(f"cannot read results: {error}") from error
