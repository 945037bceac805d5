"""What a supervisor does with real processes that misbehave; the nodes here are without Raft."""

from __future__ import annotations

import os
import signal
import socket

import pytest
import zmq

from tests.cluster.harness import check_nothing_left, wait_until
from tests.cluster.supervised import QUICK, home, living
from zraft import clock, procfs
from zraft.client.record import find_supervisor
from zraft.control_api import Action, ActionResult
from zraft.errors import ControlError, ZraftError

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_a_crash_loop_ends_with_giving_up_and_a_start_tries_again() -> None:
    """Five crashes within the window: fatal, with the reason; a start that works heals it."""
    with home() as place, place.drive(fake=True):
        place.ask_up(2, QUICK)
        cluster = place.cluster()
        place.behave("n1", "crash")
        (result,) = cluster.act("restart", ["n1"])
        # It says that it is ready and dies at once: whether it is dead by the answer is a race.
        assert result.failure is None or "crashed (signal SIGKILL)" in result.failure.message
        row = place.wait_for_state("n1", "fatal")
        assert row.message == "5 crashes within 60 s"
        assert row.restarts == 4
        assert row.last_exit is not None
        assert (row.last_exit.signal, row.last_exit.expected) == ("SIGKILL", False)
        delays = [event["delay_ms"] for event in place.events("process.backoff")]
        assert len(delays) == 4
        assert delays[0] <= 12 < delays[-1]
        assert cluster.table()["n2"].state == "running"
        place.behave("n1", "serve")
        (result,) = cluster.act("start", ["n1"])
        assert result.changed
        assert cluster.table()["n1"].restarts == 0


@pytest.mark.parametrize("code", [65, 70, 75, 78])
def test_an_exit_code_without_hope_is_shown_with_what_the_node_wrote(code: int) -> None:
    """Given up at the first time; the failure has the node's code and the end of its stderr."""
    with home() as place, place.drive(fake=True):
        place.ask_up(1, QUICK)
        cluster = place.cluster()
        cluster.act("stop", ["n1"])
        place.behave("n1", f"exit={code}")
        (result,) = cluster.act("start", ["n1"])
        assert result.failure is not None
        assert result.failure.exit_code == code
        assert result.failure.why == f"cannot serve because of {code}"
        assert cluster.table()["n1"].state == "fatal"
        (event,) = place.events("process.fatal")
        assert event["exit_code"] == code


def test_a_node_that_is_never_ready_is_killed_after_its_time() -> None:
    """Two seconds in this test; closing the pipe without a line is found out likewise."""
    with home() as place, place.drive(fake=True):
        place.ask_up(1, QUICK)
        cluster = place.cluster()
        for behaviour in ("silent", "close"):
            cluster.act("stop", ["n1"])
            place.behave("n1", behaviour)
            (result,) = cluster.act("start", ["n1"])
            assert result.failure is not None
            last = cluster.table()["n1"].last_exit
            assert last is not None
            assert (last.signal, last.reason) == ("SIGKILL", "not ready within 2000 ms")
        cluster.down()


def test_a_long_recovery_that_says_so_may_take_its_time() -> None:
    """Lines of progress for 3.5 s with a deadline of 2 s: the node becomes ready."""
    with home() as place, place.drive(fake=True):
        place.ask_up(1, QUICK)
        cluster = place.cluster()
        cluster.act("stop", ["n1"])
        place.behave("n1", "progress=3500")
        (result,) = cluster.act("start", ["n1"])
        assert result.failure is None
        assert cluster.table()["n1"].state == "running"


def test_a_node_that_ignores_sigterm_is_killed_in_the_end() -> None:
    """Control socket, SIGTERM, SIGKILL, a second each in this test: it ends."""
    with home() as place, place.drive(fake=True):
        place.ask_up(1, QUICK)
        cluster = place.cluster()
        cluster.act("stop", ["n1"])
        place.behave("n1", "stubborn")
        cluster.act("start", ["n1"])
        (result,) = cluster.act("stop", ["n1"])
        assert (result.signal, result.failure) == ("SIGKILL", None)
        assert not living(result.pid)


def test_kill_answers_when_the_process_is_gone_and_says_when_it_sent_the_signal() -> None:
    """The times are CLOCK_MONOTONIC, before the signal and at the end; a second kill finds none."""
    with home() as place, place.drive(fake=True):
        place.ask_up(3, QUICK)
        cluster = place.cluster()
        before_ns = clock.monotonic_ns()
        results = cluster.act("kill", ["n1", "n2"])
        after_ns = clock.monotonic_ns()
        for result in results:
            assert not living(result.pid)
            assert result.mono_ns is not None
            assert result.ended_mono_ns is not None
            assert before_ns < result.mono_ns < result.ended_mono_ns < after_ns
            assert result.signal == "SIGKILL"
        (again,) = cluster.act("kill", ["n1"])
        assert again.failure is not None
        assert again.failure.exit_code == 3
        (polite,) = cluster.act("kill", ["n3"], signal="TERM")
        assert (polite.signal, polite.exit_code) == ("SIGTERM", 0)


def test_pause_stands_before_it_is_answered_and_ends_by_the_clock() -> None:
    """State T in /proc at the answer; with `for_ms` it goes on by itself, and so does a kill."""
    with home() as place, place.drive(fake=True):
        place.ask_up(2, QUICK)
        cluster = place.cluster()
        paused, killed = (
            cluster.act("pause", ["n1"], for_ms=400)[0],
            cluster.act("kill", ["n2"], for_ms=400)[0],
        )
        assert paused.pid is not None
        assert killed.pid is not None
        stat = procfs.read_stat(paused.pid)
        assert stat is not None
        assert stat.stopped
        row = cluster.table()["n1"]
        assert row.until_ms is not None
        assert row.until_ms <= 400
        place.wait_for_state("n1", "running")
        place.wait_for_state("n2", "running")
        stat = procfs.read_stat(paused.pid)
        assert stat is not None
        assert not stat.stopped


def refused(results: list[ActionResult]) -> int:
    """Return the exit code of the only failure."""
    (result,) = results
    assert result.failure is not None
    return result.failure.exit_code


def test_impossible_actions_are_refused_one_by_one() -> None:
    """Unknown nodes, signals and options end with 2; a node that is down with 3; nothing else is
    touched.
    """
    with home() as place, place.drive(fake=True):
        place.ask_up(2, QUICK)
        cluster = place.cluster()
        wrong: list[tuple[Action, str, str | None, int | None]] = [
            ("kill", "n9", None, None),
            ("kill", "n1", "CONT", None),
            ("stop", "n1", "TERM", None),
            ("start", "n1", None, 100),
        ]
        for action, name, number, for_ms in wrong:
            with pytest.raises(ControlError) as caught:
                cluster.act(action, [name], signal=number, for_ms=for_ms)
            assert caught.value.exit_code == 2
        cluster.act("stop", ["n1"])
        assert refused(cluster.act("pause", ["n1"])) == 3
        assert refused(cluster.act("resume", ["n1"])) == 3
        both = cluster.act("pause", ["n1", "n2"])
        assert [result.failure is None for result in both] == [False, True]


def test_a_wish_that_was_written_is_carried_out_by_the_next_supervisor() -> None:
    """Kill -9 between the record and the signal: the next one stops the node that is unwanted."""
    with home() as place:
        with place.drive(fake=True):
            place.ask_up(1, QUICK)
        cluster = place.cluster()
        pid = cluster.table()["n1"].pid
        with place.drive(fake=True, die_at=1) as driven:
            with pytest.raises(ZraftError):
                cluster.act("kill", ["n1"])
            assert driven.wait(5) == -signal.SIGKILL
        row = cluster.table()["n1"]
        assert (row.desired, row.state, row.pid) == ("down", "running", pid)
        with place.drive(fake=True):
            place.wait_for_state("n1", "down")
            assert not living(pid)


def test_garbage_at_the_control_socket_is_answered_or_dropped() -> None:
    """Bytes, frames and JSON that are no request: the supervisor goes on."""
    with home() as place, place.drive(fake=True):
        place.ask_up(1, QUICK)
        cluster = place.cluster()
        endpoint = cluster.file.supervisor_endpoint()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        dealer = context.socket(zmq.DEALER)
        dealer.set(zmq.LINGER, 100)
        dealer.connect(endpoint)
        for body in (b"\xff\x00", b"{}", b'{"type":"act"}', b"[" * 500, b'{"type":"no"}'):
            dealer.send(body)
            assert dealer.poll(5_000)
            assert b'"error"' in dealer.recv()
        dealer.send_multipart([b"a", b"b", b"c"])
        dealer.send(b"x" * (2 << 20))  # over the limit: costs the sender its connection
        dealer.close()
        context.term()
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(endpoint.removeprefix("ipc://"))
            raw.send(os.urandom(1000))
        assert cluster.table()["n1"].state == "running"
        assert cluster.supervisor() is not None


def test_a_supervisor_with_nothing_to_do_ends() -> None:
    """Every node stopped, and nobody asks for 10 s: no process is left, `start` begins anew."""
    with home() as place, place.drive(fake=True) as driven:
        place.ask_up(1, QUICK)
        cluster = place.cluster()
        cluster.act("stop", ["n1"])
        assert driven.wait(15) == 0
        assert find_supervisor(place.directory) is None
        check_nothing_left(place.state, place.run)


def test_a_record_that_cannot_be_written_stops_the_supervisor_and_not_the_nodes() -> None:
    """The disk refuses: exit 74 before anything was done; the nodes go on."""
    with home() as place, place.drive(fake=True) as driven:
        place.ask_up(1, QUICK)
        cluster = place.cluster()
        pid = cluster.table()["n1"].pid
        in_the_way = place.directory / "supervisor" / "state.json.tmp"
        in_the_way.mkdir()
        with pytest.raises(ZraftError) as caught:
            cluster.act("kill", ["n1"])
        assert (caught.value.exit_code, driven.wait(5)) == (74, 74)
        assert living(pid)
        in_the_way.rmdir()
        wait_until(
            "the lock is free",
            lambda: find_supervisor(place.directory) is None or None,
            timeout_ms=5_000,
        )
