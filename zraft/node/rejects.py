"""What came in at a node's own sockets and was dropped: counted always, reported seldom.

Bytes from a socket are untrusted, and whoever sends garbage can send much of it: every frame is
counted, and at most one line a second and reason is written.
"""

from __future__ import annotations

from collections.abc import Callable

REPORT_EVERY_MS = 1000


class Rejects:
    """Counters by socket and reason, with a rate limit for the lines about them."""

    def __init__(self, emit: Callable[..., None]) -> None:
        """`emit` writes one event with its fields."""
        self._emit = emit
        self._counts: dict[tuple[str, str], int] = {}
        self._unreported: dict[tuple[str, str], int] = {}
        self._next_report_ms: dict[tuple[str, str], int] = {}

    def count(self, socket: str, reason: str) -> None:
        """Count one dropped frame of `socket`."""
        key = (socket, reason)
        self._counts[key] = self._counts.get(key, 0) + 1
        self._unreported[key] = self._unreported.get(key, 0) + 1

    def report(self, now_ms: int) -> None:
        """Write a line for each reason that has news, at most once a second."""
        if not self._unreported:
            return
        for key, count in [*self._unreported.items()]:
            if now_ms >= self._next_report_ms.get(key, now_ms):
                self._next_report_ms[key] = now_ms + REPORT_EVERY_MS
                del self._unreported[key]
                socket, reason = key
                self._emit("peer.garbage", socket=socket, reason=reason, count=count)

    def counters(self) -> dict[str, int]:
        """Return the counts since the start, as `<socket>.dropped.<reason>`."""
        return {f"{socket}.dropped.{reason}": n for (socket, reason), n in self._counts.items()}
