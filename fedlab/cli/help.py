"""Help texts are shown exactly as they are written, without being read as markup."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

from typer.core import TyperArgument, TyperCommand, TyperOption


class Command(TyperCommand):
    """A command whose help shows brackets, as in ``[superlink.NAME]``, and the help of its arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        paragraphs = (self.help or "").split("\n\n")
        self.help = _literal("\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs))
        # some versions of click forget what typer has said of an argument
        written = get_type_hints(inspect.unwrap(self.callback), include_extras=True) if self.callback else {}
        for parameter in self.params:
            if isinstance(parameter, TyperArgument | TyperOption):
                hint = written.get(parameter.name or "")
                said = next((info.help for info in getattr(hint, "__metadata__", ()) if hasattr(info, "help")), None)
                parameter.help = _literal(parameter.help or said)


def _literal(text: str | None) -> str | None:
    """Rich, which prints the help, takes a word in brackets for markup."""
    return text and text.replace("[", r"\[")
