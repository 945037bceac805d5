"""What the machine can do at the moment: a round trip, a sync, and how late an idle loop wakes.

Three figures that every measurement is printed beside. The round trip is one message there and back
through ZeroMQ over ipc to another process that only echoes; the sync is one write into zero-filled
space and its fdatasync; the wake-up delay is that of a process that does nothing but wait 5 ms,
again and again: when it comes 20 ms late, other work took the machine, and times say nothing.

As a program it is one of the helpers: `echo <socket>` or `watch`.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from pathlib import Path
from types import TracebackType

import msgspec
import zmq

from zraft import clock
from zraft.testing.bench.helper import Helper, say, say_ready
from zraft.testing.bench.latency import median, percentile

MODULE = "zraft.testing.bench.machine"
MESSAGE = b"m" * 128
ROUND_TRIPS = 300
SYNCS = 60
SYNC_BYTES = 512
FILE_BYTES = 1 << 20
WATCH_MS = 5
NOT_JUDGED_MS = 20.0
"""A run in which an idle loop woke later than this is not judged."""
STDIN = 0


class MachineFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one run, in ms; medians and the 99th percentiles of single operations."""

    round_trip_ms: float
    round_trip_p99_ms: float
    fdatasync_ms: float
    fdatasync_p99_ms: float
    wakeup_delay_ms: float  # the largest one


class Machine:
    """The helpers and the file that the figures come from; a context manager."""

    def __init__(self, sockets: Path, data: Path) -> None:
        """Start the helpers. Both directories exist."""
        self._round_trips_ns: list[float] = []
        self._syncs_ns: list[float] = []
        self._worst_delay_ms = 0.0
        self._helpers: list[Helper] = []
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._fd = os.open(data / "sync", flags, 0o600)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.close)
            os.pwrite(self._fd, bytes(FILE_BYTES), 0)
            os.fsync(self._fd)
            endpoint = f"ipc://{sockets}/echo"
            self._helpers = [Helper(MODULE, ["echo", endpoint]), Helper(MODULE, ["watch"])]
            for helper in self._helpers:
                helper.wait_ready()
            self._socket = self._context.socket(zmq.DEALER)
            self._socket.connect(endpoint)
            self._round_trip()
            on_failure.pop_all()

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the helpers."""
        self._context.destroy(linger=0)
        for helper in self._helpers:
            helper.end()
        os.close(self._fd)

    def sample(self) -> None:
        """Measure round trips and syncs once more."""
        self._round_trips_ns += [self._round_trip() for _ in range(ROUND_TRIPS)]
        self._syncs_ns += [self._sync(number) for number in range(SYNCS)]

    def take_delay_ms(self) -> float:
        """Return the largest wake-up delay of the idle loop since the last call."""
        delay_ms = float(self._helpers[1].ask("take"))
        self._worst_delay_ms = max(self._worst_delay_ms, delay_ms)
        return delay_ms

    def figures(self) -> MachineFigures:
        """Return the figures of all samples so far."""
        self.take_delay_ms()
        return MachineFigures(
            round_trip_ms=median(self._round_trips_ns) / 1e6,
            round_trip_p99_ms=percentile(sorted(self._round_trips_ns), 0.99) / 1e6,
            fdatasync_ms=median(self._syncs_ns) / 1e6,
            fdatasync_p99_ms=percentile(sorted(self._syncs_ns), 0.99) / 1e6,
            wakeup_delay_ms=self._worst_delay_ms,
        )

    def _round_trip(self) -> int:
        start_ns = clock.monotonic_ns()
        self._socket.send(MESSAGE)
        self._socket.recv()
        return clock.monotonic_ns() - start_ns

    def _sync(self, number: int) -> int:
        block = os.urandom(SYNC_BYTES)
        start_ns = clock.monotonic_ns()
        os.pwrite(self._fd, block, number * SYNC_BYTES % FILE_BYTES)
        os.fdatasync(self._fd)
        return clock.monotonic_ns() - start_ns


def echo(endpoint: str) -> None:
    """Send back what comes, until standard input is closed."""
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.bind(endpoint)
    poller = zmq.Poller()
    poller.register(STDIN, zmq.POLLIN)
    poller.register(socket, zmq.POLLIN)
    say_ready()
    while True:
        ready = dict(poller.poll())
        if STDIN in ready:
            break
        socket.send_multipart(socket.recv_multipart(zmq.NOBLOCK))
    context.destroy(linger=0)


def watch() -> None:
    """Wait 5 ms again and again; answer each line with the largest delay since the last one."""
    poll = select.poll()
    poll.register(STDIN, select.POLLIN)
    worst_ns = 0
    say_ready()
    while True:
        start_ns = clock.monotonic_ns()
        ready = poll.poll(WATCH_MS)
        late_ns = clock.monotonic_ns() - start_ns - WATCH_MS * 1_000_000
        worst_ns = max(worst_ns, late_ns)
        if ready:
            if not os.read(STDIN, 4096):
                return
            say(f"{worst_ns / 1e6:.3f}")
            worst_ns = 0


def main() -> None:
    """Be the helper that the command line names."""
    if sys.argv[1] == "echo":
        echo(sys.argv[2])
    else:
        watch()


if __name__ == "__main__":
    main()
