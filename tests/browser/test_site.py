"""The documentation site in a browser, opened from the disk: nothing is missing, and the search finds pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.docs.built_site import build
from tests.waiting import until

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("site"))


@pytest.mark.parametrize(
    "page", ["index.html", "reference/fedlab.html", "tutorial/first_run.html", "methods/moon/index.html"]
)
def test_a_page_needs_nothing_but_its_own_files(browser: Any, site: Path, page: str) -> None:
    browser.open(site / page)
    assert all(url.startswith(("file:", "about:", "blob:")) for url in browser.requests())
    assert browser.console() == []
    assert browser.js("return document.documentElement.scrollWidth <= window.innerWidth")


def test_the_search_works_on_files(browser: Any, site: Path) -> None:
    browser.open(site / "index.html")
    browser.js("document.querySelector('[data-md-component=search-query]').focus()")
    browser.driver.switch_to.active_element.send_keys("scaffold")
    links = "return [...document.querySelectorAll('.md-search-result__link')].map(link => link.href)"
    until(lambda: browser.js(links))
    assert any("algorithms.html" in link for link in browser.js(links))
    assert browser.console() == []
