"""The page of a service that demands keys: it asks for one, shows images, and forgets it."""

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from backend.app import open_keys
from backend.keys import Scope, make_key, revoke_key
from backend.settings import Settings
from tests.page.conftest import OpenPage
from tests.photos import write_photos
from tests.service import Service, start

PHOTOS = 4


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """It demands keys, and holds a few photos."""
    folder = tmp_path_factory.mktemp("locked")
    write_photos(folder / "photos", PHOTOS, start=30)
    flags = ("--require-api-key", "true", "--allowed-roots", str(folder))
    service = start(folder, flags, folder / "data")
    try:
        loaded = requests.post(
            f"{service.url}/img/load",
            json={"File": str(folder / "photos")},
            headers={"X-API-Key": _key(service, "write")},
            timeout=120,
        )
        assert loaded.status_code == 200
        yield service
    finally:
        service.stop()


def _key(service: Service, *scopes: Scope) -> str:
    async def make() -> str:
        async with open_keys(_settings(service)) as table:
            return (await make_key(table, scopes))[1]

    return _in_a_loop(make)


def _revoke(service: Service, key: str) -> None:
    async def revoke() -> str:
        async with open_keys(_settings(service)) as table:
            await revoke_key(table, key.split("_")[1])
        return ""

    _in_a_loop(revoke)


def _settings(service: Service) -> Settings:
    return Settings.load(data_dir=Path(service.log).parent / "data")


def _in_a_loop(work: Callable[[], Coroutine[Any, Any, str]]) -> str:
    # In a thread of its own: Playwright's loop runs in this one.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(work())).result()


def _enter(page: Page, key: str) -> None:
    dialog = page.get_by_role("dialog", name="This service needs a key")
    dialog.get_by_label("API key").fill(key)
    dialog.get_by_role("button", name="Go on").click()


def _see_photos(page: Page) -> None:
    """Waits for all photos' pixels."""
    expect(page.locator(".tile img")).to_have_count(PHOTOS)
    page.wait_for_function(
        "[...document.querySelectorAll('.tile img')]"
        ".every(image => image.complete && image.naturalWidth > 0)"
    )


def test_it_asks_for_a_key_once_shows_images_and_forgets_it_when_told(
    open_page: OpenPage, service: Service
) -> None:
    page = open_page("/?view=photos", base=service.url, wait=False)
    dialog = page.get_by_role("dialog", name="This service needs a key")
    expect(dialog).to_be_visible()
    assert Axe().run(page).violations_count == 0
    page.keyboard.press("Escape")
    expect(dialog).to_be_visible()  # there is nothing behind it
    _enter(page, f"isk_{'0' * 12}_{'A' * 43}")
    expect(dialog.get_by_role("alert")).to_contain_text("not known")
    key = _key(service, "read")
    _enter(page, key)
    expect(dialog).to_have_count(0)
    _see_photos(page)

    # No script can read what images are shown with, and no address holds the key.
    assert page.evaluate("document.cookie") == ""
    [cookie] = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/api/v1")
    assert key not in cookie["value"]
    assert key not in page.url
    assert page.evaluate("localStorage.length") == 0 or key not in page.evaluate(
        "JSON.stringify(localStorage)"
    )

    page.reload()
    _see_photos(page)
    expect(dialog).to_have_count(0)
    # Another tab is asked anew: the key is this tab's.
    other = page.context.new_page()
    other.goto(service.url)
    expect(other.get_by_role("dialog", name="This service needs a key")).to_be_visible()
    other.close()

    page.get_by_role("button", name="Forget the key").click()
    expect(page.get_by_role("dialog", name="This service needs a key")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0
    assert page.context.cookies() == []


def test_a_key_that_is_revoked_meanwhile_is_asked_for_again_and_what_was_begun_goes_on(
    open_page: OpenPage, service: Service
) -> None:
    page = open_page("/?view=photos", base=service.url, wait=False)
    key = _key(service, "read")
    _enter(page, key)
    expect(page.locator(".tile img")).to_have_count(PHOTOS)
    _revoke(service, key)
    page.wait_for_timeout(2500)
    page.get_by_role("link", name="Collections").click()
    expect(page.get_by_role("dialog", name="This service needs a key")).to_be_visible()
    _enter(page, _key(service, "read"))
    expect(page.get_by_role("heading", name="Collections")).to_be_visible()
    expect(page.locator(".collection")).to_have_count(1)


def test_a_key_that_may_only_read_is_told_so_when_it_changes_something(
    open_page: OpenPage, service: Service
) -> None:
    page = open_page("/?view=loads", base=service.url, wait=False)
    _enter(page, _key(service, "read"))
    page.get_by_label("Folder", exact=True).fill("/folder")
    page.get_by_role("button", name="Load", exact=True).click()
    expect(page.get_by_role("alert").filter(has_text="scope 'write'")).to_be_visible()


def test_a_page_of_another_site_can_neither_show_nor_change_anything(
    open_page: OpenPage, service: Service
) -> None:
    page = open_page("/?view=photos", base=service.url, wait=False)
    _enter(page, _key(service, "read", "write"))
    expect(page.locator(".tile img")).to_have_count(PHOTOS)
    mark = service.log.read_text()
    # In the same browser, with the session's cookie in it.
    foreign = page.context.new_page()
    foreign.route(
        "https://evil.example/**",
        lambda route: route.fulfill(content_type="text/html", body="<h1>Evil</h1>"),
    )
    # Or the browser itself keeps it from this machine: what the service does is looked at here.
    page.context.grant_permissions(["local-network-access"], origin="https://evil.example")
    foreign.goto("https://evil.example/")
    outcome = foreign.evaluate(
        """async (url) => {
            const image = await new Promise((resolve) => {
                const element = new Image();
                element.onload = () => resolve("shown");
                element.onerror = () => resolve("not shown");
                element.src = `${url}/api/v1/images/1/file`;
            });
            const ask = async (options) => {
                try {
                    return (await fetch(`${url}/api/v1/collections`, options)).type;
                } catch {
                    return "refused";
                }
            };
            return [
                image,
                await ask({ credentials: "include" }),
                await ask({ method: "DELETE", credentials: "include" }),
                await ask({ method: "POST", mode: "no-cors", body: "{}", credentials: "include" }),
            ];
        }""",
        service.url,
    )
    assert outcome == ["not shown", "refused", "refused", "opaque"]
    foreign.close()
    refused = re.findall(r"method=(\w+) .*status=403", service.log.read_text().removeprefix(mark))
    # Playwright, which makes up the foreign page, answers preflights itself.
    assert sorted(refused) == ["DELETE", "GET", "GET", "POST"]
