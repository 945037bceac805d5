"""One simulated process: a production `Server` with its core, log and machine, and its turns.

A turn follows the order of the production loop: notice a stall, read peers, clients and answers to
what was passed on, run timers, flush. It happens at one moment of the world; what it costs (syncs,
above all) is added up in `local_us`, and the node is busy until then: it reads nothing, and what
it says after a sync leaves after the sync. Its own work takes it `turn_us` more: what comes
meanwhile waits, and the next turn finds all of it.

A process dies between two turns, or in the middle of one: a fuse counts down steps of the disk and
of sending, and the world stops for this node where it burns out. So a crash may find a batch
half-written, an entry sent and not stored, a vote stored and not sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zraft.api import Code, Reply, Request
from zraft.core.messages import Message
from zraft.core.model import MemberId, Role
from zraft.core.notices import Notice
from zraft.core.ready import Ready
from zraft.core.state import FAR_MS
from zraft.errors import CorruptLogError, ForeignDataError, StorageError
from zraft.node.server import Server
from zraft.storage.recovery import recover
from zraft.testing.disk import SimulatedDisk, Stopped
from zraft.testing.sim.clock import NodeClock
from zraft.testing.sim.core import WatchedRaft
from zraft.testing.sim.fuse import Fuse
from zraft.testing.sim.making import make_core, make_server, open_disk
from zraft.testing.sim.stopping import Stopping
from zraft.testing.sim.storage import (
    Shadow,
    SimStorage,
    make_disk,
    make_empty_disk,
)
from zraft.transport.base import PeerDown

if TYPE_CHECKING:
    from zraft.testing.sim.world import World

_BUSY, _UNAVAILABLE = int(Code.BUSY), int(Code.UNAVAILABLE)
MIN_STALL_MS = 20
PREPARE_BYTES = 8192
INBOX_LIMIT = 4096
MAX_STEP_US = 10_000_000
MAX_READ_US = 4_000


class SimNode:
    """One member: its disk for ever, its process while it lives."""

    def __init__(self, world: World, member_id: MemberId) -> None:
        plan = world.plan
        self.world = world
        self._agenda = world.agenda
        self.member_id = member_id
        self.draws = world.draws(f"node {member_id}")
        self.clock = NodeClock(
            self.draws.between(1, 10_000_000_000), plan.drifts_ppm[member_id - 1]
        )
        self.mount(make_disk(member_id, world.base))
        self.shadow = Shadow(world.invariants.committed_terms)
        self.incarnation = 0
        self.server: Server | None = None
        self.raft: WatchedRaft
        self.storage: SimStorage
        self.inbox: list[Message] = []
        self.requests: list[tuple[bytes, list[Request]]] = []
        self.forward_replies: list[tuple[MemberId, list[Reply]]] = []
        self.forward_losses: list[MemberId] = []
        self.dead: list[tuple[MemberId, int]] = []
        self._replies: list[tuple[bytes, Reply]] = []
        # The production loop takes less than this for its own work.
        self._stall_ms = max(MIN_STALL_MS, plan.settings.heartbeat_ms // 2)
        self._inbox_frames, self._apply_us = plan.inbox_frames, plan.apply_us
        self._turn_us = plan.turn_us
        self.fuse = Fuse()
        self.next_sync_us = 0  # what the next sync costs on top
        self._forget()

    def _forget(self) -> None:
        """Everything that ends with the process."""
        self.inbox, self.requests, self.forward_replies = [], [], []
        self._held: list[Message] = []
        self.forward_losses, self.dead, self._replies = [], [], []
        self.local_us = self.busy_us = self.last_turn_us = self.overshoot_us = 0
        self.paused = False
        self.was_paused = self.was_stalled = False
        self.free_us = 0  # when it looks again; at or after `busy_us`, when its disk has answered
        self._looks_at_us = -1  # when it is due to, having found that something waits
        self.wake_us = -1
        self._deadline_ms = 0  # the server's, as it was when the last turn ended
        self.stopping: Stopping | None = None
        self._more = False
        self._clock_reads = 0
        self._to_prepare = self.world.plan.prepares

    def mount(self, disk: SimulatedDisk) -> None:
        """Put a disk in."""
        self.disk = disk
        self.disk.on_step = self._on_disk_step
        self.disk.short_write_bytes = self.world.plan.short_write_bytes

    # Life and death

    def start(self) -> None:
        """Start the process: read the log, then follow."""
        assert self.server is None
        world = self.world
        self._forget()
        self.incarnation += 1
        self.local_us = world.agenda.now_us + self.draws.between(1_000, 20_000)
        storage, store = open_disk(self, self.report)
        try:
            recovered = recover(storage, store)
        except Stopped:
            self.world.marks.reach("crash_in_start")
            self._die(power=self.fuse.power, how="in start")
            return
        except StorageError as error:
            self._on_storage_error(error)
            return
        if storage.survived is not None:
            world.marks.reach("batch_survived" if storage.survived else "batch_lost")
        self.storage = storage
        self.raft = make_core(self, recovered)
        self.server = make_server(self, self.raft, storage, store)
        self._deadline_ms = self.server.next_deadline_ms()
        world.network.on_start(self)
        world.invariants.on_start(self)
        world.trace.step(world.agenda.now_us, f"restart {self.member_id}")
        self.busy_us = self.free_us = self.local_us
        world.agenda.at(self.busy_us, self._on_disk_done, self.incarnation)

    def crash(self, *, power: bool, how: str = "") -> None:
        """End the process between two turns; with `power`, unsynced sectors are lost, too."""
        if self.server is not None:
            self._die(power=power, how=how)

    def _die(self, *, power: bool, how: str) -> None:
        world = self.world
        self.server = None
        self.fuse.steps = 0
        if power:
            self.disk.cut_power(self.draws)
        else:
            self.disk.kill()
        verb = f"crash {self.member_id}{' power' if power else ''}{' ' if how else ''}{how}"
        world.trace.step(world.agenda.now_us, verb)
        self._forget()
        world.on_death(self)

    def lose_disk(self) -> None:
        """Put an empty disk in the place of this one, for good; the process ends, if it lives."""
        self.crash(power=False, how="wiped")
        self.mount(make_empty_disk(self.member_id))
        self.shadow = Shadow(self.world.invariants.committed_terms)

    def _on_storage_error(self, error: StorageError) -> None:
        """The disk refused: the process ends, as production does; anything else is a violation."""
        if isinstance(error, ForeignDataError) and self.member_id in self.world.wipes.held:
            now_us = self._agenda.now_us
            self.world.trace.step(now_us, f"refused {self.member_id}  # its disk is empty")
            return  # for good: nobody starts it again
        if not self.fuse.error or isinstance(error, CorruptLogError | ForeignDataError):
            raise error
        self.fuse.error = False
        self._die(power=False, how="disk error")

    def _on_disk_step(self, step: str, path: Path) -> None:
        fuse = self.fuse
        if fuse.steps and (not fuse.at_sync or (step == "sync" and self.shadow.pending)):
            fuse.burn(at_disk=path)
        if step != "sync":
            self.local_us += 5
            return
        plan, random = self.world.plan, self.draws.random
        cost_us = int(plan.sync_us * (0.5 + random())) + self.next_sync_us
        self.next_sync_us = 0
        if plan.slow_sync and random() < plan.slow_sync:
            cost_us += int(random() * plan.slow_sync_us)
        self.local_us += min(cost_us, MAX_STEP_US)

    def pause(self) -> None:
        """Stop the process as SIGSTOP does."""
        self.paused = self.was_paused = True

    def resume(self) -> None:
        """Let a paused process go on: it finds its deadlines passed and its inbox full."""
        if not self.paused:
            return
        self.paused = False
        if self._held:
            # The thread that reads the sockets was stopped as well: it takes a moment, and until
            # then this process may believe what it believed before.
            delay_us = self.draws.below(MAX_READ_US)
            self._agenda.after(delay_us, self._on_held, self.incarnation)
        now_us = self._agenda.now_us
        if 0 <= self.wake_us < now_us:
            self.overshoot_us += now_us - self.wake_us
        self.maybe_turn()

    # What arrives

    def on_message(self, message: Message) -> None:
        """A message of a peer that passed all checks."""
        if self.paused and self.world.plan.pauses_io:
            self._held.append(message)
        elif len(self.inbox) < INBOX_LIMIT:
            self.inbox.append(message)
            self.maybe_turn()

    def _on_held(self, incarnation: int) -> None:
        if incarnation == self.incarnation and self.server is not None and not self.paused:
            held, self._held = self._held, []
            self.inbox += held[:INBOX_LIMIT]
            self.maybe_turn()

    def on_requests(self, client: bytes, requests: list[Request]) -> None:
        """A frame of a client, or of a node that passes requests on."""
        self.requests.append((client, requests))
        self.maybe_turn()

    def on_down(self, peer: MemberId, incarnation: int) -> None:
        """The transport found that a peer's endpoint refuses, or says so wrongly."""
        self.dead.append((peer, incarnation))
        self.maybe_turn()

    def maybe_turn(self) -> None:
        """Run a turn unless the process is paused or busy; what its own work delays comes after."""
        if self.server is None or self.paused:
            return
        now_us = self._agenda.now_us
        if self.free_us <= now_us:
            self.turn()
        elif self.busy_us <= now_us:
            self._look_again()

    def _look_again(self) -> None:
        """Something waits: a turn comes as soon as the process is through with the last one."""
        if self._looks_at_us != self.free_us:
            self._looks_at_us = self.free_us
            self._agenda.at(self.free_us, self._on_free, (self.incarnation, self.free_us))

    def _on_free(self, due: tuple[int, int]) -> None:
        if due == (self.incarnation, self.free_us):  # else a turn has come since
            self.maybe_turn()

    def _on_wake(self, incarnation: int) -> None:
        """A deadline may have come."""
        now_us = self._agenda.now_us
        if incarnation != self.incarnation or self.server is None or now_us != self.wake_us:
            return
        if self.paused or self.busy_us > now_us:
            return  # whoever ends that runs a turn
        if self.free_us > now_us:
            self._look_again()
            return
        if self.clock.local_ms(now_us) < self._deadline_ms:
            self._schedule_wake()
            return
        self._agenda.events += 1
        self.turn()

    def _on_disk_done(self, incarnation: int) -> None:
        """The disk has answered: the process reads again."""
        if incarnation != self.incarnation or self.server is None or self.paused:
            return
        self._agenda.events += 1
        is_due = self.clock.local_ms(self.busy_us) >= self._deadline_ms
        if is_due or self._more or self._has_input():
            self.maybe_turn()
        else:
            self._schedule_wake()

    def _has_input(self) -> bool:
        return bool(
            self.inbox
            or self.requests
            or self.dead
            or self.forward_replies
            or self.forward_losses
            or self.stopping is not None
        )

    def _on_more(self, incarnation: int) -> None:
        if incarnation == self.incarnation:
            self.maybe_turn()

    # A turn

    def turn(self) -> None:
        """Do what the production loop does once; see the module."""
        server, world = self.server, self.world
        assert server is not None
        agenda = self._agenda
        now_us = self.local_us = agenda.now_us
        self._clock_reads = 0
        try:
            more = self._more = self._take_turn(server, now_us)
        except Stopped:
            world.marks.reach("crash_in_flush")
            self._die(power=self.fuse.power, how="in flush")
            return
        except StorageError as error:
            self._on_storage_error(error)
            return
        if self._replies:
            self._send_replies()
        self.last_turn_us = self.local_us - now_us
        self.free_us = self.local_us + self._turn_us
        if self.last_turn_us:
            self.busy_us = self.free_us
            agenda.at(self.busy_us, self._on_disk_done, self.incarnation)
        elif more or self.inbox:
            self._look_again()
        world.invariants.on_turn(self)
        world.reads.on_turn(self)
        if self.stopping is not None and self._has_stopped(server, self.stopping):
            return
        self._deadline_ms = server.next_deadline_ms()  # an order in between waits for it
        self._schedule_wake()

    def _take_turn(self, server: Server, now_us: int) -> bool:
        now_ms = self.clock.local_ms(now_us)
        late_ms = (self.last_turn_us + self.overshoot_us) // 1000
        self.overshoot_us = 0
        if late_ms > self._stall_ms:
            plan = self.world.plan
            if late_ms > plan.settings.election_min_ms:
                self.was_stalled = True
            server.on_stall(late_ms, now_ms=now_ms, grace=plan.stall_grace)
        if self.inbox:
            self._read_inbox(server, now_ms)
        if self.dead:
            dead, self.dead = self.dead, []
            for peer, incarnation in dead:
                server.on_peer_down(peer, incarnation, now_ms=now_ms)
        if self.requests:
            requests, self.requests = self.requests, []
            for client, batch in requests:
                server.on_requests(client, batch, now_ms=now_ms)
        if self.forward_replies or self.forward_losses:
            self._read_forwards(server, now_ms)
        server.on_timer(now_ms=now_ms, inbox_empty=not self.inbox)
        more = server.flush(now_ms=now_ms)
        if self._to_prepare and not more and self.local_us == now_us:
            self._to_prepare = self.storage.prepare(PREPARE_BYTES)
        if more:
            self.world.marks.reach("apply_slice")
        return more

    def _read_inbox(self, server: Server, now_ms: int) -> None:
        inbox, limit = self.inbox, self._inbox_frames
        inbox, self.inbox = (inbox[:limit], inbox[limit:]) if len(inbox) > limit else (inbox, [])
        for message in inbox:
            server.on_message(message, now_ms=now_ms)
        if self.inbox:
            self.world.marks.reach("busy_inbox")

    def _read_forwards(self, server: Server, now_ms: int) -> None:
        answered, self.forward_replies = self.forward_replies, []
        for leader, replies in answered:
            server.on_forward_replies(leader, replies, now_ms=now_ms)
        lost, self.forward_losses = self.forward_losses, []
        for leader in lost:
            server.on_forward_lost(leader, now_ms=now_ms)

    def _schedule_wake(self) -> None:
        """Wake exactly at the next deadline; one that came later meanwhile is found on waking."""
        deadline_ms = self._deadline_ms
        if deadline_ms >= FAR_MS:
            return
        agenda = self._agenda
        now_us, when_us = agenda.now_us, self.clock.true_us(deadline_ms)
        when_us = when_us if when_us > self.free_us else self.free_us  # quicker than max()
        when_us = when_us if when_us > now_us else now_us
        if self.wake_us <= now_us or when_us < self.wake_us:
            self.wake_us = when_us if when_us > now_us else now_us + 1
            agenda.at(self.wake_us, self._on_wake, self.incarnation)

    # Stopping in order

    def stop(self) -> None:
        """Ask the process to stop in order."""
        if self.server is None or self.stopping is not None:
            return
        now_us = self._agenda.now_us
        self.world.trace.step(now_us, f"stop {self.member_id}")
        now_ms = self.clock.local_ms(now_us)
        self.stopping = Stopping(self.server, now_us=now_us, now_ms=now_ms)
        self.maybe_turn()

    def _has_stopped(self, server: Server, stopping: Stopping) -> bool:
        agenda = self._agenda
        now_ms = self.clock.local_ms(agenda.now_us)
        if not stopping.is_over(now_us=agenda.now_us, now_ms=now_ms):
            agenda.at(stopping.until_us, self._on_more, self.incarnation)
            return False
        led = self.raft.role is Role.LEADER
        try:
            server.finish_stop(now_ms=now_ms)
            server.flush(now_ms=now_ms)
        except Stopped:
            self._die(power=self.fuse.power, how="in stop")
            return True
        except StorageError as error:
            self._on_storage_error(error)
            return True
        self._send_replies()
        if led:
            self.world.marks.reach("stopped_in_order")
        self._die(power=False, how="stopped")
        return True

    # What the server calls

    def send(self, messages: Sequence[Message]) -> None:
        """`Peers.send`: check that it may be said, and put it on its way."""
        if self.fuse.steps and not self.fuse.at_sync:
            self.fuse.burn()
        self.world.invariants.on_send(self, messages)
        self.world.network.send(self, messages, self.local_us)

    def receive(self, limit: int) -> list[Message]:
        """`Peers.receive`: a simulated node is given its messages."""
        raise AssertionError("the simulated loop reads the inbox itself")

    def downs(self) -> list[PeerDown]:
        """`Peers.downs`: a simulated node is told of the dead."""
        raise AssertionError("the simulated loop hears of the dead itself")

    def reply(self, client: bytes, reply: Reply) -> None:
        """`ReplyPort.reply`: replies leave at the end of the turn."""
        if reply.code == _BUSY:
            self.world.marks.reach("busy_refusal")
        elif reply.code == _UNAVAILABLE and reply.body.endswith(b"took its place"):
            self.world.marks.reach("replaced_proposal")
        self._replies.append((client, reply))

    def forward(self, leader: MemberId, requests: list[Request]) -> bool:
        """`ForwardPort.forward`: taken if the leader's process is there, as far as this one sees.

        A cut link loses what was taken; that is what a connection without an end looks like.
        """
        if self.world.nodes[leader].server is None:
            return False
        self.world.marks.reach("forwarded_request")
        self.world.carry_forward(self, leader, requests)
        return True

    def _send_replies(self) -> None:
        replies, self._replies = self._replies, []
        frames: dict[bytes, list[Reply]] = {}
        for client, reply in replies:
            frames.setdefault(client, []).append(reply)
        for client, batch in frames.items():
            self.world.carry_replies(self, client, batch)

    def on_ready(self, ready: Ready) -> None:
        """The core handed out a Ready, which is handled next."""
        world = self.world
        world.trace.ready(world.agenda.now_us, self.member_id, ready)
        world.invariants.on_ready(self, ready)

    def on_notice(self, notice: Notice) -> None:
        """The core reported a fact."""
        self.world.invariants.on_notice(self, notice)
        self.world.reads.on_notice(notice)

    def clock_ns(self) -> int:
        """Return the process's time; after the first look in a turn, some has passed."""
        self._clock_reads += 1
        if self._clock_reads > 1 and self._apply_us:
            self.local_us += self.draws.below(self._apply_us)
        return self.local_us * 1000

    def report(self, event: str, /, **fields: object) -> None:
        """`Report`: the situations that telemetry tells of."""
        if event == "storage.tail_repaired":
            self.world.marks.reach("wal_torn")
        elif event == "storage.segment_rotated":
            self.world.marks.reach("segment_rotated")
            self._to_prepare = self.world.plan.prepares
        else:
            self.world.invariants.snapshots.on_report(self, event)
        assert event != "apply.failed", fields
