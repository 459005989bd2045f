"""``python -m benchmarks``: measure snapstore on this machine, beside what people use today."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from botocore.exceptions import BotoCoreError, ClientError
from rich.console import Console
from rich.table import Table

from benchmarks import comparison, corpora, memory, places, readme, report, running
from benchmarks.peers import PEERS, PROGRAMS
from benchmarks.processes import Failed
from benchmarks.suite import BENCHMARKS, JUDGED

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
_console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
_RESULTS = Path("benchmarks/results/results.jsonl")
_QUICK = _RESULTS.with_name("quick.jsonl")
_Files = Annotated[list[Path], typer.Argument(help=f"Results.  \\[default: {_RESULTS}]", show_default=False)]


@app.command("list")
def list_() -> None:
    """What can be measured, against whom, on what."""
    for title, rows in {
        "benchmark": {name: benchmark.about for name, benchmark in BENCHMARKS.items()}
        | {"judged": f"the README's table: {', '.join(JUDGED)}"},
        "peer": PEERS,
        "corpus": {name: kind.about for name, kind in corpora.KINDS.items()}
        | {"NAME:SIZE": "another number of files, or of bytes for large ones", "./FOLDER": "any folder of yours"},
        "program": {
            program.name: program.version() if program.is_here() else f"not installed: {program.install}"
            for program in PROGRAMS.values()
        },
    }.items():
        table = Table(title, "", box=None, pad_edge=False)
        for row in rows.items():
            table.add_row(*row)
        _console.print(table)
        _console.print()


@app.command()
def run(
    names: Annotated[
        list[str], typer.Argument(metavar="[NAME]...", help="Of `list`, or `judged`.  \\[default: all]")
    ] = [],  # noqa: B006
    peer: Annotated[list[str], typer.Option(help="Only against this one; repeat for more.")] = [],  # noqa: B006
    store: Annotated[str, typer.Option(help="folder, seaweedfs (its own is started), or s3://bucket/prefix.")] = (
        "seaweedfs"
    ),
    corpus: Annotated[str | None, typer.Option(help="Of `list`, NAME:SIZE, or a folder (with a slash).")] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Rounds.")] = 3,
    out: Annotated[
        Path | None,
        typer.Option(help=f"Results are added to this file.  \\[default: {_RESULTS}, or {_QUICK.name} with --quick]"),
    ] = None,
    workplace: Annotated[
        Path | None, typer.Option(help="Where stores and caches are made.  \\[default: ~/.cache/snapstore-benchmarks]")
    ] = None,
    memory_folder: Annotated[Path, typer.Option(help="A tmpfs, to restore to.", exists=True, file_okay=False)] = Path(
        "/dev/shm"
    ),
    quick: Annotated[bool, typer.Option(help="Tiny corpora, one round: only to see that it runs.")] = False,
) -> None:
    """Measure, and add to a file of results."""
    if unknown := [one for one in peer if one not in PEERS]:
        raise typer.BadParameter(f"no peer {', '.join(unknown)}: choose of {', '.join(PEERS)}")
    if unknown := [one for one in names if one not in {*BENCHMARKS, "judged"}]:
        raise typer.BadParameter(f"no benchmark {', '.join(unknown)}: choose of {', '.join(BENCHMARKS)}, judged")
    try:
        if corpus is not None:
            corpora.check(corpus)
        places.check(store)
    except Failed as failure:
        raise typer.BadParameter(str(failure)) from None
    plan = running.Plan(
        names=names,
        peers=peer or None,
        store=store,
        corpus=corpus,
        repeat=1 if quick else repeat,
        out=out or (_QUICK if quick else _RESULTS),
        workplace=(workplace or Path("~/.cache/snapstore-benchmarks").expanduser()).resolve(),
        memory=memory_folder.resolve(),
        quick=quick,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as by Ctrl-C, what was begun is tidied up
    try:
        failed = running.run(plan, lambda text: _console.print(text, markup=False, soft_wrap=True))
    except KeyboardInterrupt:
        _console.print(f"interrupted: what had ended before is in {plan.out}", markup=False)
        raise typer.Exit(130) from None
    if failed:
        _console.print(f"failed: {', '.join(failed)}", markup=False)
        raise typer.Exit(1)


@app.command("report")
def report_(
    files: _Files = [],  # noqa: B006
    to: Annotated[Path, typer.Option(help="A folder for the report and its charts.")] = Path("benchmarks/results"),
    into_readme: Annotated[bool, typer.Option("--readme", help="Update the README's table as well.")] = False,
) -> None:
    """Write report.md with medians, spreads and ratios, and charts, and print the judged table."""
    sources = files or [_RESULTS]
    written = report.write(sources, to)
    if into_readme:
        readme.update(sources)
    _console.print(report.judged_table(sources), markup=False, soft_wrap=True)
    _console.print(f"written: {', '.join(map(str, written))}", soft_wrap=True)


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(help="Earlier results.")],
    new: Annotated[Path, typer.Argument(help="Later results.")],
) -> None:
    """What has become faster or slower between two files of results."""
    for difference in comparison.differences(old, new):
        _console.print(difference, markup=False, soft_wrap=True)
    _console.print(comparison.table(old, new))


@app.command("memory")
def memory_(
    corpus: Annotated[list[str], typer.Argument(help=f"Of: {', '.join(memory.CORPORA)}.  \\[default: all]")] = [],  # noqa: B006
    workplace: Annotated[Path | None, typer.Option(help="Where corpora, store and target are made.")] = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A store to use, such as s3://bucket/prefix.  \\[default: a folder]"),
    ] = None,
) -> None:
    """Peak memory of create, ls, restore and delete, printed."""
    if unknown := set(corpus) - set(memory.CORPORA):
        raise typer.BadParameter(f"no corpus {', '.join(unknown)}: choose of {', '.join(memory.CORPORA)}")
    memory.measure(corpus, workplace, store)


def main() -> None:
    try:
        app(prog_name="python -m benchmarks")
    except (Failed, OSError, BotoCoreError, ClientError) as failure:
        sys.exit(f"failed: {failure}")


if __name__ == "__main__":
    main()
