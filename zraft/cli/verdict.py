"""How a verdict on a history looks: one line when all is well, a small picture when it is not.

The picture shows the operations that contradict each other as bars over time (to scale in order,
not in length), the one that cannot be placed, and what the key can have been. Shared by the verbs
of `check`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zraft.cli.durations import format_ms
from zraft.cli.errors import EXIT_CHECK_FAILED, EXIT_INCONCLUSIVE, EXIT_OK
from zraft.cli.output import Output, join_and, plural, printable
from zraft.testing.counterexample import Counterexample, spell
from zraft.testing.history import Operation, to_fields
from zraft.testing.linearizability import CheckResult

BAR_COLUMNS = 28
MAX_BARS = 12
MAX_SHOWN = 3
MAX_STATES = 5

EXIT_OF = {
    "linearizable": EXIT_OK,
    "not-linearizable": EXIT_CHECK_FAILED,
    "undecided": EXIT_INCONCLUSIVE,
}


def verdict_document(result: CheckResult) -> dict[str, Any]:
    """Return the JSON form of a verdict: a published contract."""
    return {
        "verdict": result.verdict,
        "operations": result.operations,
        "keys": result.keys,
        "elapsed_ms": result.elapsed_ms,
        "configurations": result.configurations,
        "not_linearizable": result.not_linearizable,
        "undecided": result.undecided,
        "index_proved": result.index_proved,
        "index_differs": result.index_differs,
        "counterexamples": [_counterexample_document(c) for c in result.counterexamples],
    }


def _counterexample_document(found: Counterexample) -> dict[str, Any]:
    return {
        "key": found.key,
        "why": found.why,
        "operation": to_fields(found.operation),
        "states_before": found.states,
        "other_states": found.has_other_states,
        "core": [to_fields(op) for op in found.core],
        "minimal": found.is_minimal,
        "of": found.count,
        "concurrent": [to_fields(op) for op in found.concurrent],
    }


def write_verdict(out: Output, result: CheckResult) -> None:
    """Write a verdict for people."""
    amount = f"{plural(result.operations, 'op')}, {plural(result.keys, 'key')}"
    took = f"checked in {format_ms(result.elapsed_ms)}"
    match result.verdict:
        case "linearizable":
            out.line(f"linearizable {out.paint('✓', 'green')}  ({amount}, {took})")
        case "undecided":
            keys = _listed(result.undecided)
            out.line(f"linearizable {out.paint('?', 'yellow')}  undecided ({amount}, {took})")
            out.line(f"  time or memory ran out on {keys}; nothing wrong was found")
        case "not-linearizable":
            for found in result.counterexamples[:MAX_SHOWN]:
                _write_counterexample(out, found)
            more = len(result.not_linearizable) - MAX_SHOWN
            if more > 0:
                out.line(
                    f"linearizable {out.paint('✗', 'bold red')}  on {plural(more, 'more key')}"
                )
            out.line(f"({amount}, {took})")
    if result.index_differs:
        out.line(
            f"{out.paint('!', 'yellow')} the log indices in the notes contradict the answers on "
            f"{_listed(result.index_differs)}"
        )


def _listed(keys: Sequence[str]) -> str:
    shown = [f'"{printable(key)}"' for key in keys[:MAX_STATES]]
    if len(keys) > MAX_STATES:
        shown.append(f"{len(keys) - MAX_STATES} more keys")
    return f"key{'s' if len(keys) > 1 else ''} {join_and(shown)}"


def _write_counterexample(out: Output, found: Counterexample) -> None:
    head = f'linearizable {out.paint("✗", "bold red")}  key "{printable(found.key)}": '
    out.line(f"{head}{printable(found.why)}")
    shown = found.core
    if len(shown) > MAX_BARS:
        shown = shown[-MAX_BARS:]
        out.line(f"  … {len(found.core) - MAX_BARS} before these")
    for row in _rows(shown, found.operation):
        out.line(f"  {row}".rstrip())
    out.line(f"  state before: {_spell_states(found)}")
    count = f"{len(found.core)} of {found.count} ops on this key"
    if found.is_minimal:
        out.line(f"  minimal: these {count} contradict each other, whatever the others did")
    else:
        out.line(f"  these {count} contradict each other; the time to leave more out was up")


def _spell_states(found: Counterexample) -> str:
    states = [printable(spell(state)) for state in found.states]
    if found.has_other_states:
        states.append("a value that nobody read")
    if len(states) == 1:
        return f"{states[0]} is the only legal value when it returned"
    if len(states) > MAX_STATES:
        states = [*states[:MAX_STATES], f"{len(states) - MAX_STATES} others"]
    return f"one of {', '.join(states)}"


def _rows(core: Sequence[Operation], guilty: Operation) -> list[str]:
    """Return one line per operation: who, what, when (as a bar), and what its note says."""
    texts = [(str(op.process), say(op)) for op in core]
    who = max(len(process) for process, _ in texts)
    what = max(len(text) for _, text in texts)
    rows = []
    for op, (process, text), bar in zip(core, texts, _bars(core), strict=True):
        mark = "  ← cannot be placed" if op is guilty else ""
        row = f"{printable(process):<{who}}  {text:<{what}}  {bar}  {_say_note(op.note)}"
        rows.append(row.rstrip() + mark)
    return rows


def say(op: Operation) -> str:
    """Return an operation and its answer in a few words."""
    value = spell(op.value)
    match op.op:
        case "get":
            words = f"get → {spell(op.output)}"
        case "put":
            words = f"put {value}"
        case "delete":
            words = "delete"
        case "cas":
            words = f"cas {spell(op.expected)} to {value}"
        case "append":
            words = f"append {value}"
        case "incr":
            words = f"incr by {1 if op.value is None else op.value}"
    if op.op not in {"get", "put"} and op.output is not None:
        words += f" → {spell(op.output)}"
    return printable(words + (" (unknown)" if op.status == "unknown" else ""))


def _bars(core: Sequence[Operation]) -> list[str]:
    """Return each operation's time as a bar. Columns are ranks of times: order is what matters."""
    times = sorted({op.invoke_ns for op in core} | {op.return_ns or 0 for op in core} - {0})
    step = max(1.0, (BAR_COLUMNS - 1) / max(1, len(times) - 1))
    step = min(step, 5.0)
    column = {time_ns: round(rank * step) for rank, time_ns in enumerate(times)}
    width = max(column.values(), default=0) + 2
    bars = []
    for op in core:
        begin = column[op.invoke_ns]
        end = width if op.return_ns is None else column[op.return_ns]
        ending = "…" if op.return_ns is None else "┤"
        bar = " " * begin + "├" + "─" * max(0, end - begin - 1) + ending
        bars.append(bar.ljust(width + 1))
    return bars


def _say_note(note: Mapping[str, Any]) -> str:
    words = [str(note["node"])] if "node" in note else []
    words += [f"{name} {note[name]}" for name in ("index", "term") if name in note]
    return printable(" ".join(words))
