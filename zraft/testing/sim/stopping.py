"""A simulated process that stops in order: the steps, and the patience, of the production loop.

hands over   serves on; writes wait for the next leader      one second at most
drains       refuses what is new; what is in the log, or     half a second at most
             passed on, may still be answered
"""

from __future__ import annotations

from zraft.node.server import Server

HAND_OVER_PATIENCE_US = 1_000_000
STOP_PATIENCE_US = 500_000


class Stopping:
    """One stop under way. `until_us` is when its present step ends at the latest."""

    def __init__(self, server: Server, *, now_us: int, now_ms: int) -> None:
        """Begin: with a hand-over if this node leads and somebody is there."""
        self._server = server
        self._hands_over = server.transfer(now_ms=now_ms) is None
        self.until_us = now_us + HAND_OVER_PATIENCE_US
        if not self._hands_over:
            self._drain(now_us, now_ms)

    def _drain(self, now_us: int, now_ms: int) -> None:
        self._hands_over = False
        self._server.prepare_stop(now_ms=now_ms)
        self.until_us = now_us + STOP_PATIENCE_US

    def is_over(self, *, now_us: int, now_ms: int) -> bool:
        """Go on to the next step if it is time; return whether the process may end now."""
        if self._hands_over:
            if self._server.handing_over and now_us < self.until_us:
                return False
            self._drain(now_us, now_ms)
        return self._server.drained or now_us >= self.until_us
