"""Several members' logs compared: who holds the most, what may be lost, what nobody can know."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

from tests.data_directories import payload
from zraft.core.model import (
    Configuration,
    Entries,
    EntryId,
    EntryType,
    HardState,
    SnapshotMeta,
)
from zraft.storage.directory import Member, NamedMember
from zraft.storage.inspection import Damage, LogFacts
from zraft.storage.survivors import Survivor, compare
from zraft.testing.core_cluster import CoreCluster
from zraft.wire_entry import encode_configuration

NOTHING = EntryId(0, 0)
MEMBERS = tuple(NamedMember(f"n{number}", number) for number in range(1, 6))


def survivor(
    number: int,
    terms: list[int],
    *,
    size: int = 3,
    compacted: EntryId = NOTHING,
    damaged: bool = False,
    payloads: list[bytes] | None = None,
) -> Survivor:
    """Return a member that holds entries of these terms after what it compacted."""
    member = Member(Path(f"/n{number}"), f"n{number}", number, "c", 1, MEMBERS[:size])
    entries = Entries(compacted.index + 1, terms, payloads or [b"\x97\x01"] * len(terms))
    log = LogFacts(
        identity=member.identity,
        hard_state=HardState(max([*terms, compacted.term])),
        configuration=member.configuration,
        compacted=compacted,
        entries=entries,
        places=[],
        replaced=0,
        segments=[],
        torn=None,
        damage=Damage("/n", 512, "a damaged batch", "rot") if damaged else None,
    )
    return Survivor(member, log)


def snapshot_at(index: int, term: int, configuration: Configuration | None = None) -> SnapshotMeta:
    """Return what a snapshot that ends there says of itself."""
    return SnapshotMeta(index, term, configuration or Configuration((1, 2, 3)))


def test_the_best_log_is_the_one_that_would_be_elected() -> None:
    """The last term counts before the length (pitfall 12)."""
    long = survivor(1, [1] * 9)
    newer = survivor(2, [1, 1, 2])
    finding = compare([long, newer])
    assert finding.best is newer
    assert finding.survivors == [newer, long]
    assert finding.contradictions == [("n1", 3)]


def test_one_of_three_can_not_know_what_the_other_two_committed() -> None:
    """The missing are a majority: said so, with who is missing."""
    finding = compare([survivor(2, [1, 1])])
    assert finding.may_be_lost
    assert not finding.has_quorum
    assert finding.missing == [1, 3]


def test_two_of_four_hold_everything_that_was_committed() -> None:
    """The two that are missing were no majority, so each committed entry is on a survivor."""
    finding = compare([survivor(1, [1, 1, 1], size=4), survivor(2, [1], size=4)])
    assert not finding.may_be_lost
    assert not finding.has_quorum


def test_a_majority_needs_no_recovery() -> None:
    """Two of three elect a leader; entries that both hold are committed for certain."""
    finding = compare([survivor(1, [1, 1, 2]), survivor(3, [1, 1])])
    assert finding.has_quorum
    assert not finding.may_be_lost
    assert finding.shared_index == 2


def test_a_damaged_log_does_not_count_as_being_there() -> None:
    """What stood after the damage may have been committed with a lost member."""
    finding = compare([survivor(1, [1, 1]), survivor(3, [1], damaged=True)])
    assert not finding.has_quorum
    assert finding.may_be_lost


def test_what_a_survivor_compacted_is_committed_for_certain() -> None:
    """Nothing is compacted before a snapshot covers it, and nothing is applied uncommitted."""
    finding = compare([survivor(1, [2, 2], compacted=EntryId(40, 1))])
    assert finding.certain_index == 40
    assert finding.best.last_id == (42, 2)


def test_logs_that_compacted_differently_are_compared_where_both_have_entries() -> None:
    """Below the later start at least one holds a snapshot: the same by Log Matching."""
    a = survivor(1, [2, 2], compacted=EntryId(40, 1))
    b = survivor(2, [1] * 41)
    finding = compare([a, b])
    assert finding.contradictions == [("n2", 41)]
    assert finding.shared_index == 40


def test_the_newest_configuration_of_the_best_log_says_who_votes() -> None:
    """A joint one asks both majorities: a write needs both, so the missing need both to hide it."""
    joint = Configuration((1, 2, 3), 0, (1, 4, 5))
    entry = payload(1, encode_configuration(joint), EntryType.CONFIG)
    one = survivor(1, [1], size=5, payloads=[entry])
    two = survivor(2, [1], size=5, payloads=[entry])
    finding = compare([one, two])
    assert finding.configuration.index == 1
    assert finding.missing == [3, 4, 5]
    assert not finding.has_quorum
    assert not finding.may_be_lost  # 3 is no majority of 1, 2, 3


def test_nothing_committed_is_lost_when_it_is_said_so() -> None:
    """Random clusters of bare cores, every set of survivors: the verdict holds."""
    judged = contradicted = 0
    for seed in range(10):
        draws = random.Random(seed)
        size = draws.choice([3, 4, 5])
        cluster = run_a_while(size, draws)
        everybody = range(1, size + 1)
        sets = [itertools.combinations(everybody, count) for count in range(1, size + 1)]
        for left in itertools.chain(*sets):
            finding = compare([survivor(i, cluster.members[i].disk.terms, size=size) for i in left])
            committed = [term for term, _ in cluster.safety.committed]
            held = finding.best.log.entries.terms[: len(committed)]
            assert finding.may_be_lost == (2 * (size - len(left)) > size), (seed, left)
            if not finding.may_be_lost:
                assert held == committed, (seed, left)
                judged += 1
            for name, index in finding.contradictions:
                assert index > common(committed, cluster.members[int(name[1:])].disk.terms)
                contradicted += 1
    assert judged > 50
    assert contradicted > 10


def common(one: list[int], other: list[int]) -> int:
    """Return how many entries at the start have the same terms: they are the same entries."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return sum(1 for _ in pairs)


def run_a_while(size: int, draws: random.Random) -> CoreCluster:
    """Return a cluster in which leaders came and went, with parts of what they said lost."""
    cluster = CoreCluster(size, seed=draws.randrange(1 << 30))
    for _ in range(draws.randint(3, 8)):
        cluster.heal()
        cluster.run(1_000)
        leader = cluster.leader()
        others = [member for member in cluster.members if member != leader]
        cluster.cut([leader], draws.sample(others, draws.randint(0, size - 1)))
        cluster.propose(leader, *("x" * draws.randint(1, 3)))
        cluster.stabilise()
        cluster.cut([leader])
        cluster.run(1_000)
    return cluster


def test_what_a_snapshot_covers_is_committed_and_counts_for_a_log_that_lags_it() -> None:
    """A crash between a received snapshot and the log: its end ranks, and is certain."""
    long = survivor(1, [1, 1, 1, 1])
    lags = survivor(2, [1])._replace(snapshot=snapshot_at(6, 2))
    found = compare([long, lags])
    assert found.best is lags
    assert (lags.last_id, found.certain_index) == (EntryId(6, 2), 6)
    usual = survivor(3, [1, 1, 1])._replace(snapshot=snapshot_at(2, 1))
    assert (usual.last_id, compare([usual]).certain_index) == (EntryId(3, 1), 2)


def test_the_members_are_those_of_the_snapshot_when_the_change_was_compacted_away() -> None:
    """Five voters, not the three that the directories were made with: two are no majority."""
    five = Configuration((1, 2, 3, 4, 5), index=7)
    left = [
        survivor(number, [2, 2], compacted=EntryId(9, 2))._replace(
            snapshot=snapshot_at(10, 2, five)
        )
        for number in (1, 2)
    ]
    found = compare(left)
    assert found.configuration == five
    assert (found.has_quorum, found.may_be_lost, found.missing) == (False, True, [3, 4, 5])


def test_a_change_in_the_log_is_newer_than_the_snapshot() -> None:
    """What counts is the newest entry of all, committed or not (Raft §6)."""
    three = Configuration((1, 2, 3))
    change = payload(2, encode_configuration(Configuration((1, 2))), EntryType.CONFIG)
    one = survivor(1, [2], compacted=EntryId(9, 2), payloads=[change])
    found = compare([one._replace(snapshot=snapshot_at(9, 2, three._replace(index=4)))])
    assert found.configuration.voters == (1, 2)
    assert found.configuration.index == 10
    older = survivor(1, [2], compacted=EntryId(9, 2), payloads=[change])
    later = compare([older._replace(snapshot=snapshot_at(12, 2, three._replace(index=11)))])
    assert later.configuration.voters == (1, 2, 3)
