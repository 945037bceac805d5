"""Outcomes as JSON and as text, one for a machine and one for whoever has to find the bug."""

from __future__ import annotations

from typing import Any

from zraft.testing.sim.runner import Outcome

SCHEMA = "zraft.sim.run/1"


def to_document(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as `--json` prints it."""
    return {
        "schema": SCHEMA,
        "ok": not outcome.violations,
        "seed": outcome.seed,
        "time_s": outcome.time_s,
        "trace_hash": outcome.trace_hash,
        "events": outcome.events,
        "simulated_ms": outcome.simulated_ms,
        "elapsed_ms": outcome.elapsed_ms,
        "operations": outcome.operations,
        "statuses": outcome.statuses,
        "faults": outcome.faults,
        "marks": outcome.marks,
        "undecided_keys": outcome.undecided_keys,
        "violations": outcome.violations,
        "replay": outcome.replay,
    }


def summary(outcome: Outcome) -> list[str]:
    """Return what a person wants to know of a seed."""
    sign = "✗" if outcome.violations else "✓"
    faults = sum(outcome.faults.values())
    simulated_ms, elapsed_ms = outcome.simulated_ms, outcome.elapsed_ms
    lines = [
        f"{sign} seed {outcome.seed}: {simulated_ms} simulated ms in {elapsed_ms} ms",
        f"  {outcome.events} events, {outcome.operations} operations, {faults} faults",
        f"  trace hash {outcome.trace_hash}",
    ]
    lines += [f"  {violation}" for violation in outcome.violations]
    if outcome.violations:
        lines.append(f"  replay: {outcome.replay}")
    return lines
