"""What a member's log holds, found by reading alone: for `node inspect` and `doctor`.

Nothing here writes, locks, syncs or repairs, and nothing is refused: damage is a fact among others.
What stands before a damaged place is reported as far as it is sound.

A node may run while its log is read. A synced byte never changes and segments are added and deleted
whole (one without a name shrinks, and is not listed any more), so the batches that are whole, in
order, *are* the log as of one moment: that of the last one of them. What follows may be a batch
under way, or bytes of a later batch that the reader saw while it had passed the earlier one. So
damage in a log that is being written counts only when a second look finds the very same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from zraft.core.model import Configuration, Entries, EntryId, HardState, Recovered, SnapshotMeta
from zraft.errors import CorruptLogError, ForeignDataError, StorageError
from zraft.storage.base import Identity
from zraft.storage.batch import Batch, BatchType, make_seed, read_batches
from zraft.storage.files import OS_FILES, Files
from zraft.storage.replay import Replay
from zraft.storage.segment import (
    Segment,
    check_follows,
    parse_segment_name,
    read_segment,
    read_segment_header,
    segment_name,
    unpack_records,
)
from zraft.wire_entry import EntryCodec

LOOKS = 20  # at a log that changes while it is read


class SegmentFacts(NamedTuple):
    """One segment, as far as it is sound."""

    name: str
    number: int
    first_index: int
    batches: int
    sealed: bool
    used_bytes: int
    size_bytes: int


class TornEnd(NamedTuple):
    """A batch at the end that was never acknowledged: the next start zeroes it."""

    path: str
    offset: int
    bytes_dropped: int
    why: str


class Damage(NamedTuple):
    """Bytes that are not what was written: the member would refuse to start (exit 65)."""

    path: str
    offset: int
    what: str
    why: str


class Place(NamedTuple):
    """Where the entry stands that counts for an index."""

    segment: int
    offset: int


class LogFacts(NamedTuple):
    """A log as of one moment. `entries` and what stands beside them end before any damage.

    `places[i]` belongs to `entries.first_index + i`. `replaced` counts entries that later ones took
    the place of. `configuration` is the one before the first entry.
    """

    identity: Identity | None
    hard_state: HardState
    configuration: Configuration
    compacted: EntryId
    entries: Entries
    places: list[Place]
    replaced: int
    segments: list[SegmentFacts]
    torn: TornEnd | None
    damage: Damage | None


def inspect_log(directory: Path, *, writing: bool = False, files: Files = OS_FILES) -> LogFacts:
    """Return what the log in `directory` holds; `writing`: a process may be appending to it.

    Raises:
        ForeignDataError: a format of a newer version.
        StorageError: it cannot be read.
    """
    seen: tuple[object, ...] = ()
    for _ in range(LOOKS):
        contents = _read_moment(directory, files)
        facts = _facts(directory, contents)
        if not writing or (facts.torn is None and facts.damage is None):
            return facts
        last = contents[-1][1] if contents else b""
        found = (facts.torn, facts.damage, last)
        if found == seen:
            return facts
        seen = found
    return facts._replace(torn=None, damage=None)  # it moves on: what was seen is under way


def newest_configuration(log: LogFacts, snapshot: SnapshotMeta | None) -> Configuration:
    """Return the newest configuration that a member's disk knows, committed or not (Raft §6).

    It is in an entry; if that was compacted away, in the newest sound snapshot; before any change,
    what the member's directory was made with.
    """
    entries = log.entries
    known = [log.configuration]
    if snapshot is not None:
        known.append(snapshot.configuration)
    for position, configuration in EntryCodec().configurations(entries.payloads)[-1:]:
        known.append(configuration._replace(index=entries.first_index + position))
    return max(known, key=lambda configuration: configuration.index)


def _read_moment(directory: Path, files: Files) -> list[tuple[int, bytes]]:
    """Return number and content of all segments, none of which came or went meanwhile."""
    for _ in range(LOOKS):
        numbers = _numbers(directory, files)
        try:
            contents = [(n, files.read(directory / segment_name(n))) for n in numbers]
        except FileNotFoundError:  # compacted away between two calls
            continue
        except OSError as error:
            raise _unreadable(directory, error) from error
        if _numbers(directory, files) == numbers:
            return contents
    raise StorageError(
        f"{directory} cannot be read as of one moment",
        why="its segments came and went faster than they could be read",
        try_="again, or pause the node for it: zraft node pause NAME",
    )


def _numbers(directory: Path, files: Files) -> list[int]:
    try:
        names = files.listdir(directory)
    except OSError as error:
        raise _unreadable(directory, error) from error
    return sorted(n for n in map(parse_segment_name, names) if n is not None)


def _unreadable(directory: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{error.filename or directory} cannot be read", why=error.strerror or str(error)
    )


def _facts(directory: Path, contents: list[tuple[int, bytes]]) -> LogFacts:
    """Replay the segments up to the first damage."""
    log: Replay | None = None
    sound: list[Segment] = []
    damage: Damage | None = None
    torn: TornEnd | None = None
    for number, data in contents:
        path = directory / segment_name(number)
        try:
            segment = read_segment(path, data, is_last=number == contents[-1][0])
        except CorruptLogError as error:
            damage = _damage(error)
            partial = _sound_part(path, data)
            if partial is None:
                break
            segment = partial
        try:
            log = log or Replay(segment.header.identity)
            log.on_segment(segment)
        except CorruptLogError as error:
            damage = damage or _damage(error)
            break
        except ForeignDataError as error:
            damage = damage or Damage(str(path), 0, error.what, error.why)
            break
        sound.append(segment)
        if damage is not None:
            break
        if segment.torn_bytes:
            torn = TornEnd(str(path), segment.end_offset, segment.torn_bytes, segment.torn_why)
    if not contents:
        damage = Damage(str(directory), 0, "the log has no segment", "they are gone, or never were")
    recovered, compacted, late = _finish(log)
    damage = damage or late
    places, replaced = _places(sound, recovered.entries)
    return LogFacts(
        identity=sound[0].header.identity if sound else None,
        hard_state=recovered.hard_state,
        configuration=recovered.configuration,
        compacted=compacted,
        entries=recovered.entries,
        places=places,
        replaced=replaced,
        segments=[_segment_facts(segment) for segment in sound],
        torn=torn if damage is None else None,
        damage=damage,
    )


def _finish(log: Replay | None) -> tuple[Recovered, EntryId, Damage | None]:
    nothing = EntryId(0, 0)
    if log is None:
        return Recovered(HardState(), Configuration(()), Entries(1, [], [])), nothing, None
    try:
        return log.finish(), log.compacted, None
    except CorruptLogError as error:
        empty = Entries(log.compacted.index + 1, [], [])
        return Recovered(log.hard_state, log.configuration, empty), log.compacted, _damage(error)


def _damage(error: CorruptLogError) -> Damage:
    return Damage(error.path, error.offset, error.what, error.why)


def _sound_part(path: Path, data: bytes) -> Segment | None:
    """Return a damaged segment as if it ended before the damage; None when its header is it."""
    try:
        first, header = read_segment_header(path, data)
    except CorruptLogError:
        return None
    seed = make_seed(header.identity.cluster_id, header.identity.member_id, header.number)
    last: Batch = first
    batches: list[Batch] = []
    for batch in read_batches(data, first.end_offset, seed):
        try:
            check_follows(path, last, batch)
        except CorruptLogError:
            break
        last = batch
        if batch.header.type is BatchType.RECORDS:
            batches.append(batch)
    return Segment(
        path=path,
        header=header,
        first=first,
        batches=batches,
        sealed=last.header.type is BatchType.SEAL,
        end_offset=last.end_offset,
        next_number=last.header.number + 1,
        chain=last.header.crc,
        size_bytes=len(data),
        torn_bytes=0,
        torn_why="",
    )


def _segment_facts(segment: Segment) -> SegmentFacts:
    return SegmentFacts(
        name=segment.path.name,
        number=segment.header.number,
        first_index=segment.header.first_index,
        batches=len(segment.batches),
        sealed=segment.sealed,
        used_bytes=segment.end_offset,
        size_bytes=segment.size_bytes,
    )


def _places(segments: list[Segment], entries: Entries) -> tuple[list[Place], int]:
    """Return where each entry stands, and how many entries lost their index to later ones."""
    places: dict[int, Place] = {}
    replaced = 0
    last_index = 0
    for segment in segments:
        for batch in segment.batches:
            place = Place(segment.header.number, batch.offset)
            for record in unpack_records(batch.body):
                run = record.entries
                if run is None:
                    continue
                if last_index:
                    replaced += max(0, last_index - run.first_index + 1)
                for index in range(run.first_index, run.last_index + 1):
                    places[index] = place
                last_index = run.last_index
    kept = range(entries.first_index, entries.last_index + 1)
    return [places[index] for index in kept], replaced
