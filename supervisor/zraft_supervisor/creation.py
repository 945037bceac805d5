"""Making a cluster, in an order that a crash between any two steps leaves repeatable.

    1. cluster.toml, every member `new`          identity and member ids exist from here on
    2. each member's directory                   only for members that are `new`
    3. cluster.toml, no member `new`
    4. processes

A member that is not `new` never gets a directory again: an empty one is a lost memory, and a node
that finds it so ends with 65. The membership of `up` is the base configuration (index 0), the same
bytes in every directory, also in those of members that come later (`zraft_supervisor.members`).
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from zraft.client.refusals import DEFAULT_NODES, check_nodes
from zraft.config import Config, to_jsonable
from zraft.control_api import Up
from zraft.errors import ConfigError, ControlError, SupervisorError
from zraft.paths import (
    FORMAT,
    TCP_BULK_OFFSET,
    TCP_FIRST_PORT,
    TCP_PORTS_PER_SLOT,
    TCP_SLOTS,
    ClusterFile,
    MemberRecord,
    socket_dir,
)
from zraft.storage.backups import open_backup, seed_member
from zraft.storage.directory import Member, NamedMember, create_member, new_id
from zraft.storage.files import OS_FILES, replace_file
from zraft_supervisor.layout import Place, disk_errors, make_socket_dir

Settings = dict[str, dict[str, Any]]


def new_cluster(place: Place, up: Up, environ: Mapping[str, str]) -> ClusterFile:
    """Return the description of a new cluster; nothing is written yet.

    Raises:
        ControlError: an impossible number of nodes (exit 2).
        ConfigError: impossible settings, or a socket path that is too long (exit 78).
        SupervisorError: every tcp port that a cluster may use is taken (exit 75).
    """
    nodes = DEFAULT_NODES if up.nodes is None else up.nodes
    check_nodes(nodes)
    transport = up.transport or "ipc"
    return ClusterFile(
        format=FORMAT,
        name=up.name,
        cluster_id=_random_id(),
        transport=transport,
        socket_dir=str(socket_dir(place.directory, environ)),
        base_port=free_base_port(place.directory, nodes) if transport == "tcp" else 0,
        ephemeral=up.ephemeral,
        members=[
            MemberRecord(f"n{number}", _random_id(), position=number - 1)
            for number in range(1, nodes + 1)
        ],
        settings=checked_settings(up.settings or {}),
        restored_from=up.restore or "",
    )


def checked_settings(settings: Mapping[str, Mapping[str, object]]) -> Settings:
    """Return every key of the configuration, the given ones checked. ConfigError otherwise."""
    try:
        return {**to_jsonable(msgspec.convert(settings, Config))}
    except msgspec.ValidationError as error:
        raise ConfigError("impossible settings", why=str(error)) from error


def make_members(place: Place, cluster: ClusterFile, on_step: Callable[[str], None]) -> ClusterFile:
    """Make the directories of all new members and return the cluster file with none new.

    Repeatable: what an interrupted call left is completed.

    Raises:
        StorageError: the disk refused (exit 74).
        ForeignDataError: a directory is in the way (exit 65).
        CorruptLogError: the backup that the cluster begins with is damaged (exit 65).
    """
    fresh = any(member.new for member in cluster.members)
    backup = open_backup(Path(cluster.restored_from)) if fresh and cluster.restored_from else None

    def seed(member: Member, directory: Path) -> None:
        assert backup is not None
        seed_member(directory, member.identity, member.configuration, backup)

    base = [NamedMember(name, member_id) for name, member_id in cluster.base]
    for member in cluster.members:
        if member.new:
            create_member(
                place.directory,
                member.name,
                member_id=cluster.member_id(member.name),
                cluster=cluster.name,
                cluster_id=int(cluster.cluster_id, 16),
                members=base,
                seed=None if backup is None or member.joined else seed,
            )
            on_step(f"directory of {member.name} made")
    if not fresh:
        return cluster
    known = [msgspec.structs.replace(member, new=False) for member in cluster.members]
    cluster = msgspec.structs.replace(cluster, members=known, restored_from="")
    write_cluster_file(place.directory, cluster)
    on_step("members recorded as known")
    return cluster


def refresh_sockets(
    place: Place, cluster: ClusterFile, environ: Mapping[str, str], *, alive: bool
) -> ClusterFile:
    """Return the cluster file with a socket directory that exists.

    When nothing of the cluster runs, it moves to where this environment wants it (another login
    may have another run directory); living nodes keep theirs.
    """
    if not alive:
        wanted = str(socket_dir(place.directory, environ))
        if wanted != cluster.socket_dir:
            cluster = msgspec.structs.replace(cluster, socket_dir=wanted)
            write_cluster_file(place.directory, cluster)
        make_socket_dir(Path(cluster.socket_dir), environ)
    return cluster


def write_cluster_file(directory: Path, cluster: ClusterFile) -> None:
    """Make `cluster.toml` say this, durably. StorageError when the disk refuses."""
    path = directory / "cluster.toml"
    with disk_errors(path):
        replace_file(OS_FILES, path, render_cluster_file(cluster).encode())


def render_cluster_file(cluster: ClusterFile) -> str:
    """Return the TOML that `paths.read_cluster_file` reads back."""
    plain = msgspec.to_builtins(cluster)
    members, settings, former = (plain.pop(key) for key in ("members", "settings", "former"))
    lines = [
        "# Written by zraft. Member ids are identities: never edit them.",
        *_pairs(plain),
    ]
    for member in members:
        lines += ["", "[[members]]", *_pairs(member)]
    for member in former:
        lines += ["", "[[former]]", *_pairs(member)]
    for section, values in settings.items():
        lines += ["", f"[settings.{section}]", *_pairs(values)]
    return "\n".join(lines) + "\n"


def _pairs(values: Mapping[str, object]) -> list[str]:
    # strings, integers and booleans look alike in JSON and TOML
    return [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]


def _random_id() -> str:
    return f"{new_id():016x}"


def free_base_port(directory: Path, nodes: int) -> int:
    """Return the first port of a free block, below the range that connections take theirs from.

    The block follows from the directory, so that the same cluster tends to have the same ports; a
    block in use is passed over.
    """
    digest = hashlib.sha256(os.fsencode(os.path.realpath(directory))).digest()
    first = int.from_bytes(digest[:4], "big")
    for step in range(TCP_SLOTS):
        base = TCP_FIRST_PORT + (first + step) % TCP_SLOTS * TCP_PORTS_PER_SLOT
        offsets = [*range(2 * nodes), *range(TCP_BULK_OFFSET, TCP_BULK_OFFSET + nodes)]
        if all(can_bind(base + offset) for offset in offsets):
            return base
    raise SupervisorError(
        "no free tcp ports",
        why=f"every block of {TCP_PORTS_PER_SLOT} ports from {TCP_FIRST_PORT} on is in use",
        try_="zraft cluster up --transport ipc",
        exit_code=75,
    )


def can_bind(port: int) -> bool:
    """Return whether nobody listens on a port of this host."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def with_settings(up: Up, cluster: ClusterFile, *, alive: bool) -> ClusterFile:
    """Return the cluster file with the settings that `up` wants. ControlError when nodes run."""
    if up.settings is None:
        return cluster
    wanted = checked_settings(up.settings)
    if wanted == cluster.settings:
        return cluster
    if alive:
        raise ControlError(
            f'cluster "{cluster.name}" runs with other settings',
            why="nodes read their settings when they start: " + _difference(cluster, wanted),
            try_="zraft cluster down, then the same command again",
        )
    return msgspec.structs.replace(cluster, settings=wanted)


def _difference(cluster: ClusterFile, wanted: Settings) -> str:
    found = [
        f"{section}.{key} is {cluster.settings.get(section, {}).get(key)}, not {value}"
        for section, values in wanted.items()
        for key, value in values.items()
        if cluster.settings.get(section, {}).get(key) != value
    ]
    return "; ".join(found[:3]) or "the sections differ"
