"""Contestants, one after the other, round after round, there and back: A B C, C B A, A B C, …

Whatever disturbs the machine for a while disturbs neighbours alike, so ratios are taken within a round. Every other
round goes backwards, so that nobody always comes first, or always after the one who leaves the server the most to tidy.
What a run needs beforehand and what is checked afterwards is not timed. A result that is wrong fails the whole
measurement.
"""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import corpora
from benchmarks.clock import Inside
from benchmarks.corpora import Corpus
from benchmarks.figures import shown
from benchmarks.peers import missing
from benchmarks.places import Place
from benchmarks.processes import Command, Done, measured
from benchmarks.results import Results, Run, Withdrawn
from benchmarks.seaweedfs import Traffic


def _nothing(_: int) -> None:
    pass


@dataclass(frozen=True)
class Contestant:
    name: str
    command: Callable[[int], Command]
    """What to run in this round."""
    peer: str | None = None
    """Its name for ``--peer``; None is snapstore itself."""
    needs: tuple[str, ...] = ()
    """Programs."""
    needs_bucket: bool = False
    before: Callable[[int], None] = _nothing
    after: Callable[[int], None] = _nothing
    """Checks the result, which raises Failed, and removes it."""


@dataclass(frozen=True)
class Bench:
    """Everything that a benchmark is given."""

    session: str
    place: Place
    workplace: Path
    """A folder for this call alone; removed at its end."""
    cache: Path
    memory: Path
    """A folder on a tmpfs."""
    repeat: int
    results: Results
    say: Callable[[str], None]
    peers: Collection[str] | None = None
    chosen: str | None = None
    """The corpus that the caller asked for."""
    quick: bool = False
    told: set[str] = field(default_factory=set)
    measured: set[str] = field(default_factory=set)
    """What there are runs of, since `begin`."""

    def begin(self) -> None:
        """What is measured from here on is of another benchmark."""
        self.measured.clear()

    def withdraw(self) -> None:
        """Something failed, or came out wrong: nothing that was measured since `begin` is to be used."""
        for benchmark in sorted(self.measured):
            self.results.add(Withdrawn(self.session, benchmark))

    def corpus(self, name: str, *, quick: str) -> Corpus:
        """The one that was asked for, or this one."""
        wanted = self.chosen or (quick if self.quick else name)
        self.say(f"corpus {wanted}")
        return corpora.prepare(wanted, self.cache)

    def race(self, benchmark: str, corpus: Corpus | None, contestants: Sequence[Contestant]) -> None:
        racing = [contestant for contestant in contestants if self._may(contestant)]
        if self.peers is not None and not any(contestant.peer for contestant in racing):
            self.say(f"  nobody of {', '.join(sorted(self.peers))} takes part in {benchmark}")
        for number in range(1, self.repeat + 1):
            for contestant in racing if number % 2 else reversed(racing):
                contestant.before(number)
                self.run(benchmark, contestant.name, number, corpus, contestant.command(number))
                contestant.after(number)
            self.place.make_room()

    def run(self, benchmark: str, contestant: str, number: int, corpus: Corpus | None, command: Command) -> None:
        """One run: measured, told, and kept."""
        before = None if command.inside else self.place.traffic()
        done = measured(command)
        after = None if command.inside else self.place.traffic()
        line = Run(
            session=self.session,
            benchmark=benchmark,
            contestant=contestant,
            round=number,
            corpus=corpus.used if corpus else None,
            wall=done.wall,
            user=done.user,
            system=done.system,
            peak=done.peak,
            peak_shared_once=done.peak_shared_once,
            largest_process=done.largest_process,
        )
        if command.inside:
            for told in _insides(done):
                self.keep(_with_inside(line, told))
        else:
            self.keep(_with_traffic(line, before, after))

    def keep(self, run: Run) -> None:
        self.measured.add(run.benchmark)
        self.results.add(run)
        values = "".join(f"  {name} {shown(value)}" for name, value in run.values.items())
        peak = f"  peak {run.peak / 2**20:.0f} MiB" if run.peak else ""
        self.say(f"  {run.benchmark} {run.round}: {run.contestant:34} {run.wall:9.4f} s{peak}{values}")

    def scratch(self, name: str) -> Path:
        """An empty folder in the workplace."""
        return _empty(self.workplace / name)

    def target(self, name: str) -> Path:
        """A folder in memory that is not there yet."""
        folder = _empty(self.memory / name)
        folder.rmdir()
        return folder

    def worker(self, step: str, **options: Any) -> Command:
        """A call that is measured inside a process."""
        argv = [sys.executable, "-m", "benchmarks.worker", step, json.dumps(options)]
        return Command(argv, self.place.environment, Path(__file__).parent.parent, inside=True)

    def asks_for(self, peer: str | None) -> bool:
        """Whether it is one that the caller wants; snapstore itself always is."""
        return peer is None or self.peers is None or peer in self.peers

    def _may(self, contestant: Contestant) -> bool:
        if not self.asks_for(contestant.peer):
            return False
        reason = None
        if absent := missing(contestant.needs):
            reason = "; ".join(f"{program.name} is not installed: {program.install}" for program in absent)
        elif contestant.needs_bucket and not self.place.is_bucket:
            reason = "needs a bucket"
        if reason and contestant.name not in self.told:
            self.told.add(contestant.name)
            self.say(f"  without {contestant.name}: {reason}")
        return reason is None


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _insides(done: Done) -> list[Inside]:
    return [msgspec.json.decode(line, type=Inside) for line in done.output.splitlines() if line.startswith(b"{")]


def _with_inside(run: Run, inside: Inside) -> Run:
    """Time, traffic and values are of the call; memory is of the whole process, unless the call told its own."""
    changes: Mapping[str, Any] = {
        "contestant": inside.name or run.contestant,
        "wall": inside.wall,
        "user": inside.user,
        "system": inside.system,
        "peak": inside.peak or run.peak,
        "requests": inside.requests,
        "sent": inside.sent,
        "received": inside.received,
        "counted_by": None if inside.requests is None else "the process",
        "values": inside.values,
    }
    return msgspec.structs.replace(run, **changes)


def _with_traffic(run: Run, before: Traffic | None, after: Traffic | None) -> Run:
    if before is None or after is None:
        return run
    return msgspec.structs.replace(
        run,
        requests=dict(Counter(after.requests) - before.requests),
        sent=after.sent - before.sent,
        received=after.received - before.received,
        counted_by="the server",
        server_cpu=after.cpu - before.cpu,
    )
