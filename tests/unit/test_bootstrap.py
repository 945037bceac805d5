"""The scripts of a checkout: the private environment is made once, and refusals say what to do."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
TOOLS = ("sh", "cat", "dirname", "readlink", "sha256sum", "env")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a directory that looks like a fresh checkout, with a space in its name."""
    root = tmp_path / "a checkout"
    (root / "scripts").mkdir(parents=True)
    for name in ("zraft", "bootstrap", "make_venv.py"):
        shutil.copy(SCRIPTS / name, root / "scripts" / name)
    (root / "pyproject.toml").write_text("[project]\nname = 'zraft'\nversion = '0'\n")
    return root


def tools(directory: Path, python: str | None) -> str:
    """Return a PATH that has the shell's tools and, as python3, the script given."""
    directory.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found is not None
        (directory / name).symlink_to(found)
    if python is not None:
        script = directory / "python3"
        script.write_text(f"#!/bin/sh\n{python}\n")
        script.chmod(0o755)
    return str(directory)


def start(checkout: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the checkout's zraft from another directory."""
    return subprocess.run(
        [str(checkout / "scripts" / "zraft"), *words],
        cwd="/",
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def pretend_built(checkout: Path) -> None:
    """Put an environment there that is current and whose zraft prints its arguments."""
    bin_directory = checkout / ".venv" / "bin"
    bin_directory.mkdir(parents=True)
    (bin_directory / "python3").symlink_to(sys.executable)
    program = bin_directory / "zraft"
    program.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    program.chmod(0o755)
    digest = hashlib.sha256((checkout / "pyproject.toml").read_bytes()).hexdigest()
    python = os.path.realpath(sys.executable)
    (checkout / ".venv" / "stamp-run").write_text(f"{checkout}|{python}|{digest}\n")


def test_current_environment_is_used_without_python(checkout: Path, tmp_path: Path) -> None:
    """The fast path runs no Python and no pip, and hands the arguments on unchanged."""
    pretend_built(checkout)
    path = tools(tmp_path / "tools", python="echo called >&2; exit 9")
    done = start(checkout, "kv", "put", "a b", "", PATH=path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "kv|put|a b||", "")


def test_script_is_found_through_a_link(checkout: Path, tmp_path: Path) -> None:
    """A link from a directory of the PATH runs the checkout that it points to."""
    pretend_built(checkout)
    link = tmp_path / "zraft"
    link.symlink_to(checkout / "scripts" / "zraft")
    done = subprocess.run([link, "x"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "x|")


@pytest.mark.parametrize("change", ["pyproject", "moved", "missing"])
def test_changed_checkout_is_built_again(checkout: Path, tmp_path: Path, change: str) -> None:
    """Another pyproject.toml, another place or no environment: the builder is called."""
    if change != "missing":
        pretend_built(checkout)
    if change == "pyproject":
        with (checkout / "pyproject.toml").open("a") as file:
            file.write("# changed\n")
    if change == "moved":
        checkout = checkout.rename(tmp_path / "elsewhere")
    python = 'case "$1" in -c) exit 0;; *) echo "built $2" >&2; exit 9;; esac'
    done = start(checkout, PATH=tools(tmp_path / "tools", python))
    assert (done.returncode, done.stderr) == (9, "built run\n")


@pytest.mark.parametrize("python", ["[ $1 = --version ] && echo Python 3.9.1; exit 1", None])
def test_old_or_missing_python_is_refused(
    checkout: Path, tmp_path: Path, python: str | None
) -> None:
    """Without Python 3.11 the error says what is there and what to install."""
    done = start(checkout, PATH=tools(tmp_path / "tools", python))
    assert done.returncode == 78
    assert done.stdout == ""
    assert "error[python]: zraft needs Python 3.11 or newer" in done.stderr
    assert ("3.9.1" if python else "missing") in done.stderr
    assert "try: install" in done.stderr


def test_environment_that_cannot_be_made_is_explained(checkout: Path) -> None:
    """When venv fails (Debian without python3-venv, a full or read-only disk) the error says so."""
    (checkout / ".venv").write_text("in the way")
    done = start(checkout)
    assert done.returncode == 78
    assert "error[environment]: no virtual environment could be made" in done.stderr
    assert "  why: " in done.stderr
    assert "  try: install venv" in done.stderr


@pytest.mark.slow
def test_packages_that_cannot_be_installed_are_explained(checkout: Path) -> None:
    """When pip fails the error shows pip's last words, and the next start tries again."""
    (checkout / "pyproject.toml").write_text("this is [no TOML")
    done = start(checkout)
    assert done.returncode == 78
    assert "error[environment]: the Python packages that zraft needs" in done.stderr
    assert "TOML" in done.stderr.partition("why: ")[2]
    assert "try: check the network" in done.stderr
    assert not (checkout / ".venv" / "stamp-run").exists()
