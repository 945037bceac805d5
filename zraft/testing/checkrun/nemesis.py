"""What breaks a cluster during a check run: one class per kind of fault, and the registry of them.

A nemesis breaks one thing when it is told to (`strike`) and undoes it when its time is over
(`undo`). It draws from the run's generator only, and what it reports is what really happened: a
kill that found nobody to kill is None. A new kind is a class with these two methods, named in
`NEMESES`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from zraft import clock
from zraft.api import ControlDone, Heal, Isolate
from zraft.client.control import Cluster, leadership
from zraft.control_api import Action
from zraft.errors import ControlError

GRACE_MS = 3_000  # a fault heals by itself so long after it should have been undone
ASK_MS = 300


@dataclass(slots=True)
class Strike:
    """A fault that is in force. `hits` is how often it was felt, None when that is its nature."""

    kind: str
    nodes: list[str]
    what: str
    began_ns: int
    until_ms: int  # CLOCK_BOOTTIME
    hits: int | None = None


class Field:
    """The cluster as a nemesis sees it, and the rules of the game."""

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self.cluster = cluster
        self.rng = rng
        self.names = cluster.file.names

    def leader(self) -> str | None:
        """Return the node that a majority follows now."""
        seen = leadership(self.cluster.statuses(timeout_ms=ASK_MS))
        return None if seen is None else seen.leader

    def victim(self) -> str | None:
        """Return a node to break, the leader every other time; None when enough are broken.

        Usually a majority stays whole, so that there is something to be wrong about; one time in
        eight anything goes.
        """
        rows = self.cluster.table()
        whole = [name for name in self.names if name in rows and rows[name].state == "running"]
        limit = len(self.names) if self.rng.random() < 0.125 else (len(self.names) - 1) // 2
        if not whole or len(self.names) - len(whole) >= limit:
            return None
        leader = self.leader()
        if leader in whole and self.rng.random() < 0.5:
            return leader
        return self.rng.choice(whole)


class Nemesis(Protocol):
    """One kind of fault."""

    def strike(self, field: Field) -> Strike | None:
        """Break something, and return what; None when there was nothing to break."""
        ...

    def undo(self, field: Field, strike: Strike) -> None:
        """End a fault whose time is over; note in it how often it was felt."""
        ...


class _Signal:
    """Kills or pauses a node; the supervisor undoes it after its time."""

    def __init__(self, action: Action, most_ms: int) -> None:
        self._action = action
        self._most_ms = most_ms

    def strike(self, field: Field) -> Strike | None:
        """Do it to one node."""
        name = field.victim()
        if name is None:
            return None
        for_ms = field.rng.randint(50, self._most_ms)
        (result,) = field.cluster.act(self._action, [name], for_ms=for_ms)
        if result.failure is not None or not result.changed:
            return None
        return Strike(
            kind=self._action,
            nodes=[name],
            what=f"{self._action} {name} for {for_ms}ms",
            began_ns=result.mono_ns or clock.monotonic_ns(),
            until_ms=clock.now_ms() + for_ms,
        )

    def undo(self, field: Field, strike: Strike) -> None:
        """Do nothing: the supervisor starts and resumes."""


class _Partition:
    """Cuts some nodes off from the others; clients still reach both sides."""

    def strike(self, field: Field) -> Strike | None:
        """Cut a random minority off, often with the leader in it."""
        names = list(field.names)
        size = field.rng.randint(1, max(1, (len(names) - 1) // 2))
        field.rng.shuffle(names)
        leader = field.leader()
        if leader is not None and field.rng.random() < 0.5:
            names.remove(leader)
            names.insert(0, leader)
        few, rest = sorted(names[:size]), sorted(names[size:])
        if not rest:
            return None
        for_ms = field.rng.randint(300, 2_500)
        began_ns = clock.monotonic_ns()
        request = Isolate(peers=rest, for_ms=for_ms + GRACE_MS)
        replies = field.cluster.ask_all(few, request, timeout_ms=ASK_MS)
        cut = [name for name, reply in replies.items() if isinstance(reply, ControlDone)]
        if not cut:
            return None
        return Strike(
            kind="partition",
            nodes=cut,
            what=f"partition {','.join(cut)} | rest for {for_ms}ms",
            began_ns=began_ns,
            until_ms=clock.now_ms() + for_ms,
            hits=0,
        )

    def undo(self, field: Field, strike: Strike) -> None:
        """Heal the nodes that were cut off; one that is down or paused now heals by itself."""
        statuses = field.cluster.statuses(timeout_ms=ASK_MS)
        for name in strike.nodes:
            status = statuses.get(name)
            if status is not None:
                strike.hits = (strike.hits or 0) + sum(fault.hits for fault in status.faults)
        field.cluster.ask_all(strike.nodes, Heal(), timeout_ms=ASK_MS)


NEMESES: dict[str, Callable[[], Nemesis]] = {
    "kill": lambda: _Signal("kill", 800),
    "pause": lambda: _Signal("pause", 1_500),
    "partition": _Partition,
}


def parse_nemeses(text: str) -> list[str]:
    """Return the kinds in `kill,pause`; `none` is no fault at all.

    Raises:
        ControlError: there is no such kind.
    """
    kinds = [kind.strip() for kind in text.split(",") if kind.strip()]
    if kinds in ([], ["none"]):
        return []
    for kind in kinds:
        if kind not in NEMESES:
            raise ControlError(
                f'--nemesis: there is no "{kind}"',
                why=f"there are {', '.join(NEMESES)}, and none",
                try_="--nemesis kill,pause,partition",
            )
    return list(dict.fromkeys(kinds))
