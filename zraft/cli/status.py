"""What `cluster status` says: every node's own answer side by side, and where they disagree.

It is pure: it turns the nodes' answers and the supervisor's rows into one document (the contract of
`--json`), and that document into text. What a node did not say is null, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from zraft.api import NodeStatus
from zraft.cli.durations import format_ms
from zraft.cli.fault_words import cut_off, fault_document, one_line
from zraft.cli.output import Cell, Output, join_and, plural, printable
from zraft.client.conditions import electorates, majority
from zraft.client.faults import faults_of
from zraft.control_api import LastExit, NodeRow

SCHEMA = "zraft.cluster.status/1"
NOTHING = "–"
COLUMNS = (
    "NODE",
    "ROLE",
    "TERM",
    "COMMIT",
    "APPLIED",
    "LAST",
    "LAG",
    "VOTED",
    "TIMER",
    "CONTACT",
    "UP",
    "PID",
)
WIDE_COLUMNS = ("BOOT", "REV", "HASH", "WAITING")
ROLE_STYLES = {
    "leader": "bold green",
    "candidate": "bold yellow",
    "pre-candidate": "yellow",
    "down": "red",
    "paused": "yellow",
}

Statuses = Mapping[str, NodeStatus | None]


def status_document(
    cluster: str,
    statuses: Statuses,
    rows: Mapping[str, NodeRow],
    *,
    followed: tuple[str, int] | None,
    mono_ns: int,
    wall_ms: int,
) -> dict[str, Any]:
    """Return the document. `followed`: the leader and term that a majority agrees on."""
    answers = [status for status in statuses.values() if status is not None]
    leader = statuses.get(followed[0]) if followed else None
    knows = leader or max(answers, key=lambda status: status.config_index, default=None)
    nodes = [
        _node(name, status, rows.get(name), leader, wall_ms) | {"member": _kind(name, knows)}
        for name, status in statuses.items()
    ]
    opinions = _opinions(
        {name: status for name, status in statuses.items() if _kind(name, knows) != "none"}
    )
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "ok": bool(answers),
        "cluster": cluster,
        "status": "",
        "term": followed[1] if followed else max((s.term for s in answers), default=None),
        "leader": followed[0] if followed else None,
        "leader_since_s": None,
        "quorum": _quorum(statuses, knows),
        "commit": leader.commit if leader else max((s.commit for s in answers), default=None),
        "agree": len(opinions) <= 1,
        "opinions": opinions,
        "state": _state(answers),
        "configuration": _configuration(knows),
        "nodes": nodes,
        "faults": [fault_document(fault) for fault in faults_of(dict(statuses))],
    }
    document["cut_off"] = cut_off(list(statuses), document["faults"])
    if leader is not None and leader.leader_since_mono_ns is not None:
        document["leader_since_s"] = _seconds((mono_ns - leader.leader_since_mono_ns) / 1e6)
    document["status"] = _verdict(document)
    return document


def _quorum(statuses: Statuses, knows: NodeStatus | None) -> dict[str, Any]:
    """Count the voters that answer; while two configurations decide, the one that is worse off."""
    up = {name for name, status in statuses.items() if status is not None}
    groups = [[*statuses]] if knows is None else electorates(knows, statuses)
    counts = [(len(up & {*group}), majority(group), len(group)) for group in groups]
    have, need, voters = min(counts, key=lambda count: count[0] - count[1])
    return {"have": have, "need": need, "voters": voters, "ok": have >= need}


def _kind(name: str, knows: NodeStatus | None) -> str | None:
    """Return what the newest known configuration makes of a node; None: nobody knows."""
    if knows is None or not knows.voters:
        return None
    if name in knows.voters:
        return "voter"
    if name in knows.joining:
        return "joining"
    if name in knows.learners:
        return "learner"
    return "leaving" if name in knows.outgoing else "none"


def _configuration(knows: NodeStatus | None) -> dict[str, Any] | None:
    """Return the newest configuration that is known, committed or not; None when none is."""
    if knows is None or not knows.voters:
        return None
    return {
        "index": knows.config_index,
        "committed": knows.config_committed,
        "voters": knows.voters,
        "outgoing": knows.outgoing,
        "learners": knows.learners,
        "joining": knows.joining,
    }


def _verdict(document: Mapping[str, Any]) -> str:
    nodes = document["nodes"]
    if not any(node["up"] for node in nodes):
        alive = any(node["pid"] is not None for node in nodes)
        return "no_quorum" if alive else "stopped"
    if not document["quorum"]["ok"] or document["leader"] is None:
        return "no_quorum"
    sound = document["agree"] and not document["faults"] and document["state"]["equal"]
    return "ok" if sound and all(node["up"] for node in nodes) else "degraded"


def _node(
    name: str,
    status: NodeStatus | None,
    row: NodeRow | None,
    leader: NodeStatus | None,
    wall_ms: int,
) -> dict[str, Any]:
    process = row.state if row else ("running" if status else "down")
    fields: dict[str, Any] = dict.fromkeys(
        (
            "role term leader voted_for commit applied last_index last_term persisted_index lag "
            "timer_ms last_contact_ms uptime_s incarnation state_hash revision"
        ).split()
    )
    if status is not None:
        lag = None if leader is None else max(0, leader.last_index - status.last_index)
        fields |= {field: getattr(status, field, None) for field in fields}
        fields |= {"uptime_s": _seconds(status.uptime_ms), "lag": lag}
    last_exit = row.last_exit if row else None
    return {
        "name": name,
        "up": status is not None,
        "pid": status.pid if status else (row.pid if row else None),
        **fields,
        "state": "running" if status else process,
        "desired": row.desired if row else None,
        "restarts": row.restarts if row else 0,
        "note": "" if status else _note(process, row, wall_ms),
        "last_exit": msgspec.to_builtins(last_exit) if last_exit and not status else None,
        "member_id": status.member_id if status else None,
        "removed": status.removed if status else None,
        "version": status.version if status else None,
        "waiting": status.waiting if status else None,
        "parked": status.parked if status else None,
        "peers": msgspec.to_builtins(status.peers) if status else [],
        "counters": status.counters if status else {},
    }


def _seconds(value_ms: float) -> float:
    return round(value_ms / 1000, 1)


def _note(process: str, row: NodeRow | None, wall_ms: int) -> str:
    """Say why a node does not answer."""
    if row is None:
        return "no answer"
    left = "" if row.until_ms is None else f", {format_ms(row.until_ms)} left"
    match process:
        case "paused":
            return f"paused (SIGSTOP){left}"
        case "running":
            return "runs, but does not answer"
        case "starting" | "stopping":
            return process
        case "foreign":
            return row.message or f"its directory is held by pid {row.pid}"
        case _:
            return _why_down(process, row, wall_ms) + left


def _why_down(process: str, row: NodeRow, wall_ms: int) -> str:
    ended = _how_it_ended(row.last_exit, wall_ms)
    if process == "backoff":
        again = "" if row.retry_ms is None else f"; next start in {format_ms(row.retry_ms)}"
        return f"{ended}{again}"
    if process == "fatal":
        return row.message or f"{ended}; not started again"
    return ended if row.last_exit else "not started"


def _how_it_ended(last: LastExit | None, wall_ms: int) -> str:
    if last is None:
        return "ended"
    ago = f" {format_ms(max(0, wall_ms - last.wall_ms))} ago" if last.wall_ms else ""
    reason = last.reason or ("stopped" if last.expected else "crashed")
    if last.signal:
        reason = "killed" if last.expected else reason
        return f"{reason} ({last.signal}){ago}"
    if last.code:
        return f"{reason} (exit code {last.code}){ago}"
    return f"{reason}{ago}"


def _opinions(statuses: Statuses) -> list[dict[str, Any]]:
    """Return who thinks that who leads; most supporters first."""
    groups: dict[tuple[str | None, int], list[str]] = {}
    for name, status in statuses.items():
        if status is not None:
            groups.setdefault((status.leader, status.term), []).append(name)
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[1]))
    return [{"leader": leader, "term": term, "nodes": names} for (leader, term), names in ordered]


def _state(answers: Sequence[NodeStatus]) -> dict[str, Any]:
    """Compare the state hashes of the nodes that applied equally much; most nodes decide where."""
    at: dict[int, list[NodeStatus]] = {}
    for status in answers:
        if status.state_hash is not None:
            at.setdefault(status.applied, []).append(status)
    differing = [i for i, group in at.items() if len({s.state_hash for s in group}) > 1]
    if not at:
        return {"index": None, "equal": True, "hash": None, "hashes": {}}
    index = max(differing, default=max(at, key=lambda index: (len(at[index]), index)))
    hashes = {status.name: status.state_hash for status in at[index]}
    equal = not differing
    return {
        "index": index,
        "equal": equal,
        "hash": next(iter(hashes.values())) if equal else None,
        "hashes": hashes,
    }


# ---------------------------------------------------------------------------------------- text


def headline(document: Mapping[str, Any], out: Output) -> str:
    """Return the first line: everything at a glance."""
    quorum = document["quorum"]
    have = f"quorum {quorum['have']}/{quorum['voters']}"
    ok = out.paint("OK", "green") if quorum["ok"] else out.paint("LOST", "bold red")
    leader = document["leader"]
    since = document["leader_since_s"]
    parts = [document["cluster"], plural(len(document["nodes"]), "node")]
    if document["status"] == "stopped":
        return " · ".join([*parts, out.paint("stopped", "bold red")])
    parts.append(f"term {_text(document['term'])}")
    if leader is None:
        parts.append(out.paint("no leader", "bold red"))
    else:
        known = "" if since is None else f" (since {format_ms(since * 1000)})"
        parts.append(f"leader {out.paint(leader, 'bold green')}{known}")
    parts += [f"{have} {ok}", f"commit {_text(document['commit'])}"]
    change = _change_text(document["configuration"])
    if change:
        parts.append(out.paint(change, "yellow"))
    if document["faults"]:
        parts.append(out.paint(f"{plural(len(document['faults']), 'fault')} active", "yellow"))
    return " · ".join(parts)


def _change_text(configuration: Mapping[str, Any] | None) -> str:
    """Return what is unfinished about the membership; empty when nothing is."""
    if configuration is None:
        return ""
    if configuration["outgoing"]:
        old, new = ",".join(configuration["outgoing"]), ",".join(configuration["voters"])
        return f"voters {old} → {new}"
    if configuration["joining"]:
        return f"{join_and(configuration['joining'])} catching up"
    return "" if configuration["committed"] else "membership changing"


def print_status(document: Mapping[str, Any], out: Output) -> None:
    """Print the headline, the table, and the lines about disagreement, faults and state."""
    if out.mode != "plain":
        out.line(headline(document, out))
    print_nodes(document["nodes"], out)
    if out.mode == "plain":
        return
    if not document["agree"]:
        out.line(out.paint("DISAGREE", "bold red") + " " + disagreement(document))
    for fault in document["faults"]:
        out.line(f"faults  {one_line(fault)}")
    if (text := state_text(document["state"])) is not None:
        out.line(text if document["state"]["equal"] else out.paint(text, "bold red"))
    for node in document["nodes"]:
        _print_stderr(node, out)


def print_nodes(nodes: Sequence[Mapping[str, Any]], out: Output) -> None:
    """Print the table of nodes; `-o wide` has more columns."""
    noted = any(node["note"] for node in nodes) or out.mode == "plain"
    wide = out.mode == "wide"
    columns = [*COLUMNS, *(WIDE_COLUMNS if wide else ()), *(["NOTE"] if noted else [])]
    rows: list[list[Cell]] = []
    for node in nodes:
        row = _row(node)
        if wide:
            row += _wide_row(node)
        if noted:
            row.append(printable(node["note"]))
        rows.append(row)
    out.table(columns, rows)


def _row(node: Mapping[str, Any]) -> list[Cell]:
    role = node["role"] or ("paused" if node["state"] == "paused" else "down")
    leads = role == "leader"
    if role == "follower" and node["member"] not in {"voter", None}:
        role = node["member"]
        if role == "none":  # it left, or was made and is not in the log yet
            role = "removed" if node["removed"] else "no member"
    return [
        node["name"],
        (role, ROLE_STYLES.get(role, "")),
        _text(node["term"]),
        _text(node["commit"]),
        _text(node["applied"]),
        _text(node["last_index"]),
        NOTHING if leads else _text(node["lag"]),
        _text(node["voted_for"]),
        _time(node["timer_ms"]),
        _time(node["last_contact_ms"]),
        NOTHING if node["uptime_s"] is None else format_ms(node["uptime_s"] * 1000),
        _text(node["pid"]),
    ]


def _wide_row(node: Mapping[str, Any]) -> list[Cell]:
    return [
        _text(node["incarnation"]),
        _text(node["revision"]),
        _text(node["state_hash"]),
        _text(node["waiting"]),
    ]


def _text(value: object) -> str:
    return NOTHING if value is None or value == "" else str(value)


def _time(value_ms: int | None) -> str:
    return NOTHING if value_ms is None else format_ms(value_ms)


def disagreement(document: Mapping[str, Any]) -> str:
    """Return who thinks what, the smaller groups first, and which nodes are cut off."""
    parts = []
    for opinion in reversed(document["opinions"]):
        names = opinion["nodes"]
        verb = "thinks" if len(names) == 1 else "think"
        who = f"leader={opinion['leader']}" if opinion["leader"] else "there is no leader"
        parts.append(f"{','.join(names)} {verb} {who} (term {opinion['term']})")
    cut = document["cut_off"]
    verb = "is" if len(cut) == 1 else "are"
    tail = f"  ← {join_and(cut)} {verb} cut off" if cut else ""
    return "; ".join(parts) + tail


def state_text(state: Mapping[str, Any]) -> str | None:
    """Return the sentence about the state machines' hashes, None when there are none."""
    hashes: Mapping[str, str] = state["hashes"]
    if not hashes:
        return None
    if state["equal"]:
        names = " ".join(hashes)
        return f"state   hash {state['hash'][:8]}… equal on {names} at index {state['index']}"
    differing = " · ".join(f"{name} {value[:8]}…" for name, value in hashes.items())
    return f"state   DIFFERENT at index {state['index']}: {differing}"


def _print_stderr(node: Mapping[str, Any], out: Output) -> None:
    """Print the last words of a node that crashed."""
    last = node["last_exit"]
    if last is None or last["expected"]:
        return
    words = [line for line in last["stderr_tail"].splitlines() if line.strip()]
    if words:
        out.line(f"{node['name']:<7} {out.paint(printable(words[-1]), 'dim')}")
