"""The commands of the local label index."""

from typing import Annotated

import typer

from snapstore.cli.output import count, local_time, shown, size
from snapstore.cli.session import WARNINGS, Lists, command
from snapstore.cli.times import duration
from snapstore.errors import InvalidInput
from snapstore.model import SalvageReport, SyncReport

app = typer.Typer(help="The local label index: a cache of the store's metadata.", no_args_is_help=True)

_KEEPS = "what was read into the index: the next one goes on from there"
_REBUILD_KEEPS = f"what --from-archives has written, and {_KEEPS}"


@command(app, "status")
async def status(session: Lists) -> None:
    """Show how much is in the index, and how old that is."""
    found = await session.store.index_status()
    session.out.document(found)
    for name, value in (
        ("index", found.path),
        ("store", found.store),
        ("snapshots", f"{found.snapshots:,}"),
        ("covered", f"{found.covered:,} of them in checkpoints"),
        (
            "problems",
            f"{found.problems:,} objects where metadata belongs that cannot be understood: `index sync` names them"
            if found.problems
            else "none",
        ),
        ("synced", f"{local_time(found.synced_at)} local time" if found.synced_at else "never"),
        ("size", size(found.size)),
        ("schema", str(found.schema)),
    ):
        session.out.say(f"{name:<10} {shown(value)}")


@command(app, "sync", keeps=_KEEPS)
async def sync(
    session: Lists,
    recent: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Only what was begun so long before the last sync: 6h, 2d.")
    ] = None,
) -> int:
    """Bring the index up to date with the store: read what is new or changed, drop what is gone."""
    window = None if recent is None else duration(recent)
    with session.out.progress() as progress:
        return _tell(session, await session.store.sync(recent=window, progress=progress))


@command(app, "rebuild", keeps=_REBUILD_KEEPS)
async def rebuild(
    session: Lists,
    archives: Annotated[
        bool, typer.Option("--archives/--no-archives", help="List the archives too, and report what has no match.")
    ] = True,
    from_archives: Annotated[
        bool, typer.Option("--from-archives", help="Look for archives whose metadata is lost, to write it anew.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --from-archives: write it.")] = False,
) -> int:
    """Read the index anew from the store's metadata; the old one is used until the new one is complete."""
    if yes and not from_archives:
        raise InvalidInput("--yes is for --from-archives: a rebuild changes nothing that needs a yes")
    if from_archives and not archives:
        raise InvalidInput("--from-archives reads the archives: leave out --no-archives")
    with session.out.progress() as progress:
        if from_archives:
            return _tell_salvage(session, await session.store.salvage(apply=yes, progress=progress))
        return _tell(session, await session.store.rebuild(archives=archives, progress=progress))


@command(app, "checkpoint", keeps="what was read into the index, and checkpoints that are whole")
async def checkpoint(session: Lists) -> None:
    """Write copies of metadata into the store, from which an index is rebuilt without a request for each snapshot."""
    with session.out.progress() as progress:
        report = await session.store.checkpoint(progress=progress)
    session.out.say(
        f"{report.covered:,} of {count(report.snapshots, 'snapshot')} in checkpoints: {report.written:,} written,"
        f" {report.read:,} metadata objects read, {report.removed:,} superseded ones removed, {report.seconds:.1f} s"
    )
    session.out.document(report)


def _tell(session: Lists, report: SyncReport) -> int:
    for problem in report.problems:
        session.out.warn(shown(problem))
    copied = f"{report.from_checkpoints:,} from checkpoints, " if report.from_checkpoints else ""
    written = f" {count(report.checkpoints, 'checkpoint')} written," if report.checkpoints else ""
    session.out.say(
        f"{count(report.snapshots, 'snapshot')} in {session.store.index}: {copied}{report.read:,} read,"
        f" {report.removed:,} dropped,{written} {report.seconds:.1f} s"
    )
    if report.recent:
        session.out.note(_young(report.recent))
    session.out.document(report)
    return WARNINGS if report.problems else 0


def _tell_salvage(session: Lists, report: SalvageReport) -> int:
    for problem in report.problems:
        session.out.warn(shown(problem))
    done = "brought back" if report.applied else "can be brought back"
    for snapshot in report.snapshots:
        labels = " ".join(snapshot.labels)
        session.out.say(
            f"{done}: {snapshot.id} of {shown(snapshot.app)}, {local_time(snapshot.created_at)} {shown(labels)}"
        )
    if report.snapshots and not report.applied:
        session.out.say("one whose deletion was cut off would come back too: if none was, write them with --yes")
    if report.recent:
        session.out.say(_young(report.recent))
    elif not report.snapshots and not report.problems:
        session.out.say("no archive lacks its metadata")
    session.out.document(report)
    return WARNINGS if report.problems else 0


def _young(archives: int) -> str:
    return (
        f"{count(archives, 'archive')} without metadata, younger than an hour: of snapshots that are being made,"
        " or were cut off; look again in an hour"
    )
