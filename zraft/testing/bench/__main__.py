"""`python -m zraft.testing.bench put | bounded | bars`: see scripts/bench and scripts/bars."""

from __future__ import annotations

import argparse
import sys

from zraft.testing.bench import bars, bounded, put
from zraft.testing.bench.command import run


def main() -> int:
    """Read the words and measure."""
    parser = argparse.ArgumentParser(prog="bench", description="Measure zraft on this machine.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name, verb, text in (
        ("put", put, "durable writes per second beside the bare loop"),
        ("bounded", bounded, "2,000,000 writes over 1,000 keys; exit 8 when log or memory grow"),
        ("bars", bars, "start, failover and throughput against their bars; exit 8 when missed"),
    ):
        words = verbs.add_parser(name, description=text, help=text)
        verb.parser(words)
        words.set_defaults(main=verb.main)
    options = parser.parse_args()
    return run(lambda: int(options.main(options)))


if __name__ == "__main__":
    sys.exit(main())
