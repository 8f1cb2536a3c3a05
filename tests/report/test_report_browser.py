"""The page in a real headless Chromium, without any network: drawn, silent, readable, and still."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_populations import make_population
from report_runs import BOLD, EVIL, gpu_line, played_run, write_metrics, write_record

from hpcrl.pbt.history import best_of, read_past
from hpcrl.report.chart import names_seconds
from hpcrl.report.page import in_script
from hpcrl.report.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium (make test-system)"),
]
LIGHT, DARK = "rgb(255, 255, 255)", "rgb(23, 27, 33)"


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    """Of symbols whose names would do harm, with the figures of a GPU."""
    run = played_run(tmp_path_factory.mktemp("run"), symbols=(EVIL, BOLD, "CCC"))
    write_metrics(run, [gpu_line(epoch) for epoch in range(1, 5)])
    return write_report(run, draws=4).path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        found = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Seen:
    """A page that is open, and all that it said and asked for."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        size = options.pop("viewport", {"width": 1280, "height": 900})
        self.context = browser.new_context(offline=True, viewport=size, **options)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.context.on("page", lambda other: self.asked.append(f"opened {other.url}"))
        self.page.goto(file.as_uri())
        self.ready()

    def ready(self) -> None:
        self.page.wait_for_selector("html[data-ready=yes]", timeout=60_000)

    def __enter__(self) -> Seen:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        asked, said = [url for url in self.asked if not url.startswith(("file:", "blob:"))], self.said
        self.context.close()
        if kind is None:
            assert said == [] and asked == []


PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("options", [{}, PHONE], ids=["desk", "phone"])
def test_every_chart_is_drawn_in_the_systems_colours_without_a_word_or_a_request(
    browser, page_file, theme, options
):
    assert page_file.stat().st_size < 10e6
    with Seen(browser, page_file, color_scheme=theme, **options) as seen:
        page = seen.page
        boxes = page.locator(".plot:visible")
        assert boxes.count() >= 20
        for box in boxes.all():
            key = box.get_attribute("data-chart")
            marks = box.locator(".scatterlayer .js-line, .scatterlayer .point, .barlayer .point path").count()
            assert marks > 0, key
            assert box.bounding_box()["width"] > 250, key
        ground = page.locator("section").first.evaluate("box => getComputedStyle(box).backgroundColor")
        assert ground == (DARK if theme == "dark" else LIGHT)
        line = page.locator('[data-chart=equity] .js-line[style*="2.4px"]').first.get_attribute("style")
        assert ("rgb(111, 177, 255)" in line) == (theme == "dark")
        # Not innerWidth: on a phone it grows with a page that is too wide.
        width = options.get("viewport", {"width": 1280})["width"]
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_populations_charts_are_drawn(browser, tmp_path):
    population = make_population(tmp_path, "pbt.members=4", generations=5)
    write_record(population.folder(0), tmp_path / "no.h5")
    write_metrics(population.folder(0), [gpu_line(1), gpu_line(2)])
    best = best_of(read_past(population)).member
    shutil.copy(population.folder(0) / "metrics.jsonl", population.folder(best))
    shutil.copy(population.folder(0) / "config.json", population.folder(best))
    with Seen(browser, write_report(population.path).path, color_scheme="dark") as seen:
        for key in ("pbt-objective", "pbt-lineage", "pbt-learn-lr", "pbt-learn-gamma"):
            assert seen.page.locator(f"[data-chart={key}] .scatterlayer .js-line").count() >= 4, key


def test_no_text_leaves_its_box_on_a_phone(browser, page_file):
    """Beside what scrolls by itself nothing reaches beyond 390 pixels."""
    with Seen(browser, page_file, **PHONE) as seen:
        over = seen.page.evaluate(
            """() => [...document.querySelectorAll("main *, header *, footer *")]
                .filter((one) => !one.closest(".table-box, nav, pre, svg, .skip, .plot"))
                .filter((one) => one.getBoundingClientRect().right > 390.5)
                .map((one) => one.outerHTML.slice(0, 80))"""
        )
        assert over == []


def test_names_that_would_do_harm_are_shown_as_they_are(browser, page_file):
    with Seen(browser, page_file) as seen:
        page = seen.page
        assert page.evaluate("window.boom === undefined")
        assert page.locator("table:visible", has_text=EVIL).count() >= 1
        assert page.locator("#symbol option").all_inner_texts() == [EVIL, BOLD, "CCC"]
        page.select_option("#symbol", index=1)
        assert page.locator("#trade-charts figure:visible h3").inner_text() == f"Trades of {BOLD}"
        page.wait_for_selector('[data-chart="trades-1"] .scatterlayer .js-line')
        assert page.locator("#trade-charts figure:visible").count() == 1
        assert page.locator("main b, main img").count() == 0


def test_the_readers_theme_goes_before_the_systems_and_is_kept(browser, page_file):
    with Seen(browser, page_file, color_scheme="dark") as seen:
        page, button = seen.page, seen.page.locator("#theme")
        assert button.inner_text() == "Theme: as the system"
        button.focus()
        page.keyboard.press("Enter")
        assert button.inner_text() == "Theme: light"
        seen.ready()
        ground = "document.querySelector('section')"
        assert page.evaluate(f"getComputedStyle({ground}).backgroundColor") == LIGHT
        line = page.locator('[data-chart=equity] .js-line[style*="2.4px"]').first
        assert "rgb(31, 95, 168)" in line.get_attribute("style")
        page.reload()
        seen.ready()
        assert button.inner_text() == "Theme: light"


def test_zooming_tells_finer_times_and_the_hand_over_a_line_its_bar(browser, page_file):
    with Seen(browser, page_file) as seen:
        page = seen.page
        from playwright.sync_api import expect

        box = page.locator("[data-chart=equity]")
        box.scroll_into_view_if_needed()
        place = box.bounding_box()
        labels = box.locator(".xtick text")
        before = labels.all_text_contents()
        x, y = place["x"] + place["width"] / 2, place["y"] + 180
        page.mouse.move(x, y)
        title = box.locator(".hoverlayer .legendtitletext")
        title.wait_for(timeout=5000)
        assert title.text_content().startswith("20") and ":" in title.text_content()
        page.mouse.down()
        page.mouse.move(x + 120, y + 10, steps=4)
        page.mouse.up()
        expect(labels.first).not_to_have_text(before[0])
        after = labels.all_text_contents()
        assert after != before and all(":" in text for text in after)


def test_bars_of_seconds_each_have_a_place_of_their_own(browser, page_file, tmp_path):
    """The page's clock, told in steps of 5 seconds."""
    html = page_file.read_text()
    shared = json.loads(re.search(r'<script[^>]* id="shared"[^>]*>(.*?)</script>', html, re.DOTALL)[1])
    bars = sum(count for _, _, count in shared["clock"])
    clock = [[1_700_000_000, 5, bars]]
    told = in_script(shared | {"clock": clock, "seconds": names_seconds(clock)})
    other = tmp_path / "page.html"
    other.write_text(html.replace(in_script(shared), told))
    for file, ends in ((page_file, r"\d \d\d:\d\d"), (other, r"\d \d\d:\d\d:\d[05]")):
        with Seen(browser, file) as seen:
            names = seen.page.evaluate(
                "document.querySelector('[data-chart=equity]').layout.xaxis.categoryarray"
            )
            assert len(names) == len(set(names)) == bars
            assert all(re.fullmatch(rf"\d{{4}}-\d\d-\d{ends}", name) for name in names)


def test_no_button_of_a_chart_leads_out_of_the_page(browser, page_file):
    """Plotly's own choice of buttons holds one that opens a cloud's page with the data."""
    with Seen(browser, page_file) as seen:
        page = seen.page
        box = page.locator("[data-chart=equity]")
        box.hover()
        titles = [
            button.get_attribute("data-title") or button.get_attribute("aria-label") or ""
            for button in box.locator(".modebar-btn").all()
        ]
        assert 5 <= len(titles) <= 6
        assert not any(
            word in title.lower() for title in titles for word in ("cloud", "studio", "share", "plotly")
        )


def test_a_finger_that_moves_over_a_chart_scrolls_the_page(browser, page_file):
    with Seen(browser, page_file, **PHONE) as seen:
        page = seen.page
        layout = page.evaluate("document.querySelector('[data-chart=equity]').layout.dragmode")
        assert layout is False
        assert page.locator(".modebar-btn").count() == 0


def test_the_keyboard_reaches_all_that_can_be_operated(browser, page_file):
    with Seen(browser, page_file) as seen:
        page = seen.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        reached = set()
        for _ in range(40):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
        assert {"symbol", "table-box"} <= reached


def test_it_prints_in_light_colours_all_of_it(browser, page_file, tmp_path):
    with Seen(browser, page_file, color_scheme="dark") as seen:
        printed = seen.page.pdf(path=str(tmp_path / "page.pdf"), format="A4", print_background=True)
        assert printed[:5] == b"%PDF-" and printed.count(b"/Type /Page\n") >= 4
        seen.ready()
        assert seen.page.evaluate("document.documentElement.dataset.theme === undefined")
