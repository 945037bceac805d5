"""What the nodes' views add up to: tables of views, no process."""

from __future__ import annotations

import msgspec
import pytest

from zraft.api import NodeStatus, PeerStatus
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
    """The first three of the command line."""
    check_conditions(["leader", "converged", "up=5"], 5)


def configured(
    name: str, leader: str | None, term: int, *, voters: str, more: dict[str, object] | None = None
) -> NodeStatus:
    """Return what a node says, its configuration included."""
    status = view(name, leader, term)
    return msgspec.structs.replace(status, voters=voters.split(), **(more or {}))


def test_a_majority_is_one_of_the_voters_and_not_of_the_nodes() -> None:
    """Learners and removed nodes neither help a leader nor stand in its way."""
    voters = "n1 n2 n3"
    statuses: dict[str, NodeStatus | None] = {
        "n1": configured("n1", "n1", 2, voters=voters, more={"learners": ["n4", "n5"]}),
        "n2": configured("n2", "n1", 2, voters=voters),
        "n3": None,
        "n4": None,
        "n5": None,
    }
    assert leadership(statuses) is not None
    statuses["n2"], statuses["n4"], statuses["n5"] = (
        None,
        configured("n4", "n1", 2, voters=voters),
        configured("n5", "n1", 2, voters=voters),
    )
    assert leadership(statuses) is None


def test_while_a_change_is_under_way_both_majorities_count() -> None:
    """Raft §6: new voters n1 n4 n5, old ones n1 n2 n3."""
    joint = {"outgoing": ["n1", "n2", "n3"], "config_committed": False}
    statuses: dict[str, NodeStatus | None] = {
        "n1": configured("n1", "n1", 2, voters="n1 n4 n5", more=joint),
        "n2": view("n2", "n1", 2),
        "n3": None,
        "n4": None,
        "n5": None,
    }
    assert leadership(statuses) is None
    statuses["n4"] = view("n4", "n1", 2)
    assert leadership(statuses) is not None
    assert unmet("voters=3", statuses) == "a change of membership is under way"


def test_a_leader_outside_its_configuration_does_not_count_itself() -> None:
    """It manages its own removal, and needs a majority of the others."""
    statuses: dict[str, NodeStatus | None] = {
        "n1": configured("n1", "n1", 2, voters="n2 n3"),
        "n2": view("n2", "n1", 2),
        "n3": None,
    }
    assert leadership(statuses) is None
    statuses["n3"] = view("n3", "n1", 2)
    assert leadership(statuses) is not None


def test_conditions_about_members() -> None:
    """`voters=N`, and a learner that holds everything that is committed."""
    peer = PeerStatus("n3", connected=True, match_index=4, voter=False)
    leader = configured("n1", "n1", 2, voters="n1 n2", more={"learners": ["n3"], "peers": [peer]})
    statuses: dict[str, NodeStatus | None] = {"n1": leader, "n2": view("n2", "n1", 2), "n3": None}
    assert unmet("voters=2", statuses) == ""
    assert unmet("voters=3", statuses) == "the voters are n1, n2"
    assert unmet("learner-caught-up=n3", statuses) == "n3 has 4 of 5 entries"
    assert unmet("learner-caught-up=n4", statuses) == "n4 is no member"
    peers = [msgspec.structs.replace(peer, match_index=5)]
    statuses["n1"] = msgspec.structs.replace(leader, peers=peers)
    assert unmet("learner-caught-up=n3", statuses) == ""
    assert unmet("learner-caught-up=n1", statuses) == ""


def test_a_removed_node_that_still_runs_does_not_hinder_convergence() -> None:
    """It gets nothing any more, and need not have it."""
    statuses: dict[str, NodeStatus | None] = {
        "n1": configured("n1", "n1", 2, voters="n1 n2"),
        "n2": view("n2", "n1", 2),
        "n3": view("n3", None, 1, commit=1),
    }
    assert unmet("converged", statuses) == ""


@pytest.mark.parametrize(
    ("condition", "why"),
    [
        ("no-leader", "n1 leads term 2"),
        ("leader!=n1", "n1 leads term 2"),
        ("leader!=n2", ""),
        ("quorum", ""),
        ("term>=3", "the term is 2"),
        ("term>=2", ""),
        ("index>=6", "the commit index is 5"),
        ("index>=5", ""),
        ("faults=0", ""),
        ("faults=1", "0 faults are in force"),
    ],
)
def test_the_other_conditions(condition: str, why: str) -> None:
    """Each with what is seen."""
    check_conditions([condition], 3)
    assert unmet(condition, views(("n1", 2), ("n1", 2), None)) == why


def test_a_quorum_is_asked_of_the_newest_configuration() -> None:
    """Without a leader the views decide who votes."""
    newer = configured("n1", None, 3, voters="n1 n2 n3", more={"config_index": 9})
    statuses: dict[str, NodeStatus | None] = {"n1": newer, "n2": None, "n3": None, "n4": None}
    assert unmet("quorum", statuses) == "1 of 3 voters answer"
    assert unmet("no-leader", statuses) == ""
    assert unmet("quorum", {"n1": None}) == "0 of 1 voters answer"
