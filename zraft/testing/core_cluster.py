"""A cluster of bare cores in one process: no server, no sockets, no files, no clock.

It owns N `Raft` objects, for each the disk it would find after a crash, the messages in flight and
one clock that moves only when it is told to. Nothing happens by itself: whoever drives it decides
which Ready is handled, which message arrives, is lost or arrives twice, who crashes and whose timer
fires. Equal seeds and equal calls give equal runs. After every call the safety properties of the
whole cluster are checked (`zraft.testing.safety`), and every core checks itself thoroughly.

What is durable is what an advanced Ready had to persist; a crash forgets everything else.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from zraft.core.changes import ChangeRefused
from zraft.core.messages import InstallSnapshot, Message
from zraft.core.model import (
    NOBODY,
    ChangeKind,
    Command,
    Configuration,
    EntryId,
    HardState,
    MemberChange,
    MemberId,
    MemberInfo,
    Role,
    Settings,
    SnapshotMeta,
)
from zraft.core.notices import Notice
from zraft.core.raft import Raft
from zraft.core.ready import ReadState, Ready
from zraft.core.transfer import TransferRefusal
from zraft.testing.core_disk import Disk, StoredSnapshot
from zraft.testing.safety import Safety
from zraft.wire_entry import EntryCodec

MAX_DELIVERIES = 20_000
"""Upper bound of what one call of `stabilise` or `run` delivers: more is a message storm."""

Matches = Callable[[Message], bool]

_CODEC = EntryCodec()


class CrashPoint(Enum):
    """Where in the handling of a Ready a member dies."""

    AFTER_MESSAGES = "after-messages"  # sent what may leave early; nothing is on disk
    AFTER_PERSIST = "after-persist"  # on disk; the answers never leave


@dataclass(slots=True)
class Member:
    """One member: its core while it runs, its disk, and what came out of it."""

    member_id: MemberId
    random: random.Random
    disk: Disk = field(default_factory=Disk)
    raft: Raft | None = None
    incarnation: int = 0
    applies: bool = True  # False: committed entries are handed out, but not applied yet
    applied: list[bytes] = field(default_factory=list)  # payloads from index 1 on; in memory
    reads: list[ReadState] = field(default_factory=list)
    read_floors: dict[int, int] = field(default_factory=dict)  # what each read has to see
    aborted_reads: list[int] = field(default_factory=list)
    aborted_terms: list[int] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)


class CoreCluster:
    """See the module. Member ids are 1 … n; lists of members are always in that order."""

    def __init__(
        self,
        members: int,
        *,
        voters: Iterable[int] | None = None,
        settings: Settings | None = None,
        seed: int = 1,
    ) -> None:
        """Start `members` empty members, of which `voters` (all unless given) vote.

        The others wait to be added: the base configuration, the same for all, does not name them.
        """
        ids = range(1, members + 1)
        self.settings = Settings() if settings is None else settings
        self.configuration = Configuration(tuple(sorted(ids if voters is None else voters)))
        self.now_ms = 0
        self.in_flight: list[Message] = []
        self.cut_links: set[tuple[MemberId, MemberId]] = set()
        self.members = {
            member_id: Member(member_id, random.Random(f"{seed}:{member_id}")) for member_id in ids
        }
        self.safety = Safety()
        self._snapshots: dict[EntryId, StoredSnapshot] = {}  # what their files hold
        for member_id in ids:
            self.restart(member_id)

    # Looking

    def raft(self, member_id: MemberId) -> Raft:
        """Return a running member's core."""
        raft = self.members[member_id].raft
        assert raft is not None, f"{member_id} is down"
        return raft

    def up(self) -> list[MemberId]:
        """Return who runs."""
        return [member.member_id for member in self.members.values() if member.raft is not None]

    def leaders(self) -> list[MemberId]:
        """Return who believes to lead."""
        return [member_id for member_id in self.up() if self.raft(member_id).role is Role.LEADER]

    def leader(self) -> MemberId:
        """Return the leader of the highest term; there must be one."""
        leaders = self.leaders()
        assert leaders, "nobody leads"
        return max(leaders, key=lambda member_id: self.raft(member_id).term)

    def terms(self, member_id: MemberId) -> list[int]:
        """Return the terms of a member's log, from its first index on."""
        log = self.raft(member_id).state.log
        return [log.term(index) or 0 for index in range(log.first_index, log.last_index + 1)]

    # Life and death

    def restart(self, member_id: MemberId) -> None:
        """Start a member from its disk; ForeignDataError: the disk was lost, for good."""
        member = self.members[member_id]
        assert member.raft is None, f"{member_id} runs"
        recovered = member.disk.recover(self.configuration)
        member.incarnation += 1
        stored = member.disk.snapshot
        member.applied = [] if stored is None else list(stored.payloads)
        self.safety.on_restored(member_id, member.applied)
        member.read_floors = {}
        member.raft = Raft(
            member_id,
            recovered,
            settings=self.settings,
            codec=_CODEC,
            random=member.random,
            now_ms=self.now_ms,
            thorough=True,
        )

    def crash(self, member_id: MemberId) -> None:
        """Kill a member: everything but its disk is gone; what it sent is still in flight."""
        assert self.members[member_id].raft is not None, f"{member_id} is down"
        self.members[member_id].raft = None
        self.safety.forget(member_id)

    def wipe(self, member_id: MemberId) -> None:
        """Let a member lose its disk for good, and its process with it, if that runs."""
        if self.members[member_id].raft is not None:
            self.crash(member_id)
        self.members[member_id].disk.lose()

    def write_disk(
        self, member_id: MemberId, terms: Sequence[int], *, term: int, voted_for: MemberId = 0
    ) -> None:
        """Give a member the disk that a figure of the paper wants, and restart it with it."""
        if self.members[member_id].raft is not None:
            self.crash(member_id)
        self.members[member_id].disk.write(terms, HardState(term, voted_for))
        self.restart(member_id)

    # Inputs

    def propose(self, member_id: MemberId, *bodies: str) -> EntryId | None:
        """Propose commands in one batch; return the first one's id, None when not the leader."""
        commands = [Command(body.encode()) for body in bodies]
        entry_id = self.raft(member_id).propose(commands, now_ms=self.now_ms)
        self._check(member_id)
        return entry_id

    def change(
        self, member_id: MemberId, *steps: tuple[ChangeKind, MemberId]
    ) -> EntryId | ChangeRefused:
        """Ask a member for a change of membership; all steps are one change."""
        changes = [MemberChange(kind, MemberInfo(who, f"n{who}")) for kind, who in steps]
        begun = self.raft(member_id).change_members(changes, now_ms=self.now_ms)
        self._check(member_id)
        return begun

    def read(self, member_id: MemberId) -> int | None:
        """Ask for a linearizable read; return its id, None when no leader is known.

        Whatever any member knows to be committed by now, the read must see.
        """
        read_id = self.raft(member_id).read(now_ms=self.now_ms)
        if read_id is not None:
            self.members[member_id].read_floors[read_id] = len(self.safety.committed)
        return read_id

    def lease_read(self, member_id: MemberId) -> int | None:
        """Return the index of a read under a lease, None without one; it sees all committed."""
        index = self.raft(member_id).lease_read(now_ms=self.now_ms)
        if index is not None:
            assert index >= len(self.safety.committed), f"a stale lease read: {index}"
        return index

    def transfer(self, member_id: MemberId, target: MemberId = NOBODY) -> TransferRefusal | None:
        """Let a leader hand over; return why not, None when it has begun."""
        refusal = self.raft(member_id).transfer(target, now_ms=self.now_ms)
        self._check(member_id)
        return refusal

    def stall(self, member_id: MemberId, late_ms: int) -> None:
        """Let time pass in which a member did not run; it learns so before anything else."""
        self.now_ms += late_ms
        self.raft(member_id).on_stall(late_ms, now_ms=self.now_ms)
        self._check(member_id)

    def campaign(self, member_id: MemberId) -> bool:
        """Let a member stand for election at once, without a pre-vote."""
        started = self.raft(member_id).campaign(now_ms=self.now_ms)
        self._check(member_id)
        return started

    def peer_down(self, member_id: MemberId, peer: MemberId) -> None:
        """Tell a member that the process of `peer` is gone, rightly or wrongly."""
        incarnation = self.members[peer].incarnation
        self.raft(member_id).on_peer_down(peer, incarnation, now_ms=self.now_ms)
        self._check(member_id)

    def receive(self, message: Message) -> None:
        """Let a message arrive that need not have been in flight."""
        if self.members[message.dst].raft is not None:
            self.raft(message.dst).step(message, now_ms=self.now_ms)
            self._check(message.dst)

    # Snapshots: a file is one chunk here, whose bytes are the id of the last entry it covers

    def take_snapshot(self, member_id: MemberId) -> SnapshotMeta:
        """Let a member store a snapshot of what it has applied, durably, and cut its log."""
        member, raft = self.members[member_id], self.raft(member_id)
        index = raft.state.applied_index
        term = raft.state.log.term(index)
        assert term is not None
        if index <= (0 if raft.snapshot is None else raft.snapshot.index):
            raise ValueError(f"{member_id} has applied nothing since its last snapshot")
        meta = SnapshotMeta(
            index, term, raft.state.configurations.at(index), size_bytes=len(f"{index}")
        )
        self._snapshots[meta.last_id] = StoredSnapshot(meta, tuple(member.applied[:index]))
        member.disk.snapshot = self._snapshots[meta.last_id]
        member.disk.compact(raft.on_snapshot_saved(meta, now_ms=self.now_ms))
        self._check(member_id)
        return meta

    def send_snapshot(self, member_id: MemberId, peer: MemberId) -> None:
        """Send a member's newest snapshot to a peer, from the start."""
        raft = self.raft(member_id)
        meta = raft.snapshot
        assert meta is not None, f"{member_id} has no snapshot"
        raft.on_snapshot_sending(peer, meta.index, now_ms=self.now_ms)
        data = f"{meta.index}".encode()
        chunk = InstallSnapshot(
            member_id, peer, raft.term, *meta.last_id, meta.size_bytes, meta.crc, 0, 0, data
        )
        self._send([chunk])

    def _content(self, meta: SnapshotMeta) -> StoredSnapshot:
        return self._snapshots[meta.last_id]

    def _store(self, member: Member, chunk: InstallSnapshot) -> None:
        """Store a whole snapshot that arrived; an older one than the disk has is of no use."""
        stored, raft = self._snapshots[chunk.last_included], self.raft(member.member_id)
        if chunk.last_included_index > raft.commit_index:
            member.disk.snapshot = stored
        raft.on_snapshot_received(stored.meta, now_ms=self.now_ms)

    # Time

    def fire(self, member_id: MemberId, *, inbox_empty: bool = True) -> None:
        """Run a member's timer at the present time; it sends again what may be lost."""
        raft = self.raft(member_id)
        for peer in self.members:
            if raft.wants_snapshot(peer):
                self.send_snapshot(member_id, peer)
        raft.on_timer(now_ms=self.now_ms, inbox_empty=inbox_empty)
        self._check(member_id)

    def time_out(self, member_id: MemberId) -> None:
        """Move the clock to a member's next election deadline and run its timer, nobody else's."""
        raft = self.raft(member_id)
        assert raft.role is not Role.LEADER, f"{member_id} leads: it has no election deadline"
        self.now_ms = max(self.now_ms, raft.state.election_deadline_ms)
        self.fire(member_id)

    def beat(self, member_id: MemberId) -> None:
        """Move the clock to a leader's next heartbeat and run its timer, nobody else's."""
        leadership = self.raft(member_id).state.leadership
        assert leadership is not None, f"{member_id} does not lead"
        self.now_ms = max(self.now_ms, leadership.heartbeat_ms)
        self.fire(member_id)

    # Ready

    def handle_ready(self, member_id: MemberId, *, crash: CrashPoint | None = None) -> Ready | None:
        """Do what one Ready says, in the order it says; return it, None when there is none."""
        member, raft = self.members[member_id], self.raft(member_id)
        ready = raft.ready()
        if ready is None:
            return None
        self._send(ready.messages)
        if crash is CrashPoint.AFTER_MESSAGES:
            self.crash(member_id)
            return ready
        member.disk.save(ready)
        if crash is CrashPoint.AFTER_PERSIST:
            self.crash(member_id)
            return ready
        self._send(ready.messages_after_persist)
        if ready.restore is not None:
            member.applied = list(self._content(ready.restore).payloads)
            self.safety.on_restored(member_id, member.applied)
        if ready.committed is not None:
            self.safety.on_committed(member_id, ready.committed)
            member.applied += ready.committed.payloads
        for read in ready.reads:
            assert read.index >= member.read_floors[read.read_id], f"a stale read: {read}"
        member.reads += ready.reads
        member.aborted_reads += ready.aborted_reads
        member.notices += ready.notices
        if ready.aborted_term is not None:
            member.aborted_terms.append(ready.aborted_term)
        raft.advance(ready)
        if member.applies:
            raft.on_applied(len(member.applied))
        for peer in ready.send_snapshots:
            self.send_snapshot(member_id, peer)
        for chunk in ready.chunks:
            self._store(member, chunk)
        self._check(member_id)
        return ready

    def flush(self, member_id: MemberId) -> list[Ready]:
        """Handle every Ready of one member."""
        handled: list[Ready] = []
        while (ready := self.handle_ready(member_id)) is not None:
            handled.append(ready)
            assert len(handled) < MAX_DELIVERIES, "the Readys never end"
        return handled

    # The network

    def _send(self, messages: list[Message]) -> None:
        self.in_flight += [m for m in messages if (m.src, m.dst) not in self.cut_links]

    def take(self, matches: Matches) -> list[Message]:
        """Take the messages that match out of the network, oldest first; they are lost so far."""
        taken = [message for message in self.in_flight if matches(message)]
        self.in_flight = [message for message in self.in_flight if not matches(message)]
        return taken

    def deliver(self, matches: Matches = lambda _: True) -> list[Message]:
        """Let every message in flight that matches arrive, oldest first; return them."""
        arrived = self.take(matches)
        for message in arrived:
            self.receive(message)
        return arrived

    def cut(self, group: Iterable[MemberId], others: Iterable[MemberId] | None = None) -> None:
        """Cut all links between `group` and the others, both ways; what is in flight is lost."""
        inside = sorted(group)
        outside = [m for m in self.members if m not in inside] if others is None else others
        for a in inside:
            for b in outside:
                self.cut_one_way(a, b)
                self.cut_one_way(b, a)

    def cut_one_way(self, src: MemberId, dst: MemberId) -> None:
        """Lose everything from `src` to `dst` from now on, and what is in flight."""
        self.cut_links.add((src, dst))
        self.take(lambda m: (m.src, m.dst) == (src, dst))

    def heal(self) -> None:
        """Mend every link."""
        self.cut_links.clear()

    # Several steps at once

    def stabilise(self, member_ids: Iterable[MemberId] | None = None) -> None:
        """Handle every Ready and deliver every message among `member_ids`, until all is quiet.

        The clock stands still. Messages to others stay in flight.
        """
        ids = sorted(self.members) if member_ids is None else sorted(member_ids)
        deliveries = 0
        while True:
            busy = False
            for member_id in ids:
                if self.members[member_id].raft is not None:
                    busy |= bool(self.flush(member_id))
            arrived = self.deliver(lambda message: message.dst in ids)
            deliveries += len(arrived)
            assert deliveries < MAX_DELIVERIES, "a message storm"
            if not busy and not arrived:
                return

    def run(self, for_ms: int) -> None:
        """Let the time pass: timers fire when they are due, messages take no time."""
        end_ms = self.now_ms + for_ms
        self.stabilise()
        while True:
            deadlines = {i: self.raft(i).next_deadline_ms() for i in self.up()}
            due_ms = min(deadlines.values(), default=end_ms + 1)
            if due_ms > end_ms:
                break
            self.now_ms = max(self.now_ms, due_ms)
            for member_id, deadline_ms in deadlines.items():
                if deadline_ms <= self.now_ms:
                    self.fire(member_id)
            self.stabilise()
        self.now_ms = end_ms

    def elect(self, member_id: MemberId) -> None:
        """Make a member the leader, and settle: the others' stickiness has run out by then."""
        self.now_ms += self.settings.election_max_ms
        assert self.campaign(member_id)
        self.stabilise()
        assert self.raft(member_id).role is Role.LEADER, f"{member_id} was not elected"

    def _check(self, member_id: MemberId) -> None:
        raft = self.members[member_id].raft
        if raft is not None:
            disks = {i: m.disk for i, m in self.members.items()}
            self.safety.check(
                member_id,
                raft,
                lambda index, term: [i for i, disk in disks.items() if disk.holds(index, term)],
            )
