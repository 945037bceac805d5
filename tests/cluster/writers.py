"""A load for tests, as a process: writers with unique keys, and what became of each write.

    with writers_on(live) as writers:       in a test
    python tests/cluster/writers.py CLUSTER WRITERS INTERVAL_MS HISTORY

Each writer has one write outstanding and begins the next one at the earliest INTERVAL_MS after the
last began. A key is written once, and its value says which key it belongs to. Whatever is read from
standard input, or its end, stops the writers; when every write has ended, the history is written:
one line `key outcome started_ns ended_ns`, the outcome being ok, failed (certainly not applied) or
unknown. The first line on standard output says that a write was acknowledged.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zraft import clock
from zraft.api import Consistency
from zraft.client.sync import Client
from zraft.errors import OutcomeUnknown, ZraftError
from zraft.machine.kv_codec import encode_put

if TYPE_CHECKING:  # as a program this file is not in a package
    from tests.cluster.harness import LiveCluster

WRITERS = 8
INTERVAL_MS = 10  # of each writer: 800 writes/s at most
TIMEOUT_S = 1.5
STOP_MS = 20_000
STDIN = 0


class Write(NamedTuple):
    """One write and how it ended."""

    key: str
    outcome: str
    started_ns: int
    ended_ns: int


def value_of(key: str) -> str:
    """Return the value that a key gets."""
    return f"value of {key}"


def read_history(path: Path) -> list[Write]:
    """Return what a finished process wrote."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return [Write(key, outcome, int(start), int(end)) for key, outcome, start, end in lines]


def outcome_of(result: object) -> str:
    """Return which of the three outcomes a result is."""
    if isinstance(result, OutcomeUnknown):
        return "unknown"
    return "failed" if isinstance(result, ZraftError) else "ok"


def write_until_stopped(client: Client, writers: int, interval_ms: int) -> list[Write]:
    """Write until something arrives on standard input; return all writes."""
    history: list[Write] = []
    under_way: dict[int, tuple[int, str, int]] = {}
    due_ms = dict.fromkeys(range(writers), clock.now_ms())
    counts = dict.fromkeys(range(writers), 0)
    stdin = select.poll()
    stdin.register(STDIN, select.POLLIN)
    stopping = said = False
    while due_ms or under_way:
        now_ms = clock.now_ms()
        for writer in [writer for writer, at_ms in due_ms.items() if at_ms <= now_ms]:
            del due_ms[writer]
            counts[writer] += 1
            key = f"w{writer}-{counts[writer]:06d}"
            body = encode_put(key.encode(), value_of(key).encode())
            request_id = client.submit(body, Consistency.WRITE, timeout_s=TIMEOUT_S)
            under_way[request_id] = (writer, key, clock.monotonic_ns())
        wait_ms = max(0, min(due_ms.values(), default=now_ms + 100) - now_ms)
        if stdin.poll(0 if under_way else wait_ms):
            stopping = True
        for request_id, result, _ in client.wait(timeout_s=wait_ms / 1000):
            writer, key, started_ns = under_way.pop(request_id)
            history.append(Write(key, outcome_of(result), started_ns, clock.monotonic_ns()))
            due_ms[writer] = max(clock.now_ms(), started_ns // 1_000_000 + interval_ms)
            if history[-1].outcome == "ok" and not said:
                said = bool(os.write(1, b"acknowledged\n"))
        if stopping:
            due_ms.clear()
    return history


class Writers:
    """The process of the writers; it must live as long as the faults last."""

    def __init__(self, live: LiveCluster) -> None:
        """Start it and wait for the first acknowledged write."""
        self._path = live.home / "history"
        words = [live.cluster.name, str(WRITERS), str(INTERVAL_MS), str(self._path)]
        self._process = subprocess.Popen(
            [sys.executable, __file__, *words],
            env=live.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"acknowledged\n"
        self._pidfd = os.pidfd_open(self._process.pid)
        self._ended = select.poll()
        self._ended.register(self._pidfd, select.POLLIN)

    def watch(self, duration_ms: int) -> None:
        """Let so much time pass; fail when the writers end meanwhile."""
        assert not self._ended.poll(duration_ms), f"writers ended: {self._process.poll()}"

    def stop(self) -> list[Write]:
        """Let every write end and return the history."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"stop\n")
        self._process.stdin.flush()
        assert self._ended.poll(STOP_MS), "the writers do not end"
        assert self._process.wait() == 0
        return read_history(self._path)

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        os.close(self._pidfd)


@contextmanager
def writers_on(live: LiveCluster) -> Iterator[Writers]:
    """Run the writers on a cluster."""
    writers = Writers(live)
    try:
        yield writers
    finally:
        writers.close()


def main() -> None:
    """Do what the command line says."""
    cluster, writers, interval_ms, path = sys.argv[1:5]
    with Client(cluster) as client:
        history = write_until_stopped(client, int(writers), int(interval_ms))
    lines = [f"{w.key} {w.outcome} {w.started_ns} {w.ended_ns}\n" for w in history]
    Path(path).write_text("".join(lines))


if __name__ == "__main__":
    main()
