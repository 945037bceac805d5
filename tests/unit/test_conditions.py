"""What the nodes' views add up to: tables of views, no process."""

from __future__ import annotations

import pytest

from zraft.api import NodeStatus
from zraft.client.conditions import check_conditions, leadership, unmet
from zraft.errors import ControlError


def view(name: str, leader: str | None, term: int, *, last: int = 5, commit: int = 5) -> NodeStatus:
    """Return what a node says."""
    return NodeStatus(
        name=name,
        member_id="0" * 16,
        cluster_id="0" * 16,
        pid=1,
        incarnation=1,
        version="0",
        role="leader" if leader == name else "follower",
        term=term,
        voted_for=leader,
        leader=leader,
        commit=commit,
        applied=commit,
        last_index=last,
        last_term=term,
        persisted_index=last,
        timer_ms=None,
        last_contact_ms=None,
        uptime_ms=0,
        state_hash=None,
        revision=None,
        leader_since_mono_ns=None,
        election_started_mono_ns=None,
        waiting=0,
        parked=0,
        peers=[],
        faults=[],
        counters={},
    )


def views(*leaders: tuple[str | None, int] | None) -> dict[str, NodeStatus | None]:
    """Return n1, n2, … with what each believes: (leader, term), None for no answer."""
    return {
        f"n{number}": None if seen is None else view(f"n{number}", *seen)
        for number, seen in enumerate(leaders, start=1)
    }


def test_a_leader_is_one_whom_a_majority_of_all_members_follows() -> None:
    """Members that do not answer count as members."""
    found = leadership(views(("n1", 2), ("n1", 2), ("n1", 2), None, None))
    assert found is not None
    assert (found.leader, found.term, found.followers) == ("n1", 2, ["n2", "n3"])
    assert leadership(views(("n1", 2), ("n1", 2), None, None, None)) is None
    assert leadership(views(("n1", 1))) is not None
    assert leadership({}) is None


def test_a_stale_leader_is_not_the_leader() -> None:
    """A leader that was cut off still says so; the majority decides."""
    found = leadership(views(("n1", 2), ("n3", 3), ("n3", 3)))
    assert found is not None
    assert (found.leader, found.term) == ("n3", 3)
    assert leadership(views(("n1", 2), ("n2", 3), (None, 3))) is None


def test_followers_of_another_term_do_not_count() -> None:
    """The same name in another term is another leadership."""
    assert leadership(views(("n1", 3), ("n1", 2), ("n1", 2))) is None


def test_converged_means_the_same_leader_term_and_log_for_all_who_answer() -> None:
    """A node that trails, or follows somebody else, is named."""
    statuses = views(("n1", 2), ("n1", 2), ("n1", 2))
    assert unmet("converged", statuses) == ""
    statuses["n2"] = view("n2", "n1", 2, commit=4)
    assert unmet("converged", statuses).startswith("n2 has commit 4")
    statuses["n2"] = view("n2", None, 2)
    assert unmet("converged", statuses) == "n2 follows nobody in term 2"
    statuses["n2"] = None
    assert unmet("converged", statuses) == ""
    assert unmet("leader", views(None, None, None)) == "no node answers"


def test_up_counts_the_nodes_that_answer() -> None:
    """`up=2` needs two answers."""
    assert unmet("up=2", views(("n1", 1), (None, 0), None)) == ""
    assert unmet("up=3", views(("n1", 1), (None, 0), None)) == "2 of 3 nodes answer"


@pytest.mark.parametrize("condition", ["up", "up=", "up=-1", "up=6", "leaders", "", "up=x"])
def test_unknown_conditions_are_refused(condition: str) -> None:
    """Also one that can never hold: more nodes than there are."""
    with pytest.raises(ControlError):
        check_conditions([condition], 5)


def test_known_conditions_are_taken() -> None:
    """The three of the command line."""
    check_conditions(["leader", "converged", "up=5"], 5)
