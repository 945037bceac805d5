"""The faults of one node, as an operator or the supervisor wants them: names in, rules out.

The supervisor holds the cluster's faults and sends each node those that concern it, as a whole list
every time: what is new is put in force, what is missing ends, what is known stays. A list that is
lost or comes twice changes nothing. A fault with a lease ends by itself when the supervisor stops
renewing it; one without stays until a supervisor says otherwise.

`isolate` and `heal` are this node's own, for tests and emergencies: no supervisor knows of them.

A node that was started with `testing.faults = "refused"` obeys none of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec

from zraft import clock, crashpoints
from zraft.api import FaultRule
from zraft.core.model import MemberId
from zraft.errors import ControlError
from zraft.transport.fault_kinds import (
    MESSAGE_KINDS,
    Corrupt,
    Delay,
    Drop,
    Duplicate,
    Reorder,
    SomeFrames,
)
from zraft.transport.links import Cut, Fault, Links

ARM_AFTER_MS = 25
"""A crash point is armed so long after the answer, or the answer would die with the process."""
CUTS = frozenset({"partition", "isolate", "one-way"})
_SIMPLE: dict[str, type[SomeFrames]] = {
    "drop": Drop,
    "duplicate": Duplicate,
    "reorder": Reorder,
    "corrupt": Corrupt,
}


class LinkFaults:
    """The faults of the peer links, with their lines in the log."""

    def __init__(
        self,
        links: Links,
        emit: Callable[..., None],
        *,
        me: str,
        names: dict[MemberId, str],
        allowed: Literal["allowed", "refused"] = "allowed",
    ) -> None:
        """`emit` writes one event; `names` has every member, `me` is this node's name."""
        self._links = links
        self._emit = emit
        self._me = me
        self._names = names
        self._members = {name: member for member, name in names.items()}
        self._allowed = allowed == "allowed"
        self._held: dict[str, tuple[FaultRule, Fault]] = {}
        self._to_arm: tuple[str, int] | None = None  # a crash point, and when

    def isolate(self, peers: Sequence[MemberId], until_ms: int | None) -> None:
        """Drop everything to and from `peers`, empty meaning all, until then or until healed."""
        self._check_allowed()
        fault = self._links.isolate(peers, until_ms=until_ms)
        self._emit("fault.injected", fault=fault.fault_id, rule=fault.rule(self._name))

    def heal(self) -> int:
        """Remove every fault; return how many there were."""
        healed = self._links.heal()
        self._held.clear()
        for fault in healed:
            self._emit("fault.cleared", fault=fault.fault_id, rule=fault.rule(self._name))
        return len(healed)

    def hold(self, faults: Sequence[FaultRule], now_ms: int) -> dict[str, int]:
        """Have exactly these faults of the supervisor in force; return their hits by id.

        Raises:
            ControlError: faults are refused here, or one of them makes no sense.
        """
        if faults:
            self._check_allowed()
        made = {rule.id: rule for rule in faults if _end_ms(rule, now_ms) > now_ms}
        in_force = {id(fault) for fault in self._links.faults()}
        for fault_id, (rule, fault) in [*self._held.items()]:
            if id(fault) not in in_force:
                del self._held[fault_id]  # it had ended by itself
            elif fault_id not in made or not _same(made[fault_id], rule):
                del self._held[fault_id]
                self._links.heal(fault_id)
                self._emit("fault.cleared", fault=fault.fault_id, rule=fault.rule(self._name))
        for rule in made.values():
            self._put(rule)
        return {fault_id: fault.hits for fault_id, (_, fault) in self._held.items()}

    def rule_of(self, fault: Fault) -> FaultRule | None:
        """Return what the supervisor said of a fault, None if it was not the supervisor's."""
        held = self._held.get(fault.fault_id)
        return held[0] if held is not None and held[1] is fault else None

    def crash_at(self, point: str) -> None:
        """Arm a crash point, once the answer has left, or disarm with an empty name."""
        self._check_allowed()
        if point and point not in crashpoints.POINTS:
            raise ControlError(
                f'there is no crash point "{point}"', try_="zraft fault crash-at --list"
            )
        if point:
            self._emit("fault.injected", fault="crash-at", rule=f"crash at {point}")
        crashpoints.arm("")
        self._to_arm = (point, clock.now_ms() + ARM_AFTER_MS) if point else None

    def on_turn(self, now_ms: int) -> None:
        """Arm the crash point whose time has come. Called once a turn."""
        if self._to_arm is not None and now_ms >= self._to_arm[1]:
            crashpoints.arm(self._to_arm[0])
            self._to_arm = None

    def _put(self, rule: FaultRule) -> None:
        until_ms = min(
            (ms for ms in (rule.until_ms, rule.lease_until_ms) if ms is not None), default=None
        )
        if (held := self._held.get(rule.id)) is not None:
            held[1].until_ms = until_ms
            self._held[rule.id] = (rule, held[1])
            return
        fault = self._make(rule, until_ms)
        if fault is not None:
            self._held[rule.id] = (rule, self._links.add(fault))
            self._emit("fault.injected", fault=fault.fault_id, rule=fault.rule(self._name))

    def _make(self, rule: FaultRule, until_ms: int | None) -> Fault | None:
        """Return this node's part of a fault, None if it has none."""
        to = self._ids(to for from_, to in rule.links if from_ == self._me)
        from_ = self._ids(from_ for from_, to in rule.links if to == self._me)
        if rule.kind in CUTS:
            return Cut(rule.id, to, from_, until_ms, kind=rule.kind) if to or from_ else None
        if not to:
            return None
        try:
            kinds = [MESSAGE_KINDS[name] for name in rule.messages]
        except KeyError as error:
            raise ControlError(
                f"there is no message {error}", why=f"there are {', '.join(MESSAGE_KINDS)}"
            ) from None
        if not 0 < rule.rate <= 1:
            raise ControlError(f"a rate of {rule.rate} is impossible", why="it is above 0, up to 1")
        dice = random.Random(f"{rule.seed}:{self._me}")
        if rule.kind == "delay":
            return Delay(
                rule.id,
                to,
                until_ms,
                rate=rule.rate,
                random=dice,
                kinds=kinds,
                delay_ms=rule.delay_ms,
                jitter_ms=rule.jitter_ms,
                normal=rule.normal,
            )
        return _SIMPLE[rule.kind](rule.id, to, until_ms, rate=rule.rate, random=dice, kinds=kinds)

    def _ids(self, names: Iterable[str]) -> set[MemberId]:
        return {self._members[name] for name in names if name in self._members}

    def _check_allowed(self) -> None:
        if not self._allowed:
            raise ControlError(
                f"{self._me} refuses faults",
                why='it was started with testing.faults = "refused"',
                try_="zraft cluster down, then zraft cluster up --faults",
            )

    def _name(self, member: MemberId) -> str:
        return self._names.get(member) or f"{member:016x}"


def _end_ms(rule: FaultRule, now_ms: int) -> int:
    ends = [ms for ms in (rule.until_ms, rule.lease_until_ms) if ms is not None]
    return min(ends, default=now_ms + 1)


def _same(one: FaultRule, other: FaultRule) -> bool:
    """Return whether two say the same, but for their times."""
    times = {"since_ms": 0, "until_ms": None, "lease_until_ms": None}
    return msgspec.structs.replace(one, **times) == msgspec.structs.replace(other, **times)
