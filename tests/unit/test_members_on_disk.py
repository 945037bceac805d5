"""Nodes that come, are replaced and go: what a crash between two steps left is finished later."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data_directories import make_cluster
from zraft.control_api import AddMember, DropMember, ReplaceMember
from zraft.errors import Conflict, ControlError
from zraft.paths import MAX_NODES, ClusterFile, read_cluster_file
from zraft.storage.directory import MEMBER_FILE, open_member
from zraft_supervisor.creation import make_members, write_cluster_file
from zraft_supervisor.layout import Place
from zraft_supervisor.members import settle, with_added, with_dropped, with_replaced

NEW_ID = "00000000000000aa"
Step = Callable[[str], None]
Change = Callable[[Place, ClusterFile, Step], ClusterFile]


class Crash(BaseException):
    """The process ends here."""


def carry_out(place: Place, wanted: ClusterFile, on_step: Step) -> ClusterFile:
    """Do what the supervisor does with a file that says what is wanted."""
    write_cluster_file(place.directory, wanted)
    on_step("recorded")
    return make_members(place, settle(place, wanted, on_step), on_step)


def add(place: Place, cluster: ClusterFile, on_step: Step) -> ClusterFile:
    """A fourth node."""
    return carry_out(place, with_added(cluster, AddMember(member_id=NEW_ID)), on_step)


def replace(place: Place, cluster: ClusterFile, on_step: Step) -> ClusterFile:
    """Another member under the name n2."""
    old_id = cluster.member_id("n2")
    request = ReplaceMember(name="n2", old_id=f"{old_id:016x}", member_id=NEW_ID)
    return carry_out(place, with_replaced(cluster, request), on_step)


def drop(place: Place, cluster: ClusterFile, on_step: Step) -> ClusterFile:
    """No node n2 any more."""
    request = DropMember(name="n2", member_id=f"{cluster.member_id('n2'):016x}")
    return carry_out(place, with_dropped(cluster, request), on_step)


def purge(place: Place, cluster: ClusterFile, on_step: Step) -> ClusterFile:
    """The same, and its data is deleted."""
    request = DropMember(name="n2", member_id=f"{cluster.member_id('n2'):016x}", purge=True)
    wanted = with_dropped(cluster, request)
    write_cluster_file(place.directory, wanted)
    on_step("recorded")
    return settle(place, wanted, on_step, purge=True)


def steps_of(change: Change, home: Path) -> list[str]:
    """Return the steps of a change that nothing interrupts."""
    made = make_cluster(home)
    steps: list[str] = []
    change(made.place, made.file, steps.append)
    return steps


CHANGES = {"add": add, "replace": replace, "drop": drop, "purge": purge}


@pytest.mark.parametrize("name", CHANGES)
def test_a_crash_after_any_step_is_finished_by_the_next_supervisor(
    name: str, tmp_path: Path
) -> None:
    """The same members, each with a directory that is its own; the old one is there or aside."""
    change = CHANGES[name]
    steps = steps_of(change, tmp_path / "whole")
    assert len(steps) >= 3, steps
    for survived in range(len(steps)):
        home = tmp_path / str(survived)
        made = make_cluster(home)
        old_id = made.file.member_id("n2")
        left = survived

        def burn(_: str) -> None:
            nonlocal left
            if left == 0:
                raise Crash
            left -= 1

        with pytest.raises(Crash):
            change(made.place, made.file, burn)
        again = read_cluster_file(made.place.directory)
        again = settle(made.place, again, lambda _: None)
        again = make_members(made.place, again, lambda _: None)
        assert again == read_cluster_file(made.place.directory), "what it knows is what it wrote"
        check_directories(made.place, again)
        ids = {member.member_id for member in again.members}
        assert (NEW_ID in ids) == (name in {"add", "replace"})
        assert (f"{old_id:016x}" in ids) == (name == "add")
        aside = [path for path in made.place.directory.iterdir() if path.name.startswith("n2.")]
        if name == "purge":
            assert len(aside) <= 1, "deleted, or aside as evidence when that was interrupted"
        else:
            assert len(aside) == (name != "add")
        for path in aside:
            assert open_member_id(path) == old_id, "nothing of it was changed"


def check_directories(place: Place, cluster: ClusterFile) -> None:
    """Every member has a directory that names it, and every former one is where the file says."""
    for member in cluster.members:
        assert not member.new
        found = open_member(place.directory / member.name)
        assert f"{found.member_id:016x}" == member.member_id
    for former in cluster.former:
        assert former.moved
        if former.data:
            assert (place.directory / former.data).is_dir()


def open_member_id(directory: Path) -> int:
    """Return the member id that a directory was made for, whatever it is called now."""
    found: str = json.loads((directory / MEMBER_FILE).read_text())["member_id"]
    return int(found, 16)


def test_asking_twice_is_one_member(tmp_path: Path) -> None:
    """Who got no answer asks again with the same id; the file stays the same object."""
    made = make_cluster(tmp_path / "state")
    request = AddMember(member_id=NEW_ID)
    once = with_added(made.file, request)
    assert with_added(once, request) is once
    old_id = f"{made.file.member_id('n2'):016x}"
    replaced = with_replaced(made.file, ReplaceMember(name="n2", old_id=old_id, member_id=NEW_ID))
    again = ReplaceMember(name="n2", old_id=old_id, member_id=NEW_ID)
    assert with_replaced(replaced, again) is replaced


def test_a_name_that_is_another_members_meanwhile_is_refused(tmp_path: Path) -> None:
    """Two operators at once: the second one is told, and nothing is done."""
    made = make_cluster(tmp_path / "state")
    old_id = f"{made.file.member_id('n2'):016x}"
    replaced = with_replaced(made.file, ReplaceMember(name="n2", old_id=old_id, member_id=NEW_ID))
    late = ReplaceMember(name="n2", old_id=old_id, member_id="00000000000000bb")
    with pytest.raises(Conflict, match="another member meanwhile"):
        with_replaced(replaced, late)
    with pytest.raises(Conflict, match="another member meanwhile"):
        with_dropped(replaced, DropMember(name="n2", member_id=old_id))


def test_names_and_ports_of_those_who_left_stay_theirs(tmp_path: Path) -> None:
    """The name is not given out again, the members that stay keep their positions."""
    made = make_cluster(tmp_path / "state")
    place, cluster = made.place, made.file
    before = {member.name: cluster.position(member) for member in cluster.members}
    cluster = drop(place, cluster, lambda _: None)
    assert {one.name: cluster.position(one) for one in cluster.members} == {
        name: position for name, position in before.items() if name != "n2"
    }
    cluster = add(place, cluster, lambda _: None)
    assert cluster.names == ["n1", "n3", "n4"]
    assert len({cluster.position(member) for member in cluster.members}) == 3


def test_there_is_an_end_to_adding(tmp_path: Path) -> None:
    """A name that is taken, and one node too many."""
    cluster = make_cluster(tmp_path / "state").file
    with pytest.raises(ControlError, match='"n1" already'):
        with_added(cluster, AddMember(member_id=NEW_ID, name="n1"))
    for number in range(len(cluster.members), MAX_NODES):
        cluster = with_added(cluster, AddMember(member_id=f"{0xAA + number:016x}"))
    with pytest.raises(ControlError, match="no more are possible"):
        with_added(cluster, AddMember(member_id=f"{0xFFFF:016x}"))
