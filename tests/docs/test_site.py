"""The documentation site: it builds without warnings, its links hold, and its reference is that of the code."""

from __future__ import annotations

import html
import importlib.util
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import click
import pytest
import typer.main

import fedlab
import fedlab.method
from fedlab.cli.describe import reference
from fedlab.cli.main import app
from fedlab.config import Config
from fedlab.registry import KINDS
from tests.docs.built_site import build

ROOT = Path(__file__).resolve().parents[2]


def generator(name: str) -> ModuleType:
    """A module of docs/generator, which is no package."""
    spec = importlib.util.spec_from_file_location(f"site_{name}", ROOT / "docs" / "generator" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LINKS, NOTEBOOKS, SOURCES = generator("links"), generator("notebooks"), generator("sources")
PAGES = {
    "docs/gpu.md": "gpu.md",
    "docs/tutorial/a.md": "tutorial/a.md",
    "README.md": "readme.md",
    "methods/moon/README.md": "methods/moon/README.md",
    "methods/vhl/README.md": "methods/vhl/README.md",
    "server/loop.py": "source/server/loop.py.md",
}


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("docs/gpu.md", "[a](../README.md#try-it)", "[a](readme.md#try-it)"),
        ("docs/tutorial/a.md", "[a](../gpu.md) [b](../../README.md)", "[a](../gpu.md) [b](../readme.md)"),
        ("README.md", "[`gpu`](docs/gpu.md), [x](server/loop.py)", "[`gpu`](gpu.md), [x](source/server/loop.py.md)"),
        ("methods/moon/README.md", "[a](../vhl/README.md)", "[a](../vhl/README.md)"),
        ("methods/moon/README.md", "[a](../../docs/gpu.md)", "[a](../../gpu.md)"),
        ("README.md", "[a](https://x.org) [b](#here) [c](nowhere.md)", "[a](https://x.org) [b](#here) [c](nowhere.md)"),
        ("README.md", 'code `net["m"](docs/gpu.md)`', 'code `net["m"](docs/gpu.md)`'),
        ("README.md", '```python\nnet["m"](docs/gpu.md)\n```\n', '```python\nnet["m"](docs/gpu.md)\n```\n'),
    ],
)
def test_links_are_those_of_the_site(path: str, text: str, expected: str) -> None:
    assert LINKS.rewritten(text, path, PAGES) == expected


def test_targets_are_the_links_into_the_repository() -> None:
    text = "[a](b.md#c) `x[1](no.md)` [d](https://x.org)\n\n```sh\n[e](no.md)\n```\n\n[f](#g) ![h](i.png)\n"
    assert list(LINKS.targets(text)) == ["b.md#c", "i.png"]


def test_a_notebook_becomes_texts_code_and_what_it_prints(tmp_path: Path) -> None:
    path = tmp_path / "x.ipynb"
    path.write_text(
        '{"cells": [{"cell_type": "markdown", "source": ["# Title\\n", "text"]}, {"cell_type": "code", "source": '
        '["print(1)"], "outputs": [{"output_type": "stream", "name": "stdout", "text": ["1\\n"]}]}]}'
    )
    page = NOTEBOOKS.page(path)
    assert page == "# Title\ntext\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n"
    assert NOTEBOOKS.with_download(page, "x.ipynb").startswith(
        "# Title\n\n*This page is a notebook: [download it](x.ipynb)"
    )


def test_a_file_and_a_folder_have_pages(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.py").write_text('"""Does b.\n\nMore."""\nx = "```"\n')
    (tmp_path / "a" / "c.yaml").write_text("k: 1\n")
    assert SOURCES.page(tmp_path, "a") == "# a/\n\n- `b.py`: Does b.\n- `c.yaml`\n"
    assert SOURCES.page(tmp_path, "a/c.yaml") == "# a/c.yaml\n\n```yaml\nk: 1\n```\n"
    assert "````python\n" in SOURCES.page(tmp_path, "a/b.py")


def commands(command: click.Command, *words: str) -> Iterator[tuple[str, click.Command]]:
    yield " ".join(words), command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, *words, name)


class Page(HTMLParser):
    """What a page of the site links to, what can be linked to in it, what it loads, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links, self.anchors, self.loaded = set[str](), set[str](), set[str]()
        self.words: list[str] = []
        self._inside: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.anchors.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        if tag in ("script", "img", "iframe") and "src" in given:
            self.loaded.add(given["src"])
        if tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.add(given["href"])
        if tag in ("script", "style", "pre", "code"):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._inside):
            self.words.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {path.relative_to(site).as_posix(): Page(path) for path in sorted(site.rglob("*.html"))}


@pytest.mark.programs
@pytest.mark.timeout(0)  # reading the whole package takes as long as it takes
class TestTheBuiltSite:
    def test_every_link_leads_to_a_page_and_a_place_on_it(self, site: Path, pages: dict[str, Page]) -> None:
        wrong = []
        for name, page in pages.items():
            for link in page.links:
                parts = urlsplit(link)
                if parts.scheme or parts.netloc or name == "404.html":
                    continue
                place = (site / name).parent / unquote(parts.path) if parts.path else site / name
                place = place / "index.html" if place.is_dir() else place
                target = pages.get(place.resolve().relative_to(site.resolve()).as_posix())
                anchor = unquote(parts.fragment)
                if not place.is_file() or (anchor and target is not None and anchor not in target.anchors):
                    wrong.append(f"{name}: {link}")
        assert wrong == []
        assert sum(len(page.links) for page in pages.values()) > 1000

    def test_nothing_is_loaded_from_another_server(self, site: Path, pages: dict[str, Page]) -> None:
        assert {place for page in pages.values() for place in page.loaded if urlsplit(place).netloc} == set()
        for style in site.rglob("*.css"):
            assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style

    def test_no_markdown_is_left_over(self, site: Path) -> None:
        for path in site.rglob("*.html"):
            for text in re.findall(r"<p>(.*?)</p>", path.read_text(encoding="utf-8"), re.DOTALL):
                assert not re.search(r"^(\||[-*] |\d+\. |```|#+ |::: )", text, re.MULTILINE), f"{path}: {text}"

    def test_every_document_and_notebook_has_a_page(self, pages: dict[str, Page]) -> None:
        for path in (*(ROOT / "docs").rglob("*.md"), *ROOT.glob("methods/*/README.md")):
            place = path.relative_to(ROOT).as_posix().removeprefix("docs/")
            assert place.removesuffix(".md").replace("README", "index") + ".html" in pages, path
        for path in ROOT.glob("examples/notebooks/*.ipynb"):
            assert path.name in pages[f"tutorial/{path.stem}.html"].links

    def test_the_reference_of_commands_is_that_of_the_help(self, pages: dict[str, Page]) -> None:
        page = pages["reference/cli.html"]
        assert sys.prefix not in page.text  # nothing of the machine on which the site is built
        for words, command in commands(typer.main.get_command(app), "fedlab"):
            assert f"{words} " in page.text
            for parameter in command.params:
                if isinstance(parameter, click.Option):
                    assert all(name in page.text for name in parameter.opts)
                said = getattr(parameter, "help", None) or ""
                assert " ".join(said.replace("\\[", "[").replace("`", "").split()) in page.text, (words, parameter.name)

    def test_the_reference_of_keys_is_that_of_the_configuration(self, pages: dict[str, Page]) -> None:
        page = pages["reference/configuration.html"]
        for key, kind, default, meaning in reference(Config):
            line = f"{key}: {kind}" + (f" · default {default}" if default else "")
            assert " ".join(f"{line} · {meaning.replace('`', '')}".split()) in page.text

    def test_every_component_has_an_entry(self, pages: dict[str, Page]) -> None:
        page = pages["reference/components.html"]
        for kind in KINDS:
            for name in kind.registry.names():
                assert f"{name} ({kind.key.rpartition('.')[2]})" in page.text

    def test_every_public_name_is_documented(self, pages: dict[str, Page]) -> None:
        assert {f"fedlab.{name}" for name in fedlab.__all__} <= pages["reference/fedlab.html"].anchors
        assert {f"fedlab.method.{name}" for name in fedlab.method.__all__} <= pages["reference/method.html"].anchors
        text = pages["reference/fedlab.html"].text
        assert "Run a federation and write its run folder." in text
        assert "a built-in method's name, a YAML file" in html.unescape(text)
