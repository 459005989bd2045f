"""What a month of a fleet costs in requests: measured requests of one snapshot, times S3's list prices."""

from collections.abc import Mapping
from statistics import median

from benchmarks.figures import Topic

APPS = 20_000
NIGHTS = 30
PRICES = (
    "S3 Standard, us-east-1: $0.005 per 1,000 PUT, COPY, POST or LIST, $0.0004 per 1,000 GET and others; DELETE free"
)
_WRITE, _READ = 0.005 / 1000, 0.0004 / 1000
_FREE = {"DELETE", "DeleteObject", "DeleteObjects", "AbortMultipartUpload"}
_READS = {"GET", "HEAD", "GetObject", "HeadObject"}


def month(topic: Topic) -> Mapping[str, tuple[float, float]]:
    """By contestant: requests of a snapshot, and dollars of a month for all apps, each night one. Not measured: absent.

    What a tool does besides (the older system's listings, restic's locks and prunes) is not in it.
    """
    found = {}
    for name, runs in topic.contestants.items():
        counted = [run.requests for run in runs if run.requests is not None]
        if any(counted):  # a repository in a folder asks for nothing
            requests = median(sum(each.values()) for each in counted)
            found[name] = requests, median(map(_dollars, counted)) * APPS * NIGHTS
    return found


def _dollars(requests: Mapping[str, int]) -> float:
    def price(kind: str) -> float:
        return 0.0 if kind in _FREE else _READ if kind in _READS else _WRITE

    return sum(count * price(kind) for kind, count in requests.items())
