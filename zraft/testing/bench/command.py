"""What the measuring commands share: their words, how they fail, how they are interrupted."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from zraft.errors import ZraftError

EXIT_CHECK_FAILED = 8
EXIT_INTERRUPTED = 130


def numbers(text: str) -> list[int]:
    """Return the numbers of `1,64,1000`."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{min(found)} is not a positive number")
    return found


def tell(line: str) -> None:
    """Write a line for people who wait."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def write(line: str) -> None:
    """Write a line of the result."""
    sys.stdout.write(line + "\n")


def run(command: Callable[[], int]) -> int:
    """Return the exit code of `command`; failures are told as the command line tells them."""
    try:
        return command()
    except KeyboardInterrupt:
        tell("interrupted: everything that was started is stopped, every file is removed")
        return EXIT_INTERRUPTED
    except ZraftError as error:
        tell(f"error[{error.code}]: {error.what}")
        if error.why:
            tell(f"  why: {error.why}")
        for line in error.try_:
            tell(f"  try: {line}")
        return error.exit_code
