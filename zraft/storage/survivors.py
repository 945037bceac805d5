"""What is left of a cluster: several members' logs compared, and what can be said of the others.

Raft commits an entry once a majority holds it, and stores nowhere that it did. So what the lost
members alone held can not be known; what the survivors hold can be ordered:

- **The best log** is the one that would win an election among the survivors: by last term, then by
  last index (Raft §5.4.1). It holds whatever any survivor's log proves to be committed.
- If the missing voters can not form a majority of their own, then every committed entry is on a
  survivor, and the best log holds them all: the leader of its last term was elected by a majority,
  so it had everything committed before (Leader Completeness), and logs that agree at their last
  entry agree before it (Log Matching). Nothing that was acknowledged is lost.
- If they can, entries after the best log's end may have been committed by them alone. Nobody can
  count those.
- Entries of the best log that only it holds may never have been committed; in a cluster made from
  it they count. That loses nothing, and its clients were told that the outcome is unknown.

A damaged log counts up to the damage: what stood after it may have been committed, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from zraft.core.model import Configuration, EntryId, MemberId, SnapshotMeta, quorum_size
from zraft.storage.directory import Member
from zraft.storage.inspection import LogFacts, newest_configuration


class Survivor(NamedTuple):
    """A member whose directory was found."""

    member: Member
    log: LogFacts
    snapshot: SnapshotMeta | None = None  # its newest sound one

    @property
    def last_id(self) -> EntryId:
        """Index and term of the last sound entry, be it one that a snapshot covers."""
        entries = self.log.entries
        if self.snapshot is not None and self.snapshot.index > entries.last_index:
            return self.snapshot.last_id  # a crash fell between its file and the log
        term = entries.terms[-1] if entries.terms else self.log.compacted.term
        return EntryId(entries.last_index, term)

    @property
    def rank(self) -> tuple[int, int]:
        """What elections compare: the last term, then the last index."""
        return self.last_id.term, self.last_id.index

    @property
    def configuration(self) -> Configuration:
        """The newest configuration that it knows, committed or not."""
        return newest_configuration(self.log, self.snapshot)

    @property
    def certain_index(self) -> int:
        """Up to where its entries are committed for certain: what it has in a snapshot."""
        return max(self.log.compacted.index, 0 if self.snapshot is None else self.snapshot.index)

    def term_at(self, index: int) -> int | None:
        """Return the term of an entry, None when it does not hold it (or compacted it away)."""
        compacted, entries = self.log.compacted, self.log.entries
        if index == compacted.index:
            return compacted.term
        position = index - entries.first_index
        return entries.terms[position] if 0 <= position < len(entries.terms) else None


class Finding(NamedTuple):
    """What can be said of a cluster from these survivors. All indices are of the best log."""

    best: Survivor
    survivors: list[Survivor]  # best first
    configuration: Configuration  # of the best log
    missing: list[MemberId]  # its voters that are not among the survivors
    has_quorum: bool  # the survivors can elect a leader: nothing has to be recovered
    may_be_lost: bool  # committed entries may exist that no survivor holds
    certain_index: int  # committed for certain: in a snapshot of some survivor
    shared_index: int  # up to here as many survivors as it takes for a quorum hold the same
    contradictions: list[tuple[str, int]]  # who holds, from which index on, something else


def compare(survivors: Sequence[Survivor]) -> Finding:
    """Return what can be said; `survivors` are of one cluster, at least one, all different."""
    assert survivors
    ordered = sorted(survivors, key=lambda one: one.rank, reverse=True)
    best = ordered[0]
    configuration = best.configuration
    present = {one.member.member_id for one in ordered if one.log.damage is None}
    there = {one.member.member_id for one in ordered}
    missing = [member for member in configuration.electorate if member not in there]
    unsure = [member for member in configuration.electorate if member not in present]
    groups = [configuration.voters, *([configuration.outgoing] if configuration.outgoing else [])]
    return Finding(
        best=best,
        survivors=ordered,
        configuration=configuration,
        missing=missing,
        has_quorum=all(_is_majority(present, group) for group in groups),
        may_be_lost=all(_is_majority(set(unsure), group) for group in groups),
        certain_index=max(one.certain_index for one in ordered),
        shared_index=_shared_index(ordered, configuration),
        contradictions=[
            (one.member.name, index)
            for one in ordered[1:]
            if (index := _first_difference(best, one)) is not None
        ],
    )


def _is_majority(members: set[MemberId], group: Sequence[MemberId]) -> bool:
    return len(members.intersection(group)) >= quorum_size(group)


def _shared_index(ordered: Sequence[Survivor], configuration: Configuration) -> int:
    """Return the last index of the best log that enough survivors for a quorum hold alike."""
    voters = [one for one in ordered if one.member.member_id in configuration.voters]
    need = quorum_size(configuration.voters)
    agreed = sorted((_agreed_index(ordered[0], one) for one in voters), reverse=True)
    return agreed[need - 1] if len(agreed) >= need else 0


def _agreed_index(best: Survivor, other: Survivor) -> int:
    """Return up to where the other log is a part of the best one (Log Matching)."""
    low = max(best.log.compacted.index, other.log.compacted.index)
    high = min(best.last_id.index, other.last_id.index)
    for index in range(high, low, -1):
        if best.term_at(index) == other.term_at(index):
            return index
    return min(low, high)  # below `low` at least one has compacted: committed, so equal


def _first_difference(best: Survivor, other: Survivor) -> int | None:
    agreed = _agreed_index(best, other)
    return agreed + 1 if other.last_id.index > agreed else None
