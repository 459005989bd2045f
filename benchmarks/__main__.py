"""``python -m benchmarks``: measure snapstore on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.memory import CORPORA, measure

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


@app.callback()
def _root() -> None:
    pass


@app.command()
def memory(
    corpus: Annotated[list[str], typer.Argument(help=f"Of: {', '.join(CORPORA)}.  [default: all]")] = [],  # noqa: B006
    workplace: Annotated[Path | None, typer.Option(help="Where corpora, store and target are made.")] = None,
    store: Annotated[
        str | None, typer.Option(metavar="URL", help="A store to use, such as s3://bucket/prefix.  [default: a folder]")
    ] = None,
) -> None:
    """Peak memory of create, ls, restore and delete."""
    unknown = set(corpus) - set(CORPORA)
    if unknown:
        raise typer.BadParameter(
            f"no corpus {', '.join(map(repr, unknown))}: choose of {', '.join(map(repr, CORPORA))}"
        )
    measure(corpus, workplace, store)


app(prog_name="python -m benchmarks")
