"""The cluster as those see it who break it, and the rules of the game."""

from __future__ import annotations

import random
from dataclasses import dataclass

from zraft.client.conditions import leadership
from zraft.client.control import Cluster

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
