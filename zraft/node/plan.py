"""What a node knows before it touches anything: its name, its cluster, its checked configuration.

Read only; what is wrong here is refused with exit code 78, before a lock is taken or a file made.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import msgspec

from zraft.config import Config
from zraft.core.model import MemberId, Settings
from zraft.errors import ConfigError, NotRunning
from zraft.machine.base import StateMachine
from zraft.machine.load import load_machine
from zraft.machine.session_ops import Terms
from zraft.node.ports import Limits, SnapshotLimits
from zraft.paths import ENDPOINT_KINDS, ClusterFile, read_cluster_file
from zraft.storage.base import Identity


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything known before anything is made."""

    name: str
    cluster: ClusterFile
    config: Config
    names: dict[MemberId, str]  # of every member: asked for each line of a trace
    machine: StateMachine  # in its first state

    @property
    def me(self) -> MemberId:
        """The member id that the cluster file gives this name."""
        return self.cluster.member_id(self.name)

    @property
    def identity(self) -> Identity:
        """Who has to live in the directory."""
        return Identity(int(self.cluster.cluster_id, 16), self.me)

    def name_of(self, member: MemberId) -> str:
        """Return a member's name, its id in hex digits if it has none."""
        return self.names.get(member) or f"{member:016x}"

    def endpoints(self) -> dict[str, str]:
        """Return this node's own endpoints by kind."""
        return {kind: self.cluster.endpoint(self.name, kind) for kind in ENDPOINT_KINDS}


def read_plan(directory: Path) -> Plan:
    """Read the cluster file above `directory` and check it for this node.

    Raises:
        ConfigError: no cluster file, a node that it does not name, impossible settings, a state
            machine that can not be had, or a socket directory that is missing or open to others.
        ForeignDataError: it is not a cluster file, or a newer one.
    """
    path = directory.parent / "cluster.toml"
    try:
        cluster = read_cluster_file(directory.parent)
    except NotRunning as error:
        raise ConfigError(f"{path} does not exist", why=error.why, try_=error.try_) from error
    if directory.name not in cluster.names:
        raise ConfigError(
            f"{path} has no node {directory.name}",
            why=f"its nodes are {', '.join(cluster.names)}",
            try_="start a node by its directory: --dir STATE/<cluster>/n1",
        )
    try:
        config = msgspec.convert(cluster.settings, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"{path}: the settings are impossible",
            why=str(error),
            try_="see configs/default.toml for every key and its rule",
        ) from error
    check_socket_directory(Path(cluster.socket_dir))
    names = {cluster.member_id(name): name for name in cluster.names}
    machine = load_machine(config.machine.name, config.machine.directory)
    return Plan(directory.name, cluster, config, names, machine)


def check_socket_directory(path: Path) -> None:
    """Refuse a directory for sockets that others could use, or that is not there: ConfigError."""
    try_ = "zraft cluster up makes it anew"
    try:
        found = path.lstat()
    except OSError as error:
        raise ConfigError(
            f"{path}, the directory of the sockets, can not be used",
            why=error.strerror or str(error),
            try_=try_,
        ) from error
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or mode & 0o077:
        raise ConfigError(
            f"{path}, the directory of the sockets, is not ours alone",
            why=f"owner {found.st_uid}, mode {mode:04o}: others could take their place",
            try_=try_,
        )


def raft_settings(config: Config) -> Settings:
    """Return the core's part of the configuration.

    All endpoints are on this host: there a refused connection proves that its process is gone, and
    a promise to it ends (`hint_ends_promise`).
    """
    timing, replication, limits = config.timing, config.replication, config.limits
    return Settings(
        election_min_ms=timing.election_min_ms,
        election_max_ms=timing.election_max_ms,
        heartbeat_ms=timing.heartbeat_ms,
        pre_vote=timing.pre_vote,
        check_quorum=timing.check_quorum,
        disconnect_hint=timing.disconnect_hint,
        lease=config.reads.lease,
        lease_drift_percent=config.reads.clock_drift_percent,
        hint_ends_promise=True,
        max_inflight_messages=replication.max_inflight_messages,
        max_inflight_bytes=replication.max_inflight_bytes,
        max_batch_bytes=replication.max_batch_bytes,
        apply_batch_entries=limits.apply_batch_entries,
        apply_batch_bytes=limits.apply_batch_bytes,
        trailing_entries=config.snapshot.trailing_entries,
        trailing_bytes=config.snapshot.trailing_bytes,
        held_bytes=config.snapshot.held_bytes,
    )


def server_limits(config: Config) -> Limits:
    """Return the server's part of the configuration; a sync is slow if it costs a heartbeat."""
    limits, sessions, snapshot = config.limits, config.sessions, config.snapshot
    return Limits(
        max_waiting_requests=limits.max_waiting_requests,
        max_parked_requests=limits.max_parked_requests,
        max_session_requests=limits.max_session_requests,
        max_uncommitted_bytes=limits.max_uncommitted_bytes,
        park_ms=2 * config.timing.election_max_ms,
        max_request_bytes=limits.max_request_bytes,
        apply_slice_ms=limits.apply_slice_ms,
        session_terms=Terms(sessions.ttl_ms, sessions.max_sessions, sessions.max_bytes),
        sync_slow_ms=config.timing.heartbeat_ms,
        lease_reads=config.reads.lease,
        snapshots=SnapshotLimits(
            min_log_bytes=snapshot.min_log_bytes,
            size_percent=snapshot.size_percent,
            slice_ms=snapshot.slice_ms,
            chunk_bytes=snapshot.chunk_bytes,
            window_chunks=snapshot.window_chunks,
            max_bytes_per_s=snapshot.max_bytes_per_s,
        ),
    )
