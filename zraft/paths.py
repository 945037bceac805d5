"""Where a cluster lives on disk and in the run directory, and the file that describes it.

    STATE/<cluster>/cluster.toml                        this file's `ClusterFile`
    STATE/<cluster>/supervisor/{lock,state.json,log.jsonl,err}
    STATE/<cluster>/n1/{member.json,boot.json,lock,node.json,exit.json,wal/,
                        log.jsonl,trace.jsonl,err}
    STATE/<cluster>/n1.{removed,quarantine}-<member id> what a former member left
    RUN/zraft/<8 hex of the cluster directory's real path>/{s.ctl,n1.peer,n1.client,n1.ctl,n1.bulk}

STATE is `$ZRAFT_HOME`, else `$XDG_STATE_HOME/zraft`, else `~/.local/state/zraft`. RUN is
`$XDG_RUNTIME_DIR`, else `/tmp/zraft-<uid>`; it must be ours and closed to others. A path of a Unix
socket has at most 107 bytes, so these are short. The socket directory is recorded in the cluster
file when the cluster comes up: a shell with another environment still finds the sockets.

This module names places; only the supervisor makes directories.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec

from zraft.errors import ConfigError, ControlError, ForeignDataError, NotRunning, StorageError

FORMAT = 1
DEFAULT_CLUSTER = "default"
MAX_SOCKET_PATH_BYTES = 107
MAX_NODES = 9  # at one time
MAX_NODE_NAME = 12
TCP_FIRST_PORT = 21000
TCP_SLOTS = 390
TCP_PORTS_PER_SLOT = 30  # below 32768: an ephemeral port can connect to itself
TCP_BULK_OFFSET = 2 * MAX_NODES  # in a slot, after the ports of peers and clients

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")

_NODE_NAME = re.compile(rf"[a-z][a-z0-9_-]{{0,{MAX_NODE_NAME - 1}}}")
_TAKEN = frozenset(
    """supervisor s all up down leader follower followers candidate random minority majority
    learner learners voters""".split()
)

HexId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
"""A member's or a cluster's id as files hold it."""

NodeName = Annotated[str, msgspec.Meta(pattern=f"^{_NODE_NAME.pattern}$")]

EndpointKind = Literal["peer", "client", "ctl", "bulk"]
ENDPOINT_KINDS: tuple[EndpointKind, ...] = get_args(EndpointKind)


class MemberRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A node of the cluster; who votes is decided by the log alone.

    `new`: its directory may still have to be made. `joined`: it came after `up`, so it does not
    stand in the base configuration. `position` is that of its tcp ports and never changes; -1 in
    files of before there was such a field: the place in the list.
    """

    name: NodeName
    member_id: HexId
    new: bool = True
    joined: bool = False
    position: int = -1


class FormerMember(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A member that was taken out. Nothing starts it again, and its member id never comes back.

    Its directory was renamed to `data`, in the cluster's directory; empty: it was deleted, or there
    was none. `moved` is false between the decision and the rename.
    """

    name: NodeName
    member_id: HexId
    joined: bool
    position: int
    how: Literal["removed", "replaced"]
    data: str
    moved: bool
    wall_ms: int  # wall clock, ms since the epoch: for people


class ClusterFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`cluster.toml`: identity, the nodes, and the settings that every node runs with."""

    format: int
    name: str
    cluster_id: HexId
    transport: Literal["ipc", "tcp"]
    socket_dir: str
    base_port: int  # 0 with ipc
    ephemeral: bool
    members: list[MemberRecord]
    settings: dict[str, dict[str, object]]
    restored_from: str = ""  # the backup from which new members' directories are made
    former: list[FormerMember] = []

    @property
    def cluster_bytes(self) -> bytes:
        """The cluster id as it stands in every frame: eight bytes."""
        return bytes.fromhex(self.cluster_id)

    @property
    def names(self) -> list[str]:
        """The nodes' names in the order of the file."""
        return [member.name for member in self.members]

    @property
    def base(self) -> list[tuple[str, int]]:
        """The base configuration, names and ids as `up` made them: equal in every directory."""
        found = [
            (self.position(member), member.name, member.member_id)
            for member in self.members
            if not member.joined
        ]
        found += [(m.position, m.name, m.member_id) for m in self.former if not m.joined]
        return [(name, int(member_id, 16)) for _, name, member_id in sorted(found)]

    def position(self, member: MemberRecord) -> int:
        """Return which pair of tcp ports is a member's."""
        return member.position if member.position >= 0 else self.members.index(member)

    def member(self, name: str) -> MemberRecord | None:
        """Return the record of a node, None when there is no such node."""
        return next((member for member in self.members if member.name == name), None)

    def member_id(self, name: str) -> int:
        """Return the member id of `name`; ControlError when there is no such node."""
        member = self.member(name)
        if member is not None:
            return int(member.member_id, 16)
        raise ControlError(
            f'no node "{name}"',
            why=f"cluster {self.name} has {', '.join(self.names)}",
            try_="zraft node list",
        )

    def member_name(self, member_id: int) -> str | None:
        """Return the name of a member id, None when it is nobody's."""
        for member in self.members:
            if int(member.member_id, 16) == member_id:
                return member.name
        return None

    def endpoint(self, name: str, kind: EndpointKind) -> str:
        """Return the ZeroMQ endpoint of a node. Control sockets are ipc always."""
        if self.transport == "ipc" or kind == "ctl":
            return f"ipc://{self.socket_dir}/{name}.{kind}"
        member = self.member(name)
        assert member is not None, f"no node {name}"
        position = self.position(member)
        assert position < MAX_NODES, "there are ports for so many"
        offset = 2 * position + (1 if kind == "client" else 0)
        if kind == "bulk":
            offset = TCP_BULK_OFFSET + position
        return f"tcp://127.0.0.1:{self.base_port + offset}"

    def supervisor_endpoint(self) -> str:
        """Return the endpoint of the supervisor's control socket."""
        return f"ipc://{self.socket_dir}/s.ctl"


def check_node_name(name: str) -> str:
    """Return `name` if it can name a node; ControlError otherwise.

    Words of the target grammar, and what the cluster's directory holds already, are no names.
    """
    if not _NODE_NAME.fullmatch(name) or name in _TAKEN:
        raise ControlError(
            f'"{name}" can not name a node',
            why=f"a name is a letter and up to {MAX_NODE_NAME - 1} of a-z 0-9 _ -, and no role",
            try_="zraft node add    (takes the first free of n1, n2, …)",
        )
    return name


def state_root(environ: Mapping[str, str]) -> Path:
    """Return STATE, the directory that holds all clusters of this user."""
    if home := environ.get("ZRAFT_HOME"):
        return Path(home)
    if state := environ.get("XDG_STATE_HOME"):
        return Path(state) / "zraft"
    return Path(environ.get("HOME") or "~").expanduser() / ".local" / "state" / "zraft"


def check_cluster_name(name: str) -> str:
    """Return `name` if it can name a cluster; ControlError otherwise."""
    if not _NAME.fullmatch(name):
        raise ControlError(
            f'"{name}" can not name a cluster',
            why="a name is 1 to 32 characters of a-z 0-9 . _ - and starts with a letter or digit",
            try_="zraft cluster up -C my-cluster",
        )
    return name


def cluster_dir(name: str, environ: Mapping[str, str]) -> Path:
    """Return STATE/<name>: a directory, or a link to where `--dir` put it."""
    return state_root(environ) / check_cluster_name(name)


def runtime_root(environ: Mapping[str, str]) -> Path:
    """Return the directory under which the sockets' directories are made."""
    if run := environ.get("XDG_RUNTIME_DIR"):
        return Path(run) / "zraft"
    return Path(f"/tmp/zraft-{os.getuid()}")  # owner and mode are checked when made


def socket_dir(directory: Path, environ: Mapping[str, str]) -> Path:
    """Return the directory of a cluster's sockets; ConfigError when its path is too long."""
    digest = hashlib.sha256(os.fsencode(os.path.realpath(directory))).hexdigest()[:8]
    path = runtime_root(environ) / digest
    longest = len(os.fsencode(path)) + 1 + MAX_NODE_NAME + len(".client")
    if longest > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"{path} is too long for Unix sockets",
            why=f"a socket's path would have {longest} bytes; the limit is {MAX_SOCKET_PATH_BYTES}",
            try_="set XDG_RUNTIME_DIR to a shorter path",
        )
    return path


def read_cluster_file(directory: Path) -> ClusterFile:
    """Return the cluster file of a cluster's directory.

    Raises:
        NotRunning: there is no such cluster.
        ForeignDataError: the file is not a cluster file, or of a newer format.
        StorageError: it can not be read.
    """
    path = directory / "cluster.toml"
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        raise NotRunning(
            f'no cluster "{directory.name}"',
            why=f"{path} does not exist",
            try_=("zraft cluster up -n 5", "zraft cluster list"),
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{path} can not be read", why=str(error)) from error
    try:
        fields = tomllib.loads(text)
        if isinstance(fields.get("format"), int) and fields["format"] > FORMAT:
            raise ForeignDataError(
                f"{path} has format {fields['format']}",
                why=f"this zraft reads formats up to {FORMAT}",
                try_="use the newer zraft that made it",
            )
        return msgspec.convert(fields, ClusterFile)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ForeignDataError(
            f"{path} is not a cluster file",
            why=str(error),
            try_="restore it from a copy, or use another cluster name",
        ) from error
