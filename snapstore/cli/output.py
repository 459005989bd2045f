"""What a person or a program sees: lines, tables on a terminal, JSON, progress bars, errors.

Results go to stdout, everything else to stderr. Names from disks are shown with their control characters escaped, so
that a file's name can neither break a line nor steer a terminal.
"""

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from snapstore.archive.names import as_json
from snapstore.model import Progress, ProgressCallback

if TYPE_CHECKING:
    from rich.table import Table

_LEAST_WIDTH = 120
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_PHASES = {
    "scan": ("Scanning", "members"),
    "pack": ("Packing", "members"),
    "restore": ("Restoring", "members"),
    "load": ("Reading checkpoints:", "snapshots"),
    "rebuild": ("Reading", "snapshots"),
    "replace": ("Putting in place", "snapshots"),
    "archives": ("Listing", "objects"),
    "checkpoint": ("Writing a checkpoint:", "snapshots"),
}


class Output:
    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def say(self, line: str) -> None:
        """A result for people; in JSON it is in the document instead."""
        if not self.as_json:
            print(line)  # noqa: T201

    def document(self, value: Any) -> None:
        """A result for programs."""
        if self.as_json:
            print(msgspec.json.encode(plain(value)).decode())  # noqa: T201

    def note(self, line: str) -> None:
        """Neither a result nor amiss."""
        print(line, file=sys.stderr)  # noqa: T201

    def warn(self, line: str) -> None:
        print(f"warning: {line}", file=sys.stderr)  # noqa: T201

    def fail(self, message: str) -> None:
        if sys.stdout is not None:
            with suppress(OSError):  # what cannot be written does not come before anything
                sys.stdout.flush()
        print(f"snapstore: {shown(message)}", file=sys.stderr)  # noqa: T201

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Results for people: columns on a terminal; elsewhere a line each with tabs between, whole, and no header."""
        if self.as_json:
            return
        if not sys.stdout.isatty():
            for row in rows:
                print("\t".join(row))  # noqa: T201
            return
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for number, title in enumerate(header):
            table.add_column(title, no_wrap=number == 0, overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        _print(table)

    def rows(self, header: Sequence[str], widths: Sequence[int]) -> Callable[[Sequence[str]], None]:
        """`table`, for rows that come one by one: shows each. ``widths`` are those of all columns but the last."""
        if self.as_json or not sys.stdout.isatty():
            return lambda row: self.say("\t".join(row))
        from rich.table import Table
        from rich.text import Text

        unsaid = [header]

        def show(row: Sequence[str]) -> None:
            table = Table.grid(padding=(0, 2, 0, 0))
            for width in (*widths, None):
                table.add_column(width=width, overflow="fold")
            if unsaid:
                table.add_row(*map(Text, unsaid.pop()), style="bold")
            table.add_row(*map(Text, row))
            _print(table)

        return show

    @contextmanager
    def status(self, line: str) -> Iterator[ProgressCallback | None]:
        """Say what is waited for, where a person is looking, and take it back afterwards.

        Gives a callback that draws a bar in its place, should it be called.
        """
        if self.as_json or not sys.stderr.isatty():
            yield None
            return
        width = shutil.get_terminal_size().columns - 1  # a longer line could not be taken back
        with ExitStack() as shown:
            print(line[:width], end="\r", file=sys.stderr, flush=True)  # noqa: T201
            shown.callback(print, "\x1b[K", end="", file=sys.stderr, flush=True)
            bar: list[ProgressCallback] = []

            def show(progress: Progress) -> None:
                if not bar:
                    shown.close()
                    bar.append(shown.enter_context(self._bar()))
                bar[0](progress)

            yield show

    @contextmanager
    def progress(self) -> Iterator[ProgressCallback | None]:
        """A callback that draws a bar, where a person is looking."""
        if self.as_json or not sys.stderr.isatty():
            yield None
            return
        with self._bar() as show:
            yield show

    @contextmanager
    def _bar(self) -> Iterator[ProgressCallback]:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[amount]}"))
        bar = Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
        with bar:
            task = bar.add_task("", total=None, amount="")

            def show(progress: Progress) -> None:
                doing, what = _PHASES[progress.phase]
                counted = f"{doing} {progress.members:,}"
                if progress.total_members > progress.members:
                    counted += f" of {progress.total_members:,}"
                counted += f" {what}"
                total = progress.total_bytes or None
                amount = size(progress.bytes) + (f" of {size(total)}" if total else "") if progress.bytes else ""
                bar.update(task, description=counted, completed=progress.bytes, total=total, amount=amount)

            yield show


def _print(table: "Table") -> None:
    from rich.console import Console

    # On a narrow terminal it is better that lines wrap there than that an id is folded into pieces here.
    console = Console()
    console.width = max(console.width, _LEAST_WIDTH)
    console.print(table)


def size(count: int | None) -> str:
    """Bytes for people, in powers of 1024."""
    if count is None:
        return "?"
    amount = float(count)
    for unit in _UNITS[:-1]:
        if amount < 1024:
            return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} {_UNITS[-1]}"


def local_time(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def count(number: int | None, noun: str) -> str:
    """``1 member``, ``1,234 members``."""
    if number is None:
        return f"? {noun}s"
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def shown(name: str) -> str:
    """A name or message with what a terminal would act on, and what is not UTF-8, written as escapes."""
    if name.isprintable():
        return name
    return "".join(character if character.isprintable() else _escape(character) for character in name)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def plain(value: Any) -> Any:
    """A value as JSON can hold it: structs as objects, and a string that is not UTF-8 as ``{"b64": …}`` (FORMAT.md)."""
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return as_json(value) if isinstance(value, str) else value
