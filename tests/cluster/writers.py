"""A load for tests, as a process: writers with unique keys, and what became of each write.

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
import sys
from pathlib import Path
from typing import NamedTuple

from zraft import clock
from zraft.api import Consistency
from zraft.client.sync import Client
from zraft.errors import OutcomeUnknown, ZraftError
from zraft.machine.kv_codec import encode_put

TIMEOUT_S = 1.5
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


def main() -> None:
    """Do what the command line says."""
    cluster, writers, interval_ms, path = sys.argv[1:5]
    with Client(cluster) as client:
        history = write_until_stopped(client, int(writers), int(interval_ms))
    lines = [f"{w.key} {w.outcome} {w.started_ns} {w.ended_ns}\n" for w in history]
    Path(path).write_text("".join(lines))


if __name__ == "__main__":
    main()
