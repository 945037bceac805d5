"""Making a backup from a member's disk, and checking one by loading it.

    save     a barrier is committed first, so that everything acknowledged before is in it; then the
             disk of the node that led is read: its newest snapshot and the log after it, up to that
             index, are put into a fresh state machine, here and not in the node. The node goes on
             serving: it is asked nothing but the barrier.
    verify   every byte is checked, and the whole is loaded into a fresh state machine, whose digest
             must be the one that the backup names.

The log is read while the node writes it; `storage.inspection` says why that is sound. What was
compacted between the two looks is in a newer snapshot: then it is read again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from zraft.core.model import Configuration, SnapshotMeta
from zraft.errors import CorruptLogError, DecodeError, StorageError
from zraft.machine.base import Ctx
from zraft.machine.load import load_machine
from zraft.machine.replica import Replica
from zraft.storage.backups import Backup, Note, blaming, open_backup, read_sections, write_backup
from zraft.storage.directory import Member, open_member
from zraft.storage.inspection import LogFacts, inspect_log
from zraft.storage.segment import corrupt
from zraft.storage.snapshot_file import parse_snapshot_name
from zraft.storage.snapshot_reading import read_chunks, read_snapshot_meta
from zraft.wire_entry import EntryCodec

LOOKS = 5  # at a disk on which snapshots are taken meanwhile


def save_backup(directory: Path, path: Path, note: Note, *, index: int, writing: bool) -> Backup:
    """Write a backup of the state after entry `index`, from the member's disk in `directory`.

    Args:
        index: an entry that the member holds and that is committed.
        writing: whether a process may be appending to the log.

    Raises:
        StorageError: the disk does not hold it all, is damaged, or refused; `path` exists.
        ConfigError: the state machine can not be had.
    """
    member = open_member(directory)
    replica, configuration = replay(member, note, index=index, writing=writing)
    applied = replica.applied
    meta = SnapshotMeta(
        applied.index, applied.term, configuration, applied.log_time_ms, replica.digest()
    )
    return write_backup(path, member.cluster_id, meta, note, replica.snapshot())


def verify_backup(path: Path) -> Backup:
    """Read all of a backup and load it; return what it says of itself.

    Raises:
        CorruptLogError: it is not what was written, or what it holds is not what it says (exit 65).
        ForeignDataError: a newer format (exit 65).
        ConfigError: its state machine can not be had (exit 78).
    """
    backup = open_backup(path)
    meta = backup.meta
    replica = Replica(load_machine(backup.note.machine, backup.note.directory))
    with blaming(path):
        _restore(replica, meta, read_sections(backup), path)
    return backup


def replay(
    member: Member, note: Note, *, index: int, writing: bool
) -> tuple[Replica, Configuration]:
    """Return the state after entry `index`, and the configuration that counts there."""
    for look in range(LOOKS):
        path = _snapshot_before(member, index)
        try:
            replica = Replica(load_machine(note.machine, note.directory))
            configuration = member.configuration
            if path is not None:
                meta = read_snapshot_meta(path, member.identity)
                _restore(replica, meta, read_chunks(path, meta), path)
                configuration = meta.configuration
            log = inspect_log(member.wal_directory, writing=writing)
        except StorageError:
            if path is None or path.exists():
                raise
            continue  # a newer one took its place
        if replica.applied.index >= log.entries.first_index - 1:
            return replica, _apply(replica, log, member, configuration, index)
        if look == LOOKS - 1 or not writing:
            raise _hole(member, replica.applied.index, log)
    raise StorageError(
        f"{member.directory} can not be read as of one moment",
        why="snapshots came faster than they could be read",
        try_=f"pause the node for it: zraft node pause {member.name}",
    )


def _snapshot_before(member: Member, index: int) -> Path | None:
    """Return the newest snapshot that ends at or before `index`, None when there is none."""
    found = [
        (key, path)
        for path in member.snapshot_directory.glob("*.snap")
        if (key := parse_snapshot_name(path.name)) is not None and key[0] <= index
    ]
    return max(found)[1] if found else None


def _restore(
    replica: Replica, meta: SnapshotMeta, sections: Iterator[tuple[str, bytes]], path: Path
) -> None:
    """Load a state, all of it, and check that it is the one that was saved."""
    try:
        replica.restore(Ctx(meta.index, meta.term, meta.log_time_ms), sections)
    except DecodeError as error:
        raise corrupt("its state machine can not load it", path, 0, str(error)) from error
    for _ in sections:  # what a machine left unread is checked, too
        pass
    if replica.digest() != meta.digest:
        why = f"it has {replica.digest():016x}, and {meta.digest:016x} was saved"
        raise corrupt("the state has another digest", path, 0, why)


def _apply(
    replica: Replica, log: LogFacts, member: Member, configuration: Configuration, index: int
) -> Configuration:
    entries = log.entries
    if index == replica.applied.index:
        return configuration
    if index > entries.last_index:
        raise _too_short(member, log, index)
    begin = replica.applied.index + 1 - entries.first_index
    payloads = entries.payloads[begin : index + 1 - entries.first_index]
    for position, payload in enumerate(payloads, replica.applied.index + 1):
        replica.apply(position, payload)
    if replica.applied.index == 0:
        raise StorageError(f"{member.directory} holds nothing yet", why="no entry was committed")
    for position, found in EntryCodec().configurations(payloads):
        configuration = found._replace(index=entries.first_index + begin + position)
    return configuration


def _hole(member: Member, have: int, log: LogFacts) -> CorruptLogError:
    start = log.entries.first_index
    why = f"the log starts at {start}, the snapshot ends at {have}"
    return corrupt("a hole between snapshot and log", member.snapshot_directory, 0, why)


def _too_short(member: Member, log: LogFacts, index: int) -> StorageError:
    damage = log.damage
    if damage is not None:
        return corrupt(damage.what, Path(damage.path), damage.offset, damage.why)
    return StorageError(
        f"{member.directory} does not hold entry {index}",
        why=f"its log ends at {log.entries.last_index}",
        try_="zraft backup save again; it asks the leader anew",
    )
