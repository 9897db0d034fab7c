"""The page for everybody: keyboard alone, screen readers, dark, phones, no strangers."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.engines.process import free_port
from tests.page.conftest import DESKTOP, PHONE, OpenPage, Site, search_with
from tests.photos import draw_photo, encode
from tests.service import launch

_MOST_BYTES = 150_000

Prepare = Callable[[Page, Site], None]


def _results(page: Page, site: Site) -> None:
    search_with(page, site.query)


def _frame(page: Page, site: Site) -> None:
    search_with(page, site.query)
    page.get_by_role("button", name="Frame", exact=True).click()


def _object(page: Page, site: Site) -> None:
    search_with(page, site.query)
    page.locator(".query .outline").nth(1).click(force=True)
    expect(page).to_have_url(re.compile("object=1"))
    expect(page.locator(".results[aria-busy]")).to_have_count(0)


def _detail(page: Page, _site: Site) -> None:
    page.locator(".tile").first.click()
    expect(page.locator("dialog .objects a").first).to_be_visible()


def _failed_detail(page: Page, _site: Site) -> None:
    page.locator(".tile.failed").first.click()
    expect(page.locator(".stage.unseen")).to_contain_text("cannot be shown")


def _undo(page: Page, site: Site) -> None:
    site.upload("axe_undo", encode(draw_photo(610)))
    page.reload()
    page.locator(".tile").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Undo").focus()


def _loads(page: Page, _site: Site) -> None:
    page.locator(".load summary:visible").first.click()
    expect(page.locator(".failures li").first).to_be_visible()


def _collections(page: Page, _site: Site) -> None:
    page.locator(".collection.current summary").click()
    expect(page.locator(".bars a").first).to_be_visible()


def _drop(page: Page, _site: Site) -> None:
    page.get_by_role("button", name="Drop many").click()


def _error(page: Page, _site: Site) -> None:
    expect(page.get_by_role("alert")).to_be_visible()


def _nothing(_page: Page, _site: Site) -> None:
    pass


STATES: dict[str, tuple[str, Prepare]] = {
    "start": ("/", _nothing),
    "results": ("/", _results),
    "object": ("/", _object),
    "frame": ("/", _frame),
    "photos": ("/?view=photos", _nothing),
    "failed": ("/?view=photos&state=failed", _nothing),
    "detail": ("/?view=photos", _detail),
    "failed detail": ("/?view=photos&state=failed", _failed_detail),
    "undo": ("/?view=photos&collection=axe_undo", _undo),
    "loads": ("/?view=loads", _loads),
    "collections": ("/?view=collections", _collections),
    "drop": ("/?view=collections", _drop),
    "error": ("/?image=999999", _error),
    "empty": ("/?view=photos&collection=not_there", _nothing),
}
LOOKS = {"light": DESKTOP, "dark": DESKTOP, "phone": PHONE, "dark phone": PHONE}


@pytest.mark.parametrize("state", STATES)
def test_axe_finds_nothing_and_nothing_is_cut_off(
    open_page: OpenPage, site: Site, state: str
) -> None:
    path, prepare = STATES[state]
    page = open_page(path)
    prepare(page, site)
    page.wait_for_load_state("networkidle")
    for look, size in LOOKS.items():
        page.set_viewport_size(size)
        page.emulate_media(
            color_scheme="dark" if "dark" in look else "light", reduced_motion="reduce"
        )
        found = Axe().run(page)
        assert found.violations_count == 0, f"{look}: {found.generate_report()}"
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{look}: the page is wider than its window by {wide} px"


def test_the_keyboard_alone_searches_opens_and_closes(open_page: OpenPage, site: Site) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent") == "Choose a photo":
                page.keyboard.press("Enter")
                break
    chooser.value.set_files(site.query)
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    page.keyboard.press("Shift+Tab")
    for _ in range(30):
        if page.evaluate("document.activeElement.classList.contains('outline')"):
            break
        page.keyboard.press("Shift+Tab")
    expect(page.locator(".query .outline:focus")).to_have_count(1)
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("object="))
    expect(page.locator(".results[aria-busy]")).to_have_count(0)
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('tile')"):
            break
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    assert page.evaluate("document.querySelector('dialog').contains(document.activeElement)")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert page.evaluate("document.activeElement.classList.contains('tile')")


def test_screen_readers_are_told_what_was_found(open_page: OpenPage, site: Site) -> None:
    page = open_page()
    search_with(page, site.query)
    expect(page.get_by_role("status").filter(has_text="Photos with a similar")).to_have_count(1)
    expect(page.get_by_role("banner")).to_have_count(1)
    expect(page.get_by_role("main")).to_have_count(1)
    expect(page.get_by_role("navigation", name="Views")).to_have_count(1)
    expect(page).to_have_title(re.compile("Photos with a similar .* · Image similarity search"))


def test_the_switch_makes_the_page_dark_and_is_remembered(open_page: OpenPage) -> None:
    page = open_page()

    def ground() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light = ground()
    page.get_by_role("button", name="Dark colors").click()
    dark = ground()
    assert dark != light
    page.reload()
    expect(page.get_by_role("button", name="Light colors")).to_be_visible()
    assert ground() == dark


def test_a_dark_system_gets_a_dark_page(open_page: OpenPage) -> None:
    page = open_page("/", color_scheme="dark")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert all(int(part) < 60 for part in re.findall(r"\d+", ground)[:3])


def test_a_service_that_waits_for_an_engine_says_so_and_is_asked_again(
    open_page: OpenPage, tmp_path: Path
) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    service = launch(tmp_path, ("--triton-url", nobody), tmp_path / "data")
    try:
        service.wait_until_listening(60)
        page = open_page("/", base=service.url)
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text(re.compile("triton", re.IGNORECASE))
        expect(alert).to_contain_text("Asking again in")
        with page.expect_request("**/api/v1/info"):
            alert.get_by_role("button", name="Try again").click()
    finally:
        service.kill()


def test_the_page_weighs_little_and_is_asked_for_once(open_page: OpenPage, site: Site) -> None:
    page = open_page()
    page.wait_for_load_state("networkidle")
    files = page.evaluate(
        """["navigation", "resource"]
          .flatMap((type) => performance.getEntriesByType(type))
          .filter((entry) => !entry.name.includes("/api/"))
          .map((entry) => [entry.name, entry.encodedBodySize])"""
    )
    names = {Path(name).name for name, _ in files}
    assert {"app.js", "style.css", "search.js"} <= names
    assert 0 < sum(size for _, size in files) < _MOST_BYTES


def test_nothing_in_the_page_leads_to_another_origin(site: Site) -> None:
    index = requests.get(site.url, timeout=30).text
    for name in re.findall(r"page/[\w.]+", index):
        text = requests.get(f"{site.url}/{name}", timeout=30).text
        assert set(re.findall(r"https?://[\w.]+", text)) <= {"http://www.w3.org"}, name
