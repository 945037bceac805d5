"""All clusters of one user, by name: what `cluster list` shows. Starts nothing, asks nobody."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from zraft.client.ownership import find_owner
from zraft.client.record import find_supervisor
from zraft.errors import ControlError, NotRunning, ZraftError
from zraft.paths import cluster_dir, read_cluster_file, state_root

ClusterState = Literal["running", "degraded", "stopped", "broken"]


class ClusterSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `cluster list`. `up` counts living processes, by their locks."""

    name: str
    directory: str
    nodes: int
    up: int
    state: ClusterState  # running: all · degraded: some · stopped: none · broken: see `error`
    supervisor_pid: int | None = None
    error: str = ""


def list_clusters(environ: Mapping[str, str]) -> list[ClusterSummary]:
    """Return every cluster of this user, by name. Starts nothing, asks nobody, reads only."""
    root = state_root(environ)
    names = sorted(os.listdir(root)) if root.is_dir() else []
    found = []
    for name in names:
        with contextlib.suppress(NotRunning, ControlError):  # not a cluster, or being made
            found.append(_summary(name, environ))
    return found


def _summary(name: str, environ: Mapping[str, str]) -> ClusterSummary:
    link = cluster_dir(name, environ)
    directory = Path(os.path.realpath(link))
    try:
        cluster = read_cluster_file(link)
    except NotRunning:
        raise
    except ZraftError as error:
        return ClusterSummary(
            name=name, directory=str(directory), nodes=0, up=0, state="broken", error=error.what
        )
    up = sum(find_owner(directory / node).kind == "ours" for node in cluster.names)
    holder = find_supervisor(directory)
    state: ClusterState = "stopped" if not up else "degraded"
    return ClusterSummary(
        name=name,
        directory=str(directory),
        nodes=len(cluster.members),
        up=up,
        state="running" if up == len(cluster.members) else state,
        supervisor_pid=holder.pid if holder is not None else None,
    )
