"""Nodes that come and go after `up`, in an order that a crash between any two steps leaves good.

    added      1. cluster.toml: the member, `new`       2. its directory   3. not `new`   4. process
    replaced   1. cluster.toml: the old one is former, not yet `moved`; the new one is `new`
               2. the old directory is renamed          3. `moved`         then as above
    dropped    1. no process   2. cluster.toml: former, not yet `moved`    3. rename      4. `moved`

What a step began the next supervisor finishes: `settle` renames what was to be renamed, and a
member that is `new` gets its directory with the next `up`, start or add. A directory is renamed,
never deleted, unless somebody asked for that: a wiped or corrupt one is evidence. The name that it
gets carries the member id, which is used for nobody else.

Who is a member of Raft is not decided here but in the log: who asks takes care that a node is in it
or out of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Literal

import msgspec

from zraft import clock
from zraft.control_api import AddMember, DropMember, ReplaceMember
from zraft.errors import Conflict, ControlError, SupervisorError
from zraft.paths import (
    MAX_NODES,
    TCP_BULK_OFFSET,
    TCP_PORTS_PER_SLOT,
    ClusterFile,
    FormerMember,
    MemberRecord,
    check_node_name,
)
from zraft.storage.files import OS_FILES, sync_directory
from zraft_supervisor.creation import can_bind, write_cluster_file
from zraft_supervisor.layout import Place, disk_errors

How = Literal["removed", "replaced"]
_ASIDE: dict[How, str] = {"removed": "removed", "replaced": "quarantine"}


# --------------------------------------------------------------------------- what the file says


def with_added(cluster: ClusterFile, request: AddMember) -> ClusterFile:
    """Return the cluster file with one more member, the same file when it is there already.

    Raises:
        ControlError: there is another node of that name, or there are as many as there may be.
        SupervisorError: no tcp ports are left (exit 75).
    """
    for member in cluster.members:
        if member.member_id == request.member_id:
            return cluster
    name = check_node_name(request.name) if request.name else free_name(cluster)
    if cluster.member(name) is not None:
        raise ControlError(
            f'there is a node "{name}" already',
            why=f"cluster {cluster.name} has {', '.join(cluster.names)}",
            try_=("zraft node add", f"zraft node replace {name}    when its data is lost"),
        )
    if len(cluster.members) >= MAX_NODES:
        raise ControlError(
            f'cluster "{cluster.name}" has {MAX_NODES} nodes, and no more are possible',
            why="every write would be sent to all of them",
            try_="zraft node remove NAME",
        )
    record = MemberRecord(name, request.member_id, joined=True, position=_free_position(cluster))
    return msgspec.structs.replace(cluster, members=[*cluster.members, record])


def with_replaced(cluster: ClusterFile, request: ReplaceMember) -> ClusterFile:
    """Return the cluster file in which a name belongs to a new member, in place of the old one.

    Raises:
        Conflict: the name belongs to a third one meanwhile.
    """
    cluster.member_id(request.name)  # refuses a name that is none
    old = cluster.member(request.name)
    assert old is not None
    if old.member_id == request.member_id:
        return cluster
    if old.member_id != request.old_id:
        raise _changed(request.name)
    new = MemberRecord(request.name, request.member_id, joined=True, position=cluster.position(old))
    return msgspec.structs.replace(
        cluster,
        members=[new if member is old else member for member in cluster.members],
        former=[*cluster.former, _former(cluster, old, "replaced")],
    )


def with_dropped(cluster: ClusterFile, request: DropMember) -> ClusterFile:
    """Return the cluster file without a member. Conflict: the name is another member's."""
    old = cluster.member(request.name)
    if old is None or old.member_id != request.member_id:
        raise _changed(request.name)
    members = [
        msgspec.structs.replace(member, position=cluster.position(member))
        for member in cluster.members
        if member is not old
    ]
    former = _former(cluster, old, "removed")
    return msgspec.structs.replace(cluster, members=members, former=[*cluster.former, former])


def free_name(cluster: ClusterFile) -> str:
    """Return the first of n1, n2, … that no node has or had: logs of two would look like one's."""
    taken = {*cluster.names, *(member.name for member in cluster.former)}
    return next(name for number in range(1, 10_000) if (name := f"n{number}") not in taken)


def _free_position(cluster: ClusterFile) -> int:
    taken = {cluster.position(member) for member in cluster.members}
    for position in range(MAX_NODES):
        if position in taken:
            continue
        offsets = (2 * position, 2 * position + 1, TCP_BULK_OFFSET + position)
        if cluster.transport == "ipc" or all(can_bind(cluster.base_port + one) for one in offsets):
            return position
    raise SupervisorError(
        "no free tcp ports for another node",
        why=f"they are taken from {TCP_PORTS_PER_SLOT} ports from {cluster.base_port} on",
        try_="stop what listens there",
        exit_code=75,
    )


def _former(cluster: ClusterFile, old: MemberRecord, how: How) -> FormerMember:
    return FormerMember(
        name=old.name,
        member_id=old.member_id,
        joined=old.joined,
        position=cluster.position(old),
        how=how,
        data=f"{old.name}.{_ASIDE[how]}-{old.member_id}",
        moved=False,
        wall_ms=clock.wall_time_ns() // 1_000_000,
    )


def _changed(name: str) -> Conflict:
    return Conflict(
        f'"{name}" is another member meanwhile; nothing was done',
        why="somebody else added, removed or replaced a node",
        try_="zraft cluster status",
    )


# ------------------------------------------------------------------------------ what is on disk


def settle(
    place: Place, cluster: ClusterFile, on_step: Callable[[str], None], *, purge: bool = False
) -> ClusterFile:
    """Put aside what former members left, and return the cluster file that says so.

    Repeatable. Nothing of these members may run.

    Args:
        place: of the cluster.
        cluster: as it is recorded.
        on_step: is called between the steps that are durable one by one.
        purge: delete instead.

    Raises:
        StorageError: the disk refused (exit 74).
    """
    if all(member.moved for member in cluster.former):
        return cluster
    former = []
    for member in cluster.former:
        if member.moved:
            former.append(member)
            continue
        kept = _put_aside(place, member)
        on_step(f"directory of {member.name} put aside")
        if purge and kept:
            with disk_errors(place.directory / member.data):
                shutil.rmtree(place.directory / member.data)
            kept = False
        data = member.data if kept else ""
        former.append(msgspec.structs.replace(member, moved=True, data=data))
    cluster = msgspec.structs.replace(cluster, former=former)
    write_cluster_file(place.directory, cluster)
    on_step("directories put aside")
    return cluster


def _put_aside(place: Place, member: FormerMember) -> bool:
    """Rename a member's directory unless that was done; return whether there is one."""
    here, there = place.directory / member.name, place.directory / member.data
    with disk_errors(here):
        if not there.exists() and here.exists():
            here.rename(there)
            sync_directory(OS_FILES, place.directory)
        return there.exists()
