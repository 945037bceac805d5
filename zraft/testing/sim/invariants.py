"""What must hold after every step, checked at the cost of what the step changed.

The canon is the one committed log: for each index its term, a chain of hashes over all up to it,
and the lowest term in which somebody knew it committed. Every node is held against it as it moves;
nobody's whole log is ever looked at again. Log Matching rests on an induction: an entry is named by
(index, term); whoever gets one must get the same payload and the same term before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING

from zraft.core import invariants
from zraft.core.messages import (
    AppendEntriesResponse,
    InstallSnapshotResponse,
    Message,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from zraft.core.model import NOBODY, Entries, MemberId, Role
from zraft.core.notices import (
    CommitAdvanced,
    ElectionLost,
    ElectionStarted,
    ElectionWon,
    EntriesAppended,
    EntriesTruncated,
    GraceGranted,
    Notice,
    ProgressChanged,
    QuorumLost,
    RoleChanged,
    VoteDenied,
    VoteGranted,
)
from zraft.core.ready import Ready
from zraft.core.state import RaftState
from zraft.testing.sim.snapshots import SnapshotWatch
from zraft.testing.sim.trace import Violation
from zraft.wire_entry import decode_entry

if TYPE_CHECKING:
    from zraft.testing.sim.node import SimNode
    from zraft.testing.sim.world import World

_LEADER = Role.LEADER  # through the class each look is a call
FULL_CHECK_EVERY = 128
FULL_CHECK_ENTRIES = 600


@dataclass(slots=True)
class View:
    """What was last seen of one node's present life."""

    term: int = 0
    commit: int = 0
    handed: int = 0
    applied: int = 0
    chain: bytes = b""
    terms: list[int] = field(default_factory=list)  # of its log in memory, as Readys told
    led_term: int = 0
    matches: dict[MemberId, int] = field(default_factory=dict)
    floors: dict[int, int] = field(default_factory=dict)  # what each read has to see
    hinted_term: int = 0
    turns: int = 0


@dataclass(slots=True)
class Memory:
    """What one member said in all its lives: it may not unsay it."""

    term: int = 0
    votes: dict[int, MemberId] = field(default_factory=dict)  # by term


class Invariants:
    """See the module."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._views = {member_id: View() for member_id in world.ids}
        self._memories = {member_id: Memory() for member_id in world.ids}
        self._leaders: dict[int, MemberId] = {}
        self._entries: dict[tuple[int, int], tuple[int, bytes]] = {}
        self._terms: list[int] = []  # of the canon
        self._chains: list[bytes] = [b""]
        self._committed_in: list[int] = []
        self._digests: dict[int, int] = {}
        self.snapshots = SnapshotWatch(world, self._terms)

    @property
    def committed_index(self) -> int:
        """How far anybody knows the log to be committed."""
        return len(self._terms)

    def committed_terms(self, index: int) -> list[int]:
        """Return the terms of the committed entries up to `index`, all of which are known."""
        assert index <= len(self._terms)
        return self._terms[:index]

    # A process starts

    def on_start(self, node: SimNode) -> None:
        """A process has read its log: what it said before must still be known to it."""
        shadow, memory = node.shadow, self._memories[node.member_id]
        state = node.raft.state
        view = self._views[node.member_id] = View(term=state.term, terms=list(shadow.terms))
        if state.snapshot is not None:
            view.handed = view.applied = state.snapshot.index
            view.chain = self._chains[view.handed]
        if shadow.hard_state.term < memory.term:
            raise Violation(
                f"{node.member_id} said term {memory.term}, and recovers {shadow.hard_state}"
            )
        if (state.term, state.voted_for) != shadow.hard_state:
            raise Violation(
                f"{node.member_id} starts with term {state.term} and vote "
                f"{state.voted_for}; durable is {shadow.hard_state}"
            )

    # A Ready is handled

    def on_ready(self, node: SimNode, ready: Ready) -> None:
        """A Ready was handed out, and nothing of it is done yet."""
        view, state = self._views[node.member_id], node.raft.state
        if ready.restore is not None:
            index = ready.restore.index
            self.snapshots.check_restored(node, ready.restore, handed=view.handed, log=view.terms)
            view.terms = self.committed_terms(index)
            view.handed, view.chain = index, self._chains[index]
        if ready.entries is not None:
            self._check_entries(node, view, state, ready, ready.entries)
        if state.commit_index > view.commit:
            self._note_commit(node, view, state)
        if ready.committed is not None:
            self._check_applied(node, view, ready.committed)
        for read in ready.reads:
            floor = view.floors.pop(read.read_id, None)
            if floor is None:
                raise Violation(f"{node.member_id} serves read {read.read_id}, asked by nobody")
            if read.index < floor:
                raise Violation(
                    f"{node.member_id} serves a read at {read.index}; {floor} was "
                    f"committed when it was asked"
                )
        for read_id in ready.aborted_reads:
            view.floors.pop(read_id, None)
        if ready.aborted_reads:
            self._world.marks.reach("read_retried")

    def on_read_asked(self, node: SimNode, read_id: int) -> None:
        """A linearizable read begins: it must see what anybody knows to be committed by now."""
        self._views[node.member_id].floors[read_id] = len(self._terms)

    def _check_entries(
        self, node: SimNode, view: View, state: RaftState, ready: Ready, entries: Entries
    ) -> None:
        first, terms, mine = entries.first_index, entries.terms, view.terms
        if first > len(mine) + 1:
            raise Violation(f"{node.member_id} leaves a hole before index {first}")
        if first <= len(mine):
            if state.role is _LEADER and view.led_term == state.term:
                raise Violation(f"Leader Append-Only: {node.member_id} rewrites index {first}")
            if first <= view.commit:
                raise Violation(f"{node.member_id} rewrites index {first}, which is committed")
            cuts = sum(type(notice) is EntriesTruncated for notice in ready.notices)
            if mine[first - 1] == terms[0] and cuts < 2:
                raise Violation(f"{node.member_id} truncated from {first} without a conflict")
        known = self._entries
        before = mine[first - 2] if first > 1 else 0
        for index, (term, payload) in enumerate(zip(terms, entries.payloads, strict=True), first):
            seen = known.setdefault((index, term), (before, payload))
            if seen[0] != before or seen[1] != payload:
                raise Violation(f"Log Matching: two entries {index}/{term} at {node.member_id}")
            before = term
        mine[first - 1 :] = terms
        if state.configuration.index >= first:
            self._world.members.on_appended(state.configurations.since(first - 1))

    def _note_commit(self, node: SimNode, view: View, state: RaftState) -> None:
        """A node's commit index rose: it extends the canon, or repeats it."""
        canon, log, world = self._terms, state.log, self._world
        if log.last_index > len(view.terms):
            raise Violation(f"{node.member_id} has entries that no Ready told")
        for index in range(view.commit + 1, state.commit_index + 1):
            term = log.term(index)
            if index <= log.compacted.index and index <= len(canon):
                continue  # in a snapshot: see `SnapshotWatch`
            assert term is not None
            if index <= len(canon):
                if canon[index - 1] != term:
                    raise Violation(
                        f"State Machine Safety: {node.member_id} commits {index}/{term}"
                        f", committed was {index}/{canon[index - 1]}"
                    )
                continue
            holders = self._holders(index, term)
            world.members.check_held(index, term, holders, state.configurations)
            payload = log.payload(index)
            canon.append(term)
            self._chains.append(_chain(self._chains[-1], term, payload))
            self._committed_in.append(state.term)
            entry = decode_entry(payload)
            world.members.on_committed(index, entry)
            world.history.on_committed(index, entry)
        view.commit = state.commit_index
        world.reads.on_committed(len(canon))

    def _holders(self, index: int, term: int) -> list[MemberId]:
        """Return who has an entry on disk, or had it when the disk was lost; see `Wipes`."""
        lost = self._world.wipes.lost_holders(index, term)
        return lost + [
            node.member_id
            for node in self._world.nodes.values()
            if len(node.shadow.terms) >= index and node.shadow.terms[index - 1] == term
        ]

    def _check_applied(self, node: SimNode, view: View, entries: Entries) -> None:
        index = view.handed
        if entries.first_index != index + 1:
            raise Violation(f"{node.member_id} applies {entries.first_index} after {index}")
        chain = view.chain
        for term, payload in zip(entries.terms, entries.payloads, strict=True):
            index += 1
            chain = _chain(chain, term, payload)
            if index >= len(self._chains) or chain != self._chains[index]:
                raise Violation(
                    f"State Machine Safety: {node.member_id} applies another log up to {index}"
                )
        view.handed, view.chain = index, chain

    # Something is said

    def on_send(self, node: SimNode, messages: Sequence[Message]) -> None:
        """A node speaks: what it says must be durable on its disk by now."""
        shadow = node.shadow
        durable = shadow.hard_state
        memory = self._memories[node.member_id]
        for message in messages:
            if message.term > durable.term:
                raise Violation(f"{node.member_id} says term {message.term}; durable is {durable}")
            memory.term = message.term if message.term > memory.term else memory.term
            kind = type(message)
            if kind is AppendEntriesResponse:
                assert isinstance(message, AppendEntriesResponse)
                if message.success and message.match_index:
                    self._check_acknowledged(node, message)
            elif kind is InstallSnapshotResponse:
                assert isinstance(message, InstallSnapshotResponse)
                self.snapshots.check_answer(node, message)
            elif kind is RequestVote:
                assert isinstance(message, RequestVote)
                if not message.pre_vote:
                    self._check_vote(node, message.term, node.member_id)
            elif kind is RequestVoteResponse:
                assert isinstance(message, RequestVoteResponse)
                if message.granted and not message.pre_vote:
                    self._check_vote(node, message.term, message.dst)
            elif kind is TimeoutNow:
                assert isinstance(message, TimeoutNow)
                self._world.reads.check_target(node, message)

    def _check_vote(self, node: SimNode, term: int, candidate: MemberId) -> None:
        durable = node.shadow.hard_state
        # A later durable term keeps the promise as well: nobody votes in a term that is over.
        if durable.term == term and durable.voted_for != candidate:
            raise Violation(
                f"{node.member_id} votes for {candidate} in term {term}; durable is "
                f"{node.shadow.hard_state}"
            )
        votes = self._memories[node.member_id].votes
        if votes.setdefault(term, candidate) != candidate:
            raise Violation(f"{node.member_id} votes for {votes[term]} and {candidate} in {term}")

    def _check_acknowledged(self, node: SimNode, message: AppendEntriesResponse) -> None:
        index, terms = message.match_index, node.shadow.terms
        if message.term < node.shadow.hard_state.term:
            # One Ready took in an append of the old term and one of the new that replaced it. The
            # disk shows the end of both, and what is said is what was true in between.
            return
        if index > len(terms):
            raise Violation(f"{node.member_id} acknowledges {index}; durable is {len(terms)}")
        leader = self._world.nodes[message.dst]
        if leader.server is None or leader.raft.term != message.term:
            return
        if leader.raft.role is _LEADER:
            theirs = self._views[message.dst].terms
            if index > len(theirs) or theirs[index - 1] != terms[index - 1]:
                raise Violation(
                    f"{node.member_id} acknowledges {index}/{terms[index - 1]}, which "
                    f"is not its leader's"
                )

    # A turn is over

    def on_turn(self, node: SimNode) -> None:
        """A node finished a turn: look at all that may have moved."""
        view, state = self._views[node.member_id], node.raft.state
        server, world = node.server, self._world
        last_index, commit_index, term = state.log.last_index, state.commit_index, state.term
        if commit_index != view.commit:
            if commit_index < view.commit:
                raise Violation(f"{node.member_id}: the commit index fell")
            self._note_commit(node, view, state)
        if term < view.term:
            raise Violation(f"{node.member_id}: the term fell from {view.term} to {term}")
        view.term = term
        if last_index != len(view.terms):
            raise Violation(f"{node.member_id} lost entries without a Ready")
        if state.role is _LEADER:
            self._check_leader(node, view, state)
        assert server is not None
        applied_index = server.applied_index
        if applied_index != view.applied:
            self._check_machine(node, view, applied_index)
        if server.parked:
            world.marks.reach("parked_request")
        if node.storage.replaced is not None:
            self._check_replaced(node)
        world.trace.state(world.agenda.now_us, node.member_id, term, last_index, commit_index)
        view.turns += 1
        if view.turns % FULL_CHECK_EVERY == 0 and last_index < FULL_CHECK_ENTRIES:
            invariants.check_full(state)

    def _check_machine(self, node: SimNode, view: View, applied: int) -> None:
        server = node.server
        assert server is not None
        if applied < view.applied:
            raise Violation(f"{node.member_id}: the applied index fell")
        view.applied = applied
        digest = server.replica.digest()
        if self._digests.setdefault(applied, digest) != digest:
            raise Violation(f"{node.member_id} has another state at {applied}")
        if server.digests.compared:
            self._world.marks.reach("digests_compared")

    def _check_leader(self, node: SimNode, view: View, state: RaftState) -> None:
        if view.led_term != state.term:
            self._check_elected(node, state.term)
            self._world.members.check_elected(node, state)
            view.led_term, view.matches = state.term, {}
        leadership = state.leadership
        assert leadership is not None
        self._world.members.check_leader(node, state)
        matches, last_index = view.matches, len(view.terms)
        if not matches.keys() <= leadership.progress.keys():
            for gone in matches.keys() - leadership.progress.keys():
                del matches[gone]  # no member any more
        for peer, progress in leadership.progress.items():
            match = progress.match_index
            before = matches.get(peer, 0)
            if match == before:
                continue
            if match < before:
                raise Violation(f"{node.member_id}: the match index of {peer} fell")
            if not match < progress.next_index <= last_index + 1:
                raise Violation(
                    f"{node.member_id}: {peer} has match {match}, "
                    f"next {progress.next_index}, the log ends at {last_index}"
                )
            matches[peer] = match
            shadow = self._world.nodes[peer].shadow
            if shadow.hard_state.term == state.term and (
                len(shadow.terms) < match or shadow.terms[match - 1] != view.terms[match - 1]
            ):
                raise Violation(f"{node.member_id} counts {match} as durable on {peer}: it is not")
            if len(progress.inflights) >= state.settings.max_inflight_messages:
                self._world.marks.reach("full_window")

    def _check_elected(self, node: SimNode, term: int) -> None:
        """Election Safety, and Leader Completeness: all that was committed in earlier terms."""
        first = self._leaders.setdefault(term, node.member_id)
        if first != node.member_id:
            raise Violation(f"Election Safety: {first} and {node.member_id} lead term {term}")
        mine = self._views[node.member_id].terms
        must = len(self._terms)
        while must and self._committed_in[must - 1] >= term:
            must -= 1
        if mine[:must] != self._terms[:must]:
            raise Violation(
                f"Leader Completeness: {node.member_id} leads term {term} without all "
                f"that is committed up to {must}"
            )
        if len(self._world.leaders()) > 1:
            self._world.marks.reach("two_leaders")

    def _check_replaced(self, node: SimNode) -> None:
        """A disk overwrote entries: what is committed must still be on a quorum."""
        first = node.storage.replaced
        assert first is not None
        node.storage.replaced = None
        for index in range(first, min(len(self._terms), len(node.shadow.terms) + 1) + 1):
            term = self._terms[index - 1]
            self._world.members.check_still_held(index, term, self._holders(index, term))

    # Marks

    def on_notice(self, node: SimNode, notice: Notice) -> None:
        """The core reported a fact."""
        if isinstance(notice, EntriesAppended):
            return  # nobody has a question about these two, which are most of all
        if isinstance(notice, CommitAdvanced):
            self._on_commit_advanced(node, notice)
            return
        reach = self._world.marks.reach
        self._world.members.on_notice(notice)
        match notice:
            case ElectionWon(pre_vote=False):
                self._check_elected(node, notice.term)
                if self._views[node.member_id].hinted_term == notice.term:
                    reach("hint_election")
            case ElectionStarted(reason="hint"):
                self._views[node.member_id].hinted_term = notice.term
            case ElectionLost(pre_vote=False, reason="timeout"):
                reach("split_vote")
            case EntriesTruncated():
                reach("conflict_truncation")
            case VoteDenied(reason="log_behind"):
                reach("election_lost_log_behind")
            case VoteDenied(pre_vote=True, reason="leader_alive" | "is_leader"):
                reach("pre_vote_refused")
            case VoteGranted(pre_vote=False):
                votes = self._memories[node.member_id].votes
                if votes.get(notice.term, NOBODY) == notice.peer:
                    reach("revoted_same")
            case ProgressChanged(reason="refused"):
                reach("back_up")
            case QuorumLost():
                reach("quorum_lost")
            case GraceGranted():
                reach("grace_granted")
            case RoleChanged(old="leader"):
                if node.was_paused:
                    reach("paused_leader_deposed")
                if node.was_stalled:
                    reach("stalled_leader_deposed")
            case _:
                self.snapshots.on_notice(notice)

    def _on_commit_advanced(self, node: SimNode, notice: CommitAdvanced) -> None:
        state = node.raft.state
        if state.role is _LEADER:
            node.was_paused = node.was_stalled = False
            if state.log.term(notice.new) != state.term:
                raise Violation(
                    f"{node.member_id}, leader of term {state.term}, commits {notice.new} of term "
                    f"{state.log.term(notice.new)} by counting (Figure 8)"
                )
            oldest = state.log.term(notice.old + 1)
            if oldest is not None and oldest < state.term:
                self._world.marks.reach("old_term_commit")


def _chain(before: bytes, term: int, payload: bytes) -> bytes:
    return blake2b(b"%b%d " % (before, term) + payload, digest_size=8).digest()
