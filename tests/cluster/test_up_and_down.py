"""Bringing clusters up and down: idempotent, refused with a way on, and nothing left afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.harness import check_nothing_left, processes_of, wait_until
from tests.cluster.supervised import NAME, Home, home, living
from zraft.api import Isolate, Stop
from zraft.client.control import Cluster, UpEvent, UpFailed, UpSpec, list_clusters
from zraft.client.record import find_supervisor
from zraft.errors import ConfigError, ControlError, ForeignDataError, NotRunning, ZraftError
from zraft.paths import cluster_dir

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

UP = """
import json, os, sys
from zraft.client.control import Cluster, UpSpec
result = Cluster.up(UpSpec(name=sys.argv[1], nodes=3, **json.loads(sys.argv[2])), os.environ)
print(json.dumps([result.leader, result.pids]), flush=True)
if result.foreground is not None:
    sys.exit(result.foreground.wait())
"""


def run_up(place: Home, **wishes: object) -> subprocess.Popen[bytes]:
    """Start a process that brings the cluster up and prints [leader, pids]."""
    words = [sys.executable, "-c", UP, NAME, json.dumps(wishes)]
    return subprocess.Popen(words, env=place.environ, stdout=subprocess.PIPE)


def test_up_makes_a_cluster_and_a_second_up_finds_it() -> None:
    """Five processes with a leader, each step told; again: nothing done, same pids."""
    with home() as place:
        told: list[UpEvent] = []
        first = Cluster.up(UpSpec(name=NAME, nodes=5), place.environ, told.append)
        assert first.created
        assert first.started == ["n1", "n2", "n3", "n4", "n5"]
        assert first.leader in first.pids
        kinds = [event.kind for event in told]
        assert kinds[:2] == ["supervisor", "created"]
        assert (kinds.count("spawned"), kinds.count("ready"), kinds[-1]) == (5, 5, "leader")
        second = place.up()
        assert (second.already_running, second.created, second.started) == (True, False, [])
        assert second.pids == first.pids
        (summary,) = list_clusters(place.environ)
        assert (summary.name, summary.nodes, summary.up, summary.state) == (NAME, 5, 5, "running")


def test_two_ups_at_once_both_succeed_with_the_same_processes() -> None:
    """The loser of the supervisors' start race talks to the winner."""
    with home() as place:
        racers = [run_up(place) for _ in range(3)]
        outputs = [racer.communicate(timeout=60)[0] for racer in racers]
        assert [racer.returncode for racer in racers] == [0, 0, 0]
        pids = [json.loads(output)[1] for output in outputs]
        assert pids[0] == pids[1] == pids[2]
        assert len(processes_of(place.state)) == 4  # three nodes and one supervisor


def test_another_size_is_refused_with_how_to_go_on() -> None:
    """`up -n 3` on five nodes, running or stopped: exit 2, nothing done, three ways on."""
    with home() as place:
        place.up(5)
        for stopped in (False, True):
            if stopped:
                place.cluster().down()
            with pytest.raises(ControlError) as caught:
                place.up(3)
            assert caught.value.exit_code == 2
            assert "has 5 nodes, not 3" in caught.value.what
            assert any("--purge" in line for line in caught.value.try_)
            assert (find_supervisor(place.directory) is None) == stopped


def test_down_leaves_no_process_and_no_socket_even_with_a_paused_node() -> None:
    """A paused node ends as well, in order; the data stay, and `up` brings them back."""
    with home() as place:
        place.up(3)
        cluster = place.cluster()
        cluster.act("pause", ["n1"])
        down = cluster.down()
        assert sorted([*down.stopped, *down.killed]) == ["n1", "n2", "n3"]
        check_nothing_left(place.state, place.run)
        assert {row.state for row in cluster.table().values()} == {"down"}
        again = cluster.down()
        assert not again.was_running
        assert place.up().started == ["n1", "n2", "n3"]


def test_down_now_kills_and_down_stops_what_an_earlier_supervisor_started() -> None:
    """`--now` is SIGKILL for all; without a supervisor `down` adopts the nodes to stop them."""
    with home() as place:
        place.up(3)
        place.end_supervisor()
        down = place.cluster().down(now=True)
        assert down.killed == ["n1", "n2", "n3"]
        check_nothing_left(place.state, place.run)


def test_purge_deletes_the_data_and_the_name_is_free() -> None:
    """After `down --purge` there is no such cluster, and another size can be made."""
    with home() as place:
        place.up(3)
        assert place.cluster().down(purge=True).purged
        with pytest.raises(NotRunning):
            place.cluster()
        assert os.listdir(place.state) == []
        assert place.up(1).created


def test_an_ephemeral_cluster_leaves_no_directory() -> None:
    """Its data are in a temporary directory that `down` removes."""
    with home() as place:
        up = place.up(1, ephemeral=True)
        directory = Path(up.directory)
        assert directory.parent != place.state
        assert place.cluster().down().purged
        assert not directory.exists()
        assert os.listdir(place.state) == []


def test_dir_puts_the_data_elsewhere_and_only_there() -> None:
    """STATE/<name> is a link; another --dir, and a directory in use, are refused (exit 2)."""
    with home() as place:
        data = place.base / "data"
        up = place.up(1, directory=str(data))
        assert up.directory == str(data)
        assert cluster_dir(NAME, place.environ).is_symlink()
        with pytest.raises(ControlError, match="is in"):
            place.up(1, directory=str(place.base / "other"))
        place.cluster().down()
        with pytest.raises(ZraftError) as caught:
            Cluster.up(UpSpec(name="b", nodes=1, directory=str(place.run)), place.environ)
        assert caught.value.exit_code == 2
        assert "in use" in caught.value.what
        assert place.up().already_running is False


def test_a_directory_that_others_can_enter_is_refused() -> None:
    """Who can write there can pretend to be a node: exit 78 with the command that repairs it."""
    with home() as place:
        data = place.base / "open"
        data.mkdir(mode=0o755)
        with pytest.raises(ConfigError) as caught:
            place.up(1, directory=str(data))
        assert caught.value.exit_code == 78
        assert caught.value.try_ == (f"chmod 700 {data}",)
        check_nothing_left(place.state, place.run)


def test_impossible_wishes_start_nothing() -> None:
    """Ten nodes, a name with a slash, impossible settings: refused, and no process is left."""
    with home() as place:
        for spec, code in [
            (UpSpec(name=NAME, nodes=10), 2),
            (UpSpec(name="a/b"), 2),
            (UpSpec(name=NAME, settings={"timing": {"heartbeat_ms": 200}}), 78),
            (UpSpec(name=NAME, settings={"timing": {"no_such_key": 1}}), 78),
        ]:
            with pytest.raises(ZraftError) as caught:
                Cluster.up(spec, place.environ)
            assert caught.value.exit_code == code, spec
        check_nothing_left(place.state, place.run)
        assert list_clusters(place.environ) == []


def test_settings_change_only_when_nothing_runs() -> None:
    """Other settings than those that run are refused; when it is stopped they are recorded."""
    with home() as place:
        place.up(1)
        slower = {"timing": {"election_min_ms": 300, "election_max_ms": 600}}
        with pytest.raises(ControlError, match="other settings"):
            place.up(settings=slower)
        place.cluster().down()
        place.up(settings=slower)
        assert place.cluster().file.settings["timing"]["election_max_ms"] == 600


def test_a_wiped_directory_ends_with_65_and_the_others_serve() -> None:
    """A known member's directory is never made again: the node is given up, and it is shown."""
    with home() as place:
        place.up(3)
        place.cluster().down()
        shutil.rmtree(place.directory / "n2")
        with pytest.raises(UpFailed) as caught:
            place.up()
        assert caught.value.exit_code == 65
        assert caught.value.result.leader in {"n1", "n3"}
        row = place.cluster().table()["n2"]
        assert row.state == "fatal"
        assert row.last_exit is not None
        assert "n2" in row.last_exit.stderr_tail
        assert not (place.directory / "n2" / "member.json").exists()


def test_a_cluster_file_that_is_none_is_refused_and_listed_as_broken() -> None:
    """Garbage in cluster.toml: exit 65 that names the file; `list` goes on with the others."""
    with home() as place:
        place.up(1)
        place.cluster().down()
        path = place.directory / "cluster.toml"
        good = path.read_text()
        path.write_text("not = [toml")
        with pytest.raises(ForeignDataError) as caught:
            place.up()
        assert str(path) in caught.value.what
        (summary,) = list_clusters(place.environ)
        assert summary.state == "broken"
        path.write_text(good)


def test_a_terminal_takes_its_cluster_along() -> None:
    """`--foreground`: Ctrl-C stops all in order; kill -9 of that process ends all, too."""
    with home() as place:
        for number in (signal.SIGINT, signal.SIGKILL):
            with run_up(place, foreground=True) as terminal:
                assert terminal.stdout is not None
                leader, pids = json.loads(terminal.stdout.readline())
                assert leader in pids
                terminal.send_signal(number)
                assert terminal.wait(20) == (0 if number == signal.SIGINT else -signal.SIGKILL)
            check_nothing_left(place.state, place.run)
        ends = [row.last_exit for row in place.cluster().table().values()]
        assert all(end is not None and end.code == 0 for end in ends)


def test_a_node_stopped_by_its_control_socket_is_started_again_unless_told_otherwise() -> None:
    """An end that the supervisor did not ask for is a crash; `--no-restart` makes it final."""
    with home() as place:
        place.up(3)
        cluster = place.cluster()
        before = cluster.table()["n1"].pid
        cluster.ask("n1", Stop())
        wait_until(
            "n1 has another process",
            lambda: cluster.table()["n1"].pid not in {None, before} or None,
            timeout_ms=5_000,
        )
        place.wait_for_state("n1", "running")
        place.up(restart=False)
        pid = cluster.table()["n1"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        row = place.wait_for_state("n1", "down")
        assert row.desired == "down"
        assert row.last_exit is not None
        assert row.last_exit.signal == "SIGKILL"
        assert not row.last_exit.expected


def test_questions_go_to_the_nodes_and_start_nothing() -> None:
    """`ask` says who is down, who is paused and what a node refused, each with its exit code."""
    with home() as place:
        place.up(3)
        cluster = place.cluster()
        assert cluster.whoami("n1").pid == cluster.table()["n1"].pid
        with pytest.raises(ControlError, match="n9"):
            cluster.ask("n1", Isolate(["n9"]))
        cluster.act("pause", ["n1"])
        with pytest.raises(ZraftError) as paused:
            cluster.whoami("n1", timeout_ms=100)
        assert (paused.value.exit_code, "paused" in paused.value.why) == (6, True)
        cluster.down()
        with pytest.raises(NotRunning):
            cluster.whoami("n1")
        assert find_supervisor(place.directory) is None


def test_a_rolling_restart_gives_every_node_a_new_process_one_at_a_time() -> None:
    """All nodes restarted, the leader last, with a converged cluster in between."""
    with home() as place:
        up = place.up(3)
        cluster = place.cluster()
        results = cluster.restart().results
        assert all(result.failure is None for result in results)
        assert results[-1].name == up.leader
        assert {result.incarnation for result in results} == {2}
        assert not any(living(pid) for pid in up.pids.values())
        assert cluster.wait_for(["leader", "converged", "up=3"]).leader is not None
