"""The harness of the benchmarks: that it runs, tells what it measured, and takes no wrong result for a fast one."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from benchmarks import comparison, corpora, figures, judged, machine, readme, report, running
from benchmarks.contestants import SNAPSTORE
from benchmarks.fleet import FleetStore
from benchmarks.places import Place
from benchmarks.processes import Command, Failed, measured, pipeline
from benchmarks.race import Bench, Contestant
from benchmarks.results import CorpusUsed, Results, Run, Session, read
from benchmarks.suite import BENCHMARKS, Benchmark
from snapstore import SnapStore

_ROOT = Path(__file__).parent.parent
_TAR = "tar | zstd > /dev/null"


def bench(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def made(contestant: str, number: int, wall: float) -> Run:
    corpus = CorpusUsed("small-files", "0" * 64, 30_000, 450_000_000)
    return Run("session", "create-null", contestant, number, corpus, wall)


def a_topic(ours: Sequence[float], theirs: Sequence[float]) -> figures.Topic:
    contestants = {
        name: [made(name, number, wall) for number, wall in enumerate(walls)]
        for name, walls in {SNAPSTORE: ours, _TAR: theirs}.items()
    }
    return figures.Topic("create-null", "small-files", "folder", contestants)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Three rounds that somebody measured."""
    found = Results(tmp_path / "results.jsonl")
    found.add(Session("session", "2026-01-01T00:00:00+00:00", machine.machine(), {"tar": "1.34"}, "folder", 0.5))
    for run in a_topic([0.8, 0.6, 0.7], [1.0] * 3).runs:
        found.add(run)
    return found.path


def test_a_quick_run_tells_what_it_measured_and_where(tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    names = ["create-null", "create", "restore", "index-10k"]
    options = ["--quick", "--store", "folder", "--peer", "tar", "--workplace", tmp_path, "--out", out]
    bench("run", *names, *options, "--memory-folder", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "results.jsonl"], "nothing else is left"
    sessions, runs = read([out])
    [session] = sessions.values()
    assert session.machine.cores >= 1
    assert session.versions["commit"]
    assert {run.benchmark for run in runs} == {"create-null", "create", "restore", "index 1000"}
    for run in runs:
        assert run.session == session.id
        assert run.peak is not None
        assert run.peak > 0
    whole = next(run for run in runs if run.contestant == "snapstore, command line")
    assert whole.corpus is not None
    assert whole.corpus.files == 200
    assert whole.wall > 0
    assert whole.requests is None, "a folder counts no requests"


def test_a_report_is_written_from_results_alone(results: Path, tmp_path: Path) -> None:
    [page, *_] = report.write([results], tmp_path / "report")
    text = page.read_text()
    assert "| create to a null sink, in process | small-files | 700 ms |" in text
    assert "| 0.70 | 0.60 to 0.80 | 3 | 0.85 | met |" in text
    assert "## create-null of small-files" in text
    assert "tar 1.34" in text


def test_results_are_compared(results: Path) -> None:
    printed = bench("compare", results, results)
    assert "create-null" in printed
    assert "1.00" in printed


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ((1.0, 1.2), (0.8, 0.9), "faster"),
        ((0.8, 0.9), (1.0, 1.2), "slower"),
        ((0.8, 1.0), (0.9, 1.2), ""),
    ],
)
def test_only_what_lies_outside_of_both_spreads_has_changed(
    old: tuple[float, float], new: tuple[float, float], told: str
) -> None:
    def spread(least_and_most: tuple[float, float], runs: int) -> figures.Spread:
        return figures.Spread(sum(least_and_most) / 2, *least_and_most, runs)

    assert comparison.verdict(spread(old, 3), spread(new, 3)) == told
    assert comparison.verdict(spread(old, 2), spread(new, 3)) == "too few runs"


def test_what_can_be_measured_is_listed() -> None:
    printed = bench("list")
    for name in ("create-null", "judged", "small-files", "restic"):
        assert name in printed


def test_a_corpus_is_the_same_every_time_and_not_used_when_changed(tmp_path: Path) -> None:
    first = corpora.prepare("small-files:20", tmp_path / "one")
    second = corpora.prepare("small-files:20", tmp_path / "two")
    assert first.used == second.used
    next(path for path in first.folder.rglob("*") if path.is_file()).write_text("changed")
    with pytest.raises(Failed, match="is not what its seed makes"):
        corpora.prepare("small-files:20", tmp_path / "one")


def a_bench(folder: Path, repeat: int = 1) -> Bench:
    return Bench(
        session="session",
        place=Place("folder", str(folder), {}, None),
        workplace=folder,
        cache=folder,
        memory=folder,
        repeat=repeat,
        results=Results(folder / "results.jsonl"),
        say=lambda _: None,
    )


def test_every_other_round_goes_backwards(tmp_path: Path) -> None:
    bench = a_bench(tmp_path, repeat=3)
    bench.race("order", None, [Contestant(name, lambda _: Command(["true"])) for name in "ABC"])
    _, runs = read([bench.results.path])
    assert [(run.round, run.contestant) for run in runs] == [
        (number, name) for number, names in ((1, "ABC"), (2, "CBA"), (3, "ABC")) for name in names
    ]


def test_what_a_benchmark_measured_before_a_wrong_result_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def right(bench: Bench) -> None:
        bench.race("right", None, [Contestant("A", lambda _: Command(["true"]))])

    def wrong(bench: Bench) -> None:
        def check(number: int) -> None:
            if number == 2:
                raise Failed("not what was packed")

        bench.race("wrong", None, [Contestant("A", lambda _: Command(["true"]), after=check)])

    for name, benchmark in {"right": right, "wrong": wrong}.items():
        monkeypatch.setitem(BENCHMARKS, name, Benchmark("", benchmark))
    plan = running.Plan(["right", "wrong"], None, "folder", None, 3, tmp_path / "out", tmp_path, tmp_path, quick=True)
    assert running.run(plan, lambda _: None) == ["wrong"]
    _, runs = read([plan.out])
    assert [run.benchmark for run in runs] == ["right"] * 3


def test_a_ratio_is_taken_within_a_round() -> None:
    # The machine became twice as slow in the second round, for both alike.
    ratio = figures.ratios(a_topic([1.0, 2.0, 1.0], [2.0, 4.0, 2.0]), SNAPSTORE, _TAR)
    assert ratio == figures.Spread(0.5, 0.5, 0.5, 3)


@pytest.mark.parametrize(("ours", "met"), [(0.8, True), (0.9, False)])
def test_a_line_is_judged_by_the_median_of_its_ratios(ours: float, met: bool) -> None:
    [verdict] = judged.verdicts([a_topic([ours, ours, 5.0], [1.0, 1.0, 1.0])])
    assert verdict.met is met


def test_few_rounds_are_not_judged() -> None:
    [verdict] = judged.verdicts([a_topic([0.1] * 2, [1.0] * 2)])
    assert verdict.met is None


def test_a_small_corpus_is_not_judged() -> None:
    topic = a_topic([0.1] * 3, [1.0] * 3)
    small = CorpusUsed("small-files:200", "0" * 64, 200, 3_000_000)
    contestants = {
        name: [msgspec.structs.replace(run, corpus=small) for run in runs] for name, runs in topic.contestants.items()
    }
    [verdict] = judged.verdicts([topic._replace(contestants=contestants)])
    assert verdict.met is None
    assert verdict.is_small


def test_of_several_sessions_the_latest_counts() -> None:
    runs = [made(SNAPSTORE, 1, 1.0), msgspec.structs.replace(made(SNAPSTORE, 1, 2.0), session="later")]
    sessions = {name: Session(name, "", machine.machine(), {}, "folder", 0.0) for name in ("session", "later")}
    [topic] = figures.topics(runs, sessions)
    assert [run.wall for run in topic.runs] == [2.0]


def test_a_line_that_was_cut_off_is_no_run_and_rubbish_is_told(results: Path) -> None:
    content = results.read_bytes()
    _, runs = read([results])
    results.write_bytes(content[:-20])
    assert len(read([results])[1]) == len(runs) - 1
    results.write_bytes(content + b"rubbish\n")
    with pytest.raises(Failed, match=f"line {len(runs) + 2}"):
        read([results])
    results.write_bytes(content.partition(b"\n")[2])
    with pytest.raises(Failed, match="lack the line of session"):
        report.judged_table([results])


def test_what_differs_between_two_files_besides_time_is_told(results: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    lines = results.read_text().replace('"folder"', '"seaweedfs"').splitlines(keepends=True)
    other.write_text("".join(lines[:-1]).replace("create-null", "create"))
    told = comparison.differences(results, other)
    assert "store: folder → seaweedfs" in told
    assert f"only in {results}: create-null, {SNAPSTORE}" in told
    assert comparison.differences(results, results) == []


def test_a_later_session_that_measured_less_is_told(results: Path, tmp_path: Path) -> None:
    later = Session("later", "2026-02-01T00:00:00+00:00", machine.machine(), {}, "folder", 0.5)
    Results(results).add(later)
    Results(results).add(msgspec.structs.replace(made(SNAPSTORE, 1, 1.0), session="later"))
    report.write([results], tmp_path / "report")
    assert (
        f"Left out, as a later session measured the benchmark without them: create-null: {_TAR}"
        in (tmp_path / "report" / "report.md").read_text()
    )


def test_the_readme_holds_the_table(tmp_path: Path, results: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text("before\n<!-- report -->\nold\n<!-- /report -->\nafter\n")
    readme.update([results], file)
    assert file.read_text() == (f"before\n<!-- report -->\n{report.judged_table([results])}\n<!-- /report -->\nafter\n")


def test_a_process_tree_is_measured_whole() -> None:
    hold = "import time; held = bytearray(b'x') * (60 << 20); time.sleep(0.5)"
    command = f'{sys.executable} -I -S -c "{hold}"'
    done = measured(Command(["bash", "-c", f"{command} & {command} & wait"]))
    assert done.wall >= 0.5
    assert 120 << 20 < done.peak < 240 << 20
    assert 60 << 20 < done.largest_process < 120 << 20


def test_a_pipe_fails_where_any_of_its_commands_does() -> None:
    with pytest.raises(Failed, match="ended with 3"):
        measured(Command(pipeline("(exit 3)", "cat")))


async def test_a_made_up_fleet_answers_as_a_bucket_does(tmp_path: Path) -> None:
    fleet = FleetStore(3_000, apps=40, shown=2_000, cache=tmp_path)
    async with SnapStore.open(fleet, index=tmp_path / "index.db") as store:
        assert len([found async for found in store.list()]) == 2_000
        fleet.shown = 3_000
        assert (await store.sync()).read == 1_000
        await store.checkpoint()
        fleet.requests.clear()
        assert (await store.rebuild(archives=False)).snapshots == 3_000
        assert fleet.requests["get"] == 1, "all of it comes from the checkpoint"
    again = FleetStore(3_000, apps=40, cache=tmp_path)
    assert [page async for page in again.list("_metadata/")] == [page async for page in fleet.list("_metadata/")]
