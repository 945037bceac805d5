"""`config init` and `config validate`: a file that explains itself, and what is wrong with one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zraft.cli.config import READY_MADE
from zraft.cli.main import main
from zraft.config import KEYS, Config, load_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZRAFT_HOME", str(tmp_path / "home"))


def test_init_writes_every_key_commented_out(capsys: pytest.CaptureFixture[str]) -> None:
    """The file changes nothing until a key is uncommented; then it is that key."""
    assert main(["config", "init"]) == 0
    assert "wrote zraft.toml" in capsys.readouterr().out
    path = Path("zraft.toml")
    text = path.read_text()
    for key in KEYS:
        assert f"\n#{key.partition('.')[2]} = " in text
    config, origins = load_config(None, {}, {})
    assert config == Config()
    assert set(origins.values()) == {"default"}
    path.write_text(text.replace("#heartbeat_ms = 50", "heartbeat_ms = 60"))
    assert main(["config", "validate", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["settings"] == {"timing.heartbeat_ms": 60}


@pytest.mark.parametrize("name", READY_MADE)
def test_ready_made_files_are_written_and_valid(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of configs/, word for word."""
    assert main(["config", "init", "--from", name, "mine.toml"]) == 0
    assert main(["config", "validate", "mine.toml"]) == 0
    assert "mine.toml is valid" in capsys.readouterr().err
    if name != "default":
        assert Path("mine.toml").read_text() == (CONFIGS / f"{name}.toml").read_text()
    assert set(READY_MADE) == {path.stem for path in CONFIGS.glob("*.toml")}


def test_init_replaces_nothing_unless_it_is_told_to(capsys: pytest.CaptureFixture[str]) -> None:
    """It may hold somebody's settings."""
    Path("zraft.toml").write_text("[timing]\nheartbeat_ms = 40\n")
    assert main(["config", "init"]) == 2
    assert "zraft.toml exists" in capsys.readouterr().err
    assert "heartbeat_ms = 40" in Path("zraft.toml").read_text()
    assert main(["config", "init", "--force"]) == 0
    assert "#heartbeat_ms = 50" in Path("zraft.toml").read_text()
    assert main(["config", "init", "--from", "clasroom"]) == 2
    assert "classroom" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[timing]\nheartbeet_ms = 50\n", "did you mean timing.heartbeat_ms"),
        ("[timing]\nheartbeat_ms = 140\n", "timing.heartbeat_ms"),
        ("[timing\n", "is not TOML"),
        ('[machine]\nname = "no_such_package.at_all:X"\n', "there is no module"),
        (None, "cannot be read"),
    ],
)
def test_validate_says_what_is_wrong(
    text: str | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 78, as `cluster up` would end; also for a state machine that can not be had."""
    if text is not None:
        Path("zraft.toml").write_text(text)
    assert main(["config", "validate"]) == 78
    assert words in capsys.readouterr().err
