"""One core whose peers are imagined: their messages are made by hand, its own are collected.

For the rules that a single node has to keep, whatever the others do. Every input handles the
Readys that follow it: persisted, sent, applied, advanced. `said` collects everything it sent.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from zraft.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    InstallSnapshot,
    InstallSnapshotResponse,
    Message,
    RequestVote,
    RequestVoteResponse,
)
from zraft.core.model import (
    Command,
    Configuration,
    Entries,
    EntryId,
    HardState,
    MemberId,
    Role,
    Settings,
    SnapshotMeta,
)
from zraft.core.notices import Notice
from zraft.core.raft import Raft
from zraft.core.ready import ReadState, Ready
from zraft.testing.core_disk import Disk, StoredSnapshot, payload_at
from zraft.wire_entry import EntryCodec


def snapshot_payloads(meta: SnapshotMeta) -> list[bytes]:
    """Return what an imagined peer's snapshot covers: made-up entries, all of its last term."""
    return [payload_at(index, meta.term) for index in range(1, meta.index + 1)]


class Solo:
    """One of `members`, the first unless told, with a log of the given terms on its disk."""

    def __init__(
        self,
        members: int = 3,
        *,
        terms: Sequence[int] = (),
        term: int | None = None,
        voted_for: MemberId = 0,
        settings: Settings | None = None,
        seed: int = 1,
        me: MemberId = 1,
    ) -> None:
        """Start as a follower in `term`, the term of the last entry unless given."""
        self.me = me
        self.now_ms = 0
        self.settings = Settings() if settings is None else settings
        self.configuration = Configuration(tuple(range(1, members + 1)))
        self.random = random.Random(seed)
        self.disk = Disk()
        if term is None:
            term = terms[-1] if terms else 0
        self.disk.write(terms, HardState(term, voted_for))
        self.said: list[Message] = []
        self.readys: list[Ready] = []
        self.applied: list[bytes] = []
        self.raft = self._start()

    def _start(self) -> Raft:
        return Raft(
            self.me,
            self.disk.recover(self.configuration),
            settings=self.settings,
            codec=EntryCodec(),
            random=self.random,
            now_ms=self.now_ms,
            thorough=True,
        )

    def restart(self) -> None:
        """Crash, and start again from the disk."""
        stored = self.disk.snapshot
        self.applied = [] if stored is None else list(stored.payloads)
        self.raft = self._start()

    # What came out

    @property
    def peers(self) -> list[MemberId]:
        """The imagined members."""
        return list(self.configuration.voters[1:])

    @property
    def terms(self) -> list[int]:
        """The terms of the log, from its first index on."""
        log = self.raft.state.log
        return [log.term(index) or 0 for index in range(log.first_index, log.last_index + 1)]

    @property
    def notices(self) -> list[Notice]:
        """Every notice so far."""
        return [notice for ready in self.readys for notice in ready.notices]

    @property
    def reads(self) -> list[ReadState]:
        """Every read that was confirmed so far."""
        return [read for ready in self.readys for read in ready.reads]

    @property
    def aborted_reads(self) -> list[int]:
        """Every read that was given up so far."""
        return [read_id for ready in self.readys for read_id in ready.aborted_reads]

    def flush(self) -> list[Message]:
        """Handle every Ready; return what was sent."""
        sent: list[Message] = []
        while (ready := self.raft.ready()) is not None:
            sent += ready.messages
            self.disk.save(ready)
            sent += ready.messages_after_persist
            if ready.restore is not None:
                self.applied = snapshot_payloads(ready.restore)
            if ready.committed is not None:
                self.applied += ready.committed.payloads
            self.readys.append(ready)
            self.raft.advance(ready)
            self.raft.on_applied(len(self.applied))
        self.said += sent
        return sent

    def appends(self, messages: Sequence[Message], dst: MemberId) -> list[AppendEntries]:
        """Return the appends among `messages` that go to `dst`."""
        return [m for m in messages if isinstance(m, AppendEntries) and m.dst == dst]

    # Time

    def wait(self, for_ms: int, *, inbox_empty: bool = True) -> list[Message]:
        """Let time pass in one go, run the timer, and return what was sent."""
        self.now_ms += for_ms
        self.raft.on_timer(now_ms=self.now_ms, inbox_empty=inbox_empty)
        return self.flush()

    def time_out(self) -> list[Message]:
        """Wait for the election deadline; return what was sent."""
        deadline_ms = self.raft.state.election_deadline_ms
        return self.wait(max(0, deadline_ms - self.now_ms))

    # Messages of the imagined

    def step(self, message: Message) -> list[Message]:
        """Take a message; return what was sent."""
        self.raft.step(message, now_ms=self.now_ms)
        return self.flush()

    def append(
        self,
        src: MemberId,
        *,
        term: int,
        prev: tuple[int, int] = (0, 0),
        terms: Sequence[int] = (),
        commit: int = 0,
        round_: int = 0,
    ) -> AppendEntriesResponse:
        """Take an AppendEntries with made-up payloads; return the answer."""
        first_index = prev[0] + 1
        payloads = [payload_at(index, t) for index, t in enumerate(terms, first_index)]
        entries = Entries(first_index, list(terms), payloads)
        sent = self.step(AppendEntries(src, self.me, term, *prev, commit, round_, entries))
        answers = [m for m in sent if isinstance(m, AppendEntriesResponse) and m.dst == src]
        assert len(answers) == 1, answers
        return answers[0]

    def ask_vote(
        self,
        src: MemberId,
        *,
        vote_term: int,
        term: int | None = None,
        last: tuple[int, int] = (0, 0),
        pre_vote: bool = False,
    ) -> RequestVoteResponse:
        """Take a RequestVote, or with `pre_vote` a pre-vote of a node in the term before."""
        if term is None:
            term = vote_term - 1 if pre_vote else vote_term
        sent = self.step(RequestVote(src, self.me, term, pre_vote, vote_term, *last))
        answers = [m for m in sent if isinstance(m, RequestVoteResponse) and m.dst == src]
        assert len(answers) == 1, answers
        return answers[0]

    def answer_vote(
        self, src: MemberId, granted: bool = True, *, term: int | None = None
    ) -> list[Message]:
        """Take an answer to the attempt under way; return what was sent."""
        attempt = self.raft.state.attempt
        assert attempt is not None, "nothing was asked"
        pre_vote = self.raft.role is Role.PRE_CANDIDATE
        if term is None:
            term = self.raft.term
        return self.step(
            RequestVoteResponse(src, self.me, term, pre_vote, attempt.vote_term, granted)
        )

    def ack(self, src: MemberId, match_index: int, *, round_: int | None = None) -> list[Message]:
        """Take an acknowledgement of an append of this term; return what was sent."""
        return self.step(
            AppendEntriesResponse(
                src, self.me, self.raft.term, True, match_index, 0, 0, self._round(round_)
            )
        )

    def refuse(
        self, src: MemberId, conflict: tuple[int, int], *, round_: int | None = None
    ) -> list[Message]:
        """Take a refusal that names the conflicting index and term; return what was sent."""
        return self.step(
            AppendEntriesResponse(
                src, self.me, self.raft.term, False, 0, *conflict, self._round(round_)
            )
        )

    def _round(self, round_: int | None) -> int:
        leadership = self.raft.state.leadership
        return round_ if round_ is not None else 0 if leadership is None else leadership.round

    # Snapshots

    def take_snapshot(self) -> SnapshotMeta:
        """Store a snapshot of all that is applied, and cut the log."""
        st = self.raft.state
        meta = self.snapshot_meta(st.applied_index, st.log.term(st.applied_index) or 0)
        self.disk.snapshot = StoredSnapshot(meta, tuple(self.applied))
        self.disk.compact(self.raft.on_snapshot_saved(meta, now_ms=self.now_ms))
        return meta

    def snapshot_meta(self, index: int, term: int) -> SnapshotMeta:
        """Return what a snapshot up to an entry says of itself."""
        return SnapshotMeta(index, term, self.configuration, size_bytes=8, crc=index)

    def chunk(self, src: MemberId, last: tuple[int, int], *, term: int) -> list[Message]:
        """Take the only chunk of a snapshot; return what was sent. It is not stored by this."""
        return self.step(InstallSnapshot(src, self.me, term, *last, 8, last[0], 0, 0, b"12345678"))

    def receive_snapshot(self, last: tuple[int, int]) -> list[Message]:
        """Finish storing a peer's snapshot; return what was sent. Made-up entries are applied."""
        meta = self.snapshot_meta(*last)
        if meta.index > self.raft.commit_index:
            self.disk.snapshot = StoredSnapshot(meta, tuple(snapshot_payloads(meta)))
        self.raft.on_snapshot_received(meta, now_ms=self.now_ms)
        return self.flush()

    def installed(self, src: MemberId, last: tuple[int, int]) -> list[Message]:
        """Take the news that a peer installed a snapshot; return what was sent."""
        return self.step(
            InstallSnapshotResponse(src, self.me, self.raft.term, *last, 0, installed=True)
        )

    # Short ways to a role

    def become_candidate(self) -> list[Message]:
        """Stand for election without a pre-vote; return the requests."""
        assert self.raft.campaign(now_ms=self.now_ms)
        return self.flush()

    def become_leader(self) -> list[Message]:
        """Win an election with the votes of as few peers as needed; return what was sent then."""
        self.become_candidate()
        sent: list[Message] = []
        for peer in self.peers[: len(self.configuration.voters) // 2]:
            sent += self.answer_vote(peer)
        assert self.raft.role is Role.LEADER
        return sent

    def propose(self, *bodies: str) -> EntryId:
        """Append commands to the log without handling a Ready; only a leader can."""
        commands = [Command(body.encode()) for body in bodies]
        entry_id = self.raft.propose(commands, now_ms=self.now_ms)
        assert entry_id is not None, "not the leader"
        return entry_id
