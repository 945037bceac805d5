"""Python's garbage collector, kept out of the way of heartbeats.

A full collection visits every container object of the process; over the state of a large store that
is longer than a heartbeat interval, and then it is an election. So:

- generation 2 is never collected on its own (its threshold is out of reach; 0 would mean "always");
- after recovery everything that was read back is frozen: no collection visits it again;
- a full collection runs only when the node is idle, and survivors are frozen too, so that the next
  one visits only what was made since.

What is lost by that: a reference cycle that became garbage after it was frozen stays. Cycles that
live long and then die are rare here (no cycle is made per entry, request or message), and memory in
cycles is all that this is about: everything else is freed by its reference count as ever.

How long the next collection may take is estimated from how many generation-1 collections there were
since the last one, at the pace of the last one. Over `BUDGET_MS` nothing is collected, only frozen.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

from zraft import clock

YOUNG_THRESHOLD = 5000  # container objects made and not freed, before generation 0 is collected
MIDDLE_THRESHOLD = 10  # collections of generation 0, before generation 1 is
NEVER = 1 << 30
BUDGET_MS = 15.0
EVERY_MS = 10_000  # between full collections of an idle node
FIRST_GUESS_MS = 5.0  # a generation-1 collection leaves at most 50,000 survivors


class Collector:
    """The policy above. One per process: the collector it steers is the interpreter's."""

    def __init__(self, emit: Callable[..., None]) -> None:
        """Take generation 2 out of the automatic collection; `emit` writes one event."""
        self._emit = emit
        self._cost_ms = FIRST_GUESS_MS  # of one generation-1 collection's survivors
        self._next_ms = 0
        self._thresholds_before = gc.get_threshold()
        gc.set_threshold(YOUNG_THRESHOLD, MIDDLE_THRESHOLD, NEVER)

    def freeze(self) -> None:
        """Collect once and freeze what is left: after recovery, before the first heartbeat."""
        gc.collect()
        gc.freeze()

    def maybe_collect(self, now_ms: int) -> None:
        """Run a full collection if one is due and short enough; the caller says it is idle."""
        if now_ms < self._next_ms:
            return
        self._next_ms = now_ms + EVERY_MS
        passes = gc.get_count()[2]
        if passes == 0:
            return
        if passes * self._cost_ms > BUDGET_MS:
            gc.freeze()  # sets the count of generation-1 collections back, too
            return
        start_ns = clock.now_ns()
        objects = gc.collect()
        gc.freeze()
        elapsed_ms = (clock.now_ns() - start_ns) / 1e6
        self._cost_ms = max(elapsed_ms / passes, 0.1)
        self._emit("gc.collected", elapsed_ms=round(elapsed_ms, 3), objects=objects)

    def close(self) -> None:
        """Give the interpreter its thresholds back, for processes that go on (tests)."""
        gc.set_threshold(*self._thresholds_before)
        gc.unfreeze()
