"""Asking control sockets: JSON over ZeroMQ, one DEALER per question, nothing kept open.

A question to many nodes is sent to all of them at once, and answered when the last one has answered
or the time is up. A node without a process is not waited for: its socket refuses a raw connection
within 0.1 ms, while a living or stopped process accepts (measured).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import msgspec
import zmq

from zraft import clock
from zraft.api import ControlFailure, NodeReply, NodeRequest
from zraft.client.interrupts import interrupt_later
from zraft.control_api import Progress, SupervisorReply, SupervisorRequest
from zraft.errors import ControlError, SupervisorError, ZraftError

_node_replies: msgspec.json.Decoder[NodeReply] = msgspec.json.Decoder(NodeReply)
_supervisor_replies: msgspec.json.Decoder[SupervisorReply] = msgspec.json.Decoder(SupervisorReply)
_encoder = msgspec.json.Encoder()


class Running(NamedTuple):
    """A supervisor that serves."""

    pid: int
    endpoint: str


class SupervisorGone(SupervisorError):
    """The supervisor ended before it answered: what was asked may have been done."""

    code = "supervisor.gone"


@contextlib.contextmanager
def _sockets() -> Iterator[Callable[[str], zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made: list[zmq.Socket[bytes]] = []  # kept: the context knows its sockets only while they live

    def connect(endpoint: str) -> zmq.Socket[bytes]:
        with interrupt_later():
            dealer = context.socket(zmq.DEALER)
            made.append(dealer)
        dealer.set(zmq.LINGER, 0)
        dealer.set(zmq.RCVHWM, 0)
        dealer.set(zmq.HANDSHAKE_IVL, 2000)
        dealer.set(zmq.RECONNECT_IVL, 25)
        dealer.connect(endpoint)
        return dealer

    try:
        yield connect
    finally:
        context.destroy(0)
        made.clear()


def refuses(endpoint: str) -> bool:
    """Return whether no process is behind an ipc endpoint."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(endpoint.removeprefix("ipc://"))
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:  # a full backlog: it is there and does not accept
            return False
    return False


def ask_nodes(
    endpoints: Mapping[str, str], request: NodeRequest, timeout_ms: int
) -> dict[str, NodeReply | None]:
    """Ask all endpoints at once; None for each that did not answer in time, or not in our words."""
    answers: dict[str, NodeReply | None] = dict.fromkeys(endpoints)
    body = _encoder.encode(request)
    deadline_ms = clock.now_ms() + timeout_ms
    with _sockets() as connect:
        poller = zmq.Poller()
        waiting: dict[zmq.Socket[bytes], str] = {}
        for name, endpoint in endpoints.items():
            if not refuses(endpoint):
                dealer = connect(endpoint)
                dealer.send(body, zmq.NOBLOCK)
                poller.register(dealer, zmq.POLLIN)
                waiting[dealer] = name
        while waiting and (left_ms := deadline_ms - clock.now_ms()) > 0:
            for dealer, _ in poller.poll(left_ms):
                assert isinstance(dealer, zmq.Socket)
                name = waiting.pop(dealer)
                poller.unregister(dealer)
                with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                    answers[name] = _node_replies.decode(dealer.recv())
    return answers


def ask_supervisor(
    running: Running,
    request: SupervisorRequest,
    *,
    timeout_ms: int,
    on_progress: Callable[[Progress], None] | None = None,
) -> SupervisorReply | None:
    """Ask a supervisor; return its answer, None when there is none in time.

    Raises:
        SupervisorGone: it ended without an answer.
        ZraftError: it refused; the class and the exit code are those of its error.
    """
    deadline_ms = clock.now_ms() + timeout_ms
    try:
        pidfd = os.pidfd_open(running.pid)
    except ProcessLookupError:
        raise _gone(running) from None
    try:
        with _sockets() as connect:
            dealer = connect(running.endpoint)
            dealer.send(_encoder.encode(request), zmq.NOBLOCK)
            poller = zmq.Poller()
            poller.register(dealer, zmq.POLLIN)
            poller.register(pidfd, zmq.POLLIN)
            while (left_ms := deadline_ms - clock.now_ms()) > 0:
                ready = dict(poller.poll(left_ms))
                reply = _final(dealer, on_progress) if dealer in ready else None
                if reply is not None:
                    return reply
                if pidfd in ready and dealer not in ready:
                    raise _gone(running)
            return None
    finally:
        os.close(pidfd)


def _final(
    dealer: zmq.Socket[bytes], on_progress: Callable[[Progress], None] | None
) -> SupervisorReply | None:
    try:
        reply = _supervisor_replies.decode(dealer.recv(zmq.NOBLOCK))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SupervisorError(
            "the supervisor's answer is not understood",
            why=str(error),
            try_="zraft version: is it of another version?",
        ) from error
    match reply:
        case Progress():
            if on_progress is not None:
                on_progress(reply)
            return None
        case ControlFailure():
            raise error_of(reply)
        case _:
            return reply


def _gone(running: Running) -> SupervisorGone:
    return SupervisorGone(
        f"the supervisor (pid {running.pid}) ended before it answered",
        why="what was asked for may have been done",
        try_=("zraft cluster status", "then the same command again"),
    )


def error_of(failure: ControlFailure) -> ZraftError:
    """Return the error that a process told us about, as if it had been raised here."""
    kind = _kinds().get(failure.code, ControlError)
    error = kind(failure.message, why=failure.why, try_=tuple(failure.try_))
    if error.code != failure.code:
        error.code = failure.code  # type: ignore[misc]  # a code that this version does not know
    if error.exit_code != failure.exit_code:
        error.exit_code = failure.exit_code  # type: ignore[misc]  # a process's own code, passed on
    return error


def _kinds() -> dict[str, type[ZraftError]]:
    found: dict[str, type[ZraftError]] = {}
    waiting: list[type[ZraftError]] = [SupervisorError, ControlError]
    waiting += [kind for kind in ZraftError.__subclasses__() if kind not in waiting]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__init__ in {ZraftError.__init__, SupervisorError.__init__}:
            found[kind.code] = kind
    return found
