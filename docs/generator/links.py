"""Links between files of the repository as links between pages of the site.

A page of the site is made from a file of the repository, which on another server is read where it lies. So a file links
to others by their places in the repository. On the site, pages of docs/ lie at the top, and all other files where they
lie in the repository; files that are no pages of their own have one that shows their text.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping

DOCS, SOURCES, NOTEBOOKS = "docs/", "source/", "examples/notebooks/"

_FENCE = re.compile(r"^( *)(```+).*?^\1\2$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?P<code>`+)(?:(?!(?P=code)).)+(?P=code)|(?<=\])\((?P<target>[^)\s]+)\)", re.DOTALL)


def page_of(path: str) -> str:
    """The page of a file that is one: ``docs/gpu.md`` → ``gpu.md``.

    Args:
        path: the file, from the top of the repository.
    """
    if path == "README.md":  # beside docs/index.md there is room for one start page only
        return "readme.md"
    if path.startswith(NOTEBOOKS):
        return f"tutorial/{posixpath.basename(path).removesuffix('.ipynb')}.md"
    return path.removeprefix(DOCS)


def source_page(path: str) -> str:
    """The page that shows the text of a file, or what is in a folder."""
    return f"{SOURCES}{path}.md"


def targets(markdown: str) -> Iterator[str]:
    """What a page links to, without its code and without links to other servers."""
    for prose in _FENCE.sub("", markdown).split("\n\n"):
        for found in _LINK.finditer(prose):
            target = found["target"]
            if target and "://" not in target and not target.startswith(("#", "mailto:")):
                yield target


def place_of(path: str, target: str) -> str:
    """The file or folder that a link leads to, from the top of the repository.

    Args:
        path: the file that has the link.
        target: as it is written there, without an anchor.
    """
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), target))


def rewritten(markdown: str, path: str, pages: Mapping[str, str]) -> str:
    """A page's text with its links turned into those of the site.

    Args:
        markdown: the text.
        path: the file it comes from, from the top of the repository.
        pages: place of a file or folder in the repository → its page on the site. What is not in it stays as it is, so
            that mkdocs reports it.
    """
    here = posixpath.dirname(pages[path])

    def link(found: re.Match[str]) -> str:
        target = found["target"]
        if not target or "://" in target or target.startswith(("#", "mailto:")):
            return found[0]
        place, hash_mark, anchor = target.partition("#")
        page = pages.get(place_of(path, place))
        return found[0] if page is None else f"({posixpath.relpath(page, here or '.')}{hash_mark}{anchor})"

    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_LINK.sub(link, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(link, markdown[end:])])
