"""What the numbers were measured on, and with."""

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from benchmarks.peers import Library, Program
from benchmarks.results import Machine

_ROOT = Path(__file__).parent.parent


def machine() -> Machine:
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        kernel=platform.release(),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )


def versions(programs: Iterable[Program | Library]) -> dict[str, str]:
    """Of snapstore with its commit, of Python and the libraries that do the work, and of each program that is here."""
    found = {"snapstore": version("snapstore"), "commit": commit(), "python": platform.python_version()}
    found |= {library: version(library) for library in ("aiobotocore", "zstandard", "blake3")}
    return found | {program.name: program.version() for program in programs if program.is_here()}


def commit() -> str:
    """The commit of the sources beside the harness, with a mark where they were changed since."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
