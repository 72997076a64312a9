"""What the help prints is what was written."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

import click
import pytest
import typer.main

from fedlab.cli.main import app

Cli = Callable[..., Any]


def commands(group: click.Command, *words: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, group
    if isinstance(group, click.Group):
        for name, command in group.commands.items():
            yield from commands(command, *words, name)


COMMANDS = {" ".join(words): command for words, command in commands(typer.main.get_command(app))}


def printed(cli: Cli, words: str) -> str:
    done = cli(*words.split(), "--help")
    assert done.exit_code == 0, done.output
    return " ".join(done.stdout.replace("│", " ").split())


def test_all_commands_are_walked() -> None:
    assert {"", "run", "submit", "config", "config check", "list"} <= set(COMMANDS)


@pytest.mark.parametrize("words", COMMANDS)
def test_every_word_of_a_help_text_is_printed(cli: Cli, words: str) -> None:
    text = printed(cli, words)
    callback = COMMANDS[words].callback
    if callback is None:
        return
    function = inspect.unwrap(callback)
    assert " ".join((inspect.getdoc(function) or "").split()) in text
    for hint in get_type_hints(function, include_extras=True).values():
        for info in getattr(hint, "__metadata__", ()):
            assert info.help, f"an argument or option of {words!r} that nothing is said of"
            assert " ".join(info.help.split()) in text


def test_brackets_of_a_help_text_stay(cli: Cli) -> None:
    assert "[superlink.NAME]" in printed(cli, "submit")
