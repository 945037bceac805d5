"""What happens when: a heap of handlers, by time and, at one time, in the order they were planned.

Time is the world's true time in whole microseconds. It moves to the next event and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

Handler = Callable[[Any], None]


class Agenda:
    """See the module. `events` counts what really happened: who wakes up in vain does not count."""

    __slots__ = ("_heap", "_planned", "events", "now_us")

    def __init__(self) -> None:
        """Start at time 0, with nothing planned."""
        self.now_us = 0
        self.events = 0
        self._heap: list[tuple[int, int, Handler, Any]] = []
        self._planned = 0

    def at(self, when_us: int, handler: Handler, argument: Any = None) -> None:
        """Call `handler(argument)` at `when_us`, or next if that has passed."""
        self._planned += 1
        when_us = when_us if when_us > self.now_us else self.now_us  # quicker than max()
        heappush(self._heap, (when_us, self._planned, handler, argument))

    def after(self, delay_us: int, handler: Handler, argument: Any = None) -> None:
        """Call `handler(argument)` in `delay_us`."""
        self.at(self.now_us + delay_us, handler, argument)

    def run_until(self, end_us: int) -> None:
        """Let everything happen up to `end_us`; it is `end_us` afterwards."""
        heap = self._heap
        while heap and heap[0][0] <= end_us:
            self.now_us, _, handler, argument = heappop(heap)
            handler(argument)
        self.now_us = end_us
