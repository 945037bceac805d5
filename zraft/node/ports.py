"""What a `Server` needs of its surroundings besides storage, transport and machine.

A node gives it sockets and telemetry; the simulator gives it queues.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from zraft.api import Reply, Request
from zraft.core.model import MemberId
from zraft.machine.session_ops import Terms


class ReplyPort(Protocol):
    """Takes replies; one frame per client and turn leaves later."""

    def reply(self, client: bytes, reply: Reply) -> None:
        """Queue a reply; one that can't leave is dropped and counted."""
        ...


class ForwardPort(Protocol):
    """Passes requests on to the leader's client socket."""

    def forward(self, leader: MemberId, requests: list[Request]) -> bool:
        """Send, without waiting; False means: certainly not sent."""
        ...


class Report(Protocol):
    """Takes facts for the node's telemetry."""

    def __call__(self, event: str, /, **fields: object) -> None:
        """Report one event of the closed list."""
        ...


class SnapshotLimits(NamedTuple):
    """When a node takes snapshots, and how fast it writes and sends them.

    One is taken when the log since the last has max(`min_log_bytes`, `size_percent` of its size).
    """

    min_log_bytes: int = 64 << 20
    size_percent: int = 100
    slice_ms: int = 1
    chunk_bytes: int = 256 << 10
    window_chunks: int = 4
    max_bytes_per_s: int = 64 << 20


class Limits(NamedTuple):
    """Bounds of one node; see configs/default.toml."""

    max_waiting_requests: int = 10_000
    max_parked_requests: int = 1_000
    park_ms: int = 600
    max_session_requests: int = 4_000
    max_uncommitted_bytes: int = 64 << 20
    max_request_bytes: int = (1 << 20) - 4096
    apply_slice_ms: int = 5
    sync_slow_ms: int = 50
    digest_interval: int = 1024
    session_terms: Terms = Terms()
    lease_reads: bool = False
    snapshots: SnapshotLimits = SnapshotLimits()
