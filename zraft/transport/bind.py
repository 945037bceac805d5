"""Binding a ROUTER: its options, who may reach it, and who is in the way.

libzmq silently takes a Unix socket's path away from whoever bound it before. So a process binds
ipc endpoints only while it holds the lock that says that they are its own (a node: the flock of its
data directory).
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Iterator

import zmq

from zraft.errors import EXIT_LOCKED, StorageError, SupervisorError
from zraft.transport.probe import tcp_address

BIND_PATIENCE_MS = 1000  # closing a socket is asynchronous: its port is free a moment later
_RETRY_MS = 10

HANDSHAKE_MS = 2000  # a stopped process still accepts; libzmq's default is 30 s
SOCKET_BUFFER_BYTES = 256 << 10  # bounds what the kernel holds for a stopped process


def set_tcp_options(socket: zmq.Socket[bytes]) -> None:
    """Set what only tcp connections use: keep-alive, bounded buffers, bounded retransmission."""
    socket.set(zmq.TCP_KEEPALIVE, 1)
    socket.set(zmq.TCP_KEEPALIVE_IDLE, 10)
    socket.set(zmq.TCP_KEEPALIVE_INTVL, 5)
    socket.set(zmq.TCP_KEEPALIVE_CNT, 3)
    socket.set(zmq.TCP_MAXRT, 5000)
    socket.set(zmq.SNDBUF, SOCKET_BUFFER_BYTES)
    socket.set(zmq.RCVBUF, SOCKET_BUFFER_BYTES)


def make_router(
    context: zmq.Context[zmq.Socket[bytes]],
    endpoint: str,
    *,
    max_frame_bytes: int,
    mandatory: bool,
    now_ms: Callable[[], int],
) -> zmq.Socket[bytes]:
    """Return a ROUTER that is bound to `endpoint` and closed to other users.

    No heartbeats and no finite receive mark: libzmq 4.3.5 aborts the process when a heartbeat meets
    a full pipe. No handover either: peers have no routing ids of their own.

    Args:
        max_frame_bytes: a longer frame ends its connection.
        mandatory: sends to a client that is gone or full fail instead of vanishing.

    Raises:
        SupervisorError: the endpoint stayed in use for a second (exit code 75).
        StorageError: it can not be bound for another reason.
    """
    router = context.socket(zmq.ROUTER)
    router.set(zmq.LINGER, 0)
    router.set(zmq.SNDHWM, 1000)
    router.set(zmq.RCVHWM, 0)
    router.set(zmq.ROUTER_HANDOVER, 0)
    router.set(zmq.ROUTER_MANDATORY, int(mandatory))
    router.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    router.set(zmq.MAXMSGSIZE, max_frame_bytes)
    router.set(zmq.BACKLOG, 128)
    if endpoint.startswith("tcp://"):
        set_tcp_options(router)
    try:
        _bind(router, endpoint, now_ms)
    except (SupervisorError, StorageError):
        router.close(0)
        raise
    return router


def _bind(router: zmq.Socket[bytes], endpoint: str, now_ms: Callable[[], int]) -> None:
    give_up_ms = now_ms() + BIND_PATIENCE_MS
    while True:
        try:
            with _private_files():
                router.bind(endpoint)
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE:
                raise StorageError(
                    f"{endpoint} can not be bound",
                    why=str(error),
                    try_="check that its directory exists and is yours, and that the path is short",
                ) from error
            if now_ms() >= give_up_ms:
                raise _in_use(endpoint) from error
            select.poll().poll(_RETRY_MS)
        else:
            return


@contextlib.contextmanager
def _private_files() -> Iterator[None]:
    """Make files for this user only: a Unix socket is as open as its file."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _in_use(endpoint: str) -> SupervisorError:
    holder = None
    if endpoint.startswith("tcp://"):
        holder = process_of_port(tcp_address(endpoint)[1])
    return SupervisorError(
        f"{endpoint} is in use",
        why=f"{holder} listens there" if holder else "a process that can't be named listens there",
        try_=(
            "stop that process",
            "zraft cluster up --transport ipc  (a cluster without ports, under another name)",
        ),
        exit_code=EXIT_LOCKED,
    )


def process_of_port(port: int) -> str | None:
    """Return "pid 123 (name)" of the process that listens on a local tcp port, None if unknown.

    It reads /proc only; descriptors of other users' processes can't be seen without privileges.
    """
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}") in inodes:
                    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                        return f"pid {pid} ({file.read().strip()})"
        except OSError:
            continue  # it ended meanwhile, or is not ours to look into
    return None


def _listening_inodes(port: int) -> set[str]:
    inodes: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as file:
                rows = [line.split() for line in file][1:]
        except OSError:
            continue
        for row in rows:
            if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{row[9]}]")
    return inodes
