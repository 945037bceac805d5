"""A disk that takes no record does not end the supervisor: what it decided by itself waits.

Nothing is signalled or started before its record is durable, so a node that ended stays down, and
is started again once there is room. Until then requests are heard at once, all else once a second:
whoever asks for something to be done is told that the disk refused, and ends this supervisor, since
a wish that was refused must not come true later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import zmq

from zraft import clock
from zraft.errors import StorageError
from zraft.telemetry import Telemetry

RETRY_MS = 1_000


class Patience:
    """See the module. The loop's part that writes records runs through `attempt`."""

    def __init__(self, telemetry: Telemetry, sources: Iterable[zmq.Socket[bytes] | int]) -> None:
        """Hear `sources` while the disk is waited for."""
        self._telemetry = telemetry
        self._poller = zmq.Poller()
        for source in sources:
            self._poller.register(source, zmq.POLLIN)
        self._retry_ms: int | None = None
        self._since_ms = 0
        self._reason = ""

    @property
    def waits(self) -> bool:
        """Whether the last record was refused."""
        return self._retry_ms is not None

    def poll(self) -> None:
        """Wait for a request, a signal, or the time of the next attempt."""
        assert self._retry_ms is not None
        self._poller.poll(max(0, self._retry_ms - clock.now_ms()))

    def attempt(self, work: Callable[[], None], *, urgent: bool) -> bool:
        """Do `work`, which may be refused and is then done again later; return whether it was done.

        Raises:
            StorageError: somebody waits for it (`urgent`), and the disk refused.
        """
        try:
            work()
        except StorageError as error:
            if urgent:
                raise
            now_ms = clock.now_ms()
            self._since_ms = self._since_ms if self.waits else now_ms
            self._retry_ms, self._reason = now_ms + RETRY_MS, error.why or error.what
            return False
        if self.waits:  # only now: the log is on the same disk
            elapsed_ms = clock.now_ms() - self._since_ms
            self._telemetry.emit("supervisor.stuck", reason=self._reason, elapsed_ms=elapsed_ms)
            self._retry_ms = None
        return True
