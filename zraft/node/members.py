"""Who the members are: their names, where they are reached, and lanes that follow the log.

The log alone decides who is a member (Raft §6). What it does not say is where a process listens;
that follows from a node's name, and names stand in the configuration or in `cluster.toml`. A member
that neither knows is looked up in that file again, because a node may be asked for its vote by one
whose addition it has not read yet (thesis §4.1).

    configuration grows      lanes to the new ones, before the first append leaves
    it shrinks, committed    lanes to the old ones end, once they had time to hear of it
    a stranger speaks        the file is read again, at most five times a second

A process that asks for votes although a committed configuration is without it is told so. It
believes only what its own log does not contradict, and stops standing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from zraft.core.membership import is_member
from zraft.core.model import Configuration, MemberId
from zraft.core.raft import Raft
from zraft.errors import NotRunning, StorageError
from zraft.paths import ClusterFile, EndpointKind, read_cluster_file
from zraft.transport.rejections import Rejections

LOOK_MS = 200
"""At most so often the file is read because of a stranger."""
LINGER_ELECTIONS = 4
"""A lane to one who left lives on for so many election timeouts: it is still told that it left."""


class MemberLanes(Protocol):
    """What the book does with lanes; `PeerSockets` is one."""

    def add_peer(self, peer: MemberId, endpoint: str) -> None: ...
    def drop_peer(self, peer: MemberId) -> None: ...
    def has_peer(self, peer: MemberId) -> bool: ...
    @property
    def rejections(self) -> Rejections: ...


class BulkLanes(Protocol):
    """What the book does with the bulk lanes: whose frames are taken."""

    def add_peer(self, peer: MemberId) -> None: ...
    def drop_peer(self, peer: MemberId) -> None: ...


class MemberBook:
    """See the module. `names` is shared: labels of telemetry and status are looked up in it."""

    def __init__(
        self, directory: Path, cluster: ClusterFile, names: dict[MemberId, str], me: MemberId
    ) -> None:
        """Know what the file says; `directory` is the cluster's."""
        self.cluster = cluster
        self.names = names
        self._directory = directory
        self._me = me
        self._followed: Configuration | None = None
        self._looked_ms: int | None = None
        self._prune_ms: int | None = None
        self._raft: Raft
        self._lanes: MemberLanes
        self._bulk: BulkLanes
        self._linger_ms = 0

    def attach(self, raft: Raft, lanes: MemberLanes, bulk: BulkLanes) -> None:
        """Keep these lanes from now on; they have one to each member of the file already."""
        self._raft, self._lanes, self._bulk = raft, lanes, bulk
        self._linger_ms = LINGER_ELECTIONS * raft.state.settings.election_max_ms

    # Where they are

    def endpoint(self, member: MemberId, kind: EndpointKind) -> str | None:
        """Return where a member listens; None for this node, and when nobody knows its name."""
        name = self.names.get(member)
        if member == self._me or name is None or name not in self.cluster.names:
            return None
        return self.cluster.endpoint(name, kind)

    def name_of(self, member: MemberId) -> str:
        """Return a member's name, its id in hex digits if nobody knows it."""
        return self.names.get(member) or f"{member:016x}"

    def id_of(self, name: str) -> MemberId | None:
        """Return the member of the newest configuration that has a name, else the file's."""
        for member in self._raft.configuration.everybody:
            if self.names.get(member) == name:
                return member
        return self.cluster.member_id(name) if name in self.cluster.names else None

    def look_again(self, now_ms: int) -> None:
        """Read the file again, unless that was done a moment ago; no readable one: no news."""
        if self._looked_ms is not None and now_ms - self._looked_ms < LOOK_MS:
            return
        self._looked_ms = now_ms
        try:
            cluster = read_cluster_file(self._directory)
        except (NotRunning, StorageError):
            return
        self.cluster = cluster
        for record in cluster.members:
            self.names[int(record.member_id, 16)] = record.name

    # The log moved

    def on_turn(self, now_ms: int) -> None:
        """Follow the configuration if it is another one than before."""
        configuration = self._raft.configuration
        if configuration is not self._followed:
            self._followed = configuration
            self._learn_names(configuration, now_ms)
            for member in configuration.everybody:
                self._connect(member)
            self._prune_ms = now_ms + self._linger_ms
        if self._prune_ms is not None and now_ms >= self._prune_ms:
            self._prune_ms = self._prune(configuration, now_ms)

    def _learn_names(self, configuration: Configuration, now_ms: int) -> None:
        for info in configuration.members:
            if info.name:
                self.names.setdefault(info.member_id, info.name)
        known = self.cluster.names
        if any(self.names.get(member) not in known for member in configuration.everybody):
            self._looked_ms = None  # this is news, not a stranger's knocking
            self.look_again(now_ms)

    def _connect(self, member: MemberId) -> None:
        if self._lanes.has_peer(member):
            return
        endpoint = self.endpoint(member, "peer")
        if endpoint is not None:
            self._lanes.add_peer(member, endpoint)
            self._bulk.add_peer(member)

    def _prune(self, configuration: Configuration, now_ms: int) -> int | None:
        """End the lanes to those who left; return when to look again, None when all is settled."""
        if configuration.index > self._raft.commit_index:
            return now_ms + self._linger_ms
        in_file = {int(record.member_id, 16) for record in self.cluster.members}
        for member in list(self.names):
            if is_member(configuration, member) or not self._lanes.has_peer(member):
                continue
            if member in in_file:
                continue  # about to join, or about to be stopped: it costs a connection
            self._lanes.drop_peer(member)
            self._bulk.drop_peer(member)
        return None

    # Strangers (called by the lanes)

    def on_unknown(self, member: MemberId, now_ms: int) -> None:
        """A frame of this cluster came from somebody without a lane: who is it?"""
        if member not in self.names:
            self.look_again(now_ms)
        self._connect(member)

    def on_candidate(self, member: MemberId, now_ms: int) -> None:
        """Somebody asks for votes; one whom a committed configuration is without is told so."""
        configuration = self._raft.configuration
        if is_member(configuration, member) or configuration.is_joint:
            return
        if 0 < configuration.index <= self._raft.commit_index:
            self._lanes.rejections.tell_removed(member, configuration.index, now_ms)

    def on_told_removed(self, index: int, now_ms: int) -> None:
        """A member says that this process is none since the committed configuration at `index`."""
        self._raft.on_told_removed(index, now_ms=now_ms)
