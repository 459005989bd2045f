"""``run``: a place, a workplace and a session for the benchmarks that were asked for."""

import os
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from benchmarks import machine, places
from benchmarks.peers import PROGRAMS
from benchmarks.processes import Failed
from benchmarks.race import Bench
from benchmarks.results import Results, Session
from benchmarks.suite import BENCHMARKS, JUDGED


class Plan(NamedTuple):
    names: Sequence[str]
    peers: Sequence[str] | None
    store: str
    corpus: str | None
    repeat: int
    out: Path
    workplace: Path
    memory: Path
    quick: bool


def run(plan: Plan, say: Callable[[str], None]) -> list[str]:
    """Measure all that is planned, one benchmark after the other; the names of those that failed."""
    failed: list[str] = []
    plan.workplace.mkdir(parents=True, exist_ok=True)
    results = Results(plan.out)
    session = Session(
        id=uuid.uuid4().hex[:12],
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine.machine(),
        versions=machine.versions(PROGRAMS.values()),
        store=plan.store,
        load=os.getloadavg()[0],
    )
    results.add(session)
    say(f"{session.machine.cpu}, {session.machine.cores} cores; load {session.load:.2f}; {plan.store}")
    if session.load > session.machine.cores / 2:
        say("  this machine is busy with something else: believe no number of this session")
    say("  ".join(f"{name} {version}" for name, version in session.versions.items()))
    with (
        tempfile.TemporaryDirectory(dir=plan.workplace, prefix="work-") as work,
        tempfile.TemporaryDirectory(dir=plan.memory, prefix="snapstore-benchmarks-") as memory,
    ):
        for together in _together(plan):
            with places.opened(plan.store, Path(work)) as place:
                bench = Bench(
                    session=session.id,
                    place=place,
                    workplace=Path(work),
                    cache=plan.workplace / "cache",
                    memory=Path(memory),
                    repeat=plan.repeat,
                    results=results,
                    say=say,
                    peers=plan.peers,
                    chosen=plan.corpus,
                    quick=plan.quick,
                )
                for name, benchmark in together.items():
                    say(name)
                    bench.begin()
                    try:
                        benchmark(bench)
                    except Failed as failure:
                        failed.append(name)
                        bench.withdraw()
                        say(f"  {name} failed, and nothing that it measured is used: {failure}")
                    except BaseException:
                        bench.withdraw()  # ratios of half a measurement
                        raise
    say(f"added to {plan.out}")
    return failed


def _together(plan: Plan) -> list[Mapping[str, Callable[[Bench], None]]]:
    """Each benchmark has a new server, unless it is only to be seen that they run."""
    chosen = _chosen(plan.names)
    return [chosen] if plan.quick else [{name: benchmark} for name, benchmark in chosen.items()]


def _chosen(names: Sequence[str]) -> Mapping[str, Callable[[Bench], None]]:
    """``judged`` stands for its own list; what is named besides is measured against everyone."""
    chosen: dict[str, Callable[[Bench], None]] = dict(JUDGED) if "judged" in names else {}
    wanted = names or list(BENCHMARKS)
    return chosen | {name: BENCHMARKS[name].run for name in wanted if name != "judged"}
