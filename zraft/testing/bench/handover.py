"""What a hand-over costs: writes go on without a pause while the leader is stopped politely.

One client keeps a few durable writes outstanding, and does what a client does: it retries what was
certainly not applied. Meanwhile the command line stops the leader, as `cluster restart --rolling`
does for each node in turn. *Unavailable* is the longest time without an acknowledgement, from just
before the command until the next leader has served a while; what is usual stands beside.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from zraft import clock
from zraft.api import Consistency
from zraft.client.sync import Client
from zraft.errors import ZraftError
from zraft.machine.kv_codec import encode_put

OUTSTANDING = 8
KEYS = 1_000
WARM_MS = 300  # of load before the command, from which the usual gap is taken
AFTER_MS = 300  # of load after it
TIMEOUT_S = 10.0


class HandOver(NamedTuple):
    """One hand-over; `failures` are the writes that were not acknowledged, for whatever reason."""

    unavailable_ms: float
    usual_ms: float  # the longest time without an acknowledgement before
    writes: int
    failures: list[str]


class Writer:
    """A client that never stops writing; notes when each acknowledgement came."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._sent = 0
        self.answered_ns: list[int] = []
        self.failures: list[str] = []

    def write_while(self, wanted: Callable[[], bool]) -> None:
        """Keep writes outstanding as long as `wanted()`."""
        client = self._client
        while wanted():
            while client.outstanding < OUTSTANDING:
                body = encode_put(b"key%d" % (self._sent % KEYS), b"%d" % self._sent)
                client.submit(body, Consistency.WRITE)
                self._sent += 1
            self._take_in(0.05)

    def finish(self) -> None:
        """Wait for what is still outstanding."""
        while self._client.outstanding:
            self._take_in(TIMEOUT_S)

    def _take_in(self, timeout_s: float) -> None:
        for finished in self._client.wait(timeout_s=timeout_s):
            if isinstance(finished.outcome, ZraftError):
                self.failures.append(str(finished.outcome))
            else:
                self.answered_ns.append(clock.monotonic_ns())

    def longest_gap_ms(self, from_ns: int, to_ns: int) -> float:
        """Return the longest time without an acknowledgement that ended within a span."""
        times = self.answered_ns
        gaps = [b - a for a, b in pairwise(times) if from_ns <= b and a < to_ns]
        return max(gaps, default=to_ns - from_ns) / 1e6


def measure_hand_over(
    client: Client, command: Sequence[str], environ: Mapping[str, str]
) -> HandOver:
    """Let `command`, which makes a leader hand over, run under load.

    Raises:
        ZraftError: the command failed.
    """
    writer = Writer(client)
    start_ns = clock.monotonic_ns()
    warm_ns = start_ns + WARM_MS * 1_000_000
    writer.write_while(lambda: clock.monotonic_ns() < warm_ns)
    with subprocess.Popen(
        command, env=dict(environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        writer.write_while(lambda: process.poll() is None)
        _, told = process.communicate()
    if process.returncode != 0:
        why = told.decode(errors="replace").strip()[-1000:]
        raise ZraftError(f"{' '.join(command)} ended with code {process.returncode}", why=why)
    end_ns = clock.monotonic_ns() + AFTER_MS * 1_000_000
    writer.write_while(lambda: clock.monotonic_ns() < end_ns)
    writer.finish()
    usual_ms = writer.longest_gap_ms(start_ns, warm_ns)
    gap_ms = writer.longest_gap_ms(warm_ns, end_ns)
    return HandOver(gap_ms, usual_ms, len(writer.answered_ns), writer.failures)
