"""One order for the lines of many processes: by time, but never a receive before its send.

Every process writes its lines in the order of `seq`; all processes of a host share CLOCK_MONOTONIC.
A node writes down a message after it gave it to the socket, so the receiver's line may carry the
smaller time; then the receiver's lines are held back until the send is out. A send that is not in
the files (suppressed, rotated away, lost with a killed process) holds nobody back: its sender's
later traces show that it will not come, or a second has passed. A send that comes after all, once
its receive is out, is left away and counted.

Times before the last boot belong to another CLOCK_MONOTONIC: such lines are ordered by wall time
and come first. This module holds lines and decides their order; it reads no file, prints nothing.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, NamedTuple

WINDOW_NS = 250_000_000  # telemetry buffers for 100 ms, and we look every 100 ms
GIVE_UP_NS = 1_000_000_000
SLACK_NS = 50_000_000
REMEMBERED_SENDS = 100_000

Process = tuple[str, int, int]
"""Node, incarnation, pid: what `seq` counts in."""

Link = tuple[str, str, str, int, int]
"""Sender, receiver, kind, epoch, frame_seq: what a send and its receive have in common."""


class Line(NamedTuple):
    """One line of a stream. `place` orders lines of one process; `old` is the wall time of a
    line from before the last boot, empty for the others."""

    node: str
    inc: int
    pid: int
    place: tuple[int, int]  # seq, and a counter for what stands between two lines
    mono_ns: int
    old: str
    trace: bool
    raw: bytes
    fields: dict[str, Any]

    @property
    def process(self) -> Process:
        """Return what `place` counts in."""
        return self.node, self.inc, self.pid

    @property
    def when(self) -> tuple[bool, str, int, str]:
        """Return what lines of different processes are ordered by."""
        return not self.old, self.old, self.mono_ns, self.node


def sent_link(line: Line) -> Link | None:
    """Return the link of a line that says "sent", None for any other line."""
    return _link(line, "rpc.sent", line.node, line.fields.get("peer"))


def received_link(line: Line) -> Link | None:
    """Return the link of a line that says "received", None for any other line."""
    return _link(line, "rpc.received", line.fields.get("peer"), line.node)


def _link(line: Line, event: str, sender: object, receiver: object) -> Link | None:
    fields = line.fields
    if fields.get("event") != event:
        return None
    epoch, frame_seq = fields.get("epoch"), fields.get("frame_seq")
    if not isinstance(epoch, int) or not isinstance(frame_seq, int):
        return None
    return str(sender), str(receiver), str(fields.get("kind")), epoch, frame_seq


class Merger:
    """Takes lines as they are read and gives them back in order.

    `drain` gives back everything, for files that nobody follows; `ready` gives back what is old
    enough that nothing can come before it any more.
    """

    def __init__(self, window_ns: int = WINDOW_NS) -> None:
        self.late_sends = 0
        self._window_ns = window_ns
        self._queues: dict[Process, list[tuple[tuple[int, int], int, Line]]] = {}
        self._added = 0
        self._pending_sends: dict[Link, int] = {}
        self._sent: OrderedDict[Link, None] = OrderedDict()
        self._orphans: OrderedDict[Link, None] = OrderedDict()
        self._traced_ns: dict[str, int] = {}

    def add(self, lines: Iterable[Line]) -> None:
        """Take lines, in any order."""
        for line in lines:
            self._added += 1
            queue = self._queues.setdefault(line.process, [])
            heapq.heappush(queue, (line.place, self._added, line))
            if (link := sent_link(line)) is not None:
                self._pending_sends[link] = self._pending_sends.get(link, 0) + 1
            if line.trace and line.mono_ns > self._traced_ns.get(line.node, 0):
                self._traced_ns[line.node] = line.mono_ns

    def drain(self) -> list[Line]:
        """Give back all lines, in order."""
        return self._take(now_ns=None)

    def ready(self, now_ns: int) -> list[Line]:
        """Give back the lines that nothing can come before any more, in order."""
        return self._take(now_ns)

    def _take(self, now_ns: int | None) -> list[Line]:
        """Take the smallest head again and again; a receive waits for its send."""
        result: list[Line] = []
        heads = [self._head(process) for process in self._queues]
        heapq.heapify(heads)
        waiting: dict[Link, list[tuple[Any, Process]]] = {}
        stuck: list[tuple[Any, Process]] = []
        while heads or (waiting and now_ns is None):
            if not heads:  # only lines that contradict each other lead here: the oldest goes first
                stuck = sorted(head for held in waiting.values() for head in held)
                waiting.clear()
                when, process = stuck.pop(0)
                heads = stuck
                heapq.heapify(heads)
                forced = True
            else:
                when, process = heapq.heappop(heads)
                forced = False
            line = self._queues[process][0][2]
            if now_ns is not None and not line.old and line.mono_ns > now_ns - self._window_ns:
                continue
            link = received_link(line)
            if link is not None and not forced and link not in self._sent:
                if link in self._pending_sends:
                    waiting.setdefault(link, []).append((when, process))
                    continue
                if now_ns is not None and self._may_still_come(line, link, now_ns):
                    continue
            self._pop(process, line, link, result)
            if self._queues[process]:
                heapq.heappush(heads, self._head(process))
            else:
                del self._queues[process]
            if (sent := sent_link(line)) is not None:
                for head in waiting.pop(sent, ()):
                    heapq.heappush(heads, head)
        return result

    def _head(self, process: Process) -> tuple[Any, Process]:
        return self._queues[process][0][2].when, process

    def _may_still_come(self, line: Line, link: Link, now_ns: int) -> bool:
        """Return whether the send may only be late: its sender has not traced past it yet."""
        if line.old or now_ns - line.mono_ns > GIVE_UP_NS:
            return False
        return self._traced_ns.get(link[0], 0) <= line.mono_ns + SLACK_NS

    def _pop(self, process: Process, line: Line, received: Link | None, result: list[Line]) -> None:
        """Move a head to the result, or leave away a send whose receive is out already."""
        heapq.heappop(self._queues[process])
        if received is not None and received not in self._sent:
            _remember(self._orphans, received)
        sent = sent_link(line)
        if sent is not None:
            left = self._pending_sends[sent] - 1
            if left:
                self._pending_sends[sent] = left
            else:
                del self._pending_sends[sent]
            _remember(self._sent, sent)
            if sent in self._orphans:
                self.late_sends += 1
                return
        result.append(line)


def _remember(links: OrderedDict[Link, None], link: Link) -> None:
    links[link] = None
    if len(links) > REMEMBERED_SENDS:
        links.popitem(last=False)
