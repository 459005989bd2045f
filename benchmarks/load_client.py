"""Clients of a web server on this machine, as a program of its own: they ask for / on a port, again and again.

For each line on stdin there is one on stdout: how many answers there were since the last, in how many seconds, and how
long they took. It imports little, so that it takes little of the processors that the server is measured on.
"""

import json
import socket
import sys
import threading
import time

CONNECTIONS = 4
_REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
_ENOUGH = 1 << 16


def _ask(port: int, times: list[list[float]]) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        while True:
            started = time.perf_counter()
            connection.sendall(_REQUEST)
            answer = b""
            while not answer.endswith(b"}"):  # a JSON object
                if not (piece := connection.recv(_ENOUGH)):
                    return
                answer += piece
            times[0].append(time.perf_counter() - started)


def main() -> None:
    times: list[list[float]] = [[]]
    for _ in range(CONNECTIONS):
        threading.Thread(target=_ask, args=(int(sys.argv[1]), times), daemon=True).start()
    since = time.perf_counter()
    for _ in sys.stdin:
        found, times[0] = times[0], []
        now = time.perf_counter()
        ordered = sorted(found) or [0.0]
        told = {
            "count": len(found),
            "seconds": now - since,
            "p50_ms": ordered[len(ordered) // 2] * 1000,
            "p99_ms": ordered[len(ordered) * 99 // 100] * 1000,
            "max_ms": ordered[-1] * 1000,
        }
        since = now
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
