"""The five properties of Raft (Figure 3 of the paper), checked from outside over a whole cluster.

Election Safety, Leader Append-Only, Log Matching, Leader Completeness and State Machine Safety,
and what an implementation adds to them: what is committed is on the disks of a majority. A broken
property is an AssertionError that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from zraft.core.configurations import Configurations
from zraft.core.log import RaftLog
from zraft.core.model import Entries, EntryId, MemberId, Role
from zraft.core.quorum import holds_quorum
from zraft.core.raft import Raft

Holders = Callable[[int, int], list[MemberId]]
"""Who has the entry (index, term) on disk, by itself or in a snapshot."""


@dataclass(slots=True)
class Safety:
    """What has been seen so far of one cluster."""

    leader_of_term: dict[int, MemberId] = field(default_factory=dict)
    committed: list[tuple[int, int]] = field(default_factory=list)
    """For each index from 1 on: the entry's term, and the lowest term in which it was committed."""
    applied: list[bytes] = field(default_factory=list)
    applied_index: dict[MemberId, int] = field(default_factory=dict)
    _leader_logs: dict[MemberId, tuple[int, Entries]] = field(default_factory=dict)
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

    def on_restored(self, member_id: MemberId, payloads: Sequence[bytes]) -> None:
        """Take what a snapshot brought a member to: what was applied up to there, nothing else."""
        count = len(payloads)
        assert list(payloads) == self.applied[:count], "State Machine Safety: a snapshot"
        assert count >= self.applied_index.get(member_id, 0), "a snapshot rolls back"
        self.applied_index[member_id] = count

    def check(self, member_id: MemberId, raft: Raft, holders: Holders) -> None:
        """Check everything that can be seen after a step of one member."""
        mine = all_entries(raft.state.log)
        self._check_compacted(raft.state.log.compacted)
        if raft.role is Role.LEADER:
            self._check_leader(member_id, raft, mine)
        else:
            self._leader_logs.pop(member_id, None)
        self._note_commits(raft, mine, holders)
        self._logs[member_id] = mine
        for other, entries in self._logs.items():
            if other != member_id:
                check_log_matching(mine, entries)

    def _check_compacted(self, compacted: EntryId) -> None:
        """What is cut away was committed, and its last term is the committed one."""
        if compacted.index:
            assert compacted.index <= len(self.committed), f"{compacted} was never committed"
            term, _ = self.committed[compacted.index - 1]
            assert term == compacted.term, f"{compacted} is in a snapshot, {term} was committed"

    def _check_leader(self, member_id: MemberId, raft: Raft, mine: Entries) -> None:
        first = self.leader_of_term.setdefault(raft.term, member_id)
        assert first == member_id, f"Election Safety: two leaders in term {raft.term}"
        before = self._leader_logs.get(member_id)
        if before is not None and before[0] == raft.term:
            assert mine.last_index >= before[1].last_index, "Leader Append-Only: a shorter log"
            start = max(mine.first_index, before[1].first_index)
            old = before[1].terms[start - before[1].first_index :]
            kept = mine.terms[start - mine.first_index :][: len(old)]
            assert kept == old, f"Leader Append-Only: leader of term {raft.term}"
        self._leader_logs[member_id] = (raft.term, mine)
        must_hold = [term for term, committed_in in self.committed if committed_in < raft.term]
        assert mine.last_index >= len(must_hold), f"Leader Completeness: term {raft.term}"
        expected = must_hold[mine.first_index - 1 :]
        assert mine.terms[: len(expected)] == expected, f"Leader Completeness: term {raft.term}"

    def _note_commits(self, raft: Raft, mine: Entries, holders: Holders) -> None:
        known, first_index = len(self.committed), mine.first_index
        assert raft.commit_index >= first_index - 1
        committed = mine.terms[: raft.commit_index - first_index + 1]
        for term, (expected, _) in zip(committed, self.committed[first_index - 1 :], strict=False):
            assert term == expected, f"two entries committed at one index: {committed}"
        for index in range(known + 1, raft.commit_index + 1):
            term = mine.terms[index - first_index]
            check_held(index, holders(index, term), raft.state.configurations)
            self.committed.append((term, raft.term))


def check_held(index: int, holders: list[MemberId], configurations: Configurations) -> None:
    """Assert that an entry which is committed now is on a quorum of the configuration in force.

    In force when it was committed was the newest one at its index, or, if that is a later one, the
    next: the change after that begins only when this entry is committed.
    """
    at, *later = configurations.since(index)
    in_force = [at, *later[:1]] if at.index < index else [at]
    assert any(holds_quorum(holders, one) for one in in_force), f"{index} is on {holders} only"


def all_entries(log: RaftLog) -> Entries:
    """Return all that a log still has; it is short enough for one slice."""
    entries = log.slice(log.first_index, log.last_index, 1 << 60, log.last_index)
    assert entries.last_index == log.last_index, "the log is too long to be checked"
    return entries


def check_log_matching(a: Entries, b: Entries) -> None:
    """Assert: where two logs hold an entry with the same index and term, all before is equal."""
    start = max(a.first_index, b.first_index)
    a, b = _from(a, start), _from(b, start)
    common = _last_common(a.terms, b.terms)
    where = start + common - 1
    assert a.terms[:common] == b.terms[:common], f"Log Matching: before index {where}"
    assert a.payloads[:common] == b.payloads[:common], f"Log Matching: commands up to {where}"


def _from(entries: Entries, index: int) -> Entries:
    skip = index - entries.first_index
    return Entries(index, entries.terms[skip:], entries.payloads[skip:]) if skip else entries


def _last_common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many entries there are up to the last one at which both terms are equal."""
    for count in range(min(len(a), len(b)), 0, -1):
        if a[count - 1] == b[count - 1]:
            return count
    return 0
