"""Lossy, slow and damaging rules on real sockets: what arrives, what is counted, and no crash."""

from __future__ import annotations

import random

from tests.transport.conftest import Net
from zraft import clock
from zraft.transport.fault_kinds import Corrupt, Delay, Drop, Duplicate, Reorder
from zraft.transport.links import Cut

COUNT = 300


def test_damaged_frames_are_refused_and_counted_and_the_lane_lives(net: Net) -> None:
    """None of them becomes a message; each is counted once; afterwards all is as before."""
    first, second = net.pair()
    fault = first.links.add(Corrupt("f1", [2], rate=1.0, random=random.Random(5)))
    for number in range(COUNT):
        first.vote(2, number)
    net.run(lambda: sum(second.drops.values()) >= fault.hits)
    assert fault.hits == COUNT
    assert sum(second.drops.values()) == COUNT
    assert second.drops["dropped_garbage"] > COUNT / 2
    assert second.inbox == []
    first.links.heal()
    first.vote(2, 7)
    net.run(lambda: second.numbers(1) == [7])


def test_every_frame_of_a_bad_link_is_accounted_for(net: Net) -> None:
    """Sent once each: what was lost, doubled and damaged adds up to what arrived."""
    first, second = net.pair()
    dice = random.Random(3)
    drop = first.links.add(Drop("f1", [2], rate=0.3, random=dice))
    double = first.links.add(Duplicate("f2", [2], rate=0.3, random=dice))
    late = first.links.add(Reorder("f3", [2], rate=0.3, random=dice))
    for number in range(COUNT):
        first.vote(2, number)
    expected = COUNT - drop.hits + double.hits
    net.run(lambda: len(second.inbox) == expected)
    numbers = second.numbers(1)
    assert len(set(numbers)) == COUNT - drop.hits
    assert numbers != sorted(numbers)
    assert min(drop.hits, double.hits, late.hits) > 30
    assert second.drops == {}


def test_the_loop_is_told_when_a_held_frame_is_due(net: Net) -> None:
    """The deadline is that of the frame, to the millisecond; it leaves then and not before."""
    first, second = net.pair()
    first.links.add(Delay("f1", [2], rate=1.0, random=random.Random(1), delay_ms=80))
    before_ms = clock.now_ms()
    first.vote(2, 1)
    after_ms = clock.now_ms()
    deadline_ms = first.sockets.next_deadline_ms()
    assert deadline_ms is not None
    assert deadline_ms <= after_ms + 80
    first.sockets.on_timer(before_ms + 79)
    net.run(lambda: second.numbers(1) == [1])
    assert clock.now_ms() >= before_ms + 80


def test_what_is_under_way_when_a_link_is_cut_is_lost(net: Net) -> None:
    """A frame that was held back before the cut leaves after it, and does not arrive."""
    first, second = net.pair()
    first.links.add(Delay("f1", [2], rate=1.0, random=random.Random(1), delay_ms=50))
    first.vote(2, 1)
    second.links.add(Cut("f2", to=[], from_=[1]))
    net.run(lambda: second.counters.get("dropped_fault") == 1)
    assert second.inbox == []
