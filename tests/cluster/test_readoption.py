"""Kill -9 of the supervisor stops nothing, and the next one finds everything as it was."""

from __future__ import annotations

import os
import signal

import pytest

from tests.cluster.harness import wait_until
from tests.cluster.supervised import Home, held, home, living
from zraft.client.control import Cluster
from zraft.client.record import find_supervisor
from zraft.control_api import Action
from zraft.errors import NotRunning, SupervisorError

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def pids(cluster: Cluster) -> dict[str, int | None]:
    """Return the nodes' pids as the table shows them."""
    return {name: row.pid for name, row in cluster.table().items()}


def test_nodes_outlive_the_supervisor_and_the_next_verb_finds_the_same_pids() -> None:
    """Kill -9 of the supervisor: a leader all the time, same pids, also of a paused node."""
    with home() as place:
        up = place.up(3)
        cluster = place.cluster()
        paused = next(name for name in up.pids if name != up.leader)
        cluster.act("pause", [paused])
        place.end_supervisor()
        assert cluster.wait_for(["leader"]).leader == up.leader
        before = cluster.table()
        assert {name: row.pid for name, row in before.items()} == up.pids
        assert before[paused].state == "paused"
        assert find_supervisor(place.directory) is None  # reading started nothing

        (result,) = cluster.act("resume", [paused])
        assert result.failure is None
        assert pids(cluster) == up.pids
        assert {row.state for row in cluster.table().values()} == {"running"}
        assert {event["paused"] for event in place.events("process.adopted")} == {True, False}
        cluster.wait_for(["converged"])


def test_a_pause_whose_time_passed_without_a_supervisor_is_ended_by_the_next() -> None:
    """`--for` is kept: the next supervisor sends SIGCONT to a node stopped past its time."""
    with home() as place:
        up = place.up(3)
        cluster = place.cluster()
        cluster.act("pause", ["n1"], for_ms=50)
        place.end_supervisor()
        assert cluster.table()["n1"].state in {"paused", "running"}
        cluster.act("start", ["n2"])
        place.wait_for_state("n1", "running")
        cluster.wait_for(["up=3"])
        assert pids(cluster) == up.pids


def test_a_node_killed_while_no_supervisor_ran_is_started_by_the_next() -> None:
    """Wanted up and gone: the record says so, whoever killed it."""
    with home() as place:
        up = place.up(3)
        cluster = place.cluster()
        place.end_supervisor()
        victim = up.pids["n2"]
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        wait_until("n2 is gone", lambda: None if living(victim) else True, timeout_ms=5_000)
        assert cluster.table()["n2"].message == "ended while no supervisor ran"
        cluster.act("start", ["n1"])
        place.wait_for_state("n2", "running")
        after = pids(cluster)
        assert after["n2"] != up.pids["n2"]
        assert (after["n1"], after["n3"]) == (up.pids["n1"], up.pids["n3"])


def test_what_was_stopped_on_purpose_stays_down_across_supervisors() -> None:
    """Desired state is durable: killed and stopped nodes wait for a start, `up` is one."""
    with home() as place:
        place.up(3)
        cluster = place.cluster()
        cluster.act("kill", ["n1"])
        cluster.act("stop", ["n2"])
        place.end_supervisor()
        cluster.act("start", ["n3"])
        rows = cluster.table()
        assert [(rows[name].state, rows[name].desired) for name in ("n1", "n2")] == [
            ("down", "down"),
            ("down", "down"),
        ]
        again = place.up()
        assert sorted(again.started) == ["n1", "n2"]
        assert not again.already_running


def test_an_unreadable_record_is_rebuilt_from_the_locks() -> None:
    """Garbage in state.json: what runs is wanted, the rest is not, and an event says so."""
    with home() as place:
        up = place.up(3)
        cluster = place.cluster()
        cluster.act("kill", ["n3"])
        place.end_supervisor()
        record = place.directory / "supervisor" / "state.json"
        record.write_bytes(b"\x00 not a record")
        assert cluster.table()["n1"].state == "running"
        cluster.act("start", ["n1"])
        rows = cluster.table()
        assert [rows[name].state for name in ("n1", "n2", "n3")] == ["running", "running", "down"]
        assert rows["n1"].pid == up.pids["n1"]
        (event,) = place.events("supervisor.state_rebuilt")
        assert event["reason"]
        assert record.with_name("state.json.broken").read_bytes() == b"\x00 not a record"


def test_an_older_supervisor_is_replaced_without_touching_a_node() -> None:
    """`hello` carries versions: the older one retires, the new one takes its nodes over."""
    with home() as place, place.drive(version="0.0.1") as old:
        up = place.up(3)
        cluster = place.cluster()
        assert find_supervisor(place.directory) is not None
        assert old.poll() is not None  # it was replaced before it started anything
        assert pids(cluster) == up.pids
        place.end_supervisor()
        with place.drive(version="0.0.1") as second:
            cluster.act("start", ["n1"])
            assert second.wait(10) == 0
            assert pids(cluster) == up.pids


def test_a_supervisor_that_stands_still_is_named_and_not_pushed_aside() -> None:
    """The lock is held and nobody answers for 10 s: exit 75 with the pid; reading still works."""
    with home() as place:
        place.up(3)
        cluster = place.cluster()
        pid = place.supervisor_pid()
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(SupervisorError) as caught:
                cluster.act("kill", ["n1"])
            assert caught.value.exit_code == 75
            assert f"pid {pid}" in caught.value.what
            assert cluster.table()["n1"].state == "running"
        finally:
            os.kill(pid, signal.SIGCONT)


def test_up_can_be_repeated_after_a_kill_at_every_step_of_creation() -> None:
    """Kill -9 of the supervisor between any two durable steps: the next `up` completes the work.

    Member ids, once on disk, never change; a node that was started keeps its process.
    """
    step = 0
    while True:
        step += 1
        with home() as place:
            with place.drive(fake=False, die_at=step) as driven:
                try:
                    place.ask_up(3)
                    died = False
                except SupervisorError:
                    died = True
                    driven.wait(10)
            ids, alive = _identities(place), _living(place)
            if died:
                again = place.up(3)
                assert again.leader is not None, f"after step {step}"
                after = _identities(place)
                assert {name: after[name] for name in ids} == ids, f"after step {step}"
                assert {name: again.pids[name] for name in alive} == alive, f"after step {step}"
        if not died:
            break
    assert step >= 9  # the file twice, three directories, the record, three processes


def _identities(place: Home) -> dict[str, str]:
    try:
        return {member.name: member.member_id for member in place.cluster().file.members}
    except NotRunning:
        return {}


def _living(place: Home) -> dict[str, int | None]:
    try:
        rows = place.cluster().table()
    except NotRunning:
        return {}
    return {name: row.pid for name, row in rows.items() if row.state == "running"}


def test_a_foreign_process_on_a_lock_is_reported_and_never_touched() -> None:
    """Exit 75 with its pid; the node is started by itself when the lock is free."""
    with home() as place:
        place.up(3)
        cluster = place.cluster()
        cluster.down()
        with held(place.directory / "n2" / "lock") as holder:
            with pytest.raises(SupervisorError) as caught:
                place.up()
            assert caught.value.exit_code == 75
            assert str(holder) in caught.value.why
            row = cluster.table()["n2"]
            assert (row.state, row.pid) == ("foreign", holder)
            verbs: list[Action] = ["kill", "stop", "pause", "resume", "restart", "start"]
            for verb in verbs:
                (result,) = cluster.act(verb, ["n2"])
                assert result.failure is not None
                assert result.failure.exit_code == 75
            assert living(holder)
        place.wait_for_state("n2", "running")
        cluster.wait_for(["converged"])
