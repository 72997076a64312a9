"""What mkdocs does not do itself: pages from outside docs/, generated pages, links between them, GitHub's Markdown.

mkdocs calls the functions whose names begin with ``on_``; mkdocs.yml names this file.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import links
import notebooks
import reference
import sources
from markdown import Markdown
from markdown.extensions import Extension
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docker/README.md",
    "benchmarks/RESULTS.md",
    "benchmarks/NOTES.md",
)
PICTURES = (".png", ".svg", ".jpg")
MAPPED = ("clients", "server", "methods")  # folders that are imported below fedlab, see setup.py

_copied = tempfile.TemporaryDirectory(prefix="fedlab-site-")
_pages: dict[str, str] = {}
"""Place of a file or folder in the repository → its page, or its copy, on the site."""


@event_priority(50)  # before the plugins, which take their settings then
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the pages that mkdocs.yml leaves open, and read Markdown and Python as they are written here."""
    named = set(_named(config.nav))
    others = [page for page in sorted(path.name for path in Path(config.docs_dir).glob("*.md")) if page not in named]
    methods = [links.page_of(path) for path in _method_pages()]
    config.nav = _replaced(config.nav, {"OTHERS": others, "METHODS": methods})
    config.markdown_extensions.append(_ShortIndents())
    config.mdx_configs["toc"]["slugify"] = _github_anchor
    handlers = config.plugins["mkdocstrings"].config.handlers
    handlers["python"]["paths"] = [_package(Path(_copied.name))]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/, the generated ones, and one for each file that any of them links to."""
    notebook_files = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / links.NOTEBOOKS).glob("*.ipynb"))
    written = {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    written |= {path: (ROOT / path).read_text(encoding="utf-8") for path in [*OUTSIDE, *_method_pages()]}
    written |= {path: notebooks.page(ROOT / path) for path in notebook_files}
    _pages.clear()
    _pages.update({path: links.page_of(path) for path in written})
    _pages.update({f"docs/{file.src_uri}": file.src_uri for file in files})
    for path in notebook_files:
        copy = f"tutorial/{Path(path).name}"
        files.append(File.generated(config, copy, abs_src_path=str(ROOT / path)))
    for path, text in {**written}.items():
        for place in (links.place_of(path, target.partition("#")[0]) for target in links.targets(text)):
            if place in _pages or not (ROOT / place).exists() or Path(place).suffix == ".ipynb":
                continue
            if place.endswith(PICTURES):
                _pages[place] = place
                files.append(File.generated(config, place, abs_src_path=str(ROOT / place)))
            else:
                _pages[place] = links.source_page(place)
                written[place] = sources.page(ROOT, place)
    present = set(files.src_uris)
    made = {_pages[path]: text for path, text in written.items()} | reference.pages()
    for page, text in made.items():
        if page not in present:
            files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links into those of the site, and GitHub's Markdown into that of Python."""
    path = next((place for place, uri in _pages.items() if uri == page.file.src_uri), "")
    text = links.rewritten(markdown, path, _pages) if path else markdown
    if path.startswith(links.NOTEBOOKS):
        text = notebooks.with_download(text, Path(path).name)
    return _spaced(text)


def on_shutdown() -> None:
    """Remove the copy of the package."""
    _copied.cleanup()


def _method_pages() -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("methods/*/README.md"))


def _named(nav: Any) -> Iterator[str]:
    """The pages in a navigation."""
    for entry in nav if isinstance(nav, list) else nav.values() if isinstance(nav, dict) else []:
        yield from [entry] if isinstance(entry, str) else _named(entry)


def _replaced(nav: Any, lists: dict[str, list[str]]) -> Any:
    """A navigation in which each name of a list has become the list."""
    if isinstance(nav, dict):
        return {title: _replaced(entry, lists) for title, entry in nav.items()}
    if not isinstance(nav, list):
        return nav
    return [
        part
        for entry in nav
        for part in (lists.get(entry, [entry]) if isinstance(entry, str) else [_replaced(entry, lists)])
    ]


def _package(folder: Path) -> str:
    """A copy of the package as it is installed, which mkdocstrings reads without importing it."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "fedlab", folder / "fedlab", ignore=ignored, dirs_exist_ok=True)
    for name in MAPPED:
        shutil.copytree(ROOT / name, folder / "fedlab" / name, ignore=ignored, dirs_exist_ok=True)
    return str(folder)


class _ShortIndents(Extension):
    """Parts of a list item may be indented by two or three spaces, as on GitHub, and not by four only."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802  # the name that Markdown calls
        md.tab_length = 2


_ITEM = re.compile(r"([-*]|\d+\.) ")


def _spaced(markdown: str) -> str:
    """A blank line before each item that follows a paragraph, without which Python's Markdown sees no item."""
    lines, before, fenced, parted = list[str](), "", False, False
    for line in markdown.splitlines():
        fenced ^= line.lstrip().startswith("```")
        item = not fenced and _ITEM.match(line) is not None
        follows = before.strip() and not _ITEM.match(before)
        if item and follows and (parted or not before.startswith(" ")):
            lines.append("")
        # whether the text since the last item is in several blocks, the last of which would swallow this item
        parted = not item and (parted or not line.strip())
        lines.append(line)
        before = line
    return "\n".join(lines) + "\n"


def _github_anchor(title: str, separator: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
