"""Where snapshots are kept while we measure: a folder, a SeaweedFS of our own, or somebody's bucket.

Every tool names the same place in its own way; all of these ways are here.
"""

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.processes import Failed
from benchmarks.seaweedfs import SeaweedFS, Traffic, client, seaweedfs

BUCKET = "benchmarks"
_MOST = 8 << 30
"""Bytes that may pile up on the disk of our own server before its bucket is made anew."""
_ALWAYS = {"RESTIC_PASSWORD": "benchmarks", "RCLONE_CONFIG": "/dev/null", "AWS_EC2_METADATA_DISABLED": "true"}


class Place:
    """One store, and in it a subfolder for each thing that is measured."""

    def __init__(self, kind: str, root: str, environment: Mapping[str, str], server: SeaweedFS | None) -> None:
        self.kind = kind
        self.environment = {**_ALWAYS, **environment}
        self._root = root
        self._server = server

    @property
    def is_bucket(self) -> bool:
        return self.kind != "folder"

    def url(self, name: str) -> str:
        """As snapstore and the AWS command line write it."""
        return f"s3://{self._root}/{name}" if self.is_bucket else f"{self._root}/{name}"

    def rclone(self, name: str) -> str:
        return f"bench:{self._root}/{name}" if self.is_bucket else f"{self._root}/{name}"

    def restic(self, name: str) -> str:
        endpoint = self.environment.get("AWS_ENDPOINT_URL", "https://s3.amazonaws.com")
        return f"s3:{endpoint}/{self._root}/{name}" if self.is_bucket else f"{self._root}/{name}"

    def traffic(self) -> Traffic | None:
        """What the store itself has counted so far; None where it does not tell."""
        return self._server.traffic() if self._server else None

    def remove(self, name: str) -> None:
        """Everything below ``name``."""
        if not self.is_bucket:
            shutil.rmtree(f"{self._root}/{name}", ignore_errors=True)
            return
        bucket, _, prefix = (f"{self._root}/{name}".rstrip("/") + "/").partition("/")
        s3 = self.client()
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            keys = [{"Key": found["Key"]} for found in page.get("Contents", [])]
            for start in range(0, len(keys), 1000):
                s3.delete_objects(Bucket=bucket, Delete={"Objects": keys[start : start + 1000]})

    def make_room(self) -> None:
        """Deleted objects stay on the disk of our own server until their bucket goes: do that when they are many.

        Only to a bucket in which nothing is kept for later.
        """
        if self._server and _size(self._server.folder) > _MOST:
            s3 = self.client()
            if s3.list_objects_v2(Bucket=BUCKET, MaxKeys=1)["KeyCount"]:
                return
            s3.delete_bucket(Bucket=BUCKET)
            s3.create_bucket(Bucket=BUCKET)
            warm(s3)

    def client(self) -> Any:
        keys = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        return client(*(self.environment.get(key) for key in keys))


def check(store: str) -> None:
    """Failed where it is none of those that `opened` knows."""
    if store not in ("folder", "seaweedfs") and not re.fullmatch(r"s3://[^/]+.*", store):
        raise Failed(f"{store!r} is no store: give folder, seaweedfs, or s3://bucket/prefix")


@contextlib.contextmanager
def opened(store: str, workplace: Path) -> Iterator[Place]:
    """The place that ``--store`` names: ``folder``, ``seaweedfs`` or ``s3://bucket/prefix``; its own traces go."""
    check(store)
    own = f"run-{uuid.uuid4().hex[:12]}"
    if store == "folder":
        root = workplace / own
        root.mkdir()
        try:
            yield Place("folder", str(root), {}, None)
        finally:
            shutil.rmtree(root, ignore_errors=True)
    elif store == "seaweedfs":
        folder = workplace / own
        try:
            with seaweedfs(folder) as server:
                place = Place("seaweedfs", BUCKET, _of_server(server), server)
                s3 = place.client()
                s3.create_bucket(Bucket=BUCKET)
                warm(s3)
                yield place
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    else:
        place = Place("s3", f"{store.removeprefix('s3://').strip('/')}/{own}", _of_user(), None)
        try:
            yield place
        finally:
            place.remove("")


def warm(s3: Any) -> None:
    """The first objects of a SeaweedFS bucket wait for its volumes to be made, which nobody shall pay for."""
    for number in range(32):
        s3.put_object(Bucket=BUCKET, Key=f"warm/{number}", Body=b"warm" * 1000)
    s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": f"warm/{number}"} for number in range(32)]})


def _of_server(server: SeaweedFS) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "RCLONE_CONFIG_BENCH_TYPE": "s3",
        "RCLONE_CONFIG_BENCH_PROVIDER": "Other",
        "RCLONE_CONFIG_BENCH_ENV_AUTH": "true",
        "RCLONE_CONFIG_BENCH_ENDPOINT": server.endpoint,
        "RCLONE_CONFIG_BENCH_NO_CHECK_BUCKET": "true",
    }


def _of_user() -> dict[str, str]:
    """The caller's own credentials and endpoint, told to rclone as well."""
    theirs = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    rclone = {
        "RCLONE_CONFIG_BENCH_TYPE": "s3",
        "RCLONE_CONFIG_BENCH_ENV_AUTH": "true",
        "RCLONE_CONFIG_BENCH_PROVIDER": "Other" if "AWS_ENDPOINT_URL" in theirs else "AWS",
        "RCLONE_CONFIG_BENCH_NO_CHECK_BUCKET": "true",
    }
    if endpoint := theirs.get("AWS_ENDPOINT_URL"):
        rclone["RCLONE_CONFIG_BENCH_ENDPOINT"] = endpoint
    return theirs | rclone


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
