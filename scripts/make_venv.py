"""Build or refresh the private virtual environment of a checkout: `.venv`, one builder at a time.

Called by scripts/bootstrap with `run` or `dev`. Uses the standard library only. The directory of
the checkout is locked while it works, so that two first starts at once build one environment, and
the stamp is written last, so that an interrupted build is finished by the next start. An existing
environment is updated in place: processes of a running cluster live in it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python3"
EXIT_CONFIG = 78


def say(text: str) -> None:
    """Write progress for people: stdout belongs to the command that follows."""
    sys.stderr.write(f"zraft: {text}\n")
    sys.stderr.flush()


def fail(what: str, *, why: str, try_: str) -> NoReturn:
    """End with what happened, why, and what to try."""
    sys.stderr.write(f"error[environment]: {what}\n  why: {why}\n  try: {try_}\n")
    sys.exit(EXIT_CONFIG)


def stamp() -> str:
    """Return what the environment depends on: place, interpreter, pyproject.toml.

    scripts/bootstrap computes the same line in shell.
    """
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    return f"{ROOT}|{os.path.realpath(PYTHON)}|{digest}"


def is_current(wanted: str) -> bool:
    """Tell whether the environment was built completely for `wanted` and nothing changed since."""
    path = VENV / f"stamp-{wanted}"
    return path.is_file() and path.read_text().rstrip("\n") == stamp()


def run(command: list[str]) -> str | None:
    """Run a command; return None if it worked, else the last lines that it wrote."""
    environment = {**os.environ, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        cwd=ROOT,
        check=False,
    )
    return None if done.returncode == 0 else "\n       ".join(done.stdout.strip().splitlines()[-8:])


def usable() -> bool:
    """Tell whether `.venv` holds a working interpreter, new enough, with pip."""
    probe = "import sys, pip; sys.exit(sys.version_info < (3, 11))"
    return PYTHON.exists() and run([str(PYTHON), "-c", probe]) is None


def build(wanted: str) -> None:
    """Make `.venv` if it is missing or broken, and install the checkout into it, editable."""
    if not usable():
        trouble = run([sys.executable, "-m", "venv", "--clear", str(VENV)])
        if trouble is not None:
            shutil.rmtree(VENV, ignore_errors=True)
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            fail(
                f"no virtual environment could be made in {VENV}",
                why=trouble,
                try_=f"install venv (Debian: sudo apt install python{version}-venv), check that "
                f"{ROOT} is writable, and repeat the command",
            )
    target = f"{ROOT}[dev]" if wanted == "dev" else str(ROOT)
    pip = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    trouble = run([*pip, "--quiet", "--editable", target])
    if trouble is not None:
        fail(
            "the Python packages that zraft needs could not be installed",
            why=trouble,
            try_="check the network (pip needs PyPI, or a mirror in PIP_INDEX_URL), and repeat",
        )
    # Where PYTHONDONTWRITEBYTECODE is set, as in many containers, every node and every command
    # would compile the whole program: twice the time of a start. If this fails, it is only slower.
    run([str(PYTHON), "-m", "compileall", "-q", "zraft", "supervisor"])
    for name in {"run", wanted}:
        path = VENV / f"stamp-{name}"
        fresh = path.with_suffix(".new")
        fresh.write_text(stamp() + "\n")
        fresh.rename(path)


def main() -> None:
    """Build the environment for the set named on the command line, unless somebody just did."""
    wanted = sys.argv[1]
    lock = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another command is preparing the environment in .venv; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)
    if is_current(wanted):
        return
    say(f"preparing a private Python environment in {VENV} (once, usually under a minute)")
    started_s = time.monotonic()
    build(wanted)
    say(f"the environment is ready ({time.monotonic() - started_s:.0f} s)")


if __name__ == "__main__":
    main()
