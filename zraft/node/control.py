"""A node's control socket: who it is, how it is, and what an operator may do to it.

It owns one ROUTER on ipc, in a directory that is closed to others. A request is one JSON body (the
structs of `zraft.api`), the answer likewise; the loop takes a bounded number of them a turn, before
anything else, so that a node that drowns in requests can still be asked and stopped.

What does not decode is counted and answered with a ControlFailure; nothing that arrives raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, assert_never

import msgspec
import zmq

from zraft import clock
from zraft.api import (
    Accepted,
    Block,
    Campaign,
    ChangeMembers,
    ControlDone,
    ControlFailure,
    CrashAt,
    FaultRule,
    FaultsSet,
    GetStatus,
    Heal,
    Isolate,
    NodeReply,
    NodeRequest,
    NodeStatus,
    SetFaults,
    StepDown,
    Stop,
    TakeSnapshot,
    TransferLeadership,
    Whoami,
    WhoamiReply,
)
from zraft.core.model import NOBODY, MemberId
from zraft.core.raft import Raft
from zraft.core.transfer import TransferRefusal
from zraft.errors import ControlError, NotLeader, ZraftError
from zraft.node.changing import MemberVerbs
from zraft.node.clients import Ready
from zraft.node.rejects import Rejects
from zraft.node.snapshotting import Snapshots
from zraft.transport.bind import make_router

MAX_REQUESTS = 16  # a turn
MAX_FRAME_BYTES = 256 << 10
MAX_BLOCK_MS = 10_000
MAX_FAULT_MS = 24 * 3600 * 1000


class Operated(Protocol):
    """What an operator may tell the server to do."""

    def campaign(self, *, now_ms: int) -> bool:
        """Stand for election now; False when this node leads or can't vote."""
        ...

    def step_down(self, *, now_ms: int) -> bool:
        """Give up leadership now; False when this node does not lead."""
        ...

    def transfer(self, target: MemberId = NOBODY, *, now_ms: int) -> TransferRefusal | None:
        """Begin to hand leadership over, NOBODY: to the best voter; return why not."""
        ...

    @property
    def raft(self) -> Raft:
        """The core, to be looked at only."""
        ...

    @property
    def snapshots(self) -> Snapshots:
        """What takes snapshots."""
        ...


class Faults(Protocol):
    """The network faults of this node, and its points to crash at. See `zraft.node.faults`."""

    def isolate(self, peers: Sequence[MemberId], until_ms: int | None) -> None:
        """Drop everything to and from `peers`, empty meaning all, until then or until healed."""
        ...

    def heal(self) -> int:
        """Remove every fault; return how many there were."""
        ...

    def hold(self, faults: Sequence[FaultRule], now_ms: int) -> dict[str, int]:
        """Have exactly these faults of the supervisor in force; return their hits by id."""
        ...

    def crash_at(self, point: str) -> None:
        """Arm a crash point, or disarm with an empty name."""
        ...


class Control:
    """See the module. `stop_asked` is set by the verb `stop`, `block_ms` by `block`."""

    def __init__(
        self,
        *,
        whoami: WhoamiReply,
        server: Operated,
        faults: Faults,
        member_id: Callable[[str], MemberId],
        rejects: Rejects,
    ) -> None:
        """Open nothing yet. `member_id` finds the id of a name; ControlError for unknown names."""
        self.status: Callable[[int], NodeStatus] | None = None
        """Makes the answer to `status`, given the loop's time; set once all its sources exist."""
        self.members: MemberVerbs | None = None
        """Takes up changes of membership; set likewise."""
        self.stop_asked = False
        self.block_ms = 0
        self._whoami = whoami
        self._server = server
        self._faults = faults
        self._member_id = member_id
        self._rejects = rejects
        self._router: zmq.Socket[bytes] | None = None
        self._poller: zmq.Poller | None = None
        self._decoder: msgspec.json.Decoder[NodeRequest] = msgspec.json.Decoder(NodeRequest)
        self._encoder = msgspec.json.Encoder()

    def bind(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        poller: zmq.Poller,
        endpoint: str,
    ) -> zmq.Socket[bytes]:
        """Bind the socket, register and return it. StorageError when that is impossible."""
        router = make_router(
            context,
            endpoint,
            max_frame_bytes=MAX_FRAME_BYTES,
            mandatory=True,
            now_ms=clock.now_ms,
        )
        self._router = router
        self._poller = poller
        poller.register(router, zmq.POLLIN)
        return router

    def run(self, ready: Ready) -> None:
        """Answer what operators asked, bounded."""
        router = self._router
        if router is None or router not in ready:
            return
        for _ in range(MAX_REQUESTS):
            try:
                parts = router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(parts) != 2:
                self._rejects.count("ctl", "frames")
                continue
            reply = self.answer(parts[1], clock.now_ms())
            try:
                router.send_multipart((parts[0], self._encoder.encode(reply)), zmq.NOBLOCK)
            except zmq.ZMQError as error:
                if error.errno not in {zmq.EHOSTUNREACH, zmq.EAGAIN}:
                    raise
                self._rejects.count("ctl", "unanswered")

    def answer(self, body: bytes, now_ms: int) -> NodeReply:
        """Return the answer to one request, whatever the bytes are."""
        try:
            request = self._decoder.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self._rejects.count("ctl", "decode")
            why = str(error) if isinstance(error, msgspec.ValidationError) else ""
            return _failure(ControlError("not a control request", why=why[:200]))
        try:
            return self._do(request, now_ms)
        except ZraftError as error:
            return _failure(error)

    def _do(self, request: NodeRequest, now_ms: int) -> NodeReply:
        match request:
            case Whoami():
                return self._whoami
            case GetStatus():
                assert self.status is not None, "asked before the node serves"
                return self.status(now_ms)
            case Stop():
                self.stop_asked = True
                return ControlDone("stopping")
            case Campaign():
                if not self._server.campaign(now_ms=now_ms):
                    raise ControlError(
                        f"{self._whoami.name} does not stand for election",
                        why="it leads, is no voter, or has promised a leader its lease",
                        try_="zraft cluster status",
                    )
                return ControlDone("stands for election")
            case StepDown():
                if not self._server.step_down(now_ms=now_ms):
                    raise NotLeader(
                        f"{self._whoami.name} does not lead", try_="zraft cluster status"
                    )
                return ControlDone("gave up leadership")
            case Block(ms):
                self.block_ms = _bounded("ms", ms, 1, MAX_BLOCK_MS)
                return ControlDone(f"blocks for {ms} ms")
            case Isolate(peers, for_ms):
                return self._isolate(peers, for_ms, now_ms)
            case Heal():
                return ControlDone(f"{self._faults.heal()} faults removed")
            case SetFaults(faults):
                return FaultsSet(self._faults.hold(faults, now_ms))
            case CrashAt(point):
                self._faults.crash_at(point)
                return ControlDone(f"crashes at {point}" if point else "crashes nowhere")
            case TransferLeadership(to=to):
                return self._transfer(to, now_ms)
            case ChangeMembers():
                assert self.members is not None, "asked before the node serves"
                return self.members.change(request, now_ms)
            case TakeSnapshot():
                return self._take_snapshot()
            case _:
                assert_never(request)

    def _transfer(self, to: str, now_ms: int) -> Accepted:
        target = self._member_id(to) if to else NOBODY
        refusal = self._server.transfer(target, now_ms=now_ms)
        whom = f" to {to}" if to else ""
        if refusal is not None:
            kind = NotLeader if refusal is TransferRefusal.NOT_LEADER else ControlError
            raise kind(
                f"{self._whoami.name} does not hand leadership over{whom}",
                why=refusal.value,
                try_="zraft cluster status",
            )
        raft = self._server.raft
        message = f"hands leadership over{whom}"
        return Accepted(index=raft.last_id.index, term=raft.term, message=message)

    def _take_snapshot(self) -> Accepted:
        index = self._server.snapshots.begin()
        if index == 0:
            raise ControlError("there is nothing to take a snapshot of", why="nothing is applied")
        return Accepted(index=index, term=self._server.raft.term, message="takes a snapshot")

    def _isolate(self, peers: list[str], for_ms: int | None, now_ms: int) -> ControlDone:
        members = [self._member_id(name) for name in peers]
        until_ms = None
        if for_ms is not None:
            until_ms = now_ms + _bounded("for_ms", for_ms, 1, MAX_FAULT_MS)
        self._faults.isolate(members, until_ms)
        return ControlDone(f"isolated from {', '.join(peers) or 'everybody'}")

    def close(self, linger_ms: int = 0) -> None:
        """Close the socket; the last answers may take `linger_ms` to leave."""
        if self._router is not None and self._poller is not None:
            self._poller.unregister(self._router)
            self._router.close(linger_ms)
            self._router = None


def _bounded(what: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise ControlError(f"{what} = {value} is impossible", why=f"the rule is: {low} to {high}")
    return value


def _failure(error: ZraftError) -> ControlFailure:
    return ControlFailure(error.code, error.what, error.why, [*error.try_], error.exit_code)
