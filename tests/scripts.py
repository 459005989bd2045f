"""Scripts that run as processes of their own, beside a test."""

import asyncio
import subprocess
import sys
from pathlib import Path

_begun: "list[subprocess.Popen[str]]" = []


def script(code: str, *arguments: object) -> "subprocess.Popen[str]":
    """Begin ``code``, which may import whatever a test may; its three streams are pipes."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    _begun.append(process)
    return process


def end_all() -> None:
    """Those that a test which failed has not ended itself."""
    for process in _begun:
        if process.poll() is None:
            process.kill()
            process.communicate()
    _begun.clear()


async def said(process: "subprocess.Popen[str]") -> str:
    """The next line that it prints."""
    assert process.stdout is not None
    return await asyncio.to_thread(process.stdout.readline)
