"""What every test has: repeatable random choices, and nothing left behind.

Processes are found by an environment variable that they inherit, even when they detached
themselves from this one; sockets, contexts and files by the descriptors they hold. A test that
leaves something fails, and processes it left are ended, so that the next test starts clean.
"""

from __future__ import annotations

import gc
import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

RUN_VARIABLE = "ZRAFT_TEST_RUN"
RUN = secrets.token_hex(8)
os.environ[RUN_VARIABLE] = RUN

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it runs in the background like this, and every child would inherit it:
    # tests that interrupt a command would wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("local", print_blob=True, deadline=None)
settings.register_profile(
    "ci",
    print_blob=True,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def processes_left() -> list[int]:
    """Return the pids of all living processes that this test run started, however far away."""
    marker = f"{RUN_VARIABLE}={RUN}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if marker in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:  # it ended meanwhile, or is not ours
            continue
    return found


def end(pid: int) -> None:
    """Kill a process by pid; it may be gone already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test that leaves a descriptor or, with the mark `cluster`, a process behind.

    Processes that a fixture of wider scope owns are there before the test; the end of the run
    looks for those.
    """
    starts_processes = request.node.get_closest_marker("cluster") is not None
    shared = bool(processes_left()) if starts_processes else True
    before = descriptors()
    yield
    left = [] if shared else processes_left()
    for pid in left:
        end(pid)
    assert not left, f"the test left processes behind: {left}"
    left_open = descriptors_left(before)
    if left_open:
        gc.collect()  # objects in cycles close what they own only now
        left_open = descriptors_left(before)
    assert not left_open, f"the test left descriptors open: {left_open}"


def descriptors() -> dict[str, str]:
    """Return every open descriptor with what it is, without the one that reads the list."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the list's own, closed by now
            continue
    return found


def descriptors_left(before: dict[str, str]) -> list[str]:
    """Return what is open now and was not before."""
    return [f"{name} → {target}" for name, target in descriptors().items() if name not in before]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End whatever any test left running, and fail the run because of it."""
    left = processes_left()
    for pid in left:
        end(pid)
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(f"processes left behind and killed: {left}", red=True)
