"""Run a command and measure it with all of its descendants.

A small launcher starts it and waits for it, since a process that is forked begins with the memory of the one that
forks: the kernel's ``ru_maxrss`` would never be less than ours, and so it is never less than the launcher's (9 MiB).
Time of the processors is the kernel's own account (`os.wait4`), which includes every descendant that was waited for.
Memory is what all of them hold together: RSS of the tree, summed every 20 ms, and PSS, which counts shared pages once
but costs more to read, every 250 ms. Whoever is measured pays alike for the sampling: about 1 % of one processor.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from benchmarks.peers import search_path

_EVERY = 0.02
_PSS_EVERY = 0.25
_ENOUGH = 4
"""Samples that a peak by PSS is worth telling from."""
_PAGE = os.sysconf("SC_PAGE_SIZE")
_LIMIT = 3600.0


# Starts a command, waits for it, and writes its wall, user and system time and the largest of its processes.
_LAUNCHER = """
import os, sys, time
account, argv = int(sys.argv[1]), sys.argv[2:]
os.set_inheritable(account, False)
started = time.monotonic()
child = os.posix_spawnp(argv[0], argv, os.environ)
_, status, used = os.wait4(child, 0)
wall = time.monotonic() - started
os.write(account, f"{wall} {used.ru_utime} {used.ru_stime} {used.ru_maxrss}".encode())
sys.exit(abs(os.waitstatus_to_exitcode(status)))
"""


class Failed(Exception):
    """A command did not do what it was asked; the message holds the end of what it said."""


class Command(NamedTuple):
    argv: Sequence[str]
    environment: Mapping[str, str] = {}
    folder: Path | None = None
    inside: bool = False
    """Whether it measures itself and tells so on stdout: a call inside a warm process."""


class Done(NamedTuple):
    wall: float
    user: float
    system: float
    peak: int
    peak_shared_once: int | None
    largest_process: int
    output: bytes


def pipeline(*commands: str) -> list[str]:
    """A pipe of shell commands that fails where any of them does."""
    return ["bash", "-c", "set -o pipefail; " + " | ".join(commands)]


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """What every measured command is given, with nothing of the caller's own AWS, rclone, restic or borg settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "RCLONE_", "RESTIC_", "BORG_", "SNAPSTORE_"))
    }
    return kept | {"PATH": search_path()} | dict(more)


def measured(command: Command) -> Done:
    """Run a command to its end. Raises Failed where its exit status is not 0."""
    with contextlib.ExitStack() as stack:
        output, errors, account = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(account.fileno()), *command.argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            cwd=command.folder,
            env=environment(command.environment),
            pass_fds=[account.fileno()],
            start_new_session=True,
        )
        sampler = _Sampler(process.pid)
        with _ended(process):
            sampler.start()
            process.wait()
        sampler.stop()
        told, complaints, used = (_whole(file) for file in (output, errors, account))
    if process.returncode:
        said = complaints[-2000:].decode(errors="replace")
        raise Failed(f"{' '.join(command.argv)} ended with {process.returncode}: {said}")
    wall, user, system, largest = map(float, used.split())
    return Done(
        wall=wall,
        user=user,
        system=system,
        peak=max(sampler.peak, int(largest) * 1024),
        peak_shared_once=sampler.peak_shared_once if sampler.shared_samples >= _ENOUGH else None,
        largest_process=int(largest) * 1024,
        output=told,
    )


def _whole(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


@contextlib.contextmanager
def _ended(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """The command and its descendants end when we are interrupted, or when it takes far too long."""
    alarm = threading.Timer(_LIMIT, _kill, [process.pid])
    alarm.daemon = True
    alarm.start()
    try:
        yield
    except BaseException:
        _kill(process.pid)
        process.wait()
        raise
    finally:
        alarm.cancel()


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.killpg(group, signal.SIGKILL)


class _Sampler:
    def __init__(self, root: int) -> None:
        self.peak = self.peak_shared_once = self.shared_samples = 0
        self._root = root
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _sample(self) -> None:
        shared_at = 0.0
        while not self._stopped.is_set():
            tree = list(_tree(self._root))[1:]  # without the launcher
            self.peak = max(self.peak, sum(map(_rss, tree)))
            if time.monotonic() >= shared_at:
                self.peak_shared_once = max(self.peak_shared_once, sum(map(_pss, tree)))
                self.shared_samples += 1
                shared_at = time.monotonic() + _PSS_EVERY
            self._stopped.wait(_EVERY)


def _tree(pid: int) -> Iterator[int]:
    """A process and its descendants, but for those that are not a program of their own yet: they share its memory."""
    yield pid
    with contextlib.suppress(OSError):  # it has ended meanwhile
        program = Path(f"/proc/{pid}/cmdline").read_bytes()
        for thread in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
                if Path(f"/proc/{child}/cmdline").read_bytes() != program:
                    yield from _tree(int(child))


def _rss(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def _pss(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def cpu_seconds(pid: int) -> float:
    """What a running process has taken of the processors so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
