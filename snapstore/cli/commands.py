"""The commands, with `SnapStore`'s own words."""

import signal
import stat
import sys
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer

import snapstore
from snapstore.archive.frames import LEVEL
from snapstore.archive.names import clean_path, is_below
from snapstore.cli import index
from snapstore.cli.output import count, local_time, shown, size
from snapstore.cli.session import FAILED, WARNINGS, Lists, Place, Session, command
from snapstore.cli.times import duration, moment
from snapstore.engine.doctor import READ, WRITE
from snapstore.engine.listing import MAX_PAGE, Listing
from snapstore.errors import InvalidInput, MemberNotFound, SnapshotNotFound
from snapstore.model import Count, Existing, Member, Snapshot

app = typer.Typer(
    name="snapstore",
    help="Snapshots of application folders: plain .tar.zst archives, listed from a local label index.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(index.app, name="index")

_PAGE = 50
_CHECK_WIDTHS = (7, 26, 32)
_KINDS = {"f": "-", "h": "h", "l": "l", "d": "d", "p": "p", "c": "c", "b": "b"}


class OnErrorChoice(StrEnum):
    fail = "fail"
    skip = "skip"


Id = Annotated[str, typer.Argument(metavar="ID", help="A snapshot's id, a unique beginning of it, or APP@latest.")]
Labels = Annotated[
    list[str], typer.Option("--label", "-l", metavar="KEY:VALUE", help="A label; repeat for more.", show_default=False)
]
LabelFilters = Annotated[
    list[str],
    typer.Option(
        "--label",
        "-l",
        metavar="KEY[:VALUE]",
        help="Only with this label, or with any of this key; of several, all must be there.",
        show_default=False,
    ),
]
Excludes = Annotated[
    list[str],
    typer.Option("--exclude", "-x", metavar="PATTERN", help="Leave out, in gitignore syntax.", show_default=False),
]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(snapstore.__version__)  # noqa: T201
        raise typer.Exit


@command(app, "create", makes_store=True)
async def create(
    session: Session,
    app_name: Annotated[str, typer.Argument(metavar="APP", help="The application's name.")],
    folder: Annotated[str | None, typer.Argument(help="Its folder.  \\[default: APP below --apps]")] = None,
    label: Labels = [],  # noqa: B006
    exclude: Excludes = [],  # noqa: B006
    exclude_from: Annotated[
        list[Path], typer.Option(metavar="FILE", help="A file of such patterns, a line each.", show_default=False)
    ] = [],  # noqa: B006
    on_error: Annotated[
        OnErrorChoice, typer.Option(help="What to do about members that vanish or cannot be read.")
    ] = OnErrorChoice.fail,
    level: Annotated[int, typer.Option(min=1, max=19, help="zstd's compression level.")] = LEVEL,
) -> int:
    """Take a snapshot of a folder."""
    patterns = [line for path in exclude_from for line in _lines(path)] + exclude
    with session.out.progress() as progress:
        report = await session.store.create(
            app_name,
            folder,
            labels=label,
            exclude=patterns,
            on_error=on_error.value,
            level=level,
            progress=progress,
        )
    for problem in report.problems:
        session.out.warn(f"{shown(problem.path)} was {problem.kind}: {problem.reason}")
    if report.sockets:
        session.out.warn(f"left out {count(report.sockets, 'socket')}, which no archive can hold")
    session.out.say(
        f"{report.id} of {shown(report.app)}: {count(report.entries, 'member')}, {size(report.content_size)}"
        f" packed into {size(report.size)}, {report.seconds:.1f} s, kept in {session.store.url}"
    )
    session.out.document(report)
    return WARNINGS if report.problems else 0


@command(app, "list")
async def list_(
    session: Lists,
    app_names: Annotated[
        list[str], typer.Argument(metavar="[APP]...", help="Only of these applications.", show_default=False)
    ] = [],  # noqa: B006
    label: LabelFilters = [],  # noqa: B006
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Taken then or later: 2026-01-31, 2026-01-31T12:00 (local time), or so long ago: 30m, 12h, 7d, 2w.",
        ),
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Taken before then.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=MAX_PAGE, help="At most so many.")] = _PAGE,
    everything: Annotated[bool, typer.Option("--all", "-a", help="All there are, whatever the --limit.")] = False,
    cursor: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Go on where an earlier listing ended: it says so on stderr.")
    ] = None,
) -> None:
    """List snapshots, newest first, from the local index alone."""
    begin, end = (moment(time) if time else None for time in (since, until))
    found = False
    while True:
        page = await session.store.page(
            apps=app_names, labels=label, since=begin, until=end, limit=MAX_PAGE if everything else limit, cursor=cursor
        )
        found = found or bool(page.snapshots)
        for snapshot in page.snapshots:
            session.out.document(snapshot)
        session.out.table(("ID", "APP", "CREATED", "SIZE", "MEMBERS", "LABELS"), [_row(row) for row in page.snapshots])
        cursor = page.cursor
        if cursor is None or not everything:
            break
    if not found:
        session.out.note(await _why_none(session.store, app_names, label))
    if cursor is not None:
        session.out.note(f"more: --all, or --cursor {cursor}")


async def _why_none(store: Listing, app_names: Sequence[str], labels: Sequence[str]) -> str:
    """What a listing is told that has found nothing: a name that was mistyped, most likely."""
    for name in app_names:
        if not (await store.page(apps=[name], limit=1)).snapshots:
            return f"no such snapshots: there are none of {shown(name)}; `snapstore apps` lists those that have some"
    for name in labels:
        if not (await store.page(labels=[name], limit=1)).snapshots:
            return f"no such snapshots: none has the label {shown(name)}; `snapstore labels [KEY]` lists those in use"
    return "no such snapshots"


def _row(snapshot: Snapshot) -> tuple[str, ...]:
    return (
        snapshot.id,
        shown(snapshot.app),
        local_time(snapshot.created_at),
        size(snapshot.size),
        "?" if snapshot.entries is None else str(snapshot.entries),
        shown(" ".join(snapshot.labels)),
    )


@command(app, "latest")
async def latest(
    session: Lists,
    app_name: Annotated[str, typer.Argument(metavar="APP", help="The application's name.")],
    label: LabelFilters = [],  # noqa: B006
) -> None:
    """Print the id of an application's newest snapshot."""
    snapshot = await session.store.latest(app_name, labels=label)
    session.out.say(snapshot.id)
    session.out.document(snapshot)


@command(app, "apps")
async def apps(session: Lists) -> None:
    """List the applications, and how many snapshots each has."""
    _counts(session, "APP", await session.store.apps())


@command(app, "labels")
async def labels(
    session: Lists,
    key: Annotated[str | None, typer.Argument(metavar="[KEY]", help="The values of this key.")] = None,
) -> None:
    """List the keys of labels, or all labels of one key, and how many snapshots have each."""
    found = await session.store.labels(key)
    _counts(session, "LABEL", found)
    if key is not None and not found:
        session.out.note(f"no snapshot has a label with the key {shown(key)}; `snapstore labels` lists the keys in use")


def _counts(session: Lists, title: str, counts: Sequence[Count]) -> None:
    for found in counts:
        session.out.document(found)
    session.out.table((title, "SNAPSHOTS"), [(shown(found.name), f"{found.snapshots:,}") for found in counts])


@command(app, "show")
async def show(session: Lists, snapshot_id: Id) -> None:
    """Show all that is known of a snapshot."""
    snapshot = await session.store.get(snapshot_id)
    session.out.document(snapshot)
    for field, value in msgspec.structs.asdict(snapshot).items():
        if value is None or value == ():
            continue
        match field:
            case "created_at":
                value = f"{local_time(value)} local time, {value.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
            case "size" | "content_size" | "reused":
                value = f"{size(value)} ({value} bytes)" if value else "0 B"
            case "labels":
                value = " ".join(value)
            case "toc":
                value = f"{size(value.size)} from byte {value.offset}"
        session.out.say(f"{field.replace('_', ' '):13} {shown(str(value))}")


@command(app, "ls")
async def ls(
    session: Session,
    snapshot_id: Id,
    path: Annotated[str, typer.Argument(help="Only this member and what is in it.")] = ".",
) -> None:
    """List what is in a snapshot."""
    folder = clean_path(path)
    snapshot = await session.store.get(snapshot_id)
    members = [member async for member in session.store.members(snapshot.id) if is_below(member.path, folder)]
    if not members and folder != ".":
        raise MemberNotFound(path, snapshot.id)
    for member in sorted(members, key=lambda member: "" if member.path == "." else member.path):
        session.out.document(member)
        if not session.out.as_json:
            session.out.say(_long_line(member))


def _long_line(member: Member) -> str:
    mode = _KINDS[member.type] + stat.filemode(member.mode)[1:]
    when = datetime.fromtimestamp(member.mtime // 1_000_000_000, UTC) if -(2**55) < member.mtime < 2**63 else None
    modified = when.astimezone().strftime("%Y-%m-%d %H:%M") if when else "?"
    arrow = {"h": " link to ", "l": " -> "}.get(member.type, "")
    note = f"  ({member.warning})" if member.warning else ""
    owner = f"{member.uid}/{member.gid}"
    return f"{mode} {owner:>11} {member.size:>12} {modified:16} {shown(member.path)}{arrow}{shown(member.link)}{note}"


@command(app, "cat")
async def cat(
    session: Session, snapshot_id: Id, path: Annotated[str, typer.Argument(help="A file in the snapshot.")]
) -> None:
    """Write one file of a snapshot to stdout."""
    async for piece in session.store.read(snapshot_id, path):
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


@command(app, "restore", keeps="files that a merge has replaced already")
async def restore(
    session: Session,
    snapshot_id: Id,
    target: Annotated[str | None, typer.Argument(help="Where to.  \\[default: the app's folder below --apps]")] = None,
    to_app: Annotated[str | None, typer.Option("--app", help="Into this app's folder below --apps.")] = None,
    path: Annotated[
        list[str], typer.Option("--path", "-p", help="Only this member and what is in it.", show_default=False)
    ] = [],  # noqa: B006
    exclude: Excludes = [],  # noqa: B006
    drop: Annotated[
        list[str], typer.Option("--drop", help="A member that shall not be there afterwards.", show_default=False)
    ] = [],  # noqa: B006
    merge: Annotated[bool, typer.Option("--merge", help="Into what is there: replace its files one by one.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="In place of what is there, in one step.")] = False,
    owner: Annotated[
        bool | None, typer.Option("--owner/--no-owner", help="Set user and group ids.  \\[default: as root]")
    ] = None,
    trusted: Annotated[
        bool, typer.Option("--trusted", help="Allow devices, setuid and setgid bits, and security attributes.")
    ] = False,
) -> int:
    """Restore a snapshot, or some of it, into a folder."""
    if merge and replace:
        raise InvalidInput("--merge and --replace exclude each other")
    existing: Existing = "merge" if merge else "replace" if replace else "refuse"
    with session.out.progress() as progress:
        report = await session.store.restore(
            snapshot_id,
            target,
            app=to_app,
            paths=path,
            exclude=exclude,
            drop=drop,
            existing=existing,
            owner=owner,
            trusted=trusted,
            progress=progress,
        )
    for note in report.skipped:
        session.out.warn(shown(note))
    session.out.say(
        f"{report.snapshot.id} of {shown(report.snapshot.app)}: {count(report.members, 'member')},"
        f" {size(report.content_size)} into {shown(report.target)}, {report.seconds:.1f} s"
    )
    session.out.document(report)
    return WARNINGS if report.skipped else 0


@command(app, "link")
async def link(
    session: Session,
    snapshot_id: Id,
    expires: Annotated[
        str, typer.Option(metavar="TIME", help="How long it holds, where the store can limit that: 30m, 12h, 7d.")
    ] = "1h",
) -> None:
    """Print a download link to a snapshot's archive, a plain .tar.zst."""
    url = await session.store.download_url(snapshot_id, expires=duration(expires))
    session.out.say(url)
    session.out.document({"url": url})


@command(app, "label")
async def label(
    session: Session,
    snapshot_id: Id,
    add: Annotated[
        list[str], typer.Option("--add", "-a", metavar="KEY:VALUE", help="Add this one; repeat.", show_default=False)
    ] = [],  # noqa: B006
    remove: Annotated[
        list[str],
        typer.Option(
            "--remove", "-r", metavar="KEY[:VALUE]", help="Remove it, or all of a key; repeat.", show_default=False
        ),
    ] = [],  # noqa: B006
    replace: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY:VALUE", help="In place of all others; repeat.", show_default=False),
    ] = [],  # noqa: B006
) -> None:
    """Change a snapshot's labels."""
    if not (add or remove or replace):
        raise InvalidInput("say what to change: --add KEY:VALUE, --remove KEY[:VALUE], or --set KEY:VALUE")
    changed = await session.store.relabel(snapshot_id, add=add, remove=remove, replace=replace or None)
    session.out.say(f"{changed.id} of {shown(changed.app)}: {shown(' '.join(changed.labels)) or 'no labels'}")
    session.out.document(changed)


@command(app, "delete", keeps="snapshots that are deleted already")
async def delete(
    session: Session,
    snapshot_ids: Annotated[
        list[str], typer.Argument(metavar="[ID]...", help="Snapshots to delete.", show_default=False)
    ] = [],  # noqa: B006
    of_app: Annotated[str | None, typer.Option("--app", help="All snapshots of this application.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete snapshots by their ids, without asking; or all of an application, once you have said yes."""
    if bool(snapshot_ids) == (of_app is not None):
        raise InvalidInput("say what to delete: either one or more IDs, or --app APP for all of an application's")
    if of_app is not None:
        number = sum(found.snapshots for found in await session.store.apps() if found.name == of_app)
        if number and not yes:
            _confirm(f"Delete {count(number, 'snapshot')} of {shown(of_app)} from {session.store.url}?")
        deleted = list(await session.store.delete_app(of_app))
    else:
        found = [await session.store.get(snapshot_id) for snapshot_id in dict.fromkeys(snapshot_ids)]
        deleted = [await session.store.delete(snapshot.id) for snapshot in found]
    for snapshot in deleted:
        session.out.say(f"deleted {snapshot.id} of {shown(snapshot.app)}")
        session.out.document(snapshot)
    if not deleted:
        raise SnapshotNotFound(of_app or "", f"app {of_app!r} has no snapshots: `snapstore list` shows what there is")


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise InvalidInput("nobody is there to be asked: add --yes to delete them all")
    # asyncio's own handler would wait for the event loop, which waits for the answer.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)  # noqa: T201
        answer = sys.stdin.readline()
    finally:
        signal.signal(signal.SIGINT, before)
    if answer.strip().lower() not in ("y", "yes"):
        raise typer.Exit(1)


@command(app, "doctor")
async def doctor(place: Place) -> int:
    """Check a store: reaching it, permissions, and each thing that snapstore asks of it. Leaves nothing there."""
    results: dict[str, str] = {}
    show = place.out.rows(("RESULT", "CHECK", "FOR", "DETAIL"), _CHECK_WIDTHS)
    async with aclosing(snapstore.diagnose(place.url)) as checks:
        while True:
            with place.out.status("Checking …"):
                check = await anext(checks, None)
            if check is None:
                break
            results[check.name] = check.result
            place.out.document(check)
            show((check.result, check.name, check.use, shown(check.detail)))
    if "failed" in results.values():
        place.out.fail(_verdict(results))
        return FAILED
    return WARNINGS if "missing" in results.values() else 0


def _verdict(results: Mapping[str, str]) -> str:
    """Of a store of which something failed, in one sentence."""
    if results.get(WRITE) == "failed" and results.get(READ) == "ok":
        return "this store can be read, and not written"
    return "this store cannot be used as it is"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="surrogateescape").splitlines()
    except OSError as error:
        raise InvalidInput(f"cannot read {str(path)!r}: {error.strerror}") from error
