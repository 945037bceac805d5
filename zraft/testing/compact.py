"""Messages, Readys and states of the core in one compact line each, and messages back from it.

For people: golden files, traces of the simulator, failures of tests. `index/term` names an entry.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import groupby
from typing import assert_never

from zraft.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    InstallSnapshot,
    InstallSnapshotResponse,
    Message,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    StateDigest,
    TimeoutNow,
)
from zraft.core.model import Configuration, Entries, EntryType, MemberId
from zraft.core.notices import Notice
from zraft.core.raft import Raft
from zraft.core.ready import Ready
from zraft.errors import ZraftError
from zraft.testing.core_disk import payload_at
from zraft.wire_entry import decode_configuration, decode_entry

MAX_ENTRIES_SHOWN = 6
"""A longer run of entries is shown by its ends."""

MAX_TERMS_SHOWN = 20
"""A longer log is shown as `1x10 5x100`: so many entries of each term."""


class ScriptError(ZraftError):
    """A line of a script is not a command, or not a message."""

    code = "testing.script"
    exit_code = 2


# Values to text


def entry_text(index: int, term: int, payload: bytes) -> str:
    """Return an entry as `index/term` and its command."""
    entry = decode_entry(payload)
    if entry.type == EntryType.NOOP:
        return f"{index}/{term} no-op"
    if entry.type == EntryType.CONFIG:
        return f"{index}/{term} config {configuration_text(decode_configuration(entry.body))}"
    body = entry.body.decode(errors="replace")
    return f"{index}/{term}" if body == f"{index}.{term}" else f"{index}/{term} {body}"


def configuration_text(configuration: Configuration) -> str:
    """Return who votes, who is about to stop, who listens, and who waits to be promoted."""
    groups = zip(Configuration._fields[2:5], configuration[2:5], strict=True)
    words = [f"{name}={','.join(map(str, ids))}" for name, ids in groups if ids]
    return " ".join([f"voters={','.join(map(str, configuration.voters))}", *words])


def entries_text(entries: Entries) -> str:
    """Return a run of entries in brackets."""
    first, terms = entries.first_index, entries.terms
    if len(terms) > MAX_ENTRIES_SHOWN:
        return f"[{first}/{terms[0]} … {entries.last_index}/{terms[-1]}]"
    rows = zip(terms, entries.payloads, strict=True)
    return f"[{', '.join(entry_text(i, t, p) for i, (t, p) in enumerate(rows, first))}]"


def message_text(message: Message) -> str:
    """Return a message as one line."""
    head = f"{message.src}->{message.dst} {type(message).__name__} term={message.term}"
    match message:
        case AppendEntries():
            text = (
                f"prev={message.prev_log_index}/{message.prev_log_term}"
                f" commit={message.leader_commit} round={message.round}"
            )
            if message.entries.terms:
                text += f" {entries_text(message.entries)}"
        case AppendEntriesResponse(success=True):
            text = f"accepted match={message.match_index} round={message.round}"
        case AppendEntriesResponse():
            conflict = f"{message.conflict_index}/{message.conflict_term}"
            text = f"refused conflict={conflict} round={message.round}"
        case RequestVote():
            last = f"last={message.last_log_index}/{message.last_log_term}"
            text = f"pre-vote for={message.vote_term} {last}" if message.pre_vote else last
            text += " transfer" if message.transfer else ""
        case RequestVoteResponse():
            text = f"pre-vote for={message.vote_term} " if message.pre_vote else ""
            text += "granted" if message.granted else "refused"
        case InstallSnapshot():
            text = f"snapshot={message.last_included_index}/{message.last_included_term}"
            text += f" bytes={message.offset}+{len(message.data)}/{message.size_bytes}"
        case InstallSnapshotResponse():
            text = f"snapshot={message.last_included_index}/{message.last_included_term}"
            text += " installed" if message.installed else f" next={message.next_offset}"
        case TimeoutNow():
            return head
        case ReadIndex():
            text = f"read={message.read_id}"
        case ReadIndexResponse():
            text = f"read={message.read_id} index={message.index}"
        case StateDigest():
            text = f"{message.purpose.name.lower()} index={message.index}"
            text += f" digest={message.digest:016x}"
        case _:
            assert_never(message)
    return f"{head} {text}"


def _value_text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return str(value)


def notice_text(notice: Notice) -> str:
    """Return a notice as its event and fields."""
    values = [f"{f.name}={_value_text(getattr(notice, f.name))}" for f in fields(notice)]
    return " ".join([notice.event, *values])


def ready_text(member_id: MemberId, ready: Ready) -> list[str]:
    """Return a Ready line by line: why it came about, then what is done, in its order."""
    lines = [f"ready {member_id}"]
    lines += [f"  {notice_text(notice)}" for notice in ready.notices]
    lines += [f"  send {message_text(message)}" for message in ready.messages]
    if ready.hard_state is not None:
        lines.append(f"  persist term={ready.hard_state.term} vote={ready.hard_state.voted_for}")
    if ready.snapshot is not None:
        lines.append(f"  persist snapshot {ready.snapshot.index}/{ready.snapshot.term}")
    if ready.entries is not None:
        lines.append(f"  persist {entries_text(ready.entries)}")
    lines += [f"  then send {message_text(message)}" for message in ready.messages_after_persist]
    if ready.restore is not None:
        lines.append(f"  restore {ready.restore.index}/{ready.restore.term}")
    if ready.committed is not None:
        lines.append(f"  apply {entries_text(ready.committed)}")
    if ready.aborted_term is not None:
        lines.append(f"  undecided: proposals of term {ready.aborted_term}")
    if ready.aborted_reads:
        lines.append(f"  given up: reads {_value_text(tuple(ready.aborted_reads))}")
    lines += [f"  read {read.read_id} at index {read.index}" for read in ready.reads]
    lines += [f"  store {message_text(chunk)}" for chunk in ready.chunks]
    lines += [f"  send a snapshot to {peer}" for peer in ready.send_snapshots]
    return lines


def status_text(member_id: MemberId, raft: Raft | None) -> list[str]:
    """Return what a member is, and, if it leads, what it knows of its peers."""
    if raft is None:
        return [f"{member_id} down"]
    st = raft.state
    text = (
        f"{member_id} {st.role.value} term={st.term} vote={st.voted_for} leader={st.leader_id}"
        f" commit={st.commit_index} applied={st.applied_index}"
        f" last={st.log.last_index}/{st.log.last_term}"
    )
    if st.snapshot is not None:
        text = f"{text} first={st.log.first_index} snapshot={st.snapshot.index}/{st.snapshot.term}"
    lines = [text if st.hint is None else f"{text} hint={st.hint.leader}"]
    for progress in [] if st.leadership is None else st.leadership.progress.values():
        lines.append(
            f"  {progress.peer} {progress.state.value} match={progress.match_index}"
            f" next={progress.next_index} in-flight={len(progress.inflights)}"
        )
    return lines


def log_text(member_id: MemberId, raft: Raft) -> str:
    """Return the terms of a member's log, and how much of it is committed."""
    log = raft.state.log
    terms = [str(log.term(index)) for index in range(log.first_index, log.last_index + 1)]
    if len(terms) > MAX_TERMS_SHOWN:
        terms = [f"{term}x{len(list(run))}" for term, run in groupby(terms)]
    cut = f"…{log.compacted.index}/{log.compacted.term} " if log.compacted.index else ""
    return f"{member_id}: {cut}{' '.join(terms) or 'empty'} (commit {raft.commit_index})"


# Text to values


def parse_terms(text: str) -> list[int]:
    """Return the terms in `1x3,4x2`: 1 1 1 4 4."""
    terms: list[int] = []
    for part in filter(None, text.split(",")):
        term, _, count = part.partition("x")
        terms += [int(term)] * int(count or 1)
    return terms


_MESSAGE = re.compile(r"(\d+)->(\d+) (\w+)((?: [^ \[]+)*)(?: \[([^]]*)\])?$")


def parse_message(text: str) -> Message:
    """Return the message that `message_text` shows so; entries get made-up commands.

    Raises:
        ScriptError: it is no such line.
    """
    found = _MESSAGE.match(text)
    if found is None:
        raise ScriptError(f"not a message: {text}", try_="1->2 RequestVote term=1 last=0/0")
    src, dst, kind = int(found[1]), int(found[2]), found[3]
    words = found[4].split()
    pairs = {key: value for key, _, value in (word.partition("=") for word in words)}
    try:
        return _make_message(src, dst, kind, pairs, found[5] or "")
    except (KeyError, ValueError) as error:
        raise ScriptError(f"not a message: {text}", why=f"a field is missing: {error}") from None


def _pair(text: str) -> tuple[int, int]:
    a, b = text.split("/")
    return int(a), int(b)


def _make_message(
    src: MemberId, dst: MemberId, kind: str, pairs: Mapping[str, str], entries: str
) -> Message:
    term = int(pairs["term"])
    pre_vote = "pre-vote" in pairs
    vote_term = int(pairs["for"]) if pre_vote else term
    round_ = int(pairs.get("round", 0))
    match kind:
        case "RequestVote":
            last = _pair(pairs["last"])
            return RequestVote(src, dst, term, pre_vote, vote_term, *last, "transfer" in pairs)
        case "RequestVoteResponse":
            return RequestVoteResponse(src, dst, term, pre_vote, vote_term, "granted" in pairs)
        case "TimeoutNow":
            return TimeoutNow(src, dst, term)
        case "ReadIndex":
            return ReadIndex(src, dst, term, int(pairs["read"]))
        case "ReadIndexResponse":
            return ReadIndexResponse(src, dst, term, int(pairs["read"]), int(pairs["index"]))
        case "AppendEntriesResponse" if "accepted" in pairs:
            match_index = int(pairs["match"])
            return AppendEntriesResponse(src, dst, term, True, match_index, 0, 0, round_)
        case "AppendEntriesResponse":
            conflict = _pair(pairs["conflict"])
            return AppendEntriesResponse(src, dst, term, False, 0, *conflict, round_)
        case "AppendEntries":
            prev, commit = _pair(pairs["prev"]), int(pairs.get("commit", 0))
            run = _parse_entries(prev[0] + 1, entries.split(",") if entries else [])
            return AppendEntries(src, dst, term, *prev, commit, round_, run)
        case "InstallSnapshot":
            offset, _, rest = pairs["bytes"].partition("+")
            count, _, size_bytes = rest.partition("/")
            last = _pair(pairs["snapshot"])
            data = bytes(int(count))
            return InstallSnapshot(src, dst, term, *last, int(size_bytes), 0, int(offset), 0, data)
        case _:
            raise ValueError(kind)


def _parse_entries(first_index: int, texts: Sequence[str]) -> Entries:
    ids = [_pair(text.split()[0]) for text in texts]
    assert [index for index, _ in ids] == list(range(first_index, first_index + len(ids)))
    return Entries(
        first_index, [term for _, term in ids], [payload_at(index, term) for index, term in ids]
    )
