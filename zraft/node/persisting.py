"""The one write of a `Ready`: term and vote, a received snapshot's place, entries, one sync."""

from __future__ import annotations

from collections.abc import Callable

from zraft.core.ready import Ready
from zraft.node.ports import Limits, Report
from zraft.storage.base import Storage


def persist(
    ready: Ready,
    storage: Storage,
    clock_ns: Callable[[], int],
    limits: Limits,
    emit: Report,
) -> None:
    """Make durable what `ready` wants durable, before any answer leaves.

    The log starts after `ready.snapshot` before entries that follow it are added.

    Raises:
        StorageError: the disk refused; the node must stop and has said nothing.
    """
    started_ns, entries = clock_ns(), ready.entries
    if ready.snapshot is None:
        storage.save(ready.hard_state, entries)
    else:
        if ready.hard_state is not None:
            storage.save(ready.hard_state, None)
        storage.install(ready.snapshot)
        if entries is not None:
            storage.save(None, entries)
    storage.sync()
    elapsed_ms = (clock_ns() - started_ns) // 1_000_000
    if elapsed_ms >= limits.sync_slow_ms:
        size_bytes = 0 if entries is None else sum(map(len, entries.payloads))
        emit("storage.sync_slow", elapsed_ms=elapsed_ms, bytes=size_bytes)
