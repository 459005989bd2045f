"""Scripts that run as processes of their own, beside a test."""

import asyncio
import subprocess
import sys
from pathlib import Path


def script(code: str, *arguments: object) -> "subprocess.Popen[str]":
    """Begin ``code``, which may import whatever a test may; its three streams are pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )


async def said(process: "subprocess.Popen[str]") -> str:
    """The next line that it prints."""
    assert process.stdout is not None
    return await asyncio.to_thread(process.stdout.readline)
