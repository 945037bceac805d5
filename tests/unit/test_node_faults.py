"""A node's part in the cluster's faults: whole lists in, rules in force out."""

from __future__ import annotations

import random
from typing import Any, Literal

import pytest

from zraft import crashpoints
from zraft.api import FaultKind, FaultRule
from zraft.errors import ControlError
from zraft.node.faults import LinkFaults
from zraft.transport.links import Links

NAMES = {1: "n1", 2: "n2", 3: "n3"}
NOW_MS = 1_000
APPEND = 3


class Bench:
    """The faults of n1, its links, and what it logged."""

    def __init__(self, allowed: Literal["allowed", "refused"] = "allowed") -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.links = Links(random.Random(1))
        self.faults = LinkFaults(
            self.links,
            lambda event, **fields: self.events.append((event, fields)),
            me="n1",
            names=NAMES,
            allowed=allowed,
        )

    def leaves(self, dst: int, kind: int = APPEND) -> bool:
        """Whether a frame to a member leaves."""
        return bool(self.links.outgoing(dst, 0, kind, b"frame", NOW_MS))

    def in_force(self) -> list[str]:
        """The ids of what is in force."""
        return [fault.fault_id for fault in self.links.faults()]

    def arrives(self, src: int) -> bool:
        """Whether a frame of a member arrives."""
        return bool(self.links.incoming(src, 0, APPEND, b"frame", NOW_MS))


def rule(
    number: int = 1,
    kind: FaultKind = "one-way",
    links: tuple[tuple[str, str], ...] = (("n1", "n2"),),
    **more: Any,
) -> FaultRule:
    """A fault as the supervisor sends it."""
    return FaultRule(id=f"f{number}", kind=kind, links=list(links), **more)


def test_only_the_part_of_this_node_is_in_force() -> None:
    """Links between others are nothing here; each direction is cut apart."""
    bench = Bench()
    links = (("n1", "n2"), ("n3", "n1"), ("n2", "n3"))
    bench.faults.hold([rule(links=links), rule(2, links=(("n2", "n3"),))], NOW_MS)
    assert bench.in_force() == ["f1"]
    assert [bench.leaves(2), bench.leaves(3)] == [False, True]
    assert [bench.arrives(2), bench.arrives(3)] == [True, False]
    assert bench.events == [("fault.injected", {"fault": "f1", "rule": "one-way n2, n3"})]


def test_a_list_that_comes_again_changes_nothing_but_times() -> None:
    """Hits and draws go on; what is missing in a later list ends; what is new begins."""
    bench = Bench()
    first = rule(lease_until_ms=NOW_MS + 100)
    bench.faults.hold([first], NOW_MS)
    assert not bench.leaves(2)
    renewed = rule(lease_until_ms=NOW_MS + 600)
    assert bench.faults.hold([renewed], NOW_MS + 50) == {"f1": 1}
    assert bench.links.next_deadline_ms() == NOW_MS + 600
    assert bench.faults.rule_of(bench.links.faults()[0]) == renewed
    assert bench.faults.hold([rule(2, links=(("n1", "n3"),))], NOW_MS + 60) == {"f2": 0}
    assert [bench.leaves(2), bench.leaves(3)] == [True, False]
    assert [event for event, _ in bench.events] == [
        "fault.injected",
        "fault.cleared",
        "fault.injected",
    ]


def test_a_rule_that_says_something_else_takes_the_place_of_the_old_one() -> None:
    """The same id with other links is another rule."""
    bench = Bench()
    bench.faults.hold([rule()], NOW_MS)
    bench.faults.hold([rule(links=(("n1", "n3"),))], NOW_MS)
    assert [bench.leaves(2), bench.leaves(3)] == [True, False]


def test_a_fault_that_is_over_is_not_put_in_force() -> None:
    """A list that waited in a socket revives nothing; a renewed one that had ended comes back."""
    bench = Bench()
    bench.faults.hold([rule(lease_until_ms=NOW_MS), rule(2, until_ms=NOW_MS - 1)], NOW_MS)
    assert bench.in_force() == []
    bench.faults.hold([rule(lease_until_ms=NOW_MS + 10)], NOW_MS)
    assert [fault.fault_id for fault in bench.links.expire(NOW_MS + 10)] == ["f1"]
    bench.faults.hold([rule(lease_until_ms=NOW_MS + 90)], NOW_MS + 20)
    assert bench.in_force() == ["f1"]
    bench.faults.hold([], NOW_MS + 30)
    assert bench.in_force() == []


@pytest.mark.parametrize("kind", ["drop", "delay", "duplicate", "reorder", "corrupt"])
def test_every_kind_acts_on_what_leaves_and_only_on_its_messages(kind: FaultKind) -> None:
    """Votes pass untouched when only appends are meant; what arrives is the sender's matter."""
    bench = Bench()
    links = (("n1", "n2"), ("n2", "n1"))
    bench.faults.hold([rule(kind=kind, links=links, delay_ms=5, messages=["append"])], NOW_MS)
    frame = b"x" * 50
    changed = bench.links.outgoing(2, 0, APPEND, frame, NOW_MS)
    assert changed != [(NOW_MS, frame)]
    assert bench.links.outgoing(2, 0, 1, frame, NOW_MS) == [(NOW_MS, frame)]
    assert bench.links.outgoing(3, 0, APPEND, frame, NOW_MS) == [(NOW_MS, frame)]
    assert bench.links.incoming(2, 0, APPEND, frame, NOW_MS) == [(NOW_MS, frame)]
    assert bench.faults.hold([rule(kind=kind, links=links, delay_ms=5, messages=["append"])], 0)


@pytest.mark.parametrize("more", [{"rate": 0.0}, {"rate": 1.1}, {"messages": ["heartbeet"]}])
def test_a_rule_without_sense_is_refused(more: dict[str, Any]) -> None:
    """An answer says why; nothing is in force."""
    bench = Bench()
    with pytest.raises(ControlError):
        bench.faults.hold([rule(kind="drop", **more)], NOW_MS)
    assert not bench.links.active


def test_a_node_that_refuses_faults_obeys_none() -> None:
    """Not the supervisor's, not an operator's, no crash point; an empty list is no fault."""
    bench = Bench("refused")
    assert bench.faults.hold([], NOW_MS) == {}
    for verb in (
        lambda: bench.faults.hold([rule()], NOW_MS),
        lambda: bench.faults.isolate([2], None),
        lambda: bench.faults.crash_at("flush.sent"),
    ):
        with pytest.raises(ControlError, match="n1 refuses faults"):
            verb()
    assert not bench.links.active
    assert crashpoints.armed == ""


def test_an_emergency_heal_ends_everything_here() -> None:
    """Also the supervisor's faults, until its next list."""
    bench = Bench()
    bench.faults.hold([rule()], NOW_MS)
    bench.faults.isolate([3], None)
    assert bench.faults.heal() == 2
    assert not bench.links.active
    bench.faults.hold([rule()], NOW_MS)
    assert not bench.leaves(2)
