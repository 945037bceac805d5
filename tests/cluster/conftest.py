"""Nodes without a supervisor, running and led, for tests of single processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.bare_nodes import BareNodes, bare_nodes


@pytest.fixture
def one() -> Iterator[BareNodes]:
    """One node, running and leading."""
    with bare_nodes(1) as nodes:
        nodes.start_all()
        nodes.leader()
        yield nodes


@pytest.fixture
def three() -> Iterator[BareNodes]:
    """Three nodes, running, with a leader."""
    with bare_nodes(3) as nodes:
        nodes.start_all()
        nodes.leader()
        yield nodes
