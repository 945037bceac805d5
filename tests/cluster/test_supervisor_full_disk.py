"""The supervisor's disk takes nothing more: a limit of its file sizes, which are then 0."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
from collections.abc import Iterator

import pytest

from tests.cluster.harness import wait_until
from tests.cluster.supervised import Home, home
from zraft import clock
from zraft.client.record import find_supervisor, row_without_supervisor
from zraft.errors import StorageError

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@contextlib.contextmanager
def full_disk(pid: int) -> Iterator[None]:
    """Let every write of a process fail, as on a full disk, while it lives."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    yield
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


def kill_node(place: Home, name: str) -> int:
    """Kill a node and wait until the supervisor knows it; return its pid."""
    pid = place.cluster().table()[name].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    place.wait_for_state(name, "backoff")
    return pid


def test_what_died_on_a_full_disk_comes_back_when_there_is_room() -> None:
    """Nothing is started without its record; the supervisor waits, and nobody has to help."""
    with home() as place:
        place.up(3)
        supervisor = place.supervisor_pid()
        with full_disk(supervisor):
            old = kill_node(place, "n1")
            select.poll().poll(1_500)  # far beyond the pause before the first new start
            row = place.cluster().table()["n1"]
            assert (row.state, row.pid) == ("backoff", None)
            assert place.cluster().table()["n2"].state == "running"
        row = place.wait_for_state("n1", "running")
        assert row.pid not in (None, old)
        assert place.supervisor_pid() == supervisor
        (stuck,) = wait_until(
            "it is logged", lambda: place.events("supervisor.stuck") or None, timeout_ms=5_000
        )
        assert stuck["elapsed_ms"] >= 1_000
        assert stuck["reason"] == "File too large"


def test_a_wish_on_a_full_disk_is_refused_and_never_comes_true() -> None:
    """With and without something that waits already; the next supervisor starts what died."""
    with home() as place:
        place.up(3)
        before = place.cluster().table()
        for dies in (False, True):
            with full_disk(place.supervisor_pid()):
                if dies:
                    kill_node(place, "n1")
                with pytest.raises(StorageError, match="cannot be written"):
                    place.cluster().act("kill", ["n2"])
            wait_until(
                "the supervisor ended",
                lambda: find_supervisor(place.directory) is None or None,
                timeout_ms=10_000,
            )
            place.up()
            place.wait_for_state("n1", "running")
            assert place.cluster().table()["n2"].pid == before["n2"].pid


def test_down_on_a_full_disk_is_refused_at_once_unless_the_data_is_deleted_as_well() -> None:
    """The one way to make room must be open; what stays on disk must say what is wanted."""
    with home() as place:
        place.up(3)
        began_ms = clock.now_ms()
        with full_disk(place.supervisor_pid()), pytest.raises(StorageError):
            place.cluster().down()
        assert clock.now_ms() - began_ms < 10_000
        place.up()
        assert {row.state for row in place.cluster().table().values()} == {"running"}
        with full_disk(place.supervisor_pid()):
            assert place.cluster().down(purge=True).purged
        assert not place.directory.exists()


def test_without_a_supervisor_the_note_of_a_node_says_how_it_ended() -> None:
    """What the record does not know yet stands in the node's directory, until it runs again."""
    with home() as place:
        place.up(1)
        with full_disk(place.supervisor_pid()):
            pid = place.cluster().table()["n1"].pid
            assert pid is not None
            os.kill(pid, signal.SIGTERM)
            place.wait_for_state("n1", "backoff")
            place.end_supervisor()
        row = row_without_supervisor("n1", place.directory / "n1", None)
        assert row.last_exit is not None
        assert (row.last_exit.pid, row.last_exit.code) == (pid, 0)
        assert row.last_exit.reason == "SIGTERM"
