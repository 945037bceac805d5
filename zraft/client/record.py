"""The supervisor's files, read by everybody: `state.json`, `lock`, and the rows they add up to.

Reading has no side effect and needs no supervisor. What the record wants and what the locks say are
put together as one `NodeRow` per node; only a running supervisor knows more (that a process is
still starting, when the next try is).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from zraft import clock, procfs
from zraft.client.ownership import Owner, find_owner, last_exit_noted
from zraft.control_api import NodeRecord, NodeRow, ProcessState, StateFile
from zraft.errors import ForeignDataError, StorageError, ZraftError
from zraft.paths import ClusterFile
from zraft.storage.directory import LOCK_FILE, lock_holder

STATE_FORMAT = 1


class LockFile(msgspec.Struct, frozen=True):
    """`supervisor/lock`: written by the holder once it serves. The lock is the flock, not this."""

    pid: int
    endpoint: str
    version: str


class Holder(NamedTuple):
    """Who holds a cluster's supervisor lock; `endpoint` is empty until it serves."""

    pid: int
    endpoint: str


def supervisor_dir(directory: Path) -> Path:
    """Return the directory of a cluster's supervisor."""
    return directory / "supervisor"


def find_supervisor(directory: Path) -> Holder | None:
    """Return who holds the supervisor's lock, None when nobody does."""
    path = supervisor_dir(directory) / LOCK_FILE
    pid = lock_holder(path)
    if pid is None:
        return None
    try:
        written = msgspec.json.decode(path.read_bytes(), type=LockFile)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return Holder(pid, "")
    return Holder(pid, written.endpoint if written.pid == pid else "")


def read_state(directory: Path) -> StateFile | None:
    """Return the supervisor's record, None when none was written yet.

    Times of another boot are made "now": what was to be undone then is due.

    Raises:
        ForeignDataError: it is not such a record.
        StorageError: it cannot be read.
    """
    path = supervisor_dir(directory) / "state.json"
    try:
        state = msgspec.json.decode(path.read_bytes(), type=StateFile)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path} cannot be read", why=error.strerror or str(error)) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ForeignDataError(f"{path} is not a supervisor's record", why=str(error)) from error
    if state.format > STATE_FORMAT:
        raise ForeignDataError(
            f"{path} has format {state.format}", why=f"this zraft reads up to {STATE_FORMAT}"
        )
    if state.boot_id == procfs.boot_id():
        return state
    nodes = {name: _of_another_boot(record) for name, record in state.nodes.items()}
    return msgspec.structs.replace(state, nodes=nodes)


def _of_another_boot(record: NodeRecord) -> NodeRecord:
    return msgspec.structs.replace(
        record, crashes_ms=[], until_ms=None if record.until_ms is None else 0
    )


def rows_without_supervisor(directory: Path, cluster: ClusterFile) -> dict[str, NodeRow]:
    """Return every node's row as record and locks show it."""
    try:
        state = read_state(directory)
    except ZraftError:  # unreadable: the next supervisor sets it aside; the locks still speak
        state = None
    records = state.nodes if state is not None else {}
    return {
        name: row_without_supervisor(name, directory / name, records.get(name))
        for name in cluster.names
    }


def row_without_supervisor(name: str, directory: Path, record: NodeRecord | None) -> NodeRow:
    """Return what record and lock say about a node when no supervisor runs.

    Args:
        directory: the member's directory.
        record: None when there is none, or it is unreadable: then the lock alone decides.
    """
    owner = find_owner(directory)
    if record is None:
        record = NodeRecord(desired="up" if owner.kind == "ours" else "down")
    last_exit = record.last_exit
    noted = last_exit_noted(directory) if owner.kind == "nobody" else None
    if noted is not None and (last_exit is None or last_exit.pid != noted.pid):
        last_exit = noted  # it ended after the record was written
    return NodeRow(
        name=name,
        desired=record.desired,
        state=_state(owner, record),
        pid=owner.pid or None,
        incarnation=owner.incarnation,
        restarts=record.restarts,
        restart=record.restart,
        until_ms=None if record.until_ms is None else max(0, record.until_ms - clock.now_ms()),
        message=_message(owner, record),
        last_exit=last_exit,
    )


def _state(owner: Owner, record: NodeRecord) -> ProcessState:
    match owner.kind:
        case "foreign":
            return "foreign"
        case "ours":
            return "paused" if owner.stopped else "running"
        case "nobody":
            return "fatal" if record.fatal else "down"


def _message(owner: Owner, record: NodeRecord) -> str:
    if owner.kind == "foreign":
        return f"process {owner.pid}, which is not ours, holds the lock of the directory"
    if owner.kind == "nobody" and record.desired != "down" and not record.fatal:
        return "ended while no supervisor ran"
    return record.fatal if owner.kind == "nobody" else ""
