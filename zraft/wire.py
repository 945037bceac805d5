"""Bytes to typed values and back: the only codec of the peer and client sockets and of entries.

Everything is a MessagePack array with fixed places; arrays grow at the end only. A decoder takes a
longer array, ignores the rest, and refuses a shorter one. Bytes from a socket are untrusted: their
size was bounded by the socket, `msgpack` bounds depth and lengths, and every field's type and
range is checked here before anything else sees it. What does not fit raises DecodeError, and the
caller counts and drops it. `ver` is the lowest protocol version that can read a frame.

Formats (docs/PROTOCOL.md):

    entry   [type, term, log_time_ms, session, sequence, ack_below, body]
    peer    [ver, kind, lane, cluster8, src, dst, incarnation, epoch, seq, heard, term, …]
    client  [ver, kind, cluster8, [request, …]]    or replies likewise
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict, Unpack, assert_never

import msgpack

from zraft.api import PROTOCOL_VERSION, Reply, Request
from zraft.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    DigestPurpose,
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
from zraft.core.model import EntryType
from zraft.errors import DecodeError, VersionError
from zraft.wire_entry import (
    MAX_FRAME_BYTES,
    decode_entries,
    flag,
    natural,
    naturals,
    unpack,
)

MAX_CLIENT_FRAME_BYTES = 1 << 20
MAX_REQUEST_BYTES = (1 << 20) - 4096
MAX_RESULT_BYTES = MAX_FRAME_BYTES - 4096  # a bigger frame would only cut the connection
MAX_COUNT = 1 << 62  # of terms and indices: a step further must still be a number on the wire

KIND_REQUEST_VOTE = 1
KIND_REQUEST_VOTE_RESPONSE = 2
KIND_APPEND_ENTRIES = 3
KIND_APPEND_ENTRIES_RESPONSE = 4
KIND_INSTALL_SNAPSHOT = 5
KIND_INSTALL_SNAPSHOT_RESPONSE = 6
KIND_TIMEOUT_NOW = 7
KIND_READ_INDEX = 8
KIND_READ_INDEX_RESPONSE = 9
KIND_REJECTED = 10
KIND_HEARD = 11
KIND_STATE_DIGEST = 12
KIND_CLIENT_REQUESTS = 32
KIND_CLIENT_REPLIES = 33

KIND_NAMES = {
    KIND_REQUEST_VOTE: "RequestVote",
    KIND_REQUEST_VOTE_RESPONSE: "RequestVoteResponse",
    KIND_APPEND_ENTRIES: "AppendEntries",
    KIND_APPEND_ENTRIES_RESPONSE: "AppendEntriesResponse",
    KIND_INSTALL_SNAPSHOT: "InstallSnapshot",
    KIND_INSTALL_SNAPSHOT_RESPONSE: "InstallSnapshotResponse",
    KIND_TIMEOUT_NOW: "TimeoutNow",
    KIND_READ_INDEX: "ReadIndex",
    KIND_READ_INDEX_RESPONSE: "ReadIndexResponse",
    KIND_REJECTED: "Rejected",
    KIND_HEARD: "Heard",
    KIND_STATE_DIGEST: "StateDigest",
}

REJECTED_ROLLED_BACK = 1
REJECTED_REMOVED = 2

_DIGEST_PURPOSES = frozenset(DigestPurpose)

_new = tuple.__new__  # without a NamedTuple's Python-level constructor: a third of the time
_packer = msgpack.Packer(use_bin_type=True, autoreset=True)
_pack = _packer.pack


class UnknownKind(DecodeError):
    """A kind that this version does not know: counted and dropped, never an error of the peer."""

    code = "protocol.unknown_kind"


class PeerHeader(NamedTuple):
    """The fixed head of every frame between peers.

    `seq` grows with every frame a process sends to a peer on a lane and starts at `incarnation <<
    32`; `heard` is the highest seq that the sender has received from the receiver on this lane, 0
    for none.
    """

    version: int
    kind: int
    lane: int
    cluster: bytes  # 8 bytes
    src: int
    dst: int
    incarnation: int
    epoch: int
    seq: int
    heard: int
    term: int


_HEADER_LENGTH = 11


class FrameHead(TypedDict):
    """The fields of a header that are the sender's lane's, not the message's."""

    lane: int
    cluster: bytes
    incarnation: int
    epoch: int
    seq: int
    heard: int


# Between peers


def encode_message(
    message: Message,
    *,
    lane: int,
    cluster: bytes,
    incarnation: int,
    epoch: int,
    seq: int,
    heard: int,
) -> bytes:
    """Return the frame of `message`; `term`, `src` and `dst` of the header are the message's."""
    kind: int
    rest: Sequence[Any]
    match message:
        case AppendEntries():
            kind = KIND_APPEND_ENTRIES
            rest = [
                message.prev_log_index,
                message.prev_log_term,
                message.leader_commit,
                message.round,
                message.entries.payloads,
            ]
        case AppendEntriesResponse():
            kind = KIND_APPEND_ENTRIES_RESPONSE
            rest = message[3:]
        case RequestVote():
            kind = KIND_REQUEST_VOTE
            rest = message[3:]
        case RequestVoteResponse():
            kind = KIND_REQUEST_VOTE_RESPONSE
            rest = message[3:]
        case InstallSnapshot():
            kind = KIND_INSTALL_SNAPSHOT
            rest = message[3:]
        case InstallSnapshotResponse():
            kind = KIND_INSTALL_SNAPSHOT_RESPONSE
            rest = message[3:]
        case TimeoutNow():
            kind = KIND_TIMEOUT_NOW
            rest = ()
        case ReadIndex():
            kind = KIND_READ_INDEX
            rest = message[3:]
        case ReadIndexResponse():
            kind = KIND_READ_INDEX_RESPONSE
            rest = message[3:]
        case StateDigest():
            kind = KIND_STATE_DIGEST
            rest = message[3:]
        case _:
            assert_never(message)
    src, dst, term = message[:3]
    head = (PROTOCOL_VERSION, kind, lane, cluster, src, dst, incarnation, epoch, seq, heard, term)
    packed: bytes = _pack((*head, *rest))
    return packed


class Rejected(NamedTuple):
    """The transport's own message: your frames are refused, and this is why.

    `REJECTED_ROLLED_BACK`: a process of yours whose incarnation is `number` was heard, and then a
    frame of a lower one. Only the receiver can know whether that is news: late frames of its own
    past cause such an answer too.

    `REJECTED_REMOVED`: you ask for votes, and the committed configuration at index `number` is
    without you.
    """

    src: int
    dst: int
    reason: int
    number: int


def encode_rejected(rejected: Rejected, **head: Unpack[FrameHead]) -> bytes:
    """Return the frame of `rejected`; the header's term is 0, Raft has no part in it."""
    return _encode_own(
        KIND_REJECTED, rejected.src, rejected.dst, head, [rejected.reason, rejected.number]
    )


def encode_heard(*, src: int, dst: int, **head: Unpack[FrameHead]) -> bytes:
    """Return a frame that is a header and nothing else: the transport's own acknowledgement."""
    return _encode_own(KIND_HEARD, src, dst, head, [])


def _encode_own(kind: int, src: int, dst: int, head: FrameHead, rest: list[int]) -> bytes:
    fields = [PROTOCOL_VERSION, kind, head["lane"], head["cluster"], src, dst]
    fields += (head["incarnation"], head["epoch"], head["seq"], head["heard"], 0, *rest)
    packed: bytes = _pack(fields)
    return packed


def decode_rejected(header: PeerHeader, fields: list[Any]) -> Rejected:
    """Return the Rejected in a frame of that kind; DecodeError when it is malformed."""
    body = fields[_HEADER_LENGTH:]
    if len(body) < 2:
        raise DecodeError("Rejected is too short")
    return Rejected(header.src, header.dst, *naturals(body[:2], "Rejected"))


def decode_header(frame: bytes) -> tuple[PeerHeader, list[Any]]:
    """Return the header of a peer frame and the whole array; check nothing of the rest.

    Raises:
        DecodeError: not an array that starts with a header.
        VersionError: only newer programs can read it.
    """
    fields = unpack(frame)
    if type(fields) is not list or len(fields) < _HEADER_LENGTH:
        raise DecodeError("a peer frame is an array of eleven or more")
    cluster = fields[3]
    if type(cluster) is not bytes or len(cluster) != 8:
        raise DecodeError("a cluster id is eight bytes")
    naturals(fields[:3] + fields[4:_HEADER_LENGTH], "a header")
    if fields[0] > PROTOCOL_VERSION:
        raise VersionError(f"a frame of protocol version {fields[0]}")
    return _new(PeerHeader, fields[:_HEADER_LENGTH]), fields


def _check_position(index: int, term: int, sender_term: int, what: str) -> None:
    """Refuse a place in a log that no log has: index 0 has term 0, no entry is of a later term."""
    if (index == 0) != (term == 0) or term > sender_term or index > MAX_COUNT:
        raise DecodeError(f"{what} names a place that no log has")


def decode_message(header: PeerHeader, fields: list[Any]) -> Message:
    """Return the message of a frame whose header was accepted.

    Raises:
        UnknownKind: a newer program's message.
        DecodeError: a field is missing or has the wrong type or range.
    """
    body = fields[_HEADER_LENGTH:]
    src, dst, term = header.src, header.dst, header.term
    if term > MAX_COUNT:
        raise DecodeError("a term that nobody reaches")
    match header.kind:
        case 3:  # KIND_APPEND_ENTRIES, the hot one, first
            if len(body) < 5:
                raise DecodeError("AppendEntries is too short")
            prev_index, prev_term, commit, round_ = naturals(body[:4], "AppendEntries")
            _check_position(prev_index, prev_term, term, "AppendEntries")
            entries = decode_entries(prev_index + 1, body[4], term)
            if entries.terms and entries.terms[0] < prev_term:
                raise DecodeError("the terms of entries fall")
            parts = (src, dst, term, prev_index, prev_term, commit, round_, entries)
            return _new(AppendEntries, parts)
        case 4:  # KIND_APPEND_ENTRIES_RESPONSE
            if len(body) < 5:
                raise DecodeError("AppendEntriesResponse is too short")
            success = flag(body[0], "success")
            numbers = naturals(body[1:5], "AppendEntriesResponse")
            return _new(AppendEntriesResponse, (src, dst, term, success, *numbers))
        case 1:  # KIND_REQUEST_VOTE
            if len(body) < 4:
                raise DecodeError("RequestVote is too short")
            pre_vote = flag(body[0], "pre_vote")
            vote_term, last_index, last_term = naturals(body[1:4], "RequestVote")
            _check_position(last_index, last_term, term, "RequestVote")
            if vote_term != term + pre_vote:
                raise DecodeError("RequestVote asks about a term that its sender can't stand for")
            transfer = len(body) > 4 and flag(body[4], "transfer")
            return RequestVote(src, dst, term, pre_vote, vote_term, last_index, last_term, transfer)
        case 2:  # KIND_REQUEST_VOTE_RESPONSE
            if len(body) < 3:
                raise DecodeError("RequestVoteResponse is too short")
            pre_vote, granted = flag(body[0], "pre_vote"), flag(body[2], "granted")
            vote_term = natural(body[1], "vote_term")
            return RequestVoteResponse(src, dst, term, pre_vote, vote_term, granted)
        case 5:  # KIND_INSTALL_SNAPSHOT
            return _decode_install_snapshot(src, dst, term, body)
        case 6:  # KIND_INSTALL_SNAPSHOT_RESPONSE
            if len(body) < 4:
                raise DecodeError("InstallSnapshotResponse is too short")
            index, last_term, offset = naturals(body[:3], "InstallSnapshotResponse")
            _check_position(index, last_term, term, "InstallSnapshotResponse")
            installed = flag(body[3], "installed")
            return InstallSnapshotResponse(src, dst, term, index, last_term, offset, installed)
        case 7:  # KIND_TIMEOUT_NOW
            return TimeoutNow(src, dst, term)
        case 8:  # KIND_READ_INDEX
            if len(body) < 1:
                raise DecodeError("ReadIndex is too short")
            return ReadIndex(src, dst, term, natural(body[0], "read_id"))
        case 9:  # KIND_READ_INDEX_RESPONSE
            if len(body) < 2:
                raise DecodeError("ReadIndexResponse is too short")
            return ReadIndexResponse(src, dst, term, *naturals(body[:2], "ReadIndexResponse"))
        case 12:  # KIND_STATE_DIGEST
            return _decode_state_digest(src, dst, term, body)
        case _:
            raise UnknownKind(f"kind {header.kind} is unknown")


def _decode_state_digest(src: int, dst: int, term: int, body: list[Any]) -> StateDigest:
    if len(body) < 5:
        raise DecodeError("StateDigest is too short")
    purpose, index, digest, first = naturals(body[:4], "StateDigest")
    if type(body[4]) is not list:
        raise DecodeError("digests are not an array")
    digests = naturals(body[4], "StateDigest")
    if purpose not in _DIGEST_PURPOSES:
        raise DecodeError("StateDigest has a purpose that this version does not know")
    is_whole = digests[-1:] == [digest] and first + len(digests) == index + 1
    if purpose == DigestPurpose.PAGE and not is_whole:
        raise DecodeError("a page of digests does not end with the digest it is about")
    return StateDigest(src, dst, term, DigestPurpose(purpose), index, digest, first, digests)


def _decode_install_snapshot(src: int, dst: int, term: int, body: list[Any]) -> InstallSnapshot:
    if len(body) < 7:
        raise DecodeError("InstallSnapshot is too short")
    index, last_term, size_bytes, crc, offset, chunk_crc = naturals(body[:6], "InstallSnapshot")
    data = body[6]
    if type(data) is not bytes:
        raise DecodeError("a chunk of a snapshot is not bytes")
    if index == 0:
        raise DecodeError("a snapshot covers no entry")
    _check_position(index, last_term, term, "InstallSnapshot")
    if offset + len(data) > size_bytes:
        raise DecodeError("a chunk lies outside its snapshot")
    return InstallSnapshot(
        src, dst, term, index, last_term, size_bytes, crc, offset, chunk_crc, data
    )


# Clients


def encode_requests(cluster: bytes, requests: Sequence[Request]) -> bytes:
    """Return one frame with all of `requests`."""
    packed: bytes = _pack([PROTOCOL_VERSION, KIND_CLIENT_REQUESTS, cluster, list(requests)])
    return packed


def encode_replies(cluster: bytes, replies: Sequence[Reply]) -> bytes:
    """Return one frame with all of `replies`."""
    packed: bytes = _pack([PROTOCOL_VERSION, KIND_CLIENT_REPLIES, cluster, list(replies)])
    return packed


def _decode_client(frame: bytes, kind: int) -> tuple[bytes, list[Any]]:
    fields = unpack(frame)
    if type(fields) is not list or len(fields) < 4:
        raise DecodeError("a client frame is an array of four or more")
    version, found, cluster, items = fields[:4]
    if natural(version, "version") > PROTOCOL_VERSION:
        raise VersionError(f"a frame of protocol version {version}")
    if natural(found, "kind") != kind:
        raise UnknownKind(f"kind {found} is not expected here")
    if type(cluster) is not bytes or len(cluster) != 8:
        raise DecodeError("a cluster id is eight bytes")
    if type(items) is not list:
        raise DecodeError("requests and replies come in an array")
    return cluster, items


def decode_requests(frame: bytes) -> tuple[bytes, list[Request]]:
    """Return the cluster id and the requests of a client frame; DecodeError, VersionError."""
    cluster, items = _decode_client(frame, KIND_CLIENT_REQUESTS)
    requests: list[Request] = []
    for item in items:
        if type(item) is not list or len(item) < 8 or type(item[7]) is not bytes:
            raise DecodeError("a request is an array of eight or more that ends in a body")
        naturals(item[:7], "a request")
        naturals(item[8:9], "a request")
        requests.append(Request(*item[:9]))
    return cluster, requests


def decode_replies(frame: bytes) -> tuple[bytes, list[Reply]]:
    """Return the cluster id and the replies of a client frame; DecodeError, VersionError."""
    cluster, items = _decode_client(frame, KIND_CLIENT_REPLIES)
    replies: list[Reply] = []
    for item in items:
        if type(item) is not list or len(item) < 7 or type(item[6]) is not bytes:
            raise DecodeError("a reply is an array of seven or more that ends in a body")
        naturals(item[:6], "a reply")
        naturals(item[7:9], "a reply")
        replies.append(Reply(*item[:9]))
    return cluster, replies


def is_entry_type(number: int) -> bool:
    """Return whether this version knows what such an entry means."""
    return EntryType.COMMAND <= number <= EntryType.BARRIER
