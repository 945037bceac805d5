"""A cluster as it can be seen: questions that start nothing and change nothing.

They go to each node's own control socket, never through the supervisor; about processes the
supervisor is asked if one runs, and its record and the locks are read if none does.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import msgspec

from zraft import clock
from zraft.api import (
    ControlFailure,
    GetStatus,
    NodeReply,
    NodeRequest,
    NodeStatus,
    Whoami,
    WhoamiReply,
)
from zraft.client.conditions import check_conditions, leadership, unmet
from zraft.client.launch import greet
from zraft.client.link import SupervisorGone, ask_nodes, ask_supervisor, error_of
from zraft.client.ownership import find_owner
from zraft.client.record import rows_without_supervisor
from zraft.client.up import DEFAULT_TIMEOUT_MS, LOOK_MS
from zraft.control_api import GetTable, HelloReply, NodeRow, TableReply
from zraft.errors import ControlError, NotRunning, Unavailable
from zraft.paths import ClusterFile, cluster_dir, read_cluster_file

TABLE_TIMEOUT_MS = 2_000


class WaitResult(msgspec.Struct, frozen=True, kw_only=True):
    """The moment in which all conditions held."""

    elapsed_ms: int
    leader: str | None
    term: int | None
    statuses: dict[str, NodeStatus | None]


class ClusterView:
    """One cluster of this host, found by name. It holds no connection and no process."""

    def __init__(self, link: Path, file: ClusterFile, environ: Mapping[str, str]) -> None:
        """Use `open`."""
        self.name = link.name
        self.link = link
        self.directory = Path(os.path.realpath(link))
        self.file = file  # as it was when this object was made; `reload` reads it again
        self._environ = environ

    @classmethod
    def open(cls, name: str, environ: Mapping[str, str]) -> Self:
        """Return the cluster `name`; whether anything of it runs is another question.

        Raises:
            NotRunning: there is no such cluster (exit 3).
            ControlError: that is no name (exit 2).
            ForeignDataError, StorageError: its file is not readable (exit 65, 74).
        """
        link = cluster_dir(name, environ)
        return cls(link, read_cluster_file(link), environ)

    def reload(self) -> ClusterFile:
        """Read the cluster file again, keep it as `file` and return it."""
        self.file = read_cluster_file(self.link)
        return self.file

    # ---------------------------------------------------------------- questions, no side effect

    def statuses(self, *, timeout_ms: int = 1_000) -> dict[str, NodeStatus | None]:
        """Ask every node at once, directly; None for one that does not answer in time.

        Returns as soon as all have answered. A node whose socket refuses connections (no process)
        does not use up the time. Every member has a key, in the order of the cluster file.
        """
        answers = self.ask_all(self.file.names, GetStatus(), timeout_ms=timeout_ms)
        return {
            name: answer if isinstance(answer, NodeStatus) else None
            for name, answer in answers.items()
        }

    def whoami(self, name: str, *, timeout_ms: int = 1_000) -> WhoamiReply:
        """Return a node's identity. Raises as `ask` does."""
        reply = self.ask(name, Whoami(), timeout_ms=timeout_ms)
        if not isinstance(reply, WhoamiReply):
            raise ControlError(f"{name} gave another answer than was asked for: {reply}")
        return reply

    def ask(self, name: str, request: NodeRequest, *, timeout_ms: int = 5_000) -> NodeReply:
        """Send one control request to one node and return its answer, never a failure.

        Raises:
            ControlError: no such node; or the node refused, with its own code and exit code.
            NotRunning: no process holds the node's directory (exit 3).
            Unavailable: the process is there and does not answer in time (exit 6).
        """
        self.file.member_id(name)  # refuses a name that is none
        reply = self.ask_all([name], request, timeout_ms=timeout_ms)[name]
        if isinstance(reply, ControlFailure):
            raise error_of(reply)
        if reply is not None:
            return reply
        owner = find_owner(self.directory / name)
        if owner.kind == "ours":
            raise Unavailable(
                f"{name} (pid {owner.pid}) did not answer within {timeout_ms} ms",
                why="it is paused" if owner.stopped else "it is busy, starting or stopping",
                try_=f"zraft node resume {name}" if owner.stopped else "again in a moment",
            )
        raise NotRunning(
            f"{name} is not running",
            why=rows_without_supervisor(self.directory, self.file)[name].message,
            try_=f"zraft node start {name}",
        )

    def ask_all(
        self, names: Sequence[str], request: NodeRequest, *, timeout_ms: int = 1_000
    ) -> dict[str, NodeReply | None]:
        """Send one control request to several nodes at once; a refusal is a `ControlFailure`."""
        endpoints = {name: self.file.endpoint(name, "ctl") for name in names}
        return ask_nodes(endpoints, request, timeout_ms)

    def table(self) -> dict[str, NodeRow]:
        """Return the processes' rows, from the supervisor or, without one, from its record."""
        found = greet(self.directory)
        if found is not None:
            with contextlib.suppress(SupervisorGone):
                reply = ask_supervisor(found.running, GetTable(), timeout_ms=TABLE_TIMEOUT_MS)
                if isinstance(reply, TableReply) and reply.rows:
                    return {row.name: row for row in reply.rows}
        return rows_without_supervisor(self.directory, self.file)

    def supervisor(self) -> HelloReply | None:
        """Return who supervises this cluster, None when nobody answers. Starts nothing."""
        found = greet(self.directory)
        return found.hello if found is not None else None

    def wait_for(
        self, conditions: Sequence[str], *, timeout_ms: int = DEFAULT_TIMEOUT_MS
    ) -> WaitResult:
        """Return when all conditions hold at the same time.

        The conditions are those of `zraft.client.conditions`: `leader` (a majority of the voters
        follows one), `converged` (every member that answers has the leader's term, follows it, and
        has the same commit, applied and last index), `up=N` (at least N nodes answer), `voters=N`,
        `learner-caught-up=NAME`, …

        Raises:
            ControlError: an unknown condition (exit 2).
            Unavailable: the time is up; `why` says which condition fails and what is seen (exit 6).
        """
        check_conditions(conditions, len(self.reload().members))
        began_ms = clock.now_ms()
        pause = select.poll()
        while True:
            left_ms = timeout_ms - (clock.now_ms() - began_ms)
            self.reload()  # nodes come and go
            statuses = self.statuses(timeout_ms=min(500, max(left_ms, 50)))
            reasons = {condition: unmet(condition, statuses) for condition in conditions}
            open_ = {condition: why for condition, why in reasons.items() if why}
            elapsed_ms = clock.now_ms() - began_ms
            if not open_:
                seen = leadership(statuses)
                return WaitResult(
                    elapsed_ms=elapsed_ms,
                    leader=seen.leader if seen is not None else None,
                    term=seen.term if seen is not None else None,
                    statuses=statuses,
                )
            if elapsed_ms >= timeout_ms:
                raise Unavailable(
                    f"not within {timeout_ms} ms: {', '.join(open_)}",
                    why="; ".join(f"{condition}: {why}" for condition, why in open_.items()),
                    try_=f"zraft cluster status -C {self.name}",
                )
            pause.poll(LOOK_MS)
