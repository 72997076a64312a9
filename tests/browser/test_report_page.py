from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedlab.report import write_report
from fedlab.report.compared import Compared, Side
from fedlab.report.record import RunRecord
from tests.conftest import charts

pytestmark = pytest.mark.browser

LONG = "a_client_name_without_any_place_to_break_it_that_goes_on_and_on_" * 2
TRACEBACK = "ClientError: client 3 failed in round 3\n" + '  File "/very/long/path' + "/and/on" * 40 + '", line 1\n'


@pytest.fixture(scope="session")
def pages(make_run: Callable[..., Path]) -> dict[str, Path]:
    names = [f"client-{i:02}" for i in range(57)]
    made = {
        "whole": make_run(warnings=("a warning " * 30,)),
        "failed": make_run(rounds=2, planned=8, end="failed", error=TRACEBACK, command=f"fedlab run {LONG}"),
        "many": make_run(clients=names, domains=["photo", "art", "sketch"] * 19, rounds=12, planned=12),
        "hostile": make_run(
            clients=(
                "<script>document.title = 'taken'</script>",
                LONG,
                "<img src=x onerror=\"document.title='taken'\">",
            ),
            classes=(LONG, "b", "c"),
            title=LONG,
        ),
        "bare": make_run(rounds=0, end=None, pictures=False),
    }
    with charts(drawn=True):
        written = {name: write_report(path) for name, path in made.items()}
        written["compared"] = made["whole"].with_name("compared.html")
        written["compared"].write_text(compared(made["whole"], made["failed"]), encoding="utf-8")
        return written


def compared(*paths: Path) -> str:
    """The page of a comparison of a dozen runs whose curves end where those of others do."""
    records = [RunRecord.open(path) for path in paths]
    sides = [Side(letter, f"strategy=fedprox-{letter}", {0: records[i % 2]}) for i, letter in enumerate("ABCDEFGHIJKL")]
    letters = [side.letter for side in sides]
    rows = [["", LONG, *letters], *([letter, *letters, LONG] for letter in letters)]
    return Compared(sides, ("accuracy",), rows, rows, rows, [LONG]).page()


NAMES = ("whole", "failed", "many", "hostile", "bare", "compared")


@pytest.mark.parametrize("name", NAMES)
def test_the_page_loads_alone_and_without_complaint(browser: Any, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name])
    assert browser.console() == []
    assert browser.requests() == [pages[name].as_uri()]
    assert browser.js("return document.title") != "taken"
    undecoded = "return [...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).length"
    assert browser.js(undecoded) == 0


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_sticks_out_sideways(browser: Any, pages: dict[str, Path], name: str, width: int) -> None:
    browser.open(pages[name], width=width)
    browser.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.js("return document.documentElement.scrollWidth") <= width
    outside = """return [...document.querySelectorAll('main *')].filter(e => {
        const box = e.getBoundingClientRect();
        return !e.closest('.scroll, pre, .hidden') && box.width > 0 && (box.left < 0 || box.right > innerWidth + 1);
    }).map(e => e.tagName + ' ' + e.textContent.trim().slice(0, 40))"""
    assert browser.js(outside) == []


@pytest.mark.parametrize("width", [390, 1280])
def test_no_chart_is_clipped_by_its_card(browser: Any, pages: dict[str, Path], width: int) -> None:
    for name in NAMES:
        browser.open(pages[name], width=width)
        clipped = """return [...document.querySelectorAll('svg.chart')].flatMap(svg => {
            const card = svg.closest('.card').getBoundingClientRect();
            return [...svg.querySelectorAll('text')].filter(text => {
                const box = text.getBoundingClientRect();
                return box.left < card.left || box.right > card.right || box.top < card.top || box.bottom > card.bottom;
            }).map(text => text.textContent);
        })"""
        assert browser.js(clipped) == []


@pytest.mark.parametrize("width", [390, 1280])
def test_the_labels_of_lines_do_not_overlap(browser: Any, pages: dict[str, Path], width: int) -> None:
    for name in ("whole", "many", "compared"):
        browser.open(pages[name], width=width)
        overlaps = """return [...document.querySelectorAll('#curves svg.chart')].flatMap(svg => {
            const found = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
            const meet = (a, b) => a.left < b.right && b.left < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom;
            return found.flatMap(([one, a], i) =>
                found.slice(i + 1).filter(([_, b]) => meet(a, b)).map(([two]) => one + ' × ' + two));
        })"""
        assert browser.js(overlaps) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_part_is_seen_in_light_and_in_dark(browser: Any, pages: dict[str, Path], scheme: str) -> None:
    browser.open(pages["whole"], scheme=scheme)
    for part in ("results", "curves", "partition", "pictures", "communication", "time", "warnings", "repeat"):
        height = browser.js("return document.getElementById(arguments[0]).getBoundingClientRect().height", part)
        assert height > 60, part
    for part, count in (("curves", 5), ("partition", 1), ("communication", 2), ("time", 1)):
        tall = "return [...document.querySelectorAll('#' + arguments[0] + ' svg')].filter(s => s.clientHeight > 100)"
        assert len(browser.js(tall, part)) == count, part
    dark = browser.js("return getComputedStyle(document.body).backgroundColor").startswith("rgb(15,")
    assert dark == (scheme == "dark")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser: Any, pages: dict[str, Path], scheme: str) -> None:
    browser.open(pages["failed"], scheme=scheme)
    contrasts = """
    const rgb = color => color.match(/[\\d.]+/g).map(Number);
    const light = color => { const [r, g, b] = rgb(color).map(v => v / 255)
        .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126*r + .7152*g + .0722*b; };
    const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
        if (rgb(c)[3] !== 0) return c; } return 'rgb(255, 255, 255)'; };
    return [...document.querySelectorAll('main p, main th, main td, main dd, main dt, h1, h2, h3, a, pre, .chart text')]
        .filter(e => e.getBoundingClientRect().width > 0)
        .map(e => { const s = getComputedStyle(e);
            const [a, b] = [light(e.closest('svg') ? s.fill : s.color), light(ground(e))];
            return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.textContent.trim().slice(0, 30)]; })
        .filter(([ratio]) => ratio < 4.5);"""
    assert browser.js(contrasts) == []


def test_the_page_prints_light_whatever_the_screen(browser: Any, pages: dict[str, Path]) -> None:
    browser.open(pages["whole"], scheme="dark")
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    assert browser.js("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.js("return getComputedStyle(document.querySelector('.chart text')).fill") == "rgb(84, 93, 105)"
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_the_keyboard_reaches_links_tables_and_details(browser: Any, pages: dict[str, Path]) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(pages["many"])
    reached = []
    for _ in range(40):
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(browser.js("return document.activeElement.tagName + '.' + document.activeElement.className"))
    assert reached[0] == "A.skip"
    assert {"A.", "DIV.scroll", "SUMMARY.", "PRE."} <= set(reached)
    browser.js("document.querySelector('summary').focus()")
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.js("return document.querySelector('details').open")
