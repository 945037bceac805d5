"""The parts of the simulated world, each on its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from zraft.api import Request
from zraft.core.model import Configuration, Entries, HardState, Recovered
from zraft.errors import ConfigError
from zraft.testing.sim.agenda import Agenda
from zraft.testing.sim.campaign import Progress, parse_seeds, run_campaign
from zraft.testing.sim.clock import NodeClock
from zraft.testing.sim.draws import Draws
from zraft.testing.sim.marks import REQUIRED, Marks, missing
from zraft.testing.sim.plan import FAULTS, draw_plan
from zraft.testing.sim.runner import Simulation, run_seed
from zraft.testing.sim.storage import Shadow
from zraft.testing.sim.trace import Violation
from zraft.testing.sim.world import World
from zraft.testing.zoo import planted

BASE = Configuration((1, 2, 3))
WIPED = 44
"""A seed in which one member loses its disk."""


@pytest.mark.parametrize("drift_ppm", [-50_000, -7, 0, 13, 50_000])
@pytest.mark.parametrize("offset_us", [0, 1, 999, 123_456_789])
def test_deadline_comes_at_the_first_moment_that_the_clock_shows_it(
    drift_ppm: int, offset_us: int
) -> None:
    """A wake-up is never early and at most a microsecond late, whatever the drift."""
    clock = NodeClock(offset_us, drift_ppm)
    for local_ms in (clock.local_ms(0) + 1, 124_000, 987_654):
        true_us = clock.true_us(local_ms)
        assert clock.local_ms(true_us) >= local_ms
        assert true_us == 0 or clock.local_ms(true_us - 1) < local_ms


def test_clock_jumps_ahead_only() -> None:
    """Production's clock never goes back, so the simulated one does not either."""
    clock = NodeClock(0, 0)
    clock.jump(5_000)
    assert clock.local_ms(1_000) == 6
    with pytest.raises(AssertionError):
        clock.jump(-1)


def test_agenda_keeps_the_order_of_planning_at_one_moment() -> None:
    """Two events of one microsecond happen in the order in which they were planned."""
    agenda = Agenda()
    seen: list[str] = []
    for name in "abc":
        agenda.at(7, seen.append, name)
    agenda.at(3, seen.append, "first")
    agenda.run_until(10)
    assert seen == ["first", "a", "b", "c"]
    assert agenda.now_us == 10


def test_streams_of_one_seed_are_independent_and_repeatable() -> None:
    """A stream depends on the seed and its name, on nothing that others drew."""
    first, again, other = Draws(1, "a"), Draws(1, "a"), Draws(1, "b")
    drawn = [first.random() for _ in range(5)]
    assert [other.random() for _ in range(5)] != drawn
    assert [again.random() for _ in range(5)] == drawn


def test_swarm_switches_faults_on_and_off() -> None:
    """Over many seeds every kind of fault is on in some and off in others."""
    plans = [draw_plan(seed) for seed in range(200)]
    chosen = [{kind for kind, _ in plan.faults} for plan in plans]
    for kind in FAULTS:
        on = sum(kind in kinds for kinds in chosen)
        assert 40 < on < 180, kind
    assert {plan.nodes for plan in plans} == {1, 2, 3, 4, 5, 7}
    assert draw_plan(5, nodes=3).nodes == 3


def test_members_lose_their_disks_only_where_a_spare_can_take_their_place() -> None:
    """Wipes are on in some worlds with spares and off in others, and on nowhere else."""
    plans = [draw_plan(seed) for seed in range(200)]
    wiped = {plan.seed for plan in plans if "wipe" in dict(plan.faults)}
    replaceable = {plan.seed for plan in plans if plan.spares}
    assert wiped < replaceable
    assert 10 < len(wiped) < len(replaceable) - 10


def test_a_member_that_lost_its_disk_is_refused_and_replaced() -> None:
    """The production code does not start on an empty disk; a spare gets the vote instead."""
    plan = draw_plan(WIPED)
    simulation = Simulation(plan, time_s=15.0, steps=1_000_000, trace=True)
    outcome = simulation.run()
    assert outcome.violations == []
    (lost,) = simulation.world.wipes.held
    assert lost in simulation.world.base.voters
    assert simulation.world.nodes[lost].server is None
    after = outcome.trace[outcome.trace.index(f"crash {lost} wiped") :]
    assert f"refused {lost}  # its disk is empty" in after
    assert f"restart {lost}" not in after
    newest = simulation.world.members.newest
    assert lost not in newest.everybody
    assert outcome.marks["wiped_replaced"] == 1
    assert any(spare in newest.voters for spare in simulation.world.ids[plan.nodes :])


def quiet_world() -> World:
    """Return a world with spares that has worked for a while, and in which nothing broke."""
    world = World(draw_plan(WIPED), steps=10)
    world.start()
    world.agenda.run_until(2_000_000)
    return world


def test_a_turn_takes_its_time_and_the_next_one_finds_what_came_meanwhile() -> None:
    """What comes while a node works on a turn waits, and is taken in as soon as it is through."""
    world = World(replace(draw_plan(WIPED), turn_us=1_000), steps=10)
    world.start()
    world.agenda.run_until(500_000)
    node = world.nodes[world.members.newest.voters[0]]
    while node.free_us > world.agenda.now_us:
        world.agenda.run_until(node.free_us)
    node.turn()
    through_us = node.free_us
    assert through_us >= world.agenda.now_us + 1_000
    frames: list[tuple[bytes, list[Request]]] = [(b"one", []), (b"two", [])]
    for client, requests in frames:
        node.on_requests(client, requests)
    world.agenda.run_until(through_us - 1)
    assert node.requests[:2] == frames
    world.agenda.run_until(through_us)
    assert node.requests == []
    assert node.free_us >= through_us + 1_000


def test_no_second_disk_is_lost_before_the_first_member_is_replaced() -> None:
    """One voter at a time; and no spare, whose loss would prove nothing."""
    world = quiet_world()
    voters = world.members.newest.voters
    assert all(world.wipes.may_strike(voter) for voter in voters)
    assert not any(world.wipes.may_strike(spare) for spare in world.ids[len(voters) :])
    world.wipes.strike(world.nodes[voters[0]])
    assert not any(world.wipes.may_strike(member) for member in world.ids)


def lose_every_disk(world: World) -> None:
    """Strike all voters, though nobody may."""
    for voter in world.members.newest.voters:
        world.wipes.strike(world.nodes[voter])


def test_what_is_committed_must_be_on_the_disks_that_are_left() -> None:
    """A lost disk holds nothing: too many of them are found, whoever allowed that."""
    world = quiet_world()
    assert world.invariants.committed_index > 0
    with pytest.raises(Violation, match="lost its disk, and"):
        lose_every_disk(world)


def test_a_lost_disk_counts_as_what_it_held_and_as_nothing_else() -> None:
    """An acknowledgement that is under way when its disk is lost was true; no later one is."""
    world = quiet_world()
    node = world.nodes[world.members.newest.voters[0]]
    last = len(node.shadow.terms)
    term = node.shadow.terms[-1]
    world.wipes.strike(node)
    assert world.wipes.lost_holders(last, term) == [node.member_id]
    assert world.wipes.lost_holders(last, term + 1) == []
    assert world.wipes.lost_holders(last + 1, term) == []
    assert node.shadow.terms == []


def test_an_acknowledgement_under_way_commits_though_its_disk_is_lost() -> None:
    """One follower stored an entry and lost its disk; its answer arrives, and rightly counts."""
    world = quiet_world()
    leader = world.leader()
    assert leader is not None
    assert len(world.members.newest.voters) == 3
    me = leader.member_id
    follower, other = (voter for voter in world.members.newest.voters if voter != me)
    world.network.links[me][other].cuts = 1
    node, agenda = world.nodes[follower], world.agenda
    end_us = agenda.now_us + 1_000_000
    while not (
        len(world.nodes[other].shadow.terms)
        <= world.invariants.committed_index
        < len(node.shadow.terms)
        and node.local_us <= agenda.now_us
    ):
        assert agenda.now_us < end_us
        agenda.run_until(agenda.now_us + 5)
    stored = len(node.shadow.terms)
    world.wipes.strike(node)
    agenda.run_until(agenda.now_us + 20_000)
    assert world.invariants.committed_index == stored


def shadow() -> Shadow:
    """Return a shadow with two entries and a vote."""
    made = Shadow()
    made.pending = [(HardState(1, 2), Entries(1, [1, 1], [b"a", b"b"]))]
    assert made.commit() is None
    return made


def test_recovery_may_give_the_batch_under_way_or_not() -> None:
    """After a crash the batch that was not synced is there as a whole, or not at all."""
    entries = Entries(2, [2, 2], [b"x", b"y"])
    for recovered, survived in (
        (Recovered(HardState(1, 2), BASE, Entries(1, [1, 1], [b"a", b"b"])), False),
        (Recovered(HardState(2, 0), BASE, Entries(1, [1, 2, 2], [b"a", b"x", b"y"])), True),
    ):
        made = shadow()
        made.pending = [(HardState(2, 0), entries)]
        assert made.settle(recovered) is survived


def test_recovery_that_lost_or_mixed_something_is_a_violation() -> None:
    """A synced vote that is gone, and half of a batch, are both found."""
    entries = Entries(2, [2, 2], [b"x", b"y"])
    for recovered in (
        Recovered(HardState(1, 0), BASE, Entries(1, [1, 1], [b"a", b"b"])),
        Recovered(HardState(2, 0), BASE, Entries(1, [1, 2], [b"a", b"x"])),
        Recovered(HardState(2, 0), BASE, Entries(1, [1, 1], [b"a", b"b"])),
    ):
        made = shadow()
        made.pending = [(HardState(2, 0), entries)]
        with pytest.raises(Violation):
            made.settle(recovered)


def test_marks_know_what_was_not_reached() -> None:
    """A campaign fails on what it never saw, and a misspelled mark is caught."""
    marks = Marks()
    marks.reach("split_vote")
    assert "split_vote" not in missing(marks.counts)
    assert len(missing(marks.counts)) == len(REQUIRED) - 1
    with pytest.raises(AssertionError):
        marks.reach("spilt_vote")


def test_a_violation_comes_with_a_line_to_replay_it_and_its_last_steps() -> None:
    """Seed, time, version and Python are in one line; the steps read like an interaction file."""
    with planted("quorum-off-by-one"):
        outcome = run_seed(3, time_s=2.0)
    assert len(outcome.violations) == 1
    assert outcome.violations[0].startswith("safety: Violation:")
    assert outcome.replay.startswith("zraft sim replay 3 --time 2s  # zraft ")
    assert any(line.startswith("ready ") for line in outcome.trace)
    assert any(line.startswith("at ") for line in outcome.trace)


def test_a_single_member_makes_progress_too() -> None:
    """One node is its own quorum, through every crash."""
    outcome = run_seed(2, time_s=3.0, nodes=1)
    assert outcome.violations == []
    assert outcome.statuses["ok"] > 0


def test_campaign_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Finished seeds are not run again, and their numbers count."""
    path = tmp_path / "progress.jsonl"
    first = run_campaign(range(2), time_s=1.0, jobs=2, progress=Progress(path, 1.0))
    progress = Progress(path, 1.0)
    assert progress.done == {0, 1}
    totals = run_campaign(range(3), time_s=1.0, jobs=1, progress=progress)
    assert (first.seeds, totals.seeds) == (2, 3)
    assert totals.events > first.events
    assert len(path.read_bytes().splitlines()) == 4


def test_campaign_refuses_the_progress_of_another_one(tmp_path: Path) -> None:
    """The same seed for another time is another run."""
    path = tmp_path / "progress.jsonl"
    Progress(path, 1.0)
    with pytest.raises(ConfigError, match="another campaign"):
        Progress(path, 2.0)


def test_seeds_are_given_as_a_range() -> None:
    """A..B leaves B out, so that two campaigns fit together."""
    assert parse_seeds("3..6") == range(3, 6)
    assert parse_seeds("7") == range(7, 8)
