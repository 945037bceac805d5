"""A small language in which a cluster of bare cores is driven, and shows everything it does.

A script is a text file: blocks of commands, a line `----`, and the output that is expected, ended
by an empty line. Lines that start with `#` are for the reader. `rewritten` runs a script and
returns it with the output as it is now; a test compares, and a person reads the difference.

    nodes 3 [voters=1,2] [seed=7] [pre_vote=off …]   start empty members, with any of `Settings`
    disk 1 term=7 vote=2 log=1x3,4x2                 a log from a figure; restarts the member
    at 150ms · advance 50ms · run 300ms              the clock; only `run` fires timers by itself
    timer 1 [busy] · timeout 1 · heartbeat 1         fire now; at the election deadline; when due
    campaign 1 · step-down 1 · transfer 1 [to=2] · propose 1 x=1 y=2 · read 1 · lease-read 1
    peer-down 2 1 · stall 1 400ms                    a wrong or right hint; 1 did not run
    ready 1 · flush 1                                handle one Ready, or all of them, and show them
    network                                          what is in flight, numbered
    deliver|drop|duplicate [2 3] [from=1] [kind=AppendEntries] [number=2] [drop=3] [newest-first]
    inject 2->1 RequestVote term=3 last=1/1          a message that nobody sent
    crash 2 [after-messages|after-persist] · restart 2 · pause-apply 2 · resume-apply 2
    wipe 2                                           its disk is lost, and its process, for good
    snapshot 1                                       take one of what is applied, and cut the log
    isolate 1 2 · cut 1->2 · heal                    messages over a cut link are lost
    stabilise [2 3] [quiet]                          Readys and messages until all is quiet
    change 1 add=4 remove=2 · config [3]             one change, all at once; the newest members
    told-removed 2 index=7                           a member says: no member since that index
    log [3] · status [1] · invariants
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from zraft.core import invariants
from zraft.core.changes import ChangeRefused
from zraft.core.messages import Message
from zraft.core.model import NOBODY, ChangeKind, MemberId, Settings
from zraft.errors import ForeignDataError
from zraft.testing.compact import (
    ScriptError,
    configuration_text,
    log_text,
    message_text,
    parse_message,
    parse_terms,
    ready_text,
    status_text,
)
from zraft.testing.core_cluster import MAX_DELIVERIES, CoreCluster, CrashPoint

SEPARATOR = "----"


@dataclass(frozen=True, slots=True)
class Words:
    """A command's arguments: plain words, members among them, and `key=value` pairs."""

    plain: list[str]
    pairs: dict[str, str]

    @property
    def members(self) -> list[MemberId]:
        """The plain words that are numbers."""
        return [int(word) for word in self.plain if word.isdigit()]

    def member(self) -> MemberId:
        """The one member that the command is about, its first word."""
        if not self.members:
            raise ScriptError("a member is missing", try_="name it by its number: status 1")
        return self.members[0]


def parse_words(text: str) -> Words:
    """Split arguments; `key=value` becomes a pair."""
    words = text.split()
    pairs = dict(word.split("=", 1) for word in words if "=" in word)
    return Words([word for word in words if "=" not in word], pairs)


def parse_ms(text: str) -> int:
    """Return the milliseconds in `150ms`."""
    number = text.removesuffix("ms")
    if not number.isdigit():
        raise ScriptError(f"not a time: {text}", try_="150ms")
    return int(number)


def parse_settings(pairs: dict[str, str]) -> Settings:
    """Return the defaults with `pairs` over them: `pre_vote=off max_batch_bytes=1`."""
    values: dict[str, Any] = {}
    for key, text in pairs.items():
        if key not in Settings._fields:
            raise ScriptError(f"no such setting: {key}", try_=", ".join(Settings._fields))
        values[key] = int(text) if text.isdigit() else text == "on"
    return Settings()._replace(**values)


class Interaction:
    """Runs commands against one cluster. See the module for the language."""

    def __init__(self) -> None:
        self._cluster: CoreCluster | None = None
        self._commands: dict[str, Callable[[Words], list[str]]] = {
            "nodes": self._nodes,
            "disk": self._disk,
            "at": self._at,
            "advance": self._advance,
            "run": self._run,
            "timer": self._timer,
            "timeout": self._timeout,
            "heartbeat": self._heartbeat,
            "campaign": self._campaign,
            "step-down": self._step_down,
            "transfer": self._transfer,
            "read": self._read,
            "lease-read": self._lease_read,
            "stall": self._stall,
            "peer-down": self._peer_down,
            "ready": self._ready,
            "flush": self._flush,
            "network": self._network,
            "deliver": self._deliver,
            "drop": self._drop,
            "duplicate": self._duplicate,
            "crash": self._crash,
            "restart": self._restart,
            "wipe": self._wipe,
            "pause-apply": self._pause_apply,
            "resume-apply": self._resume_apply,
            "snapshot": self._snapshot,
            "isolate": self._isolate,
            "cut": self._cut,
            "heal": self._heal,
            "stabilise": self._stabilise,
            "change": self._change,
            "told-removed": self._told_removed,
            "config": self._config,
            "log": self._log,
            "status": self._status,
            "invariants": self._invariants,
        }

    @property
    def cluster(self) -> CoreCluster:
        """The cluster that `nodes` started."""
        if self._cluster is None:
            raise ScriptError("there is no cluster yet", try_="begin with: nodes 3")
        return self._cluster

    def run(self, command: str) -> list[str]:
        """Run one command; return what is to be seen, line by line.

        Raises:
            ScriptError: it is no command, or its arguments do not fit.
        """
        name, _, rest = command.strip().partition(" ")
        if name == "propose":  # its words are commands, with or without "="
            return self._propose(rest.split())
        if name == "inject":
            self.cluster.receive(parse_message(rest.strip()))
            return []
        handler = self._commands.get(name)
        if handler is None:
            raise ScriptError(f"no such command: {name}", try_=", ".join(sorted(self._commands)))
        return handler(parse_words(rest))

    # The cluster and its clock

    def _nodes(self, words: Words) -> list[str]:
        pairs = dict(words.pairs)
        voters = pairs.pop("voters", "")
        seed = int(pairs.pop("seed", "1"))
        self._cluster = CoreCluster(
            words.member(),
            voters=[int(voter) for voter in voters.split(",")] if voters else None,
            settings=parse_settings(pairs),
            seed=seed,
        )
        return []

    def _disk(self, words: Words) -> list[str]:
        member_id, pairs = words.member(), words.pairs
        terms = parse_terms(pairs.get("log", ""))
        term = int(pairs.get("term", terms[-1] if terms else 0))
        self.cluster.write_disk(member_id, terms, term=term, voted_for=int(pairs.get("vote", 0)))
        return [log_text(member_id, self.cluster.raft(member_id))]

    def _now(self) -> list[str]:
        return [f"now {self.cluster.now_ms}ms"]

    def _at(self, words: Words) -> list[str]:
        now_ms = parse_ms(" ".join(words.plain))
        if now_ms < self.cluster.now_ms:
            raise ScriptError("the clock does not go back", why=self._now()[0])
        self.cluster.now_ms = now_ms
        return self._now()

    def _advance(self, words: Words) -> list[str]:
        self.cluster.now_ms += parse_ms(" ".join(words.plain))
        return self._now()

    def _run(self, words: Words) -> list[str]:
        self.cluster.run(parse_ms(" ".join(words.plain)))
        return [*self._now(), *self._status(Words([], {}))]

    def _timer(self, words: Words) -> list[str]:
        self.cluster.fire(words.member(), inbox_empty="busy" not in words.plain)
        return []

    def _timeout(self, words: Words) -> list[str]:
        self.cluster.time_out(words.member())
        return self._now()

    def _heartbeat(self, words: Words) -> list[str]:
        self.cluster.beat(words.member())
        return self._now()

    # Inputs

    def _campaign(self, words: Words) -> list[str]:
        return [] if self.cluster.campaign(words.member()) else ["refused"]

    def _step_down(self, words: Words) -> list[str]:
        raft = self.cluster.raft(words.member())
        return [] if raft.step_down(now_ms=self.cluster.now_ms) else ["not the leader"]

    def _propose(self, words: list[str]) -> list[str]:
        member_id, bodies = parse_words(words[0] if words else "").member(), words[1:]
        first = self.cluster.propose(member_id, *bodies)
        if first is None:
            return ["not the leader"]
        ids = [f"{first.index + offset}/{first.term}" for offset in range(len(bodies))]
        return [f"proposed as {', '.join(ids)}"]

    def _read(self, words: Words) -> list[str]:
        read_id = self.cluster.read(words.member())
        return ["no leader"] if read_id is None else [f"read {read_id}"]

    def _lease_read(self, words: Words) -> list[str]:
        index = self.cluster.lease_read(words.member())
        return ["no lease"] if index is None else [f"read at index {index}"]

    def _transfer(self, words: Words) -> list[str]:
        target = int(words.pairs.get("to", NOBODY))
        refusal = self.cluster.transfer(words.member(), target)
        return [] if refusal is None else [f"refused: {refusal.value}"]

    def _stall(self, words: Words) -> list[str]:
        self.cluster.stall(words.member(), parse_ms(words.plain[1]))
        return []

    def _peer_down(self, words: Words) -> list[str]:
        if len(words.members) != 2:
            raise ScriptError("two members are needed", try_="peer-down 2 1: tell 2 about 1")
        self.cluster.peer_down(words.members[0], words.members[1])
        return []

    # Members

    def _change(self, words: Words) -> list[str]:
        kinds = {kind.name.lower().replace("_", "-"): kind for kind in ChangeKind}
        steps = []
        for word in words.plain[1:] + [f"{k}={v}" for k, v in words.pairs.items()]:
            name, _, members = word.partition("=")
            if name not in kinds:
                raise ScriptError(f"no such change: {word}", try_=f"change 1 {next(iter(kinds))}=4")
            steps += [(kinds[name], int(member)) for member in members.split(",")]
        begun = self.cluster.change(words.member(), *steps)
        if isinstance(begun, ChangeRefused):
            whom = f" {begun.member}" if begun.member else ""
            return [f"refused: {begun.reason.value}{whom}"]
        return [f"begun as {begun.index}/{begun.term}"]

    def _told_removed(self, words: Words) -> list[str]:
        raft, index = self.cluster.raft(words.member()), int(words.pairs["index"])
        raft.on_told_removed(index, now_ms=self.cluster.now_ms)
        return []

    def _config(self, words: Words) -> list[str]:
        lines: list[str] = []
        for member_id in words.members or self.cluster.up():
            raft = self.cluster.raft(member_id)
            newest = raft.configuration
            state = "committed" if newest.index <= raft.commit_index else "uncommitted"
            removed = ", removed" if raft.is_removed else ""
            text = configuration_text(newest)
            lines.append(f"{member_id}: at {newest.index} {text} ({state}{removed})")
        return lines

    # Ready

    def _ready(self, words: Words) -> list[str]:
        member_id = words.member()
        ready = self.cluster.handle_ready(member_id)
        return [f"nothing for {member_id}"] if ready is None else ready_text(member_id, ready)

    def _flush(self, words: Words) -> list[str]:
        lines: list[str] = []
        for member_id in words.members:
            for ready in self.cluster.flush(member_id):
                lines += ready_text(member_id, ready)
        return lines

    # The network

    def _chosen(self, words: Words) -> list[Message]:
        """Take the messages out of the network that the words choose."""
        dsts = set(words.members)
        srcs = set(map(int, filter(None, words.pairs.get("from", "").split(","))))
        kind = words.pairs.get("kind")
        number = int(words.pairs.get("number", 0))
        taken: list[Message] = []
        left: list[Message] = []
        for position, message in enumerate(self.cluster.in_flight, 1):
            chosen = (
                (not dsts or message.dst in dsts)
                and (not srcs or message.src in srcs)
                and (kind is None or type(message).__name__ == kind)
                and (not number or position == number)
            )
            (taken if chosen else left).append(message)
        self.cluster.in_flight = left
        return taken[::-1] if "newest-first" in words.plain else taken

    def _network(self, words: Words) -> list[str]:
        flight = enumerate(self.cluster.in_flight, 1)
        return [f"{number} {message_text(message)}" for number, message in flight] or ["empty"]

    def _deliver(self, words: Words) -> list[str]:
        dropped = set(map(int, filter(None, words.pairs.get("drop", "").split(","))))
        lines: list[str] = []
        for message in self._chosen(words):
            if message.dst in dropped or self.cluster.members[message.dst].raft is None:
                lines.append(f"lost {message_text(message)}")
                continue
            self.cluster.receive(message)
            lines.append(f"deliver {message_text(message)}")
        return lines

    def _drop(self, words: Words) -> list[str]:
        return [f"lost {message_text(message)}" for message in self._chosen(words)]

    def _duplicate(self, words: Words) -> list[str]:
        before = list(self.cluster.in_flight)
        twice = self._chosen(words)
        self.cluster.in_flight = before + twice
        return [f"again {message_text(message)}" for message in twice]

    # Crashes and cuts

    def _crash(self, words: Words) -> list[str]:
        member_id = words.member()
        points = [point for point in CrashPoint if point.value in words.plain]
        if not points:
            self.cluster.crash(member_id)
            return []
        ready = self.cluster.handle_ready(member_id, crash=points[0])
        if ready is None:
            raise ScriptError("there is no Ready to crash in", try_=f"crash {member_id}")
        return [*ready_text(member_id, ready), f"  crash {points[0].value}"]

    def _restart(self, words: Words) -> list[str]:
        try:
            self.cluster.restart(words.member())
        except ForeignDataError as error:
            return [f"refused: {error.what}, {error.why}"]
        return []

    def _wipe(self, words: Words) -> list[str]:
        self.cluster.wipe(words.member())
        return []

    def _pause_apply(self, words: Words) -> list[str]:
        self.cluster.members[words.member()].applies = False
        return []

    def _resume_apply(self, words: Words) -> list[str]:
        member = self.cluster.members[words.member()]
        member.applies = True
        self.cluster.raft(member.member_id).on_applied(len(member.applied))
        return []

    def _snapshot(self, words: Words) -> list[str]:
        member_id = words.member()
        meta = self.cluster.take_snapshot(member_id)
        first_index = self.cluster.raft(member_id).first_index
        return [f"snapshot {meta.index}/{meta.term}, the log starts at {first_index}"]

    def _isolate(self, words: Words) -> list[str]:
        self.cluster.cut(words.members)
        return []

    def _cut(self, words: Words) -> list[str]:
        for word in words.plain:
            src, arrow, dst = word.partition("->")
            if not (arrow and src.isdigit() and dst.isdigit()):
                raise ScriptError(f"not a link: {word}", try_="cut 1->2")
            self.cluster.cut_one_way(int(src), int(dst))
        return []

    def _heal(self, words: Words) -> list[str]:
        self.cluster.heal()
        return []

    # Several steps, and looking

    def _stabilise(self, words: Words) -> list[str]:
        cluster = self.cluster
        ids = words.members or sorted(cluster.members)
        lines: list[str] = []
        deliveries = 0
        while True:
            living = [str(member_id) for member_id in ids if member_id in cluster.up()]
            step = self._flush(Words(living, {}))
            delivered = self._deliver(Words([str(member_id) for member_id in ids], {}))
            deliveries += len(delivered)
            lines += [*step, *delivered]
            if not step and not delivered:
                break
            if deliveries > MAX_DELIVERIES:
                raise ScriptError("a message storm", why=f"{deliveries} messages at one moment")
        return [f"{deliveries} messages"] if "quiet" in words.plain else lines

    def _log(self, words: Words) -> list[str]:
        ids = words.members or self.cluster.up()
        return [log_text(member_id, self.cluster.raft(member_id)) for member_id in ids]

    def _status(self, words: Words) -> list[str]:
        members = self.cluster.members
        ids = words.members or sorted(members)
        return [line for i in ids for line in status_text(i, members[i].raft)]

    def _invariants(self, words: Words) -> list[str]:
        for member_id in self.cluster.up():
            invariants.check_full(self.cluster.raft(member_id).state)
        safety = self.cluster.safety
        led = ", ".join(f"{term}: {who}" for term, who in sorted(safety.leader_of_term.items()))
        return [f"hold; leaders by term {{{led}}}; committed {len(safety.committed)}"]


# Scripts


@dataclass(frozen=True, slots=True)
class Block:
    """Commands and the output that is expected of them, or, without commands, comments."""

    comments: list[str]
    commands: list[str]
    expected: list[str]

    def text(self) -> str:
        """Return the block as it stands in a file."""
        if not self.commands:
            return "\n".join(self.comments)
        return "\n".join([*self.comments, *self.commands, SEPARATOR, *self.expected])


def parse_script(text: str) -> Iterator[Block]:
    """Yield the blocks of a script: separated by empty lines.

    Raises:
        ScriptError: a block of commands has no line `----`.
    """
    for part in filter(None, (part.strip("\n") for part in text.split("\n\n"))):
        lines = part.splitlines()
        head = lines[: lines.index(SEPARATOR)] if SEPARATOR in lines else lines
        commands = [line for line in head if not line.startswith("#")]
        if commands and SEPARATOR not in lines:
            raise ScriptError(f"no line {SEPARATOR} after: {commands[-1]}")
        comments = [line for line in head if line.startswith("#")]
        yield Block(comments, commands, lines[len(head) + 1 :])


def rewritten(text: str) -> str:
    """Run a script; return it with the output that it has now."""
    interaction = Interaction()
    parts: list[str] = []
    for block in parse_script(text):
        output = [line for command in block.commands for line in interaction.run(command)]
        parts.append(Block(block.comments, block.commands, output or ["ok"]).text())
    return "\n\n".join(parts) + "\n"
