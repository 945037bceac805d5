"""What is said between a cluster's supervisor and whoever drives it: values, no bytes, no sockets.

One request is one frame of JSON, sent by a DEALER that asks one thing at a time; so is an answer.
Nodes' control sockets (`zraft.api`) do the same. A request to a node has one answer. A request to
the supervisor has any number of `Progress` answers and then exactly one that is not; a request that
takes long (start, stop, kill) is answered when it is done, not when it was accepted.

`StateFile` is what the supervisor writes to `supervisor/state.json` *before* it acts: the next
supervisor goes on from it, and `table` reads it when no supervisor runs.

The supervisor trusts no shape: what does not decode is answered with `ControlFailure`. An unknown
field is ignored, so that either side can be newer; the versions are in `Hello` and its answer.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from zraft.api import ControlFailure, FaultKind, FaultRule

SUPERVISOR_CONTROL_VERSION = 1

STOPPING = "supervisor.stopping"
"""The code of a refusal: this supervisor is about to end, the next one takes the request."""

Action = Literal["kill", "stop", "start", "restart", "pause", "resume"]
Desired = Literal["up", "down", "paused"]
ProcessState = Literal[
    "down",  # no process, and none wanted
    "starting",  # spawned, has not said that it is ready
    "running",
    "stopping",  # asked to end, still there
    "paused",  # SIGSTOP confirmed
    "backoff",  # crashed; the next start is at a known time
    "fatal",  # not started again before somebody says so
    "foreign",  # the lock of its directory is held by a process that is not our node
]


class LastExit(msgspec.Struct, frozen=True, kw_only=True):
    """How a node's last process ended. `code` and `signal` are None when nobody saw it end."""

    pid: int
    code: int | None = None
    signal: str | None = None  # "SIGKILL"
    reason: str = ""  # "killed", "stopped", "crashed", what exit.json says, …
    expected: bool = False  # somebody had asked for it
    wall_ms: int = 0  # wall clock, ms since the epoch: for people
    stderr_tail: str = ""  # what this process wrote to its err file, at most the last 2 KiB


class NodeRow(msgspec.Struct, frozen=True, kw_only=True):
    """A node as the supervisor sees it: the process, not what Raft does in it."""

    name: str
    desired: Desired
    state: ProcessState
    pid: int | None = None  # of the node, or of the foreign process
    incarnation: int | None = None
    restarts: int = 0  # by the supervisor, since somebody last said "start"
    restart: bool = True  # False: a crash is final (--no-restart)
    until_ms: int | None = None  # ms left until a timed pause, kill or stop is undone
    retry_ms: int | None = None  # ms left until the next start (backoff)
    message: str = ""  # why fatal or foreign
    last_exit: LastExit | None = None


class ActionResult(msgspec.Struct, frozen=True, kw_only=True):
    """What an action did to one node. `failure` is None when it was done (or was so already)."""

    name: str
    action: Action
    changed: bool  # False: it was so already, or it failed
    pid: int | None = None  # the process it was done to; for start and restart: the new one
    signal: str | None = None  # "SIGKILL", when a signal was sent
    mono_ns: int | None = None  # CLOCK_MONOTONIC just before the signal or request was sent
    ended_mono_ns: int | None = None  # when the end of the process was seen
    incarnation: int | None = None  # of the new process (start, restart)
    exit_code: int | None = None
    message: str = ""
    failure: ControlFailure | None = None


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the next supervisor must know of a node. Times are CLOCK_BOOTTIME, ms."""

    desired: Desired
    until_ms: int | None = None
    restart: bool = True
    restarts: int = 0
    attempts: int = 0  # crashes in a row: what the delay before the next start grows by
    crashes_ms: list[int] = []
    fatal: str = ""
    last_exit: LastExit | None = None


class StateFile(msgspec.Struct, frozen=True, kw_only=True):
    """`supervisor/state.json`. Its times mean nothing in another boot than `boot_id`."""

    format: int
    boot_id: str
    nodes: dict[str, NodeRecord]


# ------------------------------------------------------------------------------------ requests


class Hello(msgspec.Struct, tag="hello", frozen=True):
    """Who is it that holds this socket, and which version is it?"""

    version: str
    control_version: int = SUPERVISOR_CONTROL_VERSION


class GetTable(msgspec.Struct, tag="table", frozen=True):
    """The rows of all nodes."""


class Up(msgspec.Struct, tag="up", frozen=True, kw_only=True):
    """Create the cluster if it is new, and start every node. Nothing else than `UpSpec`."""

    name: str
    nodes: int | None = None
    transport: Literal["ipc", "tcp"] | None = None
    settings: dict[str, dict[str, int | bool | str]] | None = None
    ephemeral: bool = False
    restart: bool | None = None
    restore: str | None = None
    timeout_ms: int = 30_000


class Act(msgspec.Struct, tag="act", frozen=True, kw_only=True):
    """Do something to processes. `for_ms`: undo it after that time (kill, stop, pause)."""

    action: Action
    names: list[str]
    for_ms: int | None = None
    signal: str | None = None  # kill only; default SIGKILL
    timeout_ms: int = 30_000


class Down(msgspec.Struct, tag="down", frozen=True, kw_only=True):
    """Stop every node, remove the sockets, end. `now`: SIGKILL; `purge`: delete all data."""

    now: bool = False
    purge: bool = False


class Retire(msgspec.Struct, tag="retire", frozen=True):
    """End the supervisor and leave the nodes alone: a newer supervisor takes over."""


class AddMember(msgspec.Struct, tag="add-member", frozen=True, kw_only=True):
    """Make a node and start it: recorded, its directory, its process. It is no member of Raft yet.

    The id is chosen by who asks, so that asking again goes on with the same node. Without a `name`
    it gets the first free one of n1, n2, …
    """

    member_id: str  # 16 hex digits
    name: str = ""
    timeout_ms: int = 30_000


class ReplaceMember(msgspec.Struct, tag="replace-member", frozen=True, kw_only=True):
    """Give a node that does not run a new directory and a new id; the old one is kept aside."""

    name: str
    old_id: str
    member_id: str
    timeout_ms: int = 30_000


class DropMember(msgspec.Struct, tag="drop-member", frozen=True, kw_only=True):
    """Stop a node and forget it; its directory is kept aside, or deleted with `purge`.

    Only for a member that the log does not name any more, which who asks has to know.
    """

    name: str
    member_id: str
    purge: bool = False
    timeout_ms: int = 30_000


class PutFault(msgspec.Struct, tag="put-fault", frozen=True, kw_only=True):
    """Hold a network fault; see `FaultRule`. Answered when every living node has it in force.

    With an `owner_pid` it ends with that process, and within two seconds when the supervisor does.
    A partition replaces those that are held, unless `add`.
    """

    kind: FaultKind
    links: list[tuple[str, str]]
    groups: list[list[str]] = []
    rate: float = 1.0
    delay_ms: int = 0
    jitter_ms: int = 0
    normal: bool = False
    messages: list[str] = []
    seed: int = 0
    by: str = "cli"
    owner_pid: int = 0
    for_ms: int | None = None
    add: bool = False


class HealFaults(msgspec.Struct, tag="heal-faults", frozen=True, kw_only=True):
    """End the faults with these ids, or of this kind; neither given: all of them."""

    ids: list[str] = []
    kind: FaultKind | None = None


class GetFaults(msgspec.Struct, tag="get-faults", frozen=True):
    """The faults that are held."""


MemberRequest = AddMember | ReplaceMember | DropMember
SupervisorRequest = (
    Hello | GetTable | Up | Act | Down | Retire | MemberRequest | PutFault | HealFaults | GetFaults
)


# ------------------------------------------------------------------------------------- answers


class HelloReply(msgspec.Struct, tag="hello-reply", frozen=True):
    """Identity of a running supervisor."""

    version: str
    control_version: int
    pid: int
    directory: str  # real path
    foreground: bool = False


class TableReply(msgspec.Struct, tag="table-reply", frozen=True):
    """The rows, in the order of the cluster file."""

    rows: list[NodeRow]


class Progress(msgspec.Struct, tag="progress", frozen=True, kw_only=True):
    """One step of a long request, as it happens."""

    step: Literal["created", "spawned", "ready", "recovering", "failed", "adopted", "warning"]
    name: str = ""
    pid: int | None = None
    elapsed_ms: int = 0
    message: str = ""


class UpReply(msgspec.Struct, tag="up-reply", frozen=True, kw_only=True):
    """Every node is ready or given up; whether there is a leader only the nodes know."""

    created: bool
    started: list[str]
    already_running: list[str]
    left_paused: list[str]
    rows: list[NodeRow]
    warnings: list[str] = []


class ActReply(msgspec.Struct, tag="act-reply", frozen=True):
    """One result per name, in the order of the request."""

    results: list[ActionResult]


class MemberReply(msgspec.Struct, tag="member-reply", frozen=True, kw_only=True):
    """The node is there and runs (or why it does not), or it is gone."""

    name: str
    member_id: str
    changed: bool  # False: it was so already
    pid: int | None = None
    data: str = ""  # the directory that was kept aside, by name; empty when there is none
    failure: ControlFailure | None = None


class DownReply(msgspec.Struct, tag="down-reply", frozen=True, kw_only=True):
    """No node process is left; the supervisor ends right after this."""

    stopped: list[str]  # ended in order
    killed: list[str]  # had to be killed
    foreign: list[str] = []  # not ours: left alone
    purged: bool = False


class RetireReply(msgspec.Struct, tag="retire-reply", frozen=True):
    """The supervisor ends right after this; its nodes stay."""


class HeldFault(msgspec.Struct, frozen=True):
    """A fault that the supervisor holds; `hits` of all nodes, at most half a second old."""

    rule: FaultRule
    hits: int = 0
    owner_pid: int = 0


class FaultsReply(msgspec.Struct, tag="faults-reply", frozen=True, kw_only=True):
    """What was asked for is so. `missed`: living nodes that have not answered yet."""

    faults: list[HeldFault]  # put: the new one; heal: those that ended; get: all of them
    replaced: list[HeldFault] = []
    missed: list[str] = []


SupervisorReply = (
    HelloReply
    | TableReply
    | Progress
    | UpReply
    | ActReply
    | MemberReply
    | DownReply
    | RetireReply
    | FaultsReply
    | ControlFailure
)
