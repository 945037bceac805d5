"""Membership on real processes: a node joins, catches up, votes; the leader leaves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.bare_nodes import BareNodes, bare_nodes
from tests.cluster.harness import wait_until
from zraft.api import Accepted, ChangeMembers, ChangeSpec, Code, ControlFailure


@pytest.fixture(scope="module")
def nodes() -> Iterator[BareNodes]:
    """Three members, and whatever the tests, one after the other, make of them."""
    with bare_nodes(3) as found:
        found.start_all()
        found.leader()
        yield found


def change(nodes: BareNodes, *steps: ChangeSpec, of: str = "") -> Accepted | ControlFailure:
    """Ask the leader, or the node `of`, for one change of membership."""
    reply = nodes.ask(of or nodes.leader(), ChangeMembers(changes=[*steps]))
    assert isinstance(reply, Accepted | ControlFailure)
    return reply


def settled(nodes: BareNodes, voters: list[str], among: list[str]) -> None:
    """Wait until these nodes know a committed configuration with exactly these voters."""

    def is_so() -> bool | None:
        views = [nodes.status(name) for name in among]
        done = all(
            view.voters == voters and view.config_committed and not view.outgoing for view in views
        )
        return done or None

    wait_until(f"voters {voters}", is_so, timeout_ms=10_000)


def test_only_the_leader_changes_the_membership(nodes: BareNodes) -> None:
    """A refusal says why and what to try; nothing changes."""
    follower = nodes.follower()
    refused = change(nodes, ChangeSpec(kind="demote", name="n1"), of=follower)
    assert isinstance(refused, ControlFailure)
    assert (refused.code, refused.exit_code) == ("not_leader", 6)
    refused = change(nodes, ChangeSpec(kind="promote", name=follower))
    assert isinstance(refused, ControlFailure)
    assert refused.code == "membership_refused"
    assert f"{follower} is that already" in refused.message
    unknown = change(nodes, ChangeSpec(kind="remove", name="n9"))
    assert isinstance(unknown, ControlFailure)
    assert unknown.code == "usage"


def test_a_node_joins_as_a_learner_and_is_promoted_by_itself(nodes: BareNodes) -> None:
    """It gets the log from processes that had never heard of it, and then votes (thesis §4.2.1)."""
    assert nodes.put("n1", b"before", b"1").code == Code.OK
    member_id = nodes.join("n4")
    assert nodes.start("n4").ready, nodes.err("n4")
    assert nodes.status("n4").voters == ["n1", "n2", "n3"]
    leader = nodes.leader(["n1", "n2", "n3"])
    begun = change(nodes, ChangeSpec(kind="add", name="n4", member_id=member_id), of=leader)
    assert isinstance(begun, Accepted), begun
    settled(nodes, ["n1", "n2", "n3", "n4"], ["n1", "n2", "n3", "n4"])
    assert nodes.get("n4", b"before") == b"1"


def test_the_leader_is_removed_and_says_so(nodes: BareNodes) -> None:
    """It manages the change, does not count itself, steps down; the others go on (Raft §6)."""
    leader = nodes.leader()
    left = [name for name in nodes.names if name != leader]
    begun = change(nodes, ChangeSpec(kind="remove", name=leader))
    assert isinstance(begun, Accepted), begun
    settled(nodes, left, left)
    assert nodes.leader(left) in left
    wait_until("it knows", lambda: nodes.status(leader).removed or None, timeout_ms=10_000)
    term = nodes.status(left[0]).term
    assert nodes.put(left[0], b"after", b"2").code == Code.OK
    assert nodes.get(left[1], b"before") == b"1"
    assert nodes.status(left[0]).term == term, "the removed node disturbs nobody"


def test_all_start_again_with_the_members_that_the_log_names(nodes: BareNodes) -> None:
    """The configuration is in the log: no file tells who votes."""
    removed = next(name for name in nodes.names if nodes.status(name).removed)
    left = [name for name in nodes.names if name != removed]
    for name in nodes.names:
        nodes.runs[name].kill()
    for name in nodes.names:
        assert nodes.start(name).ready, nodes.err(name)
    assert nodes.leader(left) in left
    settled(nodes, left, left)
    assert nodes.get(left[0], b"after") == b"2"
    assert nodes.status(removed).role == "follower"
