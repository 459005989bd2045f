"""What every command has in common: its options, an open store, exit statuses, signals, and how errors are told.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 done with warnings; 130 and 143 when interrupted (Ctrl-C, SIGTERM), 141
when nobody reads on (a closed pipe).
"""

import asyncio
import contextlib
import inspect
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import typer

import snapstore
from snapstore.cli.output import Output, shown
from snapstore.engine.limits import Limits
from snapstore.engine.listing import Listing
from snapstore.errors import InvalidInput, SnapstoreError, reason_of
from snapstore.places import default_store

if TYPE_CHECKING:
    from snapstore.engine.store import SnapStore

FAILED, WRONG_USAGE, WARNINGS = 1, 2, 3
_INTERRUPTED, _BROKEN_PIPE, _TERMINATED = 130, 141, 143

_Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="SNAPSTORE_URL",
        metavar="URL",
        help="The store: s3://bucket/prefix, or a folder.  \\[default: below ~]",
    ),
]
_Index = Annotated[
    str | None,
    typer.Option(
        "--index", envvar="SNAPSTORE_INDEX", metavar="FILE", help="The local index.  \\[default: one a store]"
    ),
]
_IndexLabel = Annotated[
    str | None,
    typer.Option(
        "--index-label",
        envvar="SNAPSTORE_INDEX_LABEL",
        metavar="KEY",
        help="The key of the label whose value new archives have in their names, such as owner.",
    ),
]
_Apps = Annotated[
    str | None,
    typer.Option(
        "--apps",
        envvar="SNAPSTORE_APPS",
        metavar="FOLDER",
        help="The folder in which the apps live: then FOLDER and TARGET may be left out.",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON, a line for each result.")]


def _option(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


_OF_PLACE = [_option("url", _Url), _option("as_json", _Json, False)]
"""Options of every command."""
_OF_SESSION = [_option("index", _Index), _option("index_label", _IndexLabel), _option("apps", _Apps)]
"""And of those that open the store with its index."""


class Session(NamedTuple):
    """What a command works with."""

    store: "SnapStore"
    out: Output


class Lists(NamedTuple):
    """What a command works with that asks for nothing but the index: it starts in half the time."""

    store: Listing
    out: Output


class Place(NamedTuple):
    """What a command works with that looks at the store itself, without an index."""

    url: str
    out: Output


Command = Callable[..., Awaitable[int | None]]


class _Terminated(BaseException):
    """By SIGTERM."""


def command(app: typer.Typer, name: str, *, makes_store: bool = False, keeps: str = "") -> Callable[[Command], Command]:
    """Make a command of ``async def function(session, …)``, or ``(place, …)``: the options for that join its own.

    It returns its exit status; None is 0. A folder that is named and is no store yet becomes one if it ``makes_store``:
    with all other commands a mistyped name must not become an empty store. ``keeps`` is what it does not take back when
    it is interrupted.
    """

    def decorate(function: Command) -> Command:
        first, *own = inspect.signature(function).parameters.values()
        opening = [] if first.annotation is Place else _OF_SESSION

        def run(*, url: str | None, as_json: bool, **given: Any) -> None:
            out = Output(as_json=as_json)
            how = {option.name: given.pop(option.name) for option in opening}

            async def work() -> int:
                location = default_store() if url is None else url
                if first.annotation is Place:
                    return await function(Place(location, out), **given) or 0
                with out.status(f"Opening {shown(location)} …") as progress, _warnings_told(out):
                    # At the priority that whoever called us has chosen: there is no service here to be spared.
                    limits = Limits(nice=False)
                    makes = url is None or makes_store
                    kind = Listing if first.annotation is Lists else snapstore.SnapStore
                    store = await kind.open(location, create=makes, limits=limits, progress=progress, **how)
                async with contextlib.aclosing(store):
                    return await function(first.annotation(store, out), **given) or 0

            _finish(lambda: _run(work), out, keeps)

        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        signature = inspect.Signature([*own, *opening, *_OF_PLACE])
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in signature.parameters.values()}
        run.__doc__ = function.__doc__
        app.command(name)(run)
        return function

    return decorate


@contextlib.contextmanager
def _warnings_told(out: Output) -> Iterator[None]:
    """What is logged of the index file, such as that a damaged one was moved aside, is told on the command line."""

    class Teller(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            out.warn(shown(record.getMessage()))

    logger, teller = logging.getLogger("snapstore.index"), Teller(logging.WARNING)
    logger.addHandler(teller)
    try:
        yield
    finally:
        logger.removeHandler(teller)


def _run(work: Callable[[], Awaitable[int]]) -> int:
    terminated = False

    async def main() -> int:
        def terminate() -> None:
            nonlocal terminated
            terminated = True
            task.cancel()

        task = asyncio.ensure_future(work())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
        return await task

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        if terminated:
            raise _Terminated from None
        raise


def _finish(work: Callable[[], int], out: Output, keeps: str) -> NoReturn:
    try:
        status = work()
        if sys.stdout is not None:
            sys.stdout.flush()
    except InvalidInput as error:
        out.fail(str(error))
        status = WRONG_USAGE
    except SnapstoreError as error:
        out.fail(str(error))
        status = FAILED
    except (KeyboardInterrupt, _Terminated) as error:
        terminated = isinstance(error, _Terminated)
        taken_back = "what was begun is taken back" + (f" (but for {keeps})" if keeps else "")
        out.fail(f"{'terminated' if terminated else 'interrupted'}: {taken_back}")
        status = _TERMINATED if terminated else _INTERRUPTED
    except BrokenPipeError:
        # Whoever read us has enough. Python flushes once more at its end, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = _BROKEN_PIPE
    except OSError as error:
        out.fail(f"cannot write the output: {reason_of(error)}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = FAILED
    raise typer.Exit(status)
