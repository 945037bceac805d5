"""Fault rules: what leaves and what arrives, without any socket."""

from __future__ import annotations

import random

from zraft.core.model import MemberId, Random
from zraft.transport.links import Delivery, Fault, HeldFrames, Links

FRAME = b"frame"


def make_links() -> Links:
    return Links(random.Random(1))


def leaves(links: Links, dst: MemberId, now_ms: int = 0) -> bool:
    return bool(links.outgoing(dst, 0, 3, FRAME, now_ms))


def arrives(links: Links, src: MemberId, now_ms: int = 0) -> bool:
    return bool(links.incoming(src, 0, 3, FRAME, now_ms))


def test_a_healthy_node_has_nothing_active() -> None:
    """Without rules `active` is False and a frame passes at once and unchanged."""
    links = make_links()
    assert not links.active
    assert links.outgoing(2, 0, 3, FRAME, 7) == [(7, FRAME)]
    assert links.incoming(2, 0, 3, FRAME, 7) == [(7, FRAME)]
    assert links.next_deadline_ms() is None


def test_isolate_drops_in_both_directions_and_only_the_named_members() -> None:
    """Frames to and from member 2 are dropped; member 3 notices nothing."""
    links = make_links()
    fault = links.isolate([2])
    assert links.active
    assert not leaves(links, 2)
    assert not arrives(links, 2)
    assert leaves(links, 3)
    assert arrives(links, 3)
    assert fault.hits == 2


def test_isolate_from_nobody_in_particular_means_from_everybody() -> None:
    """An empty list of members concerns every member, also one that joins later."""
    links = make_links()
    links.isolate()
    assert not leaves(links, 2)
    assert not arrives(links, 99)


def test_a_fault_ends_at_its_time() -> None:
    """A fault with `until_ms` is in force before that time and gone at it."""
    links = make_links()
    fault = links.isolate([2], until_ms=100)
    lasting = links.isolate([3])
    assert links.next_deadline_ms() == 100
    assert links.expire(99) == []
    assert not leaves(links, 2, 99)
    assert links.expire(100) == [fault]
    assert leaves(links, 2, 100)
    assert links.faults() == [lasting]
    assert links.active


def test_heal_ends_one_fault_or_all() -> None:
    """By id the others stay; without an id nothing stays, and `active` is False again."""
    links = make_links()
    first, second, third = links.isolate([2]), links.isolate([2]), links.isolate([3])
    assert links.heal(first.fault_id) == [first]
    assert not leaves(links, 2)
    assert links.heal("f12345") == []
    assert links.heal() == [second, third]
    assert not links.active
    assert leaves(links, 2)
    assert len({fault.fault_id for fault in (first, second, third)}) == 3


def test_a_rule_can_be_read() -> None:
    """For the log and for people: what it does, and to whom, by name."""
    links = make_links()
    assert links.isolate([3, 2]).rule("n{}".format) == "isolate n2, n3"
    assert links.isolate().rule(str) == "isolate all"


class Doubled(Fault):
    """Each frame leaves twice: now, and after a time drawn from the seeded generator."""

    kind = "doubled"

    def outgoing(
        self, dst: MemberId, lane: int, kind: int, delivery: Delivery, random: Random
    ) -> list[Delivery]:
        late_ms = delivery.deliver_at_ms + 1 + int(random.random() * 100)
        return [delivery, Delivery(late_ms, delivery.frame)]


def test_rules_apply_one_after_the_other_and_repeat_from_their_seed() -> None:
    """Two doubling rules make four copies, at the same times for the same seed."""
    times = []
    for _ in range(2):
        links = make_links()
        links.add(Doubled("f1", ()))
        links.add(Doubled("f2", ()))
        copies = links.outgoing(2, 0, 3, FRAME, 10)
        assert len(copies) == 4
        assert copies[0] == (10, FRAME)
        times.append([copy.deliver_at_ms for copy in copies])
    assert times[0] == times[1]


def test_held_frames_come_out_in_the_order_in_which_they_are_due() -> None:
    """Frames are due by time, then in the order in which they were held."""
    held = HeldFrames()
    held.add(30, 2, b"c")
    held.add(10, 2, b"a")
    held.add(10, 3, b"b")
    assert held.next_deadline_ms() == 10
    assert held.due(9) == []
    assert held.due(10) == [(2, b"a"), (3, b"b")]
    assert held
    assert held.due(99) == [(2, b"c")]
    assert not held
    assert held.next_deadline_ms() is None
