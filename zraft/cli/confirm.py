"""Asking before something is lost: yes or no, or the cluster's name typed in full.

Only at a terminal; elsewhere, and with `--no-input`, nobody can be asked, and the flag that answers
beforehand is named instead.
"""

from __future__ import annotations

import sys

from zraft.cli.options import Run
from zraft.errors import ControlError


def confirm(run: Run, what: str, *, flag: str, again: str) -> None:
    """Ask whether to do `what`, a whole question without its mark.

    Raises:
        ControlError: the answer is no, or nobody can be asked; `again` with `flag` answers.
    """
    _need_terminal(run, what, f"{again} {flag}{run.suffix}")
    _ask(run, f"{what}? [y/N] ")
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise ControlError("nothing was done", why="the answer was no")


def confirm_by_name(run: Run, what: str, *, flag: str, again: str) -> None:
    """Have the cluster's name typed before something that costs the quorum. As `confirm`."""
    _need_terminal(run, what, f"{again} {flag}{run.suffix}")
    _ask(run, f"{what}\nType the cluster's name to do it all the same: ")
    if sys.stdin.readline().strip() != run.cluster:
        raise ControlError("nothing was done", why=f'that is not "{run.cluster}"')


def _need_terminal(run: Run, what: str, try_: str) -> None:
    if run.no_input:
        raise ControlError(f"{what}: not without a yes", why="nobody can be asked here", try_=try_)


def _ask(run: Run, text: str) -> None:
    run.out.clear_progress()
    run.out.stderr.write(text)
    run.out.stderr.flush()
