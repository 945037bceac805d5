"""The option `--rewrite`: write the golden files anew instead of comparing with them.

Read the difference line by line before you commit it: the files say what is right.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--rewrite`."""
    parser.addoption(
        "--rewrite", action="store_true", help="write the golden files of tests/interaction anew"
    )


@pytest.fixture
def rewrite(request: pytest.FixtureRequest) -> bool:
    """Return whether golden files are to be written anew."""
    return bool(request.config.getoption("--rewrite", default=False))
