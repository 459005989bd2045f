"""What people do without snapstore in Python, and what the older system does: a temporary archive, then its upload.

The older system's listing reads one object for each snapshot, one after the other, and keeps those with the label. The
client is made before the clock starts.
"""

import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard

from benchmarks import fleet
from benchmarks.clock import Traffic, clock
from benchmarks.seaweedfs import client
from snapstore import keys, metadata


def _split(url: str) -> tuple[str, str]:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return bucket, prefix


async def create(url: str, folder: str, scratch: str) -> None:
    """GNU tar and zstd into a temporary archive, its upload, and a metadata object."""
    await _create(url, folder, scratch, _pack_with_tar)


async def create_with_tarfile(url: str, folder: str, scratch: str) -> None:
    await _create(url, folder, scratch, _pack_with_tarfile)


async def _create(url: str, folder: str, scratch: str, pack: Callable[[str, Path], None]) -> None:
    from boto3.s3.transfer import S3Transfer

    traffic = Traffic()
    s3 = client(os.environ.get("AWS_ENDPOINT_URL"))
    bucket, prefix = _split(url)
    transfer = S3Transfer(s3)
    with clock(traffic) as inside, tempfile.TemporaryDirectory(dir=scratch) as temporary:
        archive = Path(temporary, "archive.tar.zst")
        pack(folder, archive)
        transfer.upload_file(str(archive), bucket, f"{prefix}/archive.tar.zst")
        s3.put_object(Bucket=bucket, Key=f"{prefix}/_metadata/snapshot", Body=b"{}")
        inside.values["archive_bytes"] = float(archive.stat().st_size)
    inside.tell()


def _pack_with_tar(folder: str, archive: Path) -> None:
    subprocess.run(["tar", "-I", "zstd -3 -T0", "-cf", str(archive), "-C", folder, "."], check=True)


def _pack_with_tarfile(folder: str, archive: Path) -> None:
    compressor = zstandard.ZstdCompressor(level=3, threads=-1)
    with (
        archive.open("wb") as file,
        compressor.stream_writer(file) as packed,
        tarfile.open(fileobj=packed, mode="w|") as tar,
    ):
        tar.add(folder, arcname=".")


def put_metadata(url: str, count: int, s3: Any) -> None:
    """The metadata of so many snapshots, each in an object of its own."""
    bucket, prefix = _split(url)
    for number in range(count):
        made = fleet.snapshot(number)
        key = f"{prefix}/{keys.metadata_key(made.id)}"
        s3.put_object(Bucket=bucket, Key=key, Body=metadata.encode(made))


async def list_by_label(url: str, label: str) -> None:
    traffic = Traffic()
    s3 = client(os.environ.get("AWS_ENDPOINT_URL"))
    bucket, prefix = _split(url)
    s3.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/none")  # the connection is there
    found: list[dict[str, Any]] = []
    with clock(traffic) as inside:
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/_metadata/"):
            for item in page.get("Contents", []):
                read = json.loads(s3.get_object(Bucket=bucket, Key=item["Key"])["Body"].read())
                if label in read["labels"]:
                    found.append(read)
        found.sort(key=lambda row: row["ts"], reverse=True)
    inside.values["found"] = float(len(found[:50]))
    inside.tell()
