"""Requests that take longer than one turn of the loop: what they wait for, and their answers.

A request states its wishes once, when it arrives, and is asked every turn whether it is done. It
never waits for anything itself, and it keeps no process alive: when whoever asked goes away, the
wishes stand and the answer is dropped.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from zraft import clock
from zraft.api import ControlFailure
from zraft.control_api import (
    Act,
    ActionResult,
    ActReply,
    DownReply,
    SupervisorReply,
    Up,
    UpReply,
)
from zraft.errors import EXIT_LOCKED, ControlError
from zraft_supervisor.children import Child, signal_name
from zraft_supervisor.fleet import Fleet, Node
from zraft_supervisor.process import ALIVE, SETTLED

DEADLY = ("KILL", "TERM", "INT", "QUIT", "ABRT", "SEGV", "BUS", "FPE", "ILL", "HUP")
MAX_FOR_MS = 24 * 3600 * 1000


class Pending(Protocol):
    """A request that waits. `deadline_ms`: when it is answered at the latest."""

    deadline_ms: int

    def poll(self) -> SupervisorReply | None:
        """Return the answer, None when it has to wait on."""
        ...


def not_running(node: Node) -> ControlFailure:
    """Return the failure of a verb that needs a process."""
    return ControlFailure(
        "not_running",
        f"{node.name} is not running ({node.process.state})",
        try_=[f"zraft node start {node.name}"],
        exit_code=3,
    )


def foreign(fleet: Fleet, node: Node) -> ControlFailure:
    """Return the failure of a verb on a directory that somebody else uses."""
    return ControlFailure(
        "storage.locked",
        f"the directory of {node.name} is in use by a process that is not ours",
        why=fleet.why_failed(node),
        try_=[f"stop process {node.process.pid}, then zraft node start {node.name}"],
        exit_code=EXIT_LOCKED,
    )


@dataclass(slots=True)
class _Watch:
    """One node of an `Act`: what was done to it, and when that counts as done."""

    node: Node
    before: Child | None
    done: Callable[[_Watch], ActionResult | None]
    result: ActionResult | None = None


class PendingAct:
    """`Act`: every node gets its wish at once, the answer comes when all are done."""

    def __init__(self, fleet: Fleet, act: Act) -> None:
        """State the wishes. ControlError: an unknown node or signal, an impossible option."""
        self.deadline_ms = clock.now_ms() + act.timeout_ms
        self._fleet = fleet
        self._act = act
        self._number = check_act(act, [*fleet.nodes])
        self._watches = [self._begin(fleet.nodes[name]) for name in act.names]

    def poll(self) -> SupervisorReply | None:
        """See `Pending`."""
        late = clock.now_ms() >= self.deadline_ms
        for watch in self._watches:
            if watch.result is None:
                watch.result = watch.done(watch) or (self._late(watch) if late else None)
        results = [watch.result for watch in self._watches if watch.result is not None]
        return ActReply(results) if len(results) == len(self._watches) else None

    def _begin(self, node: Node) -> _Watch:
        begin = {
            "kill": self._kill,
            "stop": self._stop,
            "start": self._start,
            "restart": self._restart,
            "pause": self._pause,
            "resume": self._resume,
        }[self._act.action]
        before = node.child
        if node.process.state == "foreign":
            if self._act.action in {"start", "restart"}:
                self._fleet.do(node, node.process.start())  # as soon as the lock is free
            return _Watch(
                node, None, self._ended, self._result(node, failure=foreign(self._fleet, node))
            )
        outcome = begin(node)
        if isinstance(outcome, ActionResult):
            return _Watch(node, before, self._ended, outcome)
        return _Watch(node, before, outcome)

    # Each of these states the wish and returns the result, or how to see that it is done.

    def _kill(self, node: Node) -> _Outcome:
        process = node.process
        running, wanted = process.state in ALIVE, process.desired
        if running or wanted != "down" or process.state == "fatal":
            now_ms = clock.now_ms()
            effects = process.kill(now_ms, number=self._number, until_ms=self._until_ms())
            self._fleet.do(node, effects)
            if running:
                return self._ended
            return self._result(node, changed=True, message="had no process; stays down now")
        return self._result(node, failure=not_running(node))

    def _stop(self, node: Node) -> _Outcome:
        process = node.process
        changed = process.desired != "down" or process.state in ALIVE
        running = process.state in ALIVE
        self._fleet.do(node, process.stop(clock.now_ms(), until_ms=self._until_ms()))
        if running:
            return self._ended
        return self._result(node, changed=changed, message="had no process")

    def _start(self, node: Node) -> _Outcome:
        process = node.process
        if process.desired == "paused" and process.state in ALIVE:
            return self._result(node, message=f"paused: zraft node resume {node.name}")
        was_running = process.state in {"running", "starting"}
        self._fleet.do(node, process.start())
        if was_running and process.state == "running":
            return self._result(node, pid=process.pid, message="already running")
        return self._started

    def _restart(self, node: Node) -> _Outcome:
        self._fleet.do(node, node.process.cycle(clock.now_ms()))
        return self._restarted

    def _pause(self, node: Node) -> _Outcome:
        process = node.process
        if process.state not in {"running", "paused"}:
            return self._result(node, failure=not_running(node))
        was_paused = process.state == "paused"
        self._fleet.do(node, process.pause(until_ms=self._until_ms()))
        if was_paused:
            return self._result(node, pid=process.pid, message="already paused")
        return self._stands

    def _resume(self, node: Node) -> _Outcome:
        process = node.process
        if process.state not in ALIVE:
            return self._result(node, failure=not_running(node))
        was_paused = process.desired == "paused"
        self._fleet.do(node, process.resume(clock.now_ms()))
        if not was_paused:
            return self._result(node, pid=process.pid, message="was not paused")
        return self._signalled

    # Each of these returns the result once it is so.

    def _ended(self, watch: _Watch) -> ActionResult | None:
        child = watch.before
        if child is None:  # it was being started in the same turn
            gone = watch.node.process.state not in ALIVE
            return self._result(watch.node, changed=True) if gone else None
        if child.ended_mono_ns is None:
            return None
        last = watch.node.process.last_exit
        return self._result(
            watch.node,
            changed=True,
            child=child,
            exit_code=last.code if last is not None else None,
        )

    def _signalled(self, watch: _Watch) -> ActionResult | None:
        child = watch.before
        if child is None or child.signal_number != signal.SIGCONT:
            return None
        return self._result(watch.node, changed=True, child=child)

    def _stands(self, watch: _Watch) -> ActionResult | None:
        if watch.node.process.state == "paused":
            return self._result(watch.node, changed=True, child=watch.before)
        if watch.node.child is not watch.before:
            return self._result(watch.node, failure=not_running(watch.node))
        return None

    def _restarted(self, watch: _Watch) -> ActionResult | None:
        if watch.before is not None and watch.before.ended_mono_ns is None:
            return None
        return self._started(watch)

    def _started(self, watch: _Watch) -> ActionResult | None:
        process = watch.node.process
        match process.state:
            case "running" | "paused":
                return self._result(
                    watch.node,
                    changed=True,
                    pid=process.pid,
                    child=watch.node.child,
                    incarnation=process.incarnation,
                )
            case "foreign":
                return self._result(watch.node, failure=foreign(self._fleet, watch.node))
            case "backoff" | "fatal" | "down":
                return self._result(watch.node, failure=self._start_failure(watch.node))
            case _:
                return None

    def _start_failure(self, node: Node) -> ControlFailure:
        last = node.process.last_exit
        code = last.code if last is not None and last.code else 1
        return ControlFailure(
            "supervisor",
            f"{node.name} did not start: {self._fleet.why_failed(node)}",
            why=last.stderr_tail if last is not None else "",
            try_=[f"zraft logs tail {node.name}"],
            exit_code=code,
        )

    def _late(self, watch: _Watch) -> ActionResult:
        failure = ControlFailure(
            "supervisor.timeout",
            f"{self._act.action} of {watch.node.name} was not done in {self._act.timeout_ms} ms",
            why=f"the node is {watch.node.process.state}; the wish stands",
            try_=["zraft node list"],
            exit_code=1,
        )
        return self._result(watch.node, child=watch.before, failure=failure)

    def _until_ms(self) -> int | None:
        return None if self._act.for_ms is None else clock.now_ms() + self._act.for_ms

    def _result(
        self,
        node: Node,
        *,
        changed: bool = False,
        child: Child | None = None,
        pid: int | None = None,
        incarnation: int | None = None,
        exit_code: int | None = None,
        message: str = "",
        failure: ControlFailure | None = None,
    ) -> ActionResult:
        number = child.signal_number if child is not None else None
        return ActionResult(
            name=node.name,
            action=self._act.action,
            changed=changed,
            pid=pid if child is None else child.pid,
            signal=None if number is None else signal_name(number),
            mono_ns=None if child is None else child.signalled_mono_ns,
            ended_mono_ns=None if child is None else child.ended_mono_ns,
            incarnation=incarnation,
            exit_code=exit_code,
            message=message,
            failure=failure,
        )


_Outcome = ActionResult | Callable[[_Watch], ActionResult | None]


def check_act(act: Act, names: list[str]) -> int:
    """Return the number of the signal that `kill` sends; ControlError for an impossible request."""
    for name in act.names:
        if name not in names:
            raise ControlError(
                f'no node "{name}"', why=f"there are {', '.join(names)}", try_="zraft node list"
            )
    if act.for_ms is not None:
        if act.action not in {"kill", "stop", "pause"}:
            raise ControlError(f"{act.action} cannot be undone after a time")
        if not 1 <= act.for_ms <= MAX_FOR_MS:
            raise ControlError(f"{act.for_ms} ms is impossible", why="the rule is: 1 ms to 1 day")
    if act.signal is None:
        return signal.SIGKILL
    if act.action != "kill":
        raise ControlError(f"{act.action} takes no signal", try_="zraft node kill --signal TERM")
    short = act.signal.upper().removeprefix("SIG")
    if short not in DEADLY:
        raise ControlError(
            f"signal {act.signal} does not kill",
            why=f"these do: {' '.join(DEADLY)}",
            try_="zraft node pause, zraft node resume",
        )
    return signal.Signals[f"SIG{short}"]


class PendingUp:
    """`Up`: every node shall run; the answer comes when each one is ready or given up."""

    def __init__(self, fleet: Fleet, up: Up, *, created: bool, warnings: list[str]) -> None:
        """State the wishes."""
        self.deadline_ms = clock.now_ms() + up.timeout_ms
        self._fleet = fleet
        self._created = created
        self._warnings = warnings
        self._before = {node.name for node in fleet if node.process.state in ALIVE}
        for node in fleet:
            if up.restart is not None:
                node.process.restart = up.restart
            elif node.process.state not in ALIVE:
                node.process.restart = fleet.restarts
            fleet.do(node, node.process.start())

    def poll(self) -> SupervisorReply | None:
        """See `Pending`."""
        settled = SETTLED | {"running", "paused"}
        late = clock.now_ms() >= self.deadline_ms
        if not late and not all(node.process.state in settled for node in self._fleet):
            return None
        running = [node.name for node in self._fleet if node.process.state in ALIVE]
        paused = [node.name for node in self._fleet if node.process.state == "paused"]
        return UpReply(
            created=self._created,
            started=[name for name in running if name not in self._before],
            already_running=[name for name in running if name in self._before],
            left_paused=paused,
            rows=self._fleet.rows(),
            warnings=self._warnings,
        )


class PendingDown:
    """`Down`: no node shall run; the answer comes when none does, and is followed by the end."""

    def __init__(self, fleet: Fleet, *, now: bool) -> None:
        """State the wishes."""
        self.deadline_ms = 2**62  # the ladder ends with SIGKILL: it needs no other end
        self._fleet = fleet
        self._children = {node.name: node.child for node in fleet if node.child is not None}
        self.hurry(now=now)

    def hurry(self, *, now: bool) -> None:
        """Wish it again, by force if `now`."""
        now_ms = clock.now_ms()
        for node in self._fleet:
            process = node.process
            self._fleet.do(node, process.kill(now_ms) if now else process.stop(now_ms))

    def poll(self) -> DownReply | None:
        """See `Pending`."""
        if self._fleet.alive():
            return None
        killed = [name for name, child in self._children.items() if child.killed]
        return DownReply(
            stopped=[name for name in self._children if name not in killed],
            killed=killed,
            foreign=[node.name for node in self._fleet if node.process.state == "foreign"],
        )
