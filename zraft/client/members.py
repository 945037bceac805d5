"""Changing who is a member: the node (supervisor), the change (leader), and watching both end.

    add       node made and started ─▶ the log says: joining ─▶ it catches up ─▶ promoted
    remove    the log says: no member ─▶ node stopped, its directory put aside
    replace   a new directory and id under the old name ─▶ one change: old id out, new id joining

The supervisor and the log each keep what they were told, so whoever asks may die between any two
steps: the same verb goes on where it ended, and `cluster status` says what is unfinished. A change
is sent until the leader's newest configuration has it, and is done when that is committed; it is
looked for before it is sent, so that sending it again after a lost answer or a change of leader
does nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from zraft.api import ChangeMembers, ChangeSpec, ControlFailure, NodeStatus, PeerStatus
from zraft.client.conditions import Statuses, is_settled, majority, members
from zraft.client.leading import ASK_MS, NOT_LEADER, Pause, leader_now, wait_for_leader
from zraft.client.link import error_of
from zraft.control_api import AddMember, DropMember, MemberReply, MemberRequest, ReplaceMember
from zraft.errors import ControlError, MembershipRefused, Unavailable
from zraft.storage.directory import new_id

if TYPE_CHECKING:
    from zraft.client.control import Cluster

REFUSED = "membership_refused"
LOOK_MS = 50
REFUSED_MS = 1_000  # so long a leader may refuse without a change under way before it is believed

MemberAction = Literal["add", "remove", "replace", "promote", "demote"]
Progress = Callable[["MemberEvent"], None]


class MemberEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a change, as it happens."""

    kind: Literal[
        "started",  # the node's process serves
        "waiting",  # for another change, or a leader; `message` says which
        "joined",  # the log has it; it listens
        "catching-up",  # it holds `match` of `last`, or so many bytes of a snapshot
        "promoted",
        "out",  # the log is without it
        "stopped",
    ]
    name: str
    match: int | None = None
    last: int | None = None
    snapshot_offset: int | None = None
    snapshot_bytes: int | None = None
    message: str = ""


class MemberResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a change did. `data`: the name of a directory that was put aside."""

    action: MemberAction
    name: str
    member_id: str
    role: Literal["voter", "learner", "joining", "gone"]
    changed: bool
    pid: int | None = None
    config_index: int = 0
    voters: list[str] = []
    learners: list[str] = []
    old_leader: str | None = None
    old_term: int = 0
    leader: str | None = None
    term: int = 0
    caught_up_ms: int | None = None  # from joining to promotion; learners: to holding everything
    data: str = ""
    elapsed_ms: int = 0


def ignore(_event: MemberEvent) -> None:
    """Take no notice of a step."""


class Named(NamedTuple):
    """A member as the leader's configuration has it."""

    name: str
    member_id: str


def configured(leader: NodeStatus) -> set[Named]:
    """Return everybody in the leader's newest configuration, by name and id."""
    names = {*leader.voters, *leader.outgoing, *leader.learners}
    found = {Named(peer.name, peer.member_id) for peer in leader.peers if peer.name in names}
    return found | ({Named(leader.name, leader.member_id)} if leader.name in names else set())


def has(leader: NodeStatus, member_id: str) -> bool:
    """Return whether a member id stands in the leader's newest configuration."""
    return any(member.member_id == member_id for member in configured(leader))


def would_lose_quorum(name: str, leader: NodeStatus, statuses: Statuses) -> str:
    """Return why the voters without `name` could decide nothing now; empty when they could."""
    left = [voter for voter in leader.voters if voter != name]
    if not left:
        return f"{name} is the last voter"
    up = [voter for voter in left if statuses.get(voter) is not None]
    if len(up) >= majority(left):
        return ""
    return (
        f"of the voters that are left ({', '.join(left)}) only {', '.join(up) or 'none'} "
        f"answer, and {majority(left)} have to"
    )


class Members:
    """The verbs, for one cluster and one call. Use `Cluster.add_node` and its like."""

    def __init__(
        self,
        cluster: Cluster,
        verb: Callable[[MemberRequest, int], MemberReply],
        timeout_ms: int,
        progress: Progress | None = None,
    ) -> None:
        """`verb` asks the supervisor; the other parts are those of `Cluster.add_node`."""
        self._cluster = cluster
        self._verb = verb
        self._pause = Pause(timeout_ms, look_ms=LOOK_MS)
        self._tell = progress or ignore
        self._leader = wait_for_leader(cluster, self._pause)  # nothing is begun without one
        self._before = self._leader
        self._pid: int | None = None
        self._data = ""
        self._changed = False

    # ------------------------------------------------------------------------------------- verbs

    def add(self, name: str, *, learner: bool, wait: bool) -> MemberResult:
        """See `Cluster.add_node`."""
        file = self._cluster.reload()
        known = file.member(name) if name else None
        if known is not None and self._is(known.name, known.member_id, learner=learner):
            raise ControlError(
                f'there is a node "{name}" already',
                why=f"it is a {'learner' if learner else 'voter'} of cluster {file.name}",
                try_="zraft node add    (takes the first free name)",
            )
        member_id = known.member_id if known is not None else f"{new_id():016x}"
        reply = self._ask(AddMember(member_id=member_id, name=name, timeout_ms=self._left_ms))
        kind: Literal["add", "add-learner"] = "add-learner" if learner else "add"
        spec = ChangeSpec(kind=kind, name=reply.name, member_id=member_id)
        return self._join("add", [spec], spec, learner=learner, wait=wait)

    def replace(self, name: str, *, force: bool, wait: bool) -> MemberResult:
        """See `Cluster.replace_node`."""
        file = self._cluster.reload()
        current = f"{file.member_id(name):016x}"
        lost = [one.member_id for one in configured(self._leader) if one.name == name]
        if current in lost or not lost:  # otherwise an earlier call came so far
            self._check_quorum(name, force)
            member_id, old = f"{new_id():016x}", current
        else:
            member_id, old = current, lost[0]
        request = ReplaceMember(
            name=name, old_id=old, member_id=member_id, timeout_ms=self._left_ms
        )
        self._ask(request)
        spec = ChangeSpec(kind="add", name=name, member_id=member_id)
        specs = [ChangeSpec(kind="remove", name=name, member_id=one) for one in lost] + [spec]
        self._data = self._put_aside(old)
        return self._join("replace", specs, spec, learner=False, wait=wait)

    def remove(self, name: str, *, purge: bool, force: bool) -> MemberResult:
        """See `Cluster.remove_node`."""
        member_id = f"{self._cluster.reload().member_id(name):016x}"
        if has(self._leader, member_id):
            self._check_quorum(name, force)
            spec = ChangeSpec(kind="remove", name=name, member_id=member_id)
            self._change([spec], lambda leader: not has(leader, member_id))
        self._tell(MemberEvent(kind="out", name=name))
        config = self._leader
        request = DropMember(name=name, member_id=member_id, purge=purge, timeout_ms=self._left_ms)
        reply = self._ask(request)
        self._data = reply.data
        self._cluster.reload()
        if config.name == name:  # it led to the end; another one does now
            self._leader = wait_for_leader(self._cluster, self._pause)
        return self._result("remove", name, member_id, "gone")

    def promote(self, name: str, *, wait: bool) -> MemberResult:
        """See `Cluster.promote`."""
        member_id = f"{self._cluster.reload().member_id(name):016x}"
        self._check_member(name, member_id)
        spec = ChangeSpec(kind="promote", name=name, member_id=member_id)
        return self._join("promote", [spec], spec, learner=False, wait=wait)

    def demote(self, name: str, *, force: bool) -> MemberResult:
        """See `Cluster.demote`."""
        member_id = f"{self._cluster.reload().member_id(name):016x}"
        self._check_member(name, member_id)
        if name in self._leader.voters:
            self._check_quorum(name, force)
        spec = ChangeSpec(kind="demote", name=name, member_id=member_id)
        self._change([spec], lambda leader: self._is_learner(leader, name))
        self._leader = wait_for_leader(self._cluster, self._pause)
        return self._result("demote", name, member_id, "learner")

    # -------------------------------------------------------------------------------- the change

    def _join(
        self,
        action: MemberAction,
        specs: Sequence[ChangeSpec],
        spec: ChangeSpec,
        *,
        learner: bool,
        wait: bool,
    ) -> MemberResult:
        """Have the log take a member in, and watch it catch up until it is what was wanted."""
        name, member_id = spec.name, spec.member_id
        promote = spec.kind == "promote"

        def is_in(leader: NodeStatus) -> bool:
            if promote:
                return name in leader.voters or name in leader.joining
            return has(leader, member_id) and len([*_named(leader, name)]) == 1

        caught_up_ms = None
        while True:
            self._change(specs, is_in)
            self._tell(MemberEvent(kind="joined", name=name))
            if not wait:
                break
            caught_up_ms = self._watch(name, member_id, learner=learner)
            if caught_up_ms is not None:
                break
        role: Literal["voter", "learner", "joining"] = "joining"
        if learner:
            role = "learner"
        elif self._is(name, member_id, learner=False):
            role = "voter"
        result = self._result(action, name, member_id, role)
        return msgspec.structs.replace(result, caught_up_ms=caught_up_ms)

    def _change(self, specs: Sequence[ChangeSpec], reached: Callable[[NodeStatus], bool]) -> None:
        """Send a change until the newest configuration has it, and that is committed.

        Raises:
            MembershipRefused: the leader refuses it, and not because another one is under way.
            Unavailable: not in time; whether it happens later is not known.
        """
        refused_ms: int | None = None  # since when the leader refuses
        while True:
            leader = leader_now(self._cluster)
            if leader is not None:
                self._leader = leader
                if is_settled(leader) and reached(leader):
                    return
            why, failure = self._step(leader, specs)
            now_ms = self._pause.elapsed_ms
            if failure is None:
                refused_ms = None
            elif refused_ms is None:
                refused_ms = now_ms
            elif now_ms - refused_ms >= REFUSED_MS:
                raise error_of(failure)
            if self._pause.over:
                raise self._late(specs, why)
            if why:
                self._tell(MemberEvent(kind="waiting", name=specs[-1].name, message=why))
            self._pause.wait()

    def _step(
        self, leader: NodeStatus | None, specs: Sequence[ChangeSpec]
    ) -> tuple[str, ControlFailure | None]:
        """Send the change if this is the moment; return what it waits for, and a refusal."""
        if leader is None:
            return "there is no leader", None
        if not is_settled(leader):
            return self._under_way(leader), None
        failure = self._send(leader, specs)
        return (failure.message, failure) if failure is not None else ("", None)

    def _send(self, leader: NodeStatus, specs: Sequence[ChangeSpec]) -> ControlFailure | None:
        """Ask the leader; None when it accepted, or said nothing: the next look tells."""
        request = ChangeMembers(changes=[*specs])
        reply = self._cluster.ask_all([leader.name], request, timeout_ms=ASK_MS)[leader.name]
        if not isinstance(reply, ControlFailure):
            self._changed = True
            return None
        if reply.code in {NOT_LEADER, REFUSED}:
            return reply if reply.code == REFUSED else None
        raise error_of(reply)

    def _under_way(self, leader: NodeStatus) -> str:
        if leader.outgoing:
            return (
                f"a change is under way: from {', '.join(leader.outgoing)} "
                f"to {', '.join(leader.voters)}"
            )
        return f"the configuration at index {leader.config_index} is not committed"

    def _late(self, specs: Sequence[ChangeSpec], why: str) -> Unavailable:
        wanted = " and ".join(f"{spec.kind} {spec.name}" for spec in specs)
        return Unavailable(
            f"{wanted}: not done within {self._pause.timeout_ms} ms",
            why=why,
            try_=("zraft cluster status", "the same command again: it goes on from there"),
        )

    def _watch(self, name: str, member_id: str, *, learner: bool) -> int | None:
        """Watch a member catch up; return how long it took, None when the log lost it again.

        Raises:
            Unavailable: not in time; it goes on by itself.
        """
        began_ms = self._pause.elapsed_ms
        goal: int | None = None
        event = shown = MemberEvent(kind="joined", name=name)
        while True:
            leader = leader_now(self._cluster)
            if leader is not None:
                self._leader = leader
                if not has(leader, member_id) and is_settled(leader):
                    return None
                peer = _peer(leader, member_id)
                goal = leader.commit if goal is None else goal
                if self._done(leader, name, peer, goal, learner=learner):
                    self._tell(MemberEvent(kind="promoted", name=name))
                    return self._pause.elapsed_ms - began_ms
                event = _catching_up(name, peer, leader)
                if event != shown:
                    self._tell(event)
                    shown = event
            if self._pause.over:
                raise Unavailable(
                    f"{name} has joined, and is not {'caught up' if learner else 'a voter'} "
                    f"after {self._pause.timeout_ms} ms",
                    why=progress_text(event) if leader is not None else "there is no leader",
                    try_=(
                        f"zraft cluster wait --for learner-caught-up={name}    (it goes on)",
                        f"zraft node remove {name}    undoes it",
                    ),
                )
            self._pause.wait()

    def _done(
        self, leader: NodeStatus, name: str, peer: PeerStatus | None, goal: int, *, learner: bool
    ) -> bool:
        if not is_settled(leader):
            return False
        if learner:
            return peer is None or (peer.match_index or 0) >= goal
        return name in leader.voters and name not in leader.joining

    # ----------------------------------------------------------------------------------- inside

    @property
    def _left_ms(self) -> int:
        return self._pause.left_ms

    def _ask(self, request: MemberRequest) -> MemberReply:
        reply = self._verb(request, self._left_ms + 5_000)
        self._cluster.reload()
        if reply.failure is not None:
            raise error_of(reply.failure)
        self._changed |= reply.changed
        self._pid = reply.pid
        kind: Literal["started", "stopped"] = (
            "stopped" if isinstance(request, DropMember) else "started"
        )
        self._tell(MemberEvent(kind=kind, name=reply.name))
        return reply

    def _is(self, name: str, member_id: str, *, learner: bool) -> bool:
        """Return whether a member is what is wanted already."""
        if not has(self._leader, member_id):
            return False
        if learner:
            return self._is_learner(self._leader, name)
        return name in self._leader.voters and name not in self._leader.joining

    @staticmethod
    def _is_learner(leader: NodeStatus, name: str) -> bool:
        return name in leader.learners and name not in {*leader.joining, *leader.outgoing}

    def _check_member(self, name: str, member_id: str) -> None:
        if not has(self._leader, member_id):
            raise MembershipRefused(
                f"{name} is no member; nothing was changed",
                why=f"the members are {', '.join(sorted(members(self._leader, {})))}",
                try_=f"zraft node add {name}",
            )

    def _check_quorum(self, name: str, force: bool) -> None:
        why = would_lose_quorum(name, self._leader, self._cluster.statuses(timeout_ms=ASK_MS))
        if why and name in self._leader.voters and not force:
            raise MembershipRefused(
                f"without {name} there would be no quorum; nothing was changed",
                why=why,
                try_=("start the nodes that are down: zraft node start down",),
            )

    def _put_aside(self, member_id: str) -> str:
        former = [one for one in self._cluster.file.former if one.member_id == member_id]
        return former[-1].data if former else ""

    def _result(
        self,
        action: MemberAction,
        name: str,
        member_id: str,
        role: Literal["voter", "learner", "joining", "gone"],
    ) -> MemberResult:
        leader = self._leader
        return MemberResult(
            action=action,
            name=name,
            member_id=member_id,
            role=role,
            changed=self._changed,
            pid=self._pid,
            config_index=leader.config_index,
            voters=leader.voters,
            learners=leader.learners,
            old_leader=self._before.name,
            old_term=self._before.term,
            leader=leader.name,
            term=leader.term,
            data=self._data,
            elapsed_ms=self._pause.elapsed_ms,
        )


def _named(leader: NodeStatus, name: str) -> set[Named]:
    return {member for member in configured(leader) if member.name == name}


def _peer(leader: NodeStatus, member_id: str) -> PeerStatus | None:
    return next((peer for peer in leader.peers if peer.member_id == member_id), None)


def _catching_up(name: str, peer: PeerStatus | None, leader: NodeStatus) -> MemberEvent:
    return MemberEvent(
        kind="catching-up",
        name=name,
        match=peer.match_index if peer is not None else None,
        last=leader.last_index,
        snapshot_offset=peer.snapshot_offset if peer is not None else None,
        snapshot_bytes=peer.snapshot_bytes if peer is not None else None,
    )


def progress_text(event: MemberEvent) -> str:
    """Return how far a member is, as a sentence without a subject."""
    if event.snapshot_bytes:
        return f"holds {event.snapshot_offset or 0} of {event.snapshot_bytes} bytes of a snapshot"
    if event.last is None:
        return "holds nothing yet"
    return f"holds {event.match or 0} of {event.last} entries"
