"""What a process holds: descriptors and memory, and what may not grow in a run.

A node that was restarted is compared with the process before it: the bounds are of a node, whatever
its life. They are wide, because a leader holds more than a follower, and one that sends a snapshot
more than one that does not; a leak of a descriptor or of a message for each fault passes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Self

import psutil

MORE_DESCRIPTORS = 40
MORE_BYTES = 128 << 20


class Resources(NamedTuple):
    """Of one process at one moment."""

    descriptors: int
    rss_bytes: int

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return what a process holds; None when it is gone."""
        try:
            process = psutil.Process(pid)
            return cls(process.num_fds(), process.memory_info().rss)
        except psutil.Error:
            return None


def grown(before: Mapping[str, Resources], after: Mapping[str, Resources]) -> list[str]:
    """Return what grew beyond its bound, in words."""
    found: list[str] = []
    for name in sorted(before.keys() & after.keys()):
        old, new = before[name], after[name]
        if new.descriptors > old.descriptors + MORE_DESCRIPTORS:
            found.append(f"{name} holds {new.descriptors} descriptors, {old.descriptors} before")
        if new.rss_bytes > old.rss_bytes + MORE_BYTES:
            mib = new.rss_bytes >> 20
            found.append(f"{name} holds {mib} MiB of memory, {old.rss_bytes >> 20} before")
    return found
