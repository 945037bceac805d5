"""Python's garbage collector, kept out of the way of heartbeats.

A full collection visits every container object of the process; over the state of a large store that
is longer than a heartbeat interval, and then it is an election. So:

- the young are visited often, whatever the interpreter counts. It counts objects made *less*
  objects freed: a store whose values are replaced frees an old one for each new one, and so 19,000
  came together that were then visited at once, in 45 ms. Those of the last few milliseconds are in
  the processor's cache, and take a tenth of that each; what holds no containers (a key's item) is
  then out of every later collection;
- survivors are visited once more, within a second, before the containers among them have grown;
- the oldest are never collected on the interpreter's own account (the thresholds are out of reach;
  0 would mean "always");
- after recovery everything that was read back is frozen: no collection visits it again;
- a full collection runs only when the node is idle, and survivors are frozen too, so that the next
  one visits only what was made since.

What is lost by that: a reference cycle that became garbage after it was frozen stays. Cycles that
live long and then die are rare here (no cycle is made per entry, request or message), and memory in
cycles is all that this is about: everything else is freed by its reference count as ever.

How long a full collection may take is estimated from how many more container objects there are than
after the last one, at the pace of the last one: what is not a container itself was put into one
beside them. Over `BUDGET_MS` nothing is collected, only frozen.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

from zraft import clock

YOUNG_THRESHOLD = 5000  # container objects made and not freed within one turn
NEVER = 1 << 30
BUDGET_MS = 15.0
YOUNG_EVERY_MS = 20  # between looks at the young; where there are none, one takes 2 µs
MIDDLE_EVERY = 50  # of these, a look at those that survived one, too: every second
FULL_EVERY_MS = 10_000  # between full collections of an idle node
FIRST_GUESS_US = 0.1  # for a container object
FORGETS = 0.8  # of the estimate is left, down to the first guess, each time that nothing runs
LEAST_COST_US = 0.01  # however quickly the last ones went


class Collector:
    """The policy above. One per process: the collector it steers is the interpreter's."""

    def __init__(self, emit: Callable[..., None]) -> None:
        """Take the older generations out of the automatic collection; `emit` writes one event."""
        self._emit = emit
        self._cost_us = FIRST_GUESS_US  # of an object in a full collection
        self._made = 0  # container objects, less those that were freed, since the last one
        self._looks = 0
        self._own_looks = 0  # since generation 1 was collected
        self._next_young_ms = self._next_full_ms = 0
        self._thresholds_before = gc.get_threshold()
        gc.set_threshold(YOUNG_THRESHOLD, NEVER, NEVER)

    def freeze(self) -> None:
        """Collect once and freeze what is left: after recovery, before the first heartbeat."""
        gc.collect()
        gc.freeze()
        self._made, self._own_looks = 0, gc.get_count()[1]

    def on_turn(self, now_ms: int) -> None:
        """Visit what was made in the last few milliseconds; called in every turn."""
        if now_ms < self._next_young_ms:
            return
        self._next_young_ms = now_ms + YOUNG_EVERY_MS
        self._count()
        self._looks += 1
        gc.collect(0 if self._looks % MIDDLE_EVERY else 1)
        self._own_looks = gc.get_count()[1]  # which of them set it back depends on the version

    def _count(self) -> None:
        """Add what was made since the last look; within a long turn the interpreter looks, too."""
        young, looks, _ = gc.get_count()
        self._made += young + max(0, looks - self._own_looks) * YOUNG_THRESHOLD
        self._own_looks = looks

    def maybe_collect(self, now_ms: int) -> None:
        """Run a full collection if one is due and short enough; the caller says it is idle."""
        if now_ms < self._next_full_ms:
            return
        self._next_full_ms = now_ms + FULL_EVERY_MS
        made, self._made = self._made, 0
        if made == 0:
            return
        if made * self._cost_us > BUDGET_MS * 1000:
            gc.freeze()
            self._own_looks = gc.get_count()[1]
            # One that others kept from running looked slow: without this none would run again.
            self._cost_us = max(self._cost_us * FORGETS, min(self._cost_us, FIRST_GUESS_US))
            return
        start_ns = clock.now_ns()
        objects = gc.collect()
        gc.freeze()
        self._own_looks = gc.get_count()[1]
        elapsed_us = (clock.now_ns() - start_ns) / 1000
        self._cost_us = max(elapsed_us / made, LEAST_COST_US)
        self._emit("gc.collected", elapsed_ms=round(elapsed_us / 1000, 3), objects=objects)

    def close(self) -> None:
        """Give the interpreter its thresholds back, for processes that go on (tests)."""
        gc.set_threshold(*self._thresholds_before)
        gc.unfreeze()
