"""Requests about members: what is recorded and made at once, and what is waited for.

    AddMember, ReplaceMember     recorded, directory made, process started; answered when it serves
    DropMember                   process stopped; then recorded, directory put aside, answered

The order of the steps and what a crash between them leaves is in `zraft_supervisor.members`.
"""

from __future__ import annotations

from collections.abc import Callable

from zraft.control_api import (
    Act,
    ActReply,
    AddMember,
    DropMember,
    MemberReply,
    MemberRequest,
    ReplaceMember,
)
from zraft.errors import ControlError
from zraft.paths import ClusterFile, MemberRecord
from zraft_supervisor.creation import make_members, write_cluster_file
from zraft_supervisor.fleet import Fleet
from zraft_supervisor.layout import Place, remove_sockets_of
from zraft_supervisor.members import settle, with_added, with_dropped, with_replaced
from zraft_supervisor.process import ALIVE
from zraft_supervisor.requests import PendingAct


class MemberBook:
    """Takes these requests up, one after the other; `keep` gets every new cluster file."""

    def __init__(
        self,
        place: Place,
        fleet: Fleet,
        emit: Callable[..., None],
        keep: Callable[[ClusterFile], None],
        on_step: Callable[[str], None],
    ) -> None:
        """Do nothing yet."""
        self._place = place
        self._fleet = fleet
        self._emit = emit
        self._keep = keep
        self._on_step = on_step

    def begin(
        self, cluster: Callable[[], ClusterFile], request: MemberRequest
    ) -> PendingStart | PendingDrop | MemberReply:
        """Do what can be done at once; return the answer, or what waits for it.

        Raises:
            ControlError, Conflict, SupervisorError: it is refused; nothing was done.
            StorageError, ForeignDataError: the disk refused; asking again goes on.
        """
        match request:
            case AddMember():
                return self._begin_new(cluster(), with_added(cluster(), request), request)
            case ReplaceMember():
                wanted = with_replaced(cluster(), request)
                if wanted is not cluster():
                    check_down(self._fleet, request.name)
                return self._begin_new(cluster(), wanted, request)
            case DropMember():
                member = cluster().member(request.name)
                if member is None or member.member_id != request.member_id:
                    return MemberReply(
                        name=request.name, member_id=request.member_id, changed=False
                    )
                return PendingDrop(self._fleet, request, lambda: self._forget(cluster(), request))

    def _begin_new(
        self, before: ClusterFile, wanted: ClusterFile, request: AddMember | ReplaceMember
    ) -> PendingStart:
        changed = wanted is not before
        if changed:
            write_cluster_file(self._place.directory, wanted)
            self._keep(wanted)
            self._on_step("member recorded")
        made = settle(self._place, wanted, self._on_step)
        made = make_members(self._place, made, self._on_step)
        self._keep(made)
        member = next(one for one in made.members if one.member_id == request.member_id)
        self._fleet.add(made, member.name)
        if changed:
            self._tell(request, member)
        return PendingStart(self._fleet, member, changed=changed, timeout_ms=request.timeout_ms)

    def _tell(self, request: AddMember | ReplaceMember, member: MemberRecord) -> None:
        if isinstance(request, AddMember):
            self._emit("supervisor.member_added", name=member.name, member_id=member.member_id)
        else:
            self._emit("supervisor.member_replaced", name=member.name, member_id=member.member_id)

    def _forget(self, cluster: ClusterFile, request: DropMember) -> str:
        """Record that a member without a process is gone; return what its directory is now."""
        wanted = with_dropped(cluster, request)
        write_cluster_file(self._place.directory, wanted)
        self._keep(wanted)
        self._on_step("member recorded as former")
        remove_sockets_of(cluster, request.name)
        self._fleet.remove(request.name)
        wanted = settle(self._place, wanted, self._on_step, purge=request.purge)
        self._keep(wanted)
        data = wanted.former[-1].data
        self._emit(
            "supervisor.member_removed", name=request.name, member_id=request.member_id, data=data
        )
        return data


class PendingStart:
    """`AddMember`, `ReplaceMember`: recorded and made already; answered when its process serves."""

    def __init__(
        self, fleet: Fleet, member: MemberRecord, *, changed: bool, timeout_ms: int
    ) -> None:
        """State the wish that it runs."""
        act = Act(action="start", names=[member.name], timeout_ms=timeout_ms)
        self._act = PendingAct(fleet, act)
        self.deadline_ms = self._act.deadline_ms
        self._member = member
        self._changed = changed

    def poll(self) -> MemberReply | None:
        """See `requests.Pending`."""
        reply = self._act.poll()
        if reply is None:
            return None
        assert isinstance(reply, ActReply)
        (result,) = reply.results
        return MemberReply(
            name=self._member.name,
            member_id=self._member.member_id,
            changed=self._changed,
            pid=result.pid,
            failure=result.failure,
        )


class PendingDrop:
    """`DropMember`: answered when it has no process, and is forgotten."""

    def __init__(self, fleet: Fleet, request: DropMember, forget: Callable[[], str]) -> None:
        """State the wish that it stops. `forget` records that it is gone; returns its data."""
        act = Act(action="stop", names=[request.name], timeout_ms=request.timeout_ms)
        self._act = PendingAct(fleet, act)
        self.deadline_ms = self._act.deadline_ms
        self._request = request
        self._forget = forget

    def poll(self) -> MemberReply | None:
        """See `requests.Pending`. StorageError: it cannot be recorded."""
        reply = self._act.poll()
        if reply is None:
            return None
        assert isinstance(reply, ActReply)
        (result,) = reply.results
        data = self._forget() if result.failure is None else ""
        return MemberReply(
            name=self._request.name,
            member_id=self._request.member_id,
            changed=result.failure is None,
            pid=result.pid,
            data=data,
            failure=result.failure,
        )


def check_down(fleet: Fleet, name: str) -> None:
    """Refuse to replace a node that runs: ControlError."""
    process = fleet.nodes[name].process
    if process.state in ALIVE or process.state == "foreign":
        raise ControlError(
            f"{name} runs (pid {process.pid}); only a node that is down can be replaced",
            why="its data is in use; what it holds is as good as anybody's",
            try_=f"zraft node stop {name}",
        )
