"""Collections on the page: made, looked into, chosen, and dropped by those who mean it."""

import re

import requests
from playwright.sync_api import expect

from tests.page.conftest import PHOTOS, OpenPage, Site
from tests.photos import draw_photo, encode


def test_a_collection_is_made_and_chosen(open_page: OpenPage) -> None:
    page = open_page("/?view=collections")
    page.get_by_label("New collection").fill("holidays")
    page.get_by_role("button", name="Create").click()
    card = page.locator(".collection[data-name=holidays]")
    expect(card).to_contain_text("0 photos")
    card.get_by_role("link", name="Use holidays").click()
    expect(page).to_have_url(re.compile("collection=holidays"))
    expect(page.get_by_label("Collection", exact=True)).to_have_value("holidays")
    expect(card.locator(".badge")).to_have_text("In use")


def test_a_collection_tells_what_is_in_it(open_page: OpenPage) -> None:
    page = open_page("/?view=collections")
    card = page.locator(".collection.current")
    expect(card).to_contain_text(f"{PHOTOS} photos")
    expect(card).to_contain_text("resnet50-small, 512 dimensions")
    card.get_by_text("What is in it").click()
    bar = card.locator(".bars a").first
    expect(bar).to_be_visible()
    bar.click()
    expect(page).to_have_url(re.compile("view=photos.*label="))
    expect(page.locator(".tile").first).to_be_visible()


def test_a_collection_is_dropped_only_when_its_name_is_typed(
    open_page: OpenPage, site: Site
) -> None:
    site.upload("doomed", encode(draw_photo(700)))
    page = open_page("/?view=collections&collection=doomed")
    page.get_by_role("button", name="Drop doomed").click()
    dialog = page.get_by_role("dialog", name=re.compile("Drop .doomed."))
    drop = dialog.get_by_role("button", name="Drop it")
    expect(dialog.get_by_label("to confirm")).to_be_focused()
    dialog.get_by_label("to confirm").fill("Doomed")
    expect(drop).to_be_disabled()
    page.keyboard.press("Enter")
    dialog.get_by_role("button", name="Keep it").click()
    expect(dialog).to_be_hidden()
    page.get_by_role("button", name="Drop doomed").click()
    dialog.get_by_label("to confirm").fill("doomed")
    drop.click()
    expect(dialog).to_be_hidden()
    expect(page.locator(".collection[data-name=doomed]")).to_have_count(0)
    assert requests.get(f"{site.url}/api/v1/collections/doomed", timeout=30).status_code == 404


def test_back_leaves_the_question_whether_to_drop(open_page: OpenPage) -> None:
    page = open_page("/?view=photos")
    page.get_by_role("navigation", name="Views").get_by_role("link", name="Collections").click()
    page.get_by_role("button", name="Drop many").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("heading", level=1, name="Photos")).to_be_visible()
    expect(page.locator("dialog.confirm")).to_have_count(0)
    expect(page.locator("body > #toasts")).to_have_count(1)


def test_the_picker_chooses_for_every_view(open_page: OpenPage) -> None:
    page = open_page("/?view=photos")
    page.get_by_label("Collection", exact=True).select_option("many")
    expect(page).to_have_url(re.compile("view=photos&collection=many"))
    expect(page.get_by_role("link", name="230 indexed")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("link", name=f"{PHOTOS} indexed")).to_be_visible()
