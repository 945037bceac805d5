"""Rounds: how a leader learns that a quorum still followed it at some moment (thesis §6.4).

Every append carries the number of the round it belongs to, and answers repeat it. A round that a
quorum answered proves that no other leader had been elected when the round *began*.
"""

from __future__ import annotations

from zraft.core.quorum import reached_by_quorum
from zraft.core.state import Leadership, RaftState


def next_round(st: RaftState, leadership: Leadership) -> None:
    """Begin a round; with leases, note when. What leaves from now on carries its number."""
    leadership.round += 1
    if st.settings.lease:
        begun, confirmed = leadership.lease_rounds, confirmed_round(st, leadership)
        while len(begun) > 1 and begun[1][0] <= confirmed:
            del begun[0]
        begun.append((leadership.round, st.now_ms))


def confirmed_round(st: RaftState, leadership: Leadership) -> int:
    """Return the last round that a quorum answered."""
    rounds = {peer: progress.acked_round for peer, progress in leadership.progress.items()}
    rounds[st.me] = leadership.round
    return reached_by_quorum(rounds, st.configuration)


def began_ms(leadership: Leadership, round_: int) -> int | None:
    """Return when a round began, or an earlier one if it was not noted; None: before all noted."""
    found = None
    for number, began in leadership.lease_rounds:
        if number > round_:
            break
        found = began
    return found
