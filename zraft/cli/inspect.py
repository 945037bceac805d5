"""`node inspect`: what one node's disk says, running or not. It reads, and repairs nothing.

The document is made from the directory alone. A running node is asked one thing: up to where
it knows its entries to be committed, before the disk is read, so that what is printed as committed
was so. Raft stores no commit index; without that answer an entry on one disk is `durable`, and
whether it is committed is for a majority to say. What a snapshot covers is committed for certain.

Damage is shown with the place, and with what the next start would do about it: a torn end is zeroed
(it was never acknowledged), anything else makes the node refuse to start, and then this ends with
the same exit code (65).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zraft.api import GetStatus, NodeStatus
from zraft.cli.entries import Names, configuration_document, describe_configuration, describe_entry
from zraft.cli.errors import EXIT_OK, usage_error
from zraft.cli.options import Run
from zraft.cli.output import Output, join_and, printable
from zraft.cli.snapshot import newest_snapshot, show_snapshot
from zraft.cli.targets import resolve, views
from zraft.client.ownership import Owner, find_owner
from zraft.core.model import Configuration, Entries
from zraft.errors import EXIT_DATA, ControlError
from zraft.storage.directory import Member, open_member, read_incarnation
from zraft.storage.inspection import Damage, LogFacts, inspect_log, newest_configuration

if TYPE_CHECKING:
    from zraft.client.control import Cluster

DEFAULT_LAST = 20
ASK_MS = 500
PARTS = ("meta", "wal", "snapshot")


class Disk(NamedTuple):
    """What was found in a member's directory, and who holds it."""

    directory: Path
    member: Member
    incarnation: int
    owner: Owner
    known_commit: int  # 0: nobody said
    log: LogFacts
    configuration: Configuration  # the newest one on the disk, committed or not

    @property
    def names(self) -> Names:
        """Member id → name, of the base configuration and of the newest one."""
        names = {member_id: name for name, member_id in self.member.members}
        return names | {member.member_id: member.name for member in self.configuration.members}


def inspect_node(run: Run, target: str, part: str, *, last: int | None, index: str | None) -> int:
    """Run `node inspect`."""
    from zraft.client.control import Cluster

    if part not in PARTS:
        raise usage_error(f'a node has no part "{part}"', PARTS, part)
    if part != "wal" and (last is not None or index is not None):
        raise ControlError(f"--last and --index choose entries; {part} has none", try_="… wal")
    cluster = Cluster.open(run.cluster, run.environ)
    if part == "snapshot":
        return show_snapshot(run, _one_name(cluster, target))
    disk = read_disk(cluster, _one_name(cluster, target))
    if part == "wal":
        entries = chosen_entries(disk.log, last, index)
        document = wal_document(disk, run.cluster, entries)
        run.out.result(document, lambda: print_wal(document, disk, run.out))
    else:
        document = meta_document(disk, run.cluster)
        run.out.result(document, lambda: print_meta(document, disk, run.out))
    return EXIT_OK if disk.log.damage is None else EXIT_DATA


def _one_name(cluster: Cluster, target: str) -> str:
    """Return the node that is meant; only a role needs the nodes to be asked."""
    if target in cluster.file.names:
        return target
    names = resolve([target], views(cluster.statuses(), cluster.table()), random.Random(0))
    if len(names) != 1:
        raise ControlError(
            f"{target} means {join_and(names) or 'no node now'}",
            why="one node is inspected at a time",
            try_=f"zraft node inspect {names[0] if names else cluster.file.names[0]}",
        )
    return names[0]


def read_disk(cluster: Cluster, name: str) -> Disk:
    """Read a member's directory as of one moment.

    Raises:
        ForeignDataError: no member's directory, or of a newer format (exit 65).
        CorruptLogError: the boot counter is damaged (exit 65).
        StorageError: it cannot be read (exit 74).
    """
    directory = cluster.directory / name
    owner = find_owner(directory)
    running = owner.kind == "ours" and not owner.stopped
    known_commit = _ask_commit(cluster, name) if running else 0
    member = open_member(directory)
    log = inspect_log(member.wal_directory, writing=owner.kind != "nobody")
    # The snapshot is read after the log: what that lacks is in it.
    configuration = newest_configuration(log, newest_snapshot(directory))
    incarnation = read_incarnation(directory)
    return Disk(directory, member, incarnation, owner, known_commit, log, configuration)


def _ask_commit(cluster: Cluster, name: str) -> int:
    status = cluster.ask_all([name], GetStatus(), timeout_ms=ASK_MS)[name]
    return min(status.commit, status.persisted_index) if isinstance(status, NodeStatus) else 0


def _head(disk: Disk, cluster: str, part: str) -> dict[str, Any]:
    log = disk.log
    return {
        "schema": "zraft.node.inspect/1",
        "ok": log.damage is None,
        "cluster": cluster,
        "node": disk.member.name,
        "part": part,
        "directory": str(disk.directory),
        "running": disk.owner.kind == "ours",
        "pid": disk.owner.pid or None,
        "torn": None if log.torn is None else log.torn._asdict(),
        "damage": None if log.damage is None else log.damage._asdict(),
    }


# -------------------------------------------------------------------------------------------- meta


def meta_document(disk: Disk, cluster: str) -> dict[str, Any]:
    """Return identity, hard state, configuration, the log's span, and what a start would do."""
    log, member = disk.log, disk.member
    entries, names = log.entries, disk.names
    voted_for = log.hard_state.voted_for
    return {
        **_head(disk, cluster, "meta"),
        "cluster_id": f"{member.cluster_id:016x}",
        "member_id": f"{member.member_id:016x}",
        "incarnation": disk.incarnation,
        "term": log.hard_state.term,
        "voted_for": (names.get(voted_for) or f"{voted_for:016x}") if voted_for else None,
        "configuration": configuration_document(disk.configuration, names),
        "log": {
            "first_index": entries.first_index,
            "last_index": entries.last_index,
            "last_term": last_term(log),
            "entries": len(entries.terms),
            "replaced": log.replaced,
            "compacted": {"index": log.compacted.index, "term": log.compacted.term},
            "segments": [segment._asdict() for segment in log.segments],
        },
        "known_commit": disk.known_commit or None,
        "recovery": recovery_document(disk),
    }


def last_term(log: LogFacts) -> int:
    """Return the term of the last entry, or of the last compacted one."""
    return log.entries.terms[-1] if log.entries.terms else log.compacted.term


def recovery_document(disk: Disk) -> dict[str, Any]:
    """Return what the next start would do about what it finds, in a word and a sentence."""
    log = disk.log
    if log.damage is not None:
        return {"action": "refuse", "exit": EXIT_DATA, "says": _damage_text(log.damage)}
    if log.torn is not None:
        says = (
            f"zero {log.torn.bytes_dropped} bytes at {Path(log.torn.path).name}:{log.torn.offset}:"
            f" {log.torn.why}, so nobody was told about it"
        )
        return {"action": "repair", "exit": EXIT_OK, "says": says}
    return {"action": "none", "exit": EXIT_OK, "says": "nothing to repair"}


def _damage_text(damage: Damage) -> str:
    return f"{damage.what} ({damage.why})"


def print_meta(document: Mapping[str, Any], disk: Disk, out: Output) -> None:
    """Write `meta` for people."""
    log, member = disk.log, disk.member
    entries = log.entries
    first, last = entries.first_index, entries.last_index
    span = f"{first} to {last} (term {last_term(log)})" if entries.terms else f"empty after {last}"
    used = sum(segment.used_bytes for segment in log.segments)
    size = sum(segment.size_bytes for segment in log.segments)
    rows = [
        ("node", f"{member.name} of cluster {member.cluster}"),
        ("member id", f"{member.member_id:016x} of {member.cluster_id:016x}"),
        ("process", _process(disk.owner)),
        ("incarnation", f"{disk.incarnation} (starts of this directory)"),
        ("term", str(log.hard_state.term)),
        ("voted for", document["voted_for"] or "nobody in this term"),
        ("configuration", _configuration_text(disk)),
        ("log", span + (f", {log.replaced} replaced" if log.replaced else "")),
        ("segments", f"{len(log.segments)}, {used} of {size} bytes used"),
        ("committed", _committed_text(disk)),
        ("recovery", f"{document['recovery']['action']}: {document['recovery']['says']}"),
    ]
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        style = "bold red" if label == "recovery" and log.damage is not None else ""
        out.line(f"{label.ljust(width)}  {out.paint(printable(text), style)}")


def _process(owner: Owner) -> str:
    if owner.kind == "nobody":
        return "none"
    state = "paused" if owner.stopped else "running"
    return f"pid {owner.pid}, {state if owner.kind == 'ours' else 'not ours'}"


def _configuration_text(disk: Disk) -> str:
    configuration = disk.configuration
    where = f"index {configuration.index}" if configuration.index else "made with the cluster"
    return f"{describe_configuration(configuration, disk.names)} ({where})"


def _committed_text(disk: Disk) -> str:
    if disk.known_commit:
        return f"to {disk.known_commit}, as the running node knows"
    if disk.log.compacted.index:
        return f"to {disk.log.compacted.index} at least: that is compacted"
    return "not on disk: a majority decides, not one log"


# --------------------------------------------------------------------------------------------- wal


def wal_document(disk: Disk, cluster: str, entries: Entries) -> dict[str, Any]:
    """Return the given entries of the log, decoded, with their place and status."""
    log, names = disk.log, disk.names
    rows = []
    for index, term, payload in _each(entries):
        words = describe_entry(payload, names)
        place = log.places[index - log.entries.first_index]
        rows.append(
            {
                "index": index,
                "term": term,
                "type": words.type,
                "size_bytes": len(payload),
                "crc": "ok",  # of its batch; what is not ok is `damage`, and no entry
                "segment": place.segment,
                "offset": place.offset,
                "log_time_ms": words.entry.log_time_ms if words.entry else None,
                "session": words.entry.session if words.entry else None,
                "sequence": words.entry.sequence if words.entry else None,
                "command": words.text,
                "status": entry_status(disk, index),
            }
        )
    return {
        **_head(disk, cluster, "wal"),
        "first_index": log.entries.first_index,
        "last_index": log.entries.last_index,
        "known_commit": disk.known_commit or None,
        "entries": rows,
        "recovery": recovery_document(disk),
    }


def _each(entries: Entries) -> zip[tuple[int, int, bytes]]:
    indices = range(entries.first_index, entries.last_index + 1)
    return zip(indices, entries.terms, entries.payloads, strict=True)


def entry_status(disk: Disk, index: int) -> str:
    """Return `committed`, `uncommitted` (as far as the running node knows) or `durable`."""
    if index <= max(disk.known_commit, disk.log.compacted.index):
        return "committed"
    return "uncommitted" if disk.known_commit else "durable"


def chosen_entries(log: LogFacts, last: int | None, index: str | None) -> Entries:
    """Return the entries that `--last N` or `--index A..B` name, all that are kept of them.

    Raises:
        ControlError: both are given, or one is not a number or a range (exit 2).
    """
    entries = log.entries
    if index is not None and last is not None:
        raise ControlError("--last and --index exclude each other", try_="one of them")
    if index is None:
        count = DEFAULT_LAST if last is None else last
        if count < 1:
            raise ControlError(f"--last {count}: at least 1", try_="--last 20")
        first, end = entries.last_index - count + 1, entries.last_index
    else:
        first, end = parse_range(index)
    skip = max(0, first - entries.first_index)
    stop = max(skip, end - entries.first_index + 1)
    return Entries(
        entries.first_index + skip, entries.terms[skip:stop], entries.payloads[skip:stop]
    )


def parse_range(text: str) -> tuple[int, int]:
    """Return the first and last index of `A..B`, `A..`, `..B` or `A`; ControlError."""
    head, dots, tail = text.partition("..")
    numbers = [part for part in (head, tail) if part]
    if not numbers or not all(part.isdecimal() for part in numbers):
        raise ControlError(
            f'--index: "{text}" is not a range of indices',
            why="a range is A..B, A.., ..B or a single index; indices count from 1",
            try_="--index 100..120",
        )
    first = int(head) if head else 1
    last = (int(tail) if tail else (1 << 63)) if dots else first
    if first > last:
        raise ControlError(f"--index: {first} is after {last}", try_=f"--index {last}..{first}")
    return first, last


def print_wal(document: Mapping[str, Any], disk: Disk, out: Output) -> None:
    """Write the table of entries, and after it what recovery would do, if anything."""
    columns = ["INDEX", "TERM", "TYPE", "BYTES", "CRC", "COMMAND", "STATUS"]
    if out.mode == "wide":
        columns += ["SEGMENT", "OFFSET", "LOGTIME"]
    rows = []
    for row in document["entries"]:
        cells = [row["index"], row["term"], row["type"], row["size_bytes"], row["crc"]]
        cells += [row["command"] or "–", row["status"]]
        if out.mode == "wide":
            cells += [row["segment"], row["offset"], row["log_time_ms"]]
        rows.append([printable(str(cell)) for cell in cells])
    out.table(columns, rows)
    left = len(disk.log.entries.terms) - len(rows)
    if left and out.mode != "plain":
        kept = f"{document['first_index']}..{document['last_index']}"
        out.hint(f"{left} more: --index {kept}")
    recovery = document["recovery"]
    if recovery["action"] != "none":
        out.message(f"the next start would {recovery['action']}: {printable(recovery['says'])}")
