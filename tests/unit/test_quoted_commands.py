"""Every `zraft …` that the pages and the help quote is one that the program understands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from zraft.cli.main import make_program
from zraft.cli.options import _EXAMPLES, UsageError
from zraft.errors import ControlError

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md"))
    if path.name != "CHANGELOG.md" and "adr" not in path.parts
)
ENDS = {"|", "&&", "||", ";", ">", ">>", "<", "&", "#", "·", "→"}
IN_LINE = re.compile(r"`(zraft [^`]+)`")
PROMPT = re.compile(r"^(\s+|)(\$ )?((?:ZRAFT_\w+=\S+ )*)(?:scripts/)?zraft (?=\S)")


class Quote(NamedTuple):
    """A command and where it stands. `whole`: it is a line of its own, ready to be typed."""

    place: str
    words: list[str]
    whole: bool


def quotes_of(path: Path) -> Iterator[Quote]:
    """Yield what a page quotes: lines of code blocks, and code within sentences."""
    fenced = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        place = f"{path.relative_to(ROOT)}:{number}"
        if line.startswith("```"):
            fenced = not fenced
        elif (fenced or line.startswith("    ")) and PROMPT.match(line):
            yield Quote(place, words_of(PROMPT.sub("", line)), whole=True)
        elif not fenced:
            for text in IN_LINE.findall(line):
                yield Quote(place, words_of(text.removeprefix("zraft ")), whole=False)


def words_of(text: str) -> list[str]:
    """Return the words of a command up to its comment, its pipe, or what it goes on with."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|;&<>")
    lexer.whitespace_split = True
    lexer.commenters = ""
    words = []
    for word in lexer:
        if word in ENDS or word.startswith("("):
            break
        words.append(word)
    return words


def check(quote: Quote) -> None:
    """Walk a command through the tree, as the program does, without running it."""
    command: Any = make_program()
    words = quote.words
    while True:
        context = command.context_class(command, info_name="zraft")
        options, words, _ = command.make_parser(context).parse_args(list(words))
        if not hasattr(command, "get_command") or not words:
            break
        below = command.get_command(context, words[0])
        assert below is not None, f"there is no command {words[0]}"
        command, words = below, words[1:]
    assert not words, f"too many arguments: {words}"
    missing = [
        parameter.name
        for parameter in command.params
        if parameter.param_type_name == "argument"
        and parameter.required
        and options.get(parameter.name) in {None, ()}
    ]
    if quote.whole:
        assert not missing, f"missing: {missing}"
        assert hasattr(command, "callback")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_on_pages_are_understood(path: Path) -> None:
    """Nouns, verbs, flags and the number of arguments."""
    refused = []
    for quote in quotes_of(path):
        if any("…" in word or word.startswith("<") for word in quote.words):
            continue
        try:
            check(quote)
        except (ControlError, UsageError, AssertionError) as error:
            refused.append(f"{quote.place}: {' '.join(quote.words)}: {error}")
    assert refused == []


def test_examples_in_the_help_are_understood() -> None:
    """Of every verb, as it prints them."""
    program = make_program()
    for name in program.list_commands(None):
        assert program.get_command(None, name) is not None  # importing it registers its examples
    for path, examples in _EXAMPLES.items():
        for example in examples:
            if example.startswith("zraft "):
                words = words_of(example.removeprefix("zraft "))
                check(Quote(f"the help of {path}", words, whole=True))


def test_what_is_no_command_is_noticed() -> None:
    """The check can fail: a wrong noun, verb, flag, and number of arguments."""
    for text in (
        "clsuter up",
        "cluster upp",
        "cluster up --nodse 3",
        "cluster up a b c",
        "kv put x",
        "kv get",
    ):
        with pytest.raises((ControlError, UsageError, AssertionError)):
            check(Quote("here", words_of(text), whole=True))
    check(Quote("here", words_of("kv put x 1 | cat && zraft nonsense"), whole=True))


def test_links_between_pages_lead_somewhere() -> None:
    """Every relative link of a page names a file or a directory."""
    dead = []
    for path in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
            if "://" not in target and not (path.parent / target).exists():
                dead.append(f"{path.relative_to(ROOT)}: {target}")
    assert dead == []


def test_pages_about_concepts_are_short_and_listed() -> None:
    """At most 40 lines each, with a command to type; the index names every page."""
    index = (ROOT / "docs/concepts/README.md").read_text(encoding="utf-8")
    for path in (ROOT / "docs/concepts").glob("*.md"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 40, path
        assert "    $ zraft " in text or path.name == "README.md", path
        assert f"({path.name})" in index or path.name == "README.md", path
