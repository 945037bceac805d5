"""What a hand-over costs: writes go on without a pause while a leader hands over.

One client keeps a few durable writes outstanding, and does what a client does: it retries what was
certainly not applied. Or it has a session, which repeats also what may have been applied, one write
after the other. Meanwhile the command line stops the leader, or restarts all nodes in turn.
*Unavailable* is the longest time without an acknowledgement, from just before the command until the
next leader has served a while; what is usual stands beside.
"""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from zraft import clock
from zraft.api import Consistency
from zraft.client.named import Session
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


class Writer(ABC):
    """A client that never stops writing; notes when each acknowledgement came."""

    def __init__(self) -> None:
        """Nothing was written yet."""
        self.sent = 0
        self.answered_ns: list[int] = []
        self.failures: list[str] = []

    @abstractmethod
    def write_while(self, wanted: Callable[[], bool]) -> None:
        """Write as long as `wanted()`."""

    @abstractmethod
    def finish(self) -> None:
        """Wait for what is still outstanding."""

    def longest_gap_ms(self, from_ns: int, to_ns: int) -> float:
        """Return the longest time without an acknowledgement that ended within a span."""
        times = self.answered_ns
        gaps = [b - a for a, b in pairwise(times) if from_ns <= b and a < to_ns]
        return max(gaps, default=to_ns - from_ns) / 1e6


class PlainWriter(Writer):
    """Several writes at a time, none of which has a name: an outcome may be unknown."""

    def __init__(self, client: Client) -> None:
        """Use a client that does nothing else meanwhile."""
        super().__init__()
        self._client = client

    def write_while(self, wanted: Callable[[], bool]) -> None:
        """Keep writes outstanding as long as `wanted()`."""
        client = self._client
        while wanted():
            while client.outstanding < OUTSTANDING:
                body = encode_put(b"key%d" % (self.sent % KEYS), b"%d" % self.sent)
                client.submit(body, Consistency.WRITE)
                self.sent += 1
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


class SessionWriter(Writer):
    """One write after the other in a session: each must come to a good end."""

    def __init__(self, session: Session) -> None:
        """Use an open session."""
        super().__init__()
        self._session = session

    def write_while(self, wanted: Callable[[], bool]) -> None:
        """Write, wait, write the next."""
        while wanted():
            try:
                self._session.kv.put(f"key{self.sent % KEYS}", f"{self.sent}")
            except ZraftError as error:
                self.failures.append(str(error))
            else:
                self.answered_ns.append(clock.monotonic_ns())
            self.sent += 1

    def finish(self) -> None:
        """Nothing is outstanding."""


def measure_hand_over(
    writer: Writer, command: Sequence[str], environ: Mapping[str, str]
) -> HandOver:
    """Let `command`, which makes a leader hand over, run under load.

    Raises:
        ZraftError: the command failed.
    """
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
