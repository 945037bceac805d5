"""The five properties of Raft (Figure 3 of the paper), checked from outside over a whole cluster.

Election Safety, Leader Append-Only, Log Matching, Leader Completeness and State Machine Safety,
and what an implementation adds to them: what is committed is on the disks of a majority. A broken
property is an AssertionError that names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from zraft.core.log import RaftLog
from zraft.core.model import Entries, MemberId, Role
from zraft.core.raft import Raft


@dataclass(slots=True)
class Safety:
    """What has been seen so far of one cluster."""

    voters: int
    leader_of_term: dict[int, MemberId] = field(default_factory=dict)
    committed: list[tuple[int, int]] = field(default_factory=list)
    """For each index from 1 on: the entry's term, and the lowest term in which it was committed."""
    applied: list[bytes] = field(default_factory=list)
    applied_index: dict[MemberId, int] = field(default_factory=dict)
    _leader_logs: dict[MemberId, tuple[int, list[int]]] = field(default_factory=dict)
    _logs: dict[MemberId, Entries] = field(default_factory=dict)

    def forget(self, member_id: MemberId) -> None:
        """Learn that a member crashed: its state machine starts again from the first entry."""
        self.applied_index.pop(member_id, None)
        self._leader_logs.pop(member_id, None)
        self._logs.pop(member_id, None)

    def on_committed(self, member_id: MemberId, entries: Entries) -> None:
        """Take what a member applies: in order, without gaps, the same on all members."""
        index = self.applied_index.get(member_id, 0)
        assert entries.first_index == index + 1, "State Machine Safety: applied out of order"
        for payload in entries.payloads:
            if index == len(self.applied):
                self.applied.append(payload)
            assert self.applied[index] == payload, f"State Machine Safety: index {index + 1}"
            index += 1
        self.applied_index[member_id] = index

    def check(self, member_id: MemberId, raft: Raft, disks: Mapping[MemberId, list[int]]) -> None:
        """Check everything that can be seen after a step of one member."""
        mine = all_entries(raft.state.log)
        if raft.role is Role.LEADER:
            self._check_leader(member_id, raft, mine.terms)
        else:
            self._leader_logs.pop(member_id, None)
        self._note_commits(raft, mine.terms, disks)
        self._logs[member_id] = mine
        for other, entries in self._logs.items():
            if other != member_id:
                check_log_matching(mine, entries)

    def _check_leader(self, member_id: MemberId, raft: Raft, terms: list[int]) -> None:
        first = self.leader_of_term.setdefault(raft.term, member_id)
        assert first == member_id, f"Election Safety: two leaders in term {raft.term}"
        before = self._leader_logs.get(member_id)
        if before is not None and before[0] == raft.term:
            kept = terms[: len(before[1])]
            assert kept == before[1], f"Leader Append-Only: leader of term {raft.term}"
        self._leader_logs[member_id] = (raft.term, terms)
        must_hold = [term for term, committed_in in self.committed if committed_in < raft.term]
        assert terms[: len(must_hold)] == must_hold, f"Leader Completeness: term {raft.term}"

    def _note_commits(
        self, raft: Raft, terms: list[int], disks: Mapping[MemberId, list[int]]
    ) -> None:
        known = len(self.committed)
        for term, (expected, _) in zip(terms[: raft.commit_index], self.committed, strict=False):
            assert term == expected, f"two entries committed at one index: {terms}"
        for index in range(known + 1, raft.commit_index + 1):
            term = terms[index - 1]
            holders = [m for m, d in disks.items() if index <= len(d) and d[index - 1] == term]
            assert len(holders) > self.voters // 2, f"index {index} is on {holders} only"
            self.committed.append((term, raft.term))


def all_entries(log: RaftLog) -> Entries:
    """Return a whole log; it is short enough for one slice."""
    entries = log.slice(1, log.last_index, 1 << 60, log.last_index)
    assert entries.last_index == log.last_index, "the log is too long to be checked"
    return entries


def check_log_matching(a: Entries, b: Entries) -> None:
    """Assert: where two logs hold an entry with the same index and term, all before is equal."""
    common = _last_common(a.terms, b.terms)
    assert a.terms[:common] == b.terms[:common], f"Log Matching: before index {common}"
    assert a.payloads[:common] == b.payloads[:common], f"Log Matching: commands up to {common}"


def _last_common(a: Sequence[int], b: Sequence[int]) -> int:
    for index in range(min(len(a), len(b)), 0, -1):
        if a[index - 1] == b[index - 1]:
            return index
    return 0
