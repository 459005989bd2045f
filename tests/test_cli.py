"""The command line, as a person or a script meets it: each command in a process of its own."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from snapstore.cli.commands import app

Run = subprocess.CompletedProcess[str]


class Shell:
    """An empty home with one application in it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {"HOME": str(home), "PATH": os.environ["PATH"], "COLUMNS": "200"}
        app = home / "apps" / "blog"
        (app / "static").mkdir(parents=True)
        (app / "index.html").write_text("<h1>hello</h1>\n")
        (app / "static" / "a\nb.css").write_text("body {}\n")

    def __call__(self, *arguments: str, **environment: str) -> Run:
        return subprocess.run(
            [sys.executable, "-m", "snapstore", *arguments],
            cwd=self.home,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "snapstore", *arguments],
            cwd=self.home,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def document(self, *arguments: str) -> dict[str, object]:
        done = self(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        return found


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_the_main_job_with_nothing_set(shell: Shell) -> None:
    made = shell("create", "blog", "apps/blog", "--label", "owner:42")
    assert made.returncode == 0, made.stderr
    assert made.stderr == "", "quiet when piped"
    assert "4 members" in made.stdout

    (line,) = shell("list", "--label", "owner:42").stdout.splitlines()
    assert line.split("\t")[1:2] == ["blog"]
    assert shell("list", "--label", "owner:43").stdout == ""

    assert shell("latest", "blog").stdout.strip() == line.split("\t")[0]
    assert shell("latest", "blog", "--label", "owner:43").returncode == 1

    listed = shell("ls", "blog@latest").stdout.splitlines()
    assert [row.split(maxsplit=5)[5] for row in listed] == [".", "index.html", "static", "static/a\\nb.css"]
    assert shell("cat", "blog@latest", "index.html").stdout == "<h1>hello</h1>\n"

    assert shell("restore", "blog@latest", "copy").returncode == 0
    assert subprocess.run(["diff", "-r", "apps/blog", "copy"], cwd=shell.home).returncode == 0

    assert shell("delete", "blog@latest").returncode == 0
    assert shell("list").stdout == ""


def test_json_is_one_document_or_a_line_each(shell: Shell) -> None:
    made = shell.document("create", "blog", "apps/blog")
    assert made["app"] == "blog"
    assert made["problems"] == []
    shown = shell.document("show", str(made["id"]))
    assert {key: made[key] for key in shown} == shown
    shell("create", "blog", "apps/blog")
    lines = shell("list", "--json").stdout.splitlines()
    assert [json.loads(line)["app"] for line in lines] == ["blog", "blog"]
    paths = {json.loads(line)["path"] for line in shell("ls", "blog@latest", "--json").stdout.splitlines()}
    assert paths == {".", "index.html", "static", "static/a\nb.css"}
    assert shell.document("restore", "blog@latest", "copy")["members"] == 4
    assert str(shell.document("link", "blog@latest")["url"]).startswith("file:///")
    assert shell.document("index", "rebuild")["snapshots"] == 2
    deleted = shell("delete", "--app", "blog", "--yes", "--json").stdout.splitlines()
    assert len(deleted) == 2


def test_a_name_that_is_not_utf8_is_b64_in_json_and_escaped_for_people(shell: Shell) -> None:
    os.mkdir(os.fsencode(shell.home) + b"/odd")
    Path(os.fsdecode(os.fsencode(shell.home) + b"/odd/\xff\x1b[2J")).touch()
    assert shell("create", "odd", "odd").returncode == 0
    assert "\\xff\\x1b[2J" in shell("ls", "odd@latest").stdout
    documents = [json.loads(line) for line in shell("ls", "odd@latest", "--json").stdout.splitlines()]
    assert {"b64": "/xtbMko="} in [document["path"] for document in documents]


def test_options_come_before_the_environment_before_the_default(shell: Shell) -> None:
    shell("create", "blog", "apps/blog")
    environment = {"SNAPSTORE_URL": "env-store", "SNAPSTORE_INDEX": "env.db", "SNAPSTORE_APPS": "apps"}
    assert "env-store" in shell("create", "blog", **environment).stdout
    assert "opt-store" in shell("create", "blog", "--url", "opt-store", "--index", "opt.db", **environment).stdout
    assert len(shell("list").stdout.splitlines()) == 1
    assert (shell.home / "env.db").exists()
    keyed = shell("create", "blog", "--label", "env:prod", "--json", SNAPSTORE_INDEX_LABEL="env", **environment)
    assert ":prod:" in json.loads(keyed.stdout)["key"]


@pytest.mark.parametrize(
    ("arguments", "status", "help_in_it"),
    [
        (["show", "0199"], 1, "snapstore list"),
        (["show", "blog@latest"], 1, "there are no snapshots of 'blog'"),
        (["create", "blog", "nowhere"], 1, "is not there"),
        (["create", "blog"], 2, "--apps"),
        (["create", "_blog", "apps/blog"], 2, "does not begin with '_'"),
        (["create", "blog", "apps/blog", "--label", "size:3"], 2, "written by snapstore itself"),
        (["create", "blog", "apps/blog", "--exclude", "a[", "--exclude-from", "missing"], 2, "cannot read"),
        (["list", "--since", "yesterday"], 2, "7d"),
        (["list", "--cursor", "x"], 2, "no cursor"),
        (["list", "--url", "s4://x"], 2, "give a folder"),
        (["list", "--url", "apps"], 1, "not a snapstore"),
        (["list", "--url", "apps/blog/index.html"], 1, "is a file"),
        (["delete"], 2, "--app"),
        (["delete", "--app", "blog"], 1, "has no snapshots"),
        (["link", "blog@latest", "--expires", "soon"], 2, "12h"),
        (["list", "--url", "s3:snapshots/pre"], 2, "s3://bucket/prefix"),
        (["list", "--url", "s3://bucket?part_size=16MiB"], 2, "part_size is bytes"),
        (["frobnicate"], 2, "frobnicate"),
        (["list", "--limit", "0"], 2, "limit"),
    ],
)
def test_errors_read_like_help(shell: Shell, arguments: list[str], status: int, help_in_it: str) -> None:
    done = shell(*arguments)
    assert done.returncode == status, done.stderr
    assert help_in_it in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_target_that_is_not_empty_is_left_alone_until_told_otherwise(shell: Shell) -> None:
    shell("create", "blog", "apps/blog")
    (shell.home / "copy").mkdir()
    (shell.home / "copy" / "mine").touch()
    refused = shell("restore", "blog@latest", "copy")
    assert refused.returncode == 1
    assert "--merge" in refused.stderr
    assert "--replace" in refused.stderr
    assert shell("restore", "blog@latest", "copy", "--merge", "--replace").returncode == 2
    assert shell("restore", "blog@latest", "copy", "--merge").returncode == 0
    assert {path.name for path in (shell.home / "copy").iterdir()} == {"mine", "index.html", "static"}
    assert shell("restore", "blog@latest", "copy", "--replace", "--path", "index.html").returncode == 0
    assert {path.name for path in (shell.home / "copy").iterdir()} == {"index.html"}


def test_a_replacement_never_takes_the_working_directory_or_the_store_along(shell: Shell) -> None:
    shell("create", "blog", "apps/blog")
    for target in (".", str(shell.home), ".local", "/"):
        refused = shell("restore", "blog@latest", target, "--replace")
        assert refused.returncode == 1, target
        assert "choose another target" in refused.stderr
    assert shell("list").stdout.count("\n") == 1


def test_a_mistyped_store_is_not_made(shell: Shell) -> None:
    for command in (["list"], ["show", "x"], ["index", "rebuild"], ["delete", "x"]):
        done = shell(*command, "--url", "mistyped")
        assert done.returncode == 1
        assert "snapstore create" in done.stderr
    assert shell("list", "--url", "file:/mistyped").returncode == 2
    assert not (shell.home / "mistyped").exists()


def test_output_that_cannot_be_written_is_told(shell: Shell) -> None:
    shell("create", "blog", "apps/blog")
    with open("/dev/full", "w") as full:
        for command in (["list"], ["ls", "blog@latest"], ["cat", "blog@latest", "index.html"]):
            done = subprocess.run(
                [sys.executable, "-m", "snapstore", *command],
                env=shell.environment,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
            )
            assert done.returncode == 1
            assert done.stderr == "snapstore: cannot write the output: no space left on device\n"


def test_deleting_asks_a_person(shell: Shell) -> None:
    shell("create", "blog", "apps/blog")
    command = [sys.executable, "-m", "snapstore", "delete", "--app", "blog"]
    primary, secondary = terminal()
    for answer, status, left in ((None, 130, 1), (b"n\n", 1, 1), (b"y\n", 0, 0)):
        process = subprocess.Popen(command, env=shell.environment, stdin=secondary, stdout=secondary, stderr=secondary)
        shown = b""
        while b"[y/N]" not in shown:
            shown += os.read(primary, 1024)
        if answer is None:
            process.send_signal(signal.SIGINT)
        else:
            os.write(primary, answer)
        assert process.wait(30) == status
        assert len(shell("list").stdout.splitlines()) == left
    os.close(primary)
    os.close(secondary)


def terminal() -> tuple[int, int]:
    try:
        return pty.openpty()
    except OSError as error:
        pytest.skip(f"no pseudo-terminal can be opened here (devpts is not mounted): {error}")


def test_a_process_that_forgets_to_close_its_store_still_ends(shell: Shell) -> None:
    script = """
import asyncio, warnings
from snapstore import SnapStore

warnings.simplefilter("ignore")

async def main():
    store = await SnapStore.open("forgotten", index="forgotten.db")
    await store.create("blog", "apps/blog")
    raise SystemExit(7)

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=shell.home, capture_output=True, timeout=30)
    assert done.returncode == 7, done.stderr


def test_what_could_not_be_read_is_told_and_makes_status_3(shell: Shell) -> None:
    # A path that no archive of ours holds stands for what cannot be read: as root, everything can.
    folder = os.open(shell.home / "apps" / "blog", os.O_RDONLY)
    name = "d" * 250
    for _ in range(70):
        os.mkdir(name, dir_fd=folder)
        inner = os.open(name, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    failed = shell("create", "blog", "apps/blog")
    assert failed.returncode == 1
    assert "--on-error skip" in failed.stderr
    assert shell("list").stdout == "", "no snapshot was made"
    skipped = shell("create", "blog", "apps/blog", "--on-error", "skip", "--json")
    assert skipped.returncode == 3
    assert "unreadable" in skipped.stderr
    assert json.loads(skipped.stdout)["warnings"] == 1


def test_excludes_from_options_files_and_the_folder_itself(shell: Shell) -> None:
    for name in ("a.log", "b.tmp", "c.bak", "keep.log"):
        (shell.home / "apps" / "blog" / name).touch()
    (shell.home / "apps" / "blog" / ".snapignore").write_text("*.log\n!keep.log\n")
    (shell.home / "patterns").write_text("# comment\n*.tmp\n")
    shell("create", "blog", "apps/blog", "--exclude", "*.bak", "--exclude-from", "patterns", "-x", "/static/")
    paths = {json.loads(line)["path"] for line in shell("ls", "blog@latest", "--json").stdout.splitlines()}
    assert paths == {".", ".snapignore", "index.html", "keep.log"}


def test_pages_are_told_on_stderr(shell: Shell) -> None:
    for _ in range(3):
        shell("create", "blog", "apps/blog")
    first = shell("list", "-n", "2")
    cursor = first.stderr.split()[-1]
    second = shell("list", "-n", "2", "--cursor", cursor)
    assert len(first.stdout.splitlines()) == 2
    assert len(second.stdout.splitlines()) == 1
    assert second.stderr == ""
    everything = shell("list", "-n", "1", "--all")
    assert everything.stdout == first.stdout + second.stdout
    assert everything.stderr == ""


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["blgo"], "there are none of blgo"),
        (["blog", "--label", "owner:24"], "none has the label owner:24"),
        (["--label", "owner", "--label", "onwer"], "none has the label onwer"),
        (["--label", "owner:42", "--label", "owner:43"], "no such snapshots\n"),
    ],
)
def test_a_listing_that_finds_nothing_says_which_name_is_unknown(shell: Shell, asked: list[str], told: str) -> None:
    for owner in ("42", "43"):
        shell("create", "blog", "apps/blog", "--label", f"owner:{owner}")
    done = shell("list", *asked)
    assert (done.returncode, done.stdout) == (0, "")
    assert told in done.stderr


def test_nothing_is_deleted_where_nobody_can_be_asked(shell: Shell) -> None:
    shell("create", "blog", "apps/blog")
    done = shell("delete", "--app", "blog")
    assert (done.returncode, done.stdout) == (2, "")
    assert "add --yes" in done.stderr
    assert len(shell("list").stdout.splitlines()) == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_not_missed(shell: Shell, closed: str) -> None:
    ours = f"{sys.executable} -m snapstore"
    script = f"{ours} create blog apps/blog && {ours} cat blog@latest index.html"
    done = subprocess.run(
        ["bash", "-c", f"({script}) {closed}"], cwd=shell.home, env=shell.environment, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b"" if ">&-" in closed.split() else b"<h1>hello</h1>\n")
    assert len(shell("list").stdout.splitlines()) == 1


def test_a_pipe_that_closes_early_is_no_error(shell: Shell) -> None:
    (shell.home / "apps" / "blog" / "large").write_bytes(bytes(9 << 20))
    shell("create", "blog", "apps/blog")
    process = shell.start("cat", "blog@latest", "large")
    assert process.stdout is not None
    process.stdout.buffer.read(10)
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(30) == 141
    process.stderr.close()


@pytest.mark.parametrize(
    ("sent", "status", "told"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_interrupting_a_create_leaves_nothing(shell: Shell, sent: signal.Signals, status: int, told: str) -> None:
    shell("list")  # makes the store
    app = shell.home / "apps" / "blog"
    (app / "large-1").write_bytes(os.urandom(12 << 20))  # begins an upload
    with (app / "large-2").open("wb") as file:
        file.truncate(64 << 30)  # keeps it going for minutes
    process = shell.start("create", "blog", "apps/blog")
    uploads = shell.home / ".local/share/snapstore/store/.snapstore/uploads"
    deadline = time.monotonic() + 30
    while not any(uploads.iterdir()):
        assert process.poll() is None
        assert time.monotonic() < deadline
    process.send_signal(sent)
    assert process.wait(30) == status
    assert process.stderr is not None
    assert process.stdout is not None
    assert process.stderr.read() == f"snapstore: {told}: what was begun is taken back\n"
    process.stderr.close()
    process.stdout.close()
    assert list(uploads.iterdir()) == []
    assert shell("list").stdout == ""


def in_python(script: str, **how: Any) -> Run:
    return subprocess.run([sys.executable, "-c", script], text=True, timeout=60, **how)


INTERRUPTED = """
import asyncio, os, signal, sys
import snapstore
from snapstore.cli import main, session

class Store:
    @classmethod
    async def open(cls, *_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)

session.Listing = snapstore.SnapStore = Store
sys.argv = ["snapstore", *sys.argv[1:]]
main()
"""


def test_only_a_restore_speaks_of_merges_when_it_is_interrupted(shell: Shell) -> None:
    for arguments, told in {("restore", "x", "y"): "files that a merge has replaced", ("list",): None}.items():
        command = [sys.executable, "-c", INTERRUPTED, *arguments]
        done = subprocess.run(command, env=shell.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 130
        kept = f" (but for {told} already)" if told else ""
        assert done.stderr == f"snapstore: interrupted: what was begun is taken back{kept}\n"


@pytest.mark.parametrize("when", ["typer", "snapstore.cli.output", "app"])
def test_an_early_interruption_makes_no_traceback(when: str) -> None:
    script = f"""
import sys
from snapstore.cli import main

class Interrupting:
    def find_spec(self, name, *_):
        if name == {when!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
if {when!r} == "app":
    import snapstore.cli.commands
    def interrupted(**_): raise KeyboardInterrupt
    snapstore.cli.commands.app = interrupted
main()
"""
    done = in_python(script, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_results_come_before_the_error_that_ends_them() -> None:
    script = """
from snapstore.cli.output import Output
out = Output(as_json=False)
out.say("a result")
out.fail("an error")
"""
    assert (
        in_python(script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout == "a result\nsnapstore: an error\n"
    )


def test_help_tells_the_defaults(shell: Shell) -> None:
    runner = CliRunner()
    for command, defaults in {
        "create": ("APP below --apps", "below ~", "one a store"),
        "restore": ("the app's folder below --apps", "as root"),
        "doctor": ("below ~",),
    }.items():
        shown = runner.invoke(app, [command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).stdout
        for default in defaults:
            assert f"[default: {default}]" in shown, command
        assert "\\[" not in shown


def test_a_terminal_gets_a_table(shell: Shell) -> None:
    shell("create", "blog", "apps/blog", "--label", "owner:42")
    primary, secondary = terminal()
    command = [sys.executable, "-m", "snapstore", "list"]
    environment = shell.environment | {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "60"}
    done = subprocess.run(command, env=environment, stdout=secondary, stderr=subprocess.PIPE, timeout=60)
    os.close(secondary)
    shown = os.read(primary, 65536).decode()
    os.close(primary)
    assert done.returncode == 0, done.stderr
    assert "ID" in shown
    assert "owner:42" in shown


def watched(shell: Shell, *arguments: str) -> tuple[str, str]:
    """What a command that succeeds writes to stdout, and what it shows on a terminal, its stderr."""
    primary, secondary = terminal()
    command = [sys.executable, "-m", "snapstore", *arguments]
    environment = shell.environment | {"TERM": "xterm"}
    done = subprocess.run(
        command, cwd=shell.home, env=environment, stdout=subprocess.PIPE, stderr=secondary, timeout=60
    )
    os.close(secondary)
    shown = os.read(primary, 65536).decode()
    os.close(primary)
    assert done.returncode == 0
    return done.stdout.decode(), shown


def test_a_terminal_gets_a_bar(shell: Shell) -> None:
    written, shown = watched(shell, "create", "blog", "apps/blog")
    assert "Packing 4" in shown
    assert "packed into" in written


def test_a_terminal_is_told_what_is_waited_for(shell: Shell) -> None:
    shell("create", "blog", "apps/blog")
    for option, told in (([], True), (["--json"], False)):
        primary, secondary = terminal()
        command = [sys.executable, "-m", "snapstore", "list", *option]
        done = subprocess.run(command, env=shell.environment, stdout=subprocess.PIPE, stderr=secondary, timeout=60)
        os.write(secondary, b"end")
        os.close(secondary)
        shown = ""
        while not shown.endswith("end"):
            shown += os.read(primary, 65536).decode()
        os.close(primary)
        assert done.returncode == 0
        assert (re.fullmatch(r"Opening /.*/store …\r\x1b\[Kend", shown) is not None) == told
        assert told or shown == "end"


def test_a_terminal_sees_how_far_the_filling_of_a_new_index_has_come(shell: Shell) -> None:
    shell("create", "blog", "apps/blog", "--url", "store")
    _, shown = watched(shell, "list", "--url", "store", "--index", "new.db")
    assert "Opening" in shown
    assert "Putting in place 1 snapshots" in shown


SLOW_DOCTOR = """
import asyncio, snapstore, sys
from snapstore.cli import main

async def diagnose(url):
    yield snapstore.Check(name="list objects", result="ok", use="reaching the store")
    await asyncio.sleep(60)

snapstore.diagnose = diagnose
sys.argv = ["snapstore", "doctor"]
main()
"""


def test_a_terminal_gets_each_check_as_it_comes(shell: Shell) -> None:
    primary, secondary = terminal()
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_DOCTOR], env=shell.environment, stdout=secondary, stderr=secondary
    )
    shown = b""
    while not shown.endswith("Checking …\r".encode()) or b"list objects" not in shown:
        shown += os.read(primary, 1024)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    os.close(secondary)
    os.close(primary)
    lines = re.sub(r"Checking …\r\x1b\[K", "", re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())).splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["RESULT", "ok"]
    assert lines[0].index("FOR") == lines[1].index("reaching")


def test_without_its_extra_the_command_line_says_what_to_install(shell: Shell) -> None:
    blocked = "import sys; sys.modules['typer'] = None; from snapstore.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "pip install 'snapstore[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


# The index.


def test_a_damaged_index_that_is_moved_aside_is_told(shell: Shell) -> None:
    shell("create", "blog", "apps/blog", "--index", "index.db")
    (shell.home / "index.db-damaged").touch()
    done = shell("list", "--index", "index.db")
    assert done.returncode == 0
    assert "index.db is damaged (as was found in use): moved to" in done.stderr
    assert "blog" in done.stdout
    assert shell("list", "--index", "index.db").stderr == ""


@pytest.mark.parametrize("duration", ["9" * 30 + "w", "9" * 5000 + "s"])
def test_a_duration_longer_than_all_time_is_wrong_usage(shell: Shell, duration: str) -> None:
    shell("create", "blog", "apps/blog")
    for command in (["list", "--since", duration], ["index", "sync", "--recent", duration]):
        done = shell(*command)
        assert done.returncode == 2
        assert "too long a time" in done.stderr
        assert "Traceback" not in done.stderr


def test_archives_without_metadata_that_are_young_are_counted(shell: Shell) -> None:
    shell("create", "blog", "apps/blog", "--url", "store")
    for metadata in (shell.home / "store" / "_metadata").iterdir():
        metadata.unlink()
    done = shell("index", "rebuild", "--from-archives", "--url", "store")
    assert done.returncode == 0
    assert "1 archive without metadata, younger than an hour" in done.stdout + done.stderr
    assert "no archive lacks" not in done.stdout + done.stderr
    assert shell("index", "rebuild", "--from-archives", "--no-archives", "--url", "store").returncode == 2


def test_a_rebuild_counts_archives_whose_metadata_may_still_come(shell: Shell) -> None:
    for _ in range(2):
        shell("create", "blog", "apps/blog", "--url", "store")
    next((shell.home / "store" / "_metadata").iterdir()).unlink()
    done = shell("index", "rebuild", "--url", "store")
    assert done.returncode == 0
    assert "1 archive without metadata, younger than an hour" in done.stderr
    assert shell.document("index", "rebuild", "--url", "store")["recent"] == 1


def test_what_came_from_checkpoints_is_told(shell: Shell) -> None:
    for _ in range(2):
        shell("create", "blog", "apps/blog", "--url", "store")
    shell("index", "checkpoint", "--url", "store")
    shell("create", "blog", "apps/blog", "--url", "store")
    for index in ("index.db", "index.db", "other.db"):  # one that is there, and new ones
        done = shell("index", "rebuild", "--url", "store", "--index", index)
        assert ": 2 from checkpoints, 1 read, 0 dropped" in done.stdout


def test_status_counts_what_a_sync_tells_of(shell: Shell) -> None:
    shell("create", "blog", "apps/blog", "--url", "store")
    metadata = shell.home / "store" / "_metadata"
    (metadata / "README").write_text("read me")
    (metadata / "00000000-0000-4000-8000-000000000000").write_text("no JSON")
    synced = shell("index", "sync", "--url", "store")
    assert (synced.returncode, len(synced.stderr.splitlines())) == (3, 2)
    assert shell.document("index", "status", "--url", "store")["problems"] == 2
    (metadata / "README").unlink()
    assert len(shell("index", "sync", "--url", "store").stderr.splitlines()) == 1
    assert shell.document("index", "status", "--url", "store")["problems"] == 1
