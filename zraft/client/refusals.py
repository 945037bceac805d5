"""What is refused before anything is started or made, with how to go on.

The same rules hold in the supervisor: a client may be older, and two may ask at once.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from zraft.control_api import Up
from zraft.errors import ConfigError, ControlError
from zraft.paths import MAX_NODES, ClusterFile

DEFAULT_NODES = 5
OLDEST_LINUX = (5, 4)


def check_platform(system: str = sys.platform, release: str = platform.release()) -> None:
    """Refuse anything but Linux 5.4 or newer (WSL2 is one): ConfigError (exit 78)."""
    numbers = [part for part in release.split("-", 1)[0].split(".") if part.isdigit()]
    version = tuple(int(part) for part in numbers[:2])
    if system != "linux" or version < OLDEST_LINUX:
        raise ConfigError(
            f"zraft needs Linux 5.4 or newer (WSL2 included), and this is {system} {release}",
            why="it watches processes through pidfds",
        )


def check_nodes(nodes: int) -> None:
    """Refuse an impossible size of a new cluster: ControlError (exit 2)."""
    if not 1 <= nodes <= MAX_NODES:
        raise ControlError(
            f"a cluster can not have {nodes} nodes",
            why=f"the rule is: 1 to {MAX_NODES}; an odd number is best",
            try_="zraft cluster up -n 5",
        )


def check_place(link: Path, data: Path | None, *, ephemeral: bool) -> None:
    """Refuse a place that contradicts the cluster's: ControlError (exit 2).

    Args:
        link: STATE/<name>.
        data: what `--dir` says.
        ephemeral: what `--ephemeral` says.
    """
    if data is None:
        return
    if ephemeral:
        raise ControlError(
            "--dir and --ephemeral contradict each other",
            why="an ephemeral cluster lives in a temporary directory of its own",
        )
    if os.path.lexists(link) and os.path.realpath(link) != os.path.realpath(data):
        raise ControlError(
            f'cluster "{link.name}" is in {os.path.realpath(link)}',
            why=f"it can not be in {data} as well",
            try_=(
                f"zraft cluster up -C {link.name}    without --dir",
                f"zraft cluster up -C NAME --dir {data}    makes another one",
            ),
        )


def check_same(up: Up, cluster: ClusterFile) -> None:
    """Refuse an `up` that asks for another cluster than the one that is there (exit 2)."""
    have, name = len(cluster.members), cluster.name
    if up.nodes is not None and up.nodes != have:
        raise ControlError(
            f'cluster "{name}" has {have} nodes, not {up.nodes}',
            why="-n is for a new cluster; this one keeps its data and its members",
            try_=(
                f"zraft cluster up -C {name}    starts the {have}",
                f"zraft node add -C {name}, zraft node remove -C {name} NAME    change them",
                f"zraft cluster down -C {name} --purge    deletes it and its data",
                f"zraft cluster up -C NAME -n {up.nodes}    makes another one beside it",
            ),
        )
    if up.transport is not None and up.transport != cluster.transport:
        raise ControlError(
            f'cluster "{name}" uses {cluster.transport}, not {up.transport}',
            why="the transport is fixed when a cluster is made",
            try_=f"zraft cluster up -C NAME --transport {up.transport}",
        )
    if up.restore is not None and up.restore != cluster.restored_from:
        raise ControlError(
            f'cluster "{name}" exists',
            why="a backup becomes a new cluster; the state of one that exists is never replaced",
            try_=(
                f"zraft backup restore {up.restore} -C NAME    makes another one beside it",
                f"zraft cluster down -C {name} --purge    deletes this one and its data",
            ),
        )
    if up.ephemeral and not cluster.ephemeral:
        raise ControlError(
            f'cluster "{name}" keeps its data',
            why="whether a cluster is ephemeral is fixed when it is made",
            try_=(f"zraft cluster up -C {name}", "zraft cluster up -C NAME --ephemeral"),
        )
