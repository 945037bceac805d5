"""`Server`: one node without its sockets, files and clock, which are injected.

It joins the core, the storage, the transport, the state machine and the clients' requests. The
same object runs in a node's poll loop and in the simulator. `flush` is the only place that
persists, sends, applies or replies; everything else only notes what is to be done.

What a client is told (three outcomes, never two):

    ok        the entry with the index *and* the term of the proposal was applied
    failed    it certainly is not and will not be: refused, or another entry stands at its index
    unknown   it was handed to the log or to a leader, and nobody here can say

A proposal of a leadership that ended stays undecided until an entry is applied at its index: the
same term means ok, another term means failed. Only its deadline turns it into unknown.
"""

from __future__ import annotations

from collections.abc import Callable

from zraft import crashpoints
from zraft.api import Code, Consistency, Flag, Reply, Request
from zraft.core.messages import InstallSnapshotResponse, Message, StateDigest
from zraft.core.model import NOBODY, MemberId, SnapshotMeta
from zraft.core.notices import Notice
from zraft.core.raft import Raft
from zraft.core.state import FAR_MS
from zraft.core.transfer import TransferRefusal
from zraft.machine.base import Ctx, StateMachine
from zraft.machine.replica import Applying, Replica
from zraft.node.admission import Admission
from zraft.node.digests import DigestWatch, compare_states
from zraft.node.persisting import persist
from zraft.node.ports import ForwardPort, Limits, ReplyPort, Report
from zraft.node.proposals import Proposals, chain_of, command_of
from zraft.node.reading import Reading
from zraft.node.requests import Deadlines, Place, Ticket
from zraft.node.snapshotting import Snapshots
from zraft.storage.base import Storage
from zraft.storage.snapshots import SnapshotStore
from zraft.transport.base import Bulk, Peers

ROUTE_RETRY_MS = 5
"""Parked requests try again this often while a leader is known but can't be reached."""
MAX_DEADLINE_MS = 600_000
APPLY_CLOCK_EVERY = 32
"""Entries applied between two looks at the clock."""

_SESSION = int(Flag.SESSION)  # plain numbers: each operation on a flag makes an object


class Server:
    """See the module. All times are `now_ms` of the clock that the owner reads."""

    def __init__(
        self,
        *,
        raft: Raft,
        storage: Storage,
        store: SnapshotStore,
        peers: Peers,
        bulk: Bulk,
        machine: StateMachine,
        replies: ReplyPort,
        forwards: ForwardPort,
        report: Report,
        on_notice: Callable[[Notice], None],
        clock_ns: Callable[[], int],
        limits: Limits,
    ) -> None:
        """Join the parts. `clock_ns` only measures how long a sync or a slice of applying took."""
        self.raft = raft
        self.storage = storage
        self.peers = peers
        self.replica = Replica(machine, self._report_apply_error)
        self._replies = replies
        self._forwards = forwards
        self._report = report
        self._on_notice = on_notice
        self._clock_ns = clock_ns
        self._limits = limits
        self._me = raft.state.me
        history = self.replica.history
        self.digests = DigestWatch(self._me, history, report, interval=limits.digest_interval)
        parts = raft, self.replica, storage, store, peers, bulk
        self.snapshots = Snapshots(*parts, report, clock_ns, limits.snapshots)
        self._applying: Applying | None = None
        self._deadlines = Deadlines()
        self._parked: dict[int, Ticket] = {}
        self._proposals = Proposals()
        self.reading = Reading(raft)
        self._forwarded: dict[int, Ticket] = {}
        self._next_key = 1
        self._route_ms = FAR_MS
        self._admission = Admission(limits)

    # What is known

    @property
    def applied_index(self) -> int:
        """The last index that the state machine has applied."""
        return self.replica.applied.index

    @property
    def waiting(self) -> int:
        """Requests that were taken and not answered."""
        return self._admission.waiting

    @property
    def parked(self) -> int:
        """Requests that wait for a leader."""
        return len(self._parked)

    @property
    def drained(self) -> bool:
        """Whether no write is undecided: a good moment to stop."""
        return not self._proposals and not self._forwarded

    @property
    def handing_over(self) -> bool:
        """Whether a transfer of leadership runs, or requests wait for the leader after it."""
        return self.raft.transfer_to != NOBODY or bool(self._parked)

    def next_deadline_ms(self) -> int:
        """Return when `on_timer` has something to do."""
        raft_ms, work_ms = self.raft.next_deadline_ms(), self.snapshots.next_deadline_ms()
        own_ms = min(self._deadlines.next_ms, self._route_ms, self.digests.next_deadline_ms())
        return min(raft_ms, work_ms, own_ms, self._park_ends_ms() if self._parked else FAR_MS)

    # What comes in

    def on_message(self, message: Message, *, now_ms: int) -> None:
        """Take a message of a peer, checked; DivergedError if it proves this node's state wrong."""
        if type(message) is StateDigest:
            self.digests.on_message(message, term=self.raft.term)
            return
        self.raft.step(message, now_ms=now_ms)
        if type(message) is InstallSnapshotResponse:
            self.snapshots.sending.on_answer(message, now_ms)

    def on_peer_down(self, peer: MemberId, incarnation: int, *, now_ms: int) -> None:
        """Take the news that a peer's process is gone."""
        self.raft.on_peer_down(peer, incarnation, now_ms=now_ms)

    def on_stall(self, late_ms: int, *, now_ms: int, grace: bool = True) -> None:
        """Take the news that this process did not run for a while."""
        self.raft.on_stall(late_ms, now_ms=now_ms, grace=grace)

    def on_timer(self, *, now_ms: int, inbox_empty: bool) -> None:
        """Do what is due; see `Raft.on_timer`."""
        self.raft.on_timer(now_ms=now_ms, inbox_empty=inbox_empty)
        for ticket in self._deadlines.expired(now_ms):
            self._expire(ticket)
        while self._parked and self._park_ends_ms() <= now_ms:
            ticket = next(iter(self._parked.values()))
            self._refuse(ticket, Code.UNAVAILABLE, "this node reached no leader")

    def on_requests(self, client: bytes, requests: list[Request], *, now_ms: int) -> None:
        """Take the requests of one client frame, in order."""
        tickets: list[Ticket] = []
        for request in requests:
            deadline_ms = now_ms + min(request.deadline_ms, MAX_DEADLINE_MS)
            ticket = Ticket(client, request, deadline_ms, taken_ms=now_ms)
            if self._is_answered_at_once(ticket, now_ms):
                continue
            self._admission.enter(request)
            self._deadlines.add(ticket)
            tickets.append(ticket)
        if tickets:
            self._route(tickets, now_ms)

    def _is_answered_at_once(self, ticket: Ticket, now_ms: int) -> bool:
        """Answer what can't be taken, what was applied before, and what asks this node alone."""
        request, leads = ticket.request, self.raft.leader_id == self._me
        refusal = self._admission.refusal(
            request,
            uncommitted_bytes=self._proposals.uncommitted_bytes if leads else 0,
            waited_ms=self._proposals.waited_ms(now_ms),
        )
        if refusal is not None:
            self._answer(ticket, refusal.code, refusal.why.encode(), delay_ms=refusal.delay_ms)
            return True
        if request.session and not request.flags & _SESSION:
            kept = self.replica.sessions.find(request.session, request.sequence)
            if kept is not None:
                self._report("request.repeated", index=kept.index, request=request.request_id)
                self._answer(ticket, kept.code, kept.result, kept.index)
                return True
        if request.consistency == Consistency.STALE and self.reading.is_recent(request, now_ms):
            self._query(ticket, now_ms)
            return True
        return False

    def on_forward_replies(self, leader: MemberId, replies: list[Reply], *, now_ms: int) -> None:
        """Pass the leader's replies on to the clients that asked here; the id names the ticket.

        What met one that leads no more goes to the leader after it, once that is known.
        """
        again: list[Ticket] = []
        for reply in replies:
            ticket = self._forwarded.get(reply.request_id)
            if ticket is None:
                continue
            if reply.code == Code.NOT_LEADER and self.raft.leader_id != leader:
                del self._forwarded[ticket.key]
                ticket.place = Place.PARKED
                again.append(ticket)
                continue
            self._finish(ticket)
            request_id = ticket.request.request_id
            self._replies.reply(ticket.client, reply._replace(request_id=request_id))
        self._park(again, now_ms)

    def on_forward_lost(self, leader: MemberId, *, now_ms: int) -> None:
        """The connection to a leader is gone: reads try again, writes may be applied."""
        lost = [ticket for ticket in self._forwarded.values() if ticket.leader == leader]
        again: list[Ticket] = []
        for ticket in lost:
            if ticket.request.consistency == Consistency.WRITE:
                self._refuse(ticket, Code.UNKNOWN, "the connection to the leader was lost")
            else:
                del self._forwarded[ticket.key]
                ticket.place = Place.PARKED
                again.append(ticket)
        self._park(again, now_ms)

    def campaign(self, *, now_ms: int) -> bool:
        """Stand for election now; False when this node leads already or can't vote."""
        return self.raft.campaign(now_ms=now_ms)

    def step_down(self, *, now_ms: int) -> bool:
        """Give up leadership now; False when this node does not lead."""
        return self.raft.step_down(now_ms=now_ms)

    def transfer(self, target: MemberId = NOBODY, *, now_ms: int) -> TransferRefusal | None:
        """Begin to hand leadership over (see `Raft.transfer`); writes wait here until it ended."""
        return self.raft.transfer(target, now_ms=now_ms)

    def prepare_stop(self, *, now_ms: int) -> None:
        """Take no new requests; those that are in the log may still be decided (see `drained`)."""
        self._admission.stopping = True
        for ticket in list(self._parked.values()):
            self._refuse(ticket, Code.NOT_LEADER, "the node is stopping")
        self._route_ms = FAR_MS

    def finish_stop(self, *, now_ms: int) -> None:
        """Give up leadership and answer everyone who still waits. Only `flush` may follow."""
        self.raft.step_down(now_ms=now_ms, reason="stop")
        self.flush(now_ms=now_ms)
        undecided = [*self._proposals, *self._forwarded.values()]
        for ticket in [*undecided, *self.reading.waiting(), *self._parked.values()]:
            if ticket.place is not Place.DONE:
                self._expire(ticket, "the node stopped")

    # Where a request goes

    def _route(self, tickets: list[Ticket], now_ms: int) -> None:
        """Read here, propose, forward or park: whoever leads decides."""
        leader = self.raft.leader_id
        if leader == NOBODY:
            self._park(tickets, now_ms)
            return
        tickets = self.reading.take(tickets, now_ms)
        if not tickets:
            return
        if leader != self._me:
            self._forward(leader, tickets, now_ms)
        elif self.raft.takes_proposals:
            self._propose(tickets, now_ms)
        else:
            self._park(tickets, now_ms)

    def _propose(self, writes: list[Ticket], now_ms: int) -> None:
        """Put writes into the log; a copy of one that is there already waits with it."""
        self._proposals.begin(self.raft.term)
        new = [ticket for ticket in writes if not self._proposals.join(ticket)]
        if not new:
            return
        commands = [command_of(ticket.request, self._limits.session_terms) for ticket in new]
        first = self.raft.propose(commands, now_ms=now_ms)
        assert first is not None, "only a leader takes requests"
        for older in self._proposals.add(first.index, new):
            self._expire(older, "this node led again before it was decided")

    def _forward(self, leader: MemberId, tickets: list[Ticket], now_ms: int) -> None:
        """Pass requests on to the leader, once; one that was passed on already goes back."""
        once = []
        for ticket in tickets:
            if ticket.was_forwarded:
                self._refuse(ticket, Code.NOT_LEADER, "this node does not lead")
            else:
                once.append(ticket)
        if not once:
            return
        first_id = self._next_key
        requests = [ticket.passed_on(key, now_ms) for key, ticket in enumerate(once, first_id)]
        if not self._forwards.forward(leader, requests):
            self._park(once, now_ms)
            return
        self._report("request.forwarded", requests=len(once), peer=leader)
        self._next_key += len(once)
        for forward_id, ticket in enumerate(once, first_id):
            ticket.place, ticket.key, ticket.leader = Place.FORWARDED, forward_id, leader
            self._forwarded[forward_id] = ticket

    def _park(self, tickets: list[Ticket], now_ms: int) -> None:
        """Keep requests until a leader takes them, for as long as two elections may take.

        Then they go back as not applied: this node may be the one that is cut off.
        """
        new = sum(ticket.key == 0 for ticket in tickets)
        if new:
            self._report("request.parked", requests=new)
        for ticket in tickets:
            if ticket.was_forwarded and self.raft.leader_id != self._me:
                self._refuse(ticket, Code.NOT_LEADER, "this node knows no leader")
            elif self._admission.stopping:
                self._refuse(ticket, Code.NOT_LEADER, "the node is stopping")
            elif len(self._parked) >= self._limits.max_parked_requests:
                self._refuse(ticket, Code.BUSY, f"{len(self._parked)} requests wait for a leader")
            else:
                ticket.place, ticket.key = Place.PARKED, self._next_key
                ticket.parked_ms = ticket.parked_ms or now_ms
                self._parked[ticket.key] = ticket
                self._next_key += 1
        if self._parked and self._route_ms == FAR_MS and self.raft.leader_id != NOBODY:
            self._route_ms = now_ms + ROUTE_RETRY_MS

    def _park_ends_ms(self) -> int:
        first = next(iter(self._parked.values()))
        return first.parked_ms + self._limits.park_ms

    def _route_parked(self, now_ms: int) -> None:
        """Try parked requests again once a leader is known."""
        leader = self.raft.leader_id
        hands_over = leader == self._me and not self.raft.takes_proposals
        if not self._parked or leader == NOBODY or hands_over:
            self._route_ms = FAR_MS
            return
        if leader != self._me and now_ms < self._route_ms < FAR_MS:
            return
        self._route_ms = FAR_MS
        tickets, self._parked = list(self._parked.values()), {}
        self._route(tickets, now_ms)

    # What goes out

    def flush(self, *, now_ms: int) -> bool:
        """Do all that the core wants done; return True if more is to be applied at once.

        The only place that persists, sends, applies or replies.

        Raises:
            StorageError: the disk refused; the node must stop and has said nothing.
            DivergedError: this node's state is not the others'.
        """
        slice_ends_ns = self._clock_ns() + self._limits.apply_slice_ms * 1_000_000
        if self._parked or self._route_ms != FAR_MS:
            self._route_parked(now_ms)
        while (ready := self.raft.ready()) is not None:
            if crashpoints.armed:
                crashpoints.reach("flush.before-send")
            if ready.messages:
                self.peers.send(ready.messages)
                if crashpoints.armed:
                    crashpoints.reach("flush.sent")
            if ready.must_persist:
                persist(ready, self.storage, self._clock_ns, self._limits, self._report)
            if ready.messages_after_persist:
                if crashpoints.armed:
                    crashpoints.reach("flush.before-answers")
                self.peers.send(ready.messages_after_persist)
                if crashpoints.armed:
                    crashpoints.reach("flush.answers-sent")
            if ready.committed is not None:
                assert self._applying is None
                self._applying = Applying(ready.committed)
            self.reading.on_ready(ready)
            for notice in ready.notices:
                self._on_notice(notice)
            self.raft.advance(ready)
            if crashpoints.armed:
                crashpoints.reach("flush.advanced")
            if ready.restore is not None:
                self._restore(ready.restore)
            if self._applying is not None:
                self._apply(self._applying, slice_ends_ns)
            self.snapshots.on_ready(ready, now_ms)
            if ready.aborted_reads:  # they changed nothing, and go where the next leader is
                self._park(self.reading.aborted(ready), now_ms)
            self._route_parked(now_ms)
        if self._applying is not None:
            self._apply(self._applying, slice_ends_ns)
        applied_index = self.replica.applied.index
        self._answer_reads(applied_index, now_ms)
        compare_states(self.digests, self.raft, self.peers, applied_index, now_ms)
        self.snapshots.work(now_ms)
        return self._applying is not None

    def _restore(self, meta: SnapshotMeta) -> None:
        """Replace the state by a snapshot's. What became of writes before its end is not known."""
        self._applying = None
        self.snapshots.restore(meta)
        for ticket in [ticket for ticket in self._proposals if ticket.key <= meta.index]:
            self._expire(ticket, "a snapshot took the place of its entry")
        self._proposals.on_applied(meta.index)

    def _apply(self, applying: Applying, slice_ends_ns: int) -> None:
        """Apply what is committed until the slice of time is used up; answer what that decides."""
        entries, position = applying.entries, applying.position
        payloads, count = entries.payloads, len(entries.payloads)
        while position < count:
            if crashpoints.armed:
                crashpoints.reach("apply.before-entry")
            self._apply_one(entries.first_index + position, payloads[position])
            if crashpoints.armed:
                crashpoints.reach("apply.entry-applied")
            self.snapshots.on_entry(len(payloads[position]))
            position += 1
            if position % APPLY_CLOCK_EVERY == 0 and self._clock_ns() >= slice_ends_ns:
                break
        applying.position = position
        if position == count:
            self._applying = None
        self.raft.on_applied(self.replica.applied.index)
        self._proposals.on_applied(self.replica.applied.index)
        if crashpoints.armed:
            crashpoints.reach("apply.slice-done")

    def _apply_one(self, index: int, payload: bytes) -> None:
        outcome = self.replica.apply(index, payload)
        first = self._proposals.take(index)
        if first is None:
            return
        for ticket in chain_of(first):
            if ticket.term != outcome.term:
                self._refuse(ticket, Code.UNAVAILABLE, "another leader's entry took its place")
                continue
            self._finish(ticket)
            if outcome.index != index:
                self._report("request.repeated", index=outcome.index, request=index)
            self._answer(ticket, outcome.code, outcome.result, outcome.index)

    def _answer_reads(self, applied_index: int, now_ms: int) -> None:
        """Answer the confirmed reads whose index is applied."""
        self.reading.note_heard(applied_index)
        for ticket in self.reading.due(applied_index):
            self._finish(ticket)
            self._query(ticket, now_ms)

    def _query(self, ticket: Ticket, now_ms: int) -> None:
        """Ask the state machine as it is now, and reply; of a stale read, say how old that is."""
        code, answer = self.replica.query(ticket.request.body)
        age_ms = self.reading.age_ms(ticket, now_ms)
        self._answer(ticket, code, answer, self.replica.applied.index, staleness_ms=age_ms)

    # How a request ends

    def _finish(self, ticket: Ticket) -> None:
        """Take a ticket out of its place. Those of a read stay listed, and are passed over."""
        assert ticket.place is not Place.DONE
        if ticket.place is Place.PROPOSED:
            self._proposals.remove(ticket)
        elif ticket.place is Place.FORWARDED:
            del self._forwarded[ticket.key]
        elif ticket.place is Place.PARKED:
            self._parked.pop(ticket.key, None)
        ticket.place = Place.DONE
        self._deadlines.remove(ticket)
        self._admission.leave(ticket.request)

    def _refuse(self, ticket: Ticket, code: Code, why: str) -> None:
        self._finish(ticket)
        self._answer(ticket, code, why.encode())

    def _expire(self, ticket: Ticket, why: str = "the deadline passed") -> None:
        """Tell a client what is known of its request when nothing more will be."""
        is_write = ticket.request.consistency == Consistency.WRITE
        handed_on = ticket.place in (Place.PROPOSED, Place.FORWARDED)
        if ticket.place is Place.PARKED:
            why = f"{why}: no leader was reached"
        self._refuse(ticket, Code.UNKNOWN if is_write and handed_on else Code.UNAVAILABLE, why)

    def _answer(
        self,
        ticket: Ticket,
        code: Code,
        body: bytes,
        index: int = 0,
        delay_ms: int = 0,
        staleness_ms: int = 0,
    ) -> None:
        me, raft, request_id = self._me, self.raft, ticket.request.request_id
        if code is not Code.OK:
            self._report("request.rejected", code=code.name, request=request_id)
        head = request_id, code, me, raft.term, index, raft.leader_id
        self._replies.reply(ticket.client, Reply(*head, body, delay_ms, staleness_ms))

    def _report_apply_error(self, ctx: Ctx, error: Exception) -> None:
        self._report("apply.failed", index=ctx.index, error=f"{type(error).__name__}: {error}")
