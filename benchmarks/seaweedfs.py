"""A SeaweedFS of our own, in one process, in a folder that goes with it. It counts what is asked of it."""

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers import PROGRAMS, search_path
from benchmarks.processes import Failed, cpu_seconds, environment
from tests.servers import DIES_WITH_PARENT, WEED_PORTS, free_ports, remove_sockets, weed_options

_READY_SECONDS = 30.0
_STOP_SECONDS = 10.0
_ATTEMPTS = 5


class Traffic(NamedTuple):
    """All that a server has seen so far."""

    requests: Counter[str]
    sent: int
    """Bytes of bodies that it took."""
    received: int
    """Bytes of bodies that it gave."""
    cpu: float


class SeaweedFS(NamedTuple):
    endpoint: str
    metrics: str
    access_key: str
    secret_key: str
    process: "subprocess.Popen[bytes]"
    folder: Path
    ports: list[int]

    def traffic(self) -> Traffic:
        """From its own metrics; what had no bucket (its readiness) is left out."""
        with urllib.request.urlopen(self.metrics, timeout=10) as answer:
            text = answer.read().decode()
        requests: Counter[str] = Counter()
        moved = {"received": 0, "sent": 0}
        for name, labels, value in re.findall(r"^SeaweedFS_s3_(\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
            if 'bucket=""' in labels:
                continue
            if name == "request_total":
                kind = re.search(r'type="(\w+)"', labels)
                requests[kind[1] if kind else "?"] += int(float(value))
            elif traffic := re.fullmatch(r"bucket_traffic_(\w+)_bytes_total", name):
                moved[traffic[1]] += int(float(value))
        return Traffic(requests, moved["received"], moved["sent"], cpu_seconds(self.process.pid))


@contextlib.contextmanager
def seaweedfs(folder: Path) -> Iterator[SeaweedFS]:
    """Start one in ``folder``, and stop it. Failed where it does not come up."""
    path = shutil.which("weed", path=search_path())
    if path is None:
        raise Failed(f"SeaweedFS is not installed: {PROGRAMS['weed'].install}, or choose another --store")
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(_ATTEMPTS):  # another program may take a port before it does
        server = _start(path, folder)
        try:
            if _is_ready(server):
                yield server
                return
        finally:
            _stop(server)
    raise Failed(f"SeaweedFS does not start, see {folder}/log")


def client(endpoint: str | None, access_key: str | None = None, secret_key: str | None = None) -> Any:
    """A plain client, for what the harness itself has to do."""
    from botocore.config import Config
    from botocore.session import Session

    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path"} if endpoint else {},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return Session().create_client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1" if endpoint else None,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=config,
    )


def _start(path: str, folder: Path) -> SeaweedFS:
    ports = free_ports(WEED_PORTS + 1)
    s3, metrics = ports[0], ports[-1]
    options = weed_options(folder, ports[:-1]) | {"metricsPort": metrics, "s3.allowDeleteBucketNotEmpty": "true"}
    access, secret = secrets.token_hex(10), secrets.token_hex(20)
    keys = {"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret}
    dying = [sys.executable, "-I", "-S", "-c", DIES_WITH_PARENT, str(os.getpid())]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*dying, path, "-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in options.items())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment(keys),
            start_new_session=True,
        )
    addresses = f"http://127.0.0.1:{s3}", f"http://127.0.0.1:{metrics}/metrics"
    return SeaweedFS(*addresses, access, secret, process, folder, ports)


def _is_ready(server: SeaweedFS) -> bool:
    """Whether an object can be put and read; False where it has ended instead."""
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + _READY_SECONDS
    s3 = client(server.endpoint, server.access_key, server.secret_key)
    while server.process.poll() is None:
        try:
            if not s3.list_buckets()["Buckets"]:
                s3.create_bucket(Bucket="ready")
            s3.put_object(Bucket="ready", Key="ready", Body=b"ready")
            s3.get_object(Bucket="ready", Key="ready")["Body"].read()
            return True
        except (BotoCoreError, ClientError) as error:
            if time.monotonic() > deadline:
                raise Failed(f"SeaweedFS is not ready after {_READY_SECONDS:.0f} s, see {server.folder}/log") from error
            time.sleep(0.1)
    return False


def _stop(server: SeaweedFS) -> None:
    """End it, and it alone."""
    server.process.terminate()
    try:
        server.process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()
    remove_sockets(server.ports)
