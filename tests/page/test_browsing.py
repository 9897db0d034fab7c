"""Photos of a collection: the grid that holds any number, details, deleting and undoing."""

import re

from playwright.sync_api import Route, expect

from tests.page.conftest import BROKEN, MANY, PHOTOS, OpenPage, Site
from tests.photos import draw_photo, encode


def test_a_collections_photos_are_listed_with_their_number(open_page: OpenPage) -> None:
    page = open_page("/?view=photos")
    expect(page.get_by_role("link", name=f"{PHOTOS} indexed")).to_be_visible()
    expect(page.locator(".grid li").first.locator("img")).to_have_attribute(
        "alt", re.compile(r"^photo 00\d\d\.jpg$")
    )


def test_photos_that_failed_are_listed_with_their_reasons(open_page: OpenPage) -> None:
    page = open_page("/?view=photos")
    page.get_by_role("link", name=f"{BROKEN} failed").click()
    expect(page).to_have_url(re.compile("state=failed"))
    tiles = page.locator(".tile.failed")
    expect(tiles).to_have_count(BROKEN)
    names = tiles.locator("strong").all_inner_texts()
    assert sorted(names) == [f"broken {number}.jpg" for number in range(BROKEN)]
    expect(tiles.first).to_contain_text("no image")
    tiles.first.click()
    expect(page.locator("dialog")).to_contain_text("It is not indexed")


def test_a_label_shows_only_photos_that_hold_it(open_page: OpenPage) -> None:
    page = open_page("/?view=photos")
    chip = page.locator(".browse .chip").first
    label = chip.get_attribute("data-label")
    chip.click()
    expect(page).to_have_url(re.compile(f"label={label}"))
    expect(page.locator(".chip[aria-pressed=true]")).to_have_count(1)
    expect(page.locator(".browse[aria-busy]")).to_have_count(0)
    page.locator(".tile").first.click()
    expect(page.locator("dialog .objects")).to_contain_text(str(label))


def test_only_rows_near_the_viewport_are_in_the_document(open_page: OpenPage) -> None:
    page = open_page("/?view=photos&collection=many")
    items = page.locator(".grid li")
    expect(items.first).to_be_visible()
    assert items.count() < MANY / 2
    page.locator(".tile").first.focus()
    seen = set()
    for _ in range(60):
        seen.update(items.evaluate_all("all => all.map(each => each.ariaPosInSet)"))
        assert items.count() < MANY / 2
        if len(seen) == MANY:
            break
        page.mouse.wheel(0, 400)
        page.wait_for_timeout(40)
    assert seen == {str(number) for number in range(1, MANY + 1)}
    order = items.evaluate_all("all => all.map(each => Number(each.ariaPosInSet))")
    assert order == sorted(order)


def test_arrow_keys_move_through_the_grid(open_page: OpenPage) -> None:
    page = open_page("/?view=photos&collection=many")
    page.locator(".tile").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("li[aria-posinset='2'] a")).to_be_focused()
    page.keyboard.press("ArrowDown")
    row = page.evaluate("document.activeElement.closest('li').ariaPosInSet")
    assert int(row) > 4
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Home")
    expect(page.locator("li[aria-posinset='1'] a")).to_be_focused()


def test_a_photos_details_open_step_on_and_close_where_they_began(
    open_page: OpenPage, site: Site
) -> None:
    page = open_page("/?view=photos")
    third, fourth = (
        str(page.locator(f"li[aria-posinset='{place}'] img").get_attribute("alt"))
        for place in (3, 4)
    )
    page.locator("li[aria-posinset='3'] a").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("heading", name=third)).to_be_visible()
    expect(dialog).to_contain_text(str(site.folder / "photos" / third))
    expect(dialog).to_contain_text("320 \u00d7 240 pixels")
    expect(dialog.locator(".stage .outline").first).to_be_visible()
    address = page.url
    expect(dialog.get_by_role("status")).to_contain_text(third)
    page.keyboard.press("ArrowRight")
    expect(dialog.get_by_role("heading", name=fourth)).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert "photo=" not in page.url
    expect(page.locator("li[aria-posinset='4'] a")).to_be_focused()
    shared = open_page(address.removeprefix(site.url))
    expect(shared.get_by_role("heading", name=third)).to_be_visible()
    shared.get_by_role("button", name="Close").click()
    expect(shared.get_by_role("dialog")).to_be_hidden()


def test_closing_twice_at_once_goes_back_once(open_page: OpenPage) -> None:
    page = open_page("/?view=collections")
    page.get_by_role("navigation", name="Views").get_by_role("link", name="Photos").click()
    page.locator(".tile").first.click()
    close = page.get_by_role("dialog").get_by_role("button", name="Close")
    close.evaluate("button => { button.click(); button.click(); }")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page).to_have_url(re.compile(r"\?view=photos$"))


def test_the_details_step_on_beyond_what_is_listed_yet(open_page: OpenPage, site: Site) -> None:
    listed = {"collection": "many", "limit": 200}
    first = site.call("GET", "/images", params=listed)
    second = site.call("GET", "/images", params=listed | {"cursor": first["next_cursor"]})
    page = open_page("/?view=photos&collection=many")
    expect(page.locator(".tile").first).to_be_visible()
    page.evaluate(
        """id => {
          const link = document.createElement("a");
          link.href = `?view=photos&collection=many&photo=${id}`;
          document.body.append(link);
          link.click();
        }""",
        first["items"][-1]["id"],
    )
    page.get_by_role("dialog").get_by_role("button", name="Next photo").click()
    expect(page).to_have_url(re.compile(f"photo={second['items'][0]['id']}$"))


def test_a_list_that_comes_too_late_is_not_shown(open_page: OpenPage) -> None:
    page = open_page("/?view=photos")
    tile = page.locator(".grid li").first
    expect(tile).to_have_attribute("aria-setsize", str(PHOTOS))
    late: list[Route] = []
    narrowed = re.compile(r"/images\?.*label=")
    page.route(narrowed, lambda route: late.append(route))
    with page.expect_request(narrowed):
        page.locator(".browse .chip[aria-pressed]").last.click()
    page.go_back()
    expect(page.locator(".chip[aria-pressed=true]")).to_have_count(0)
    for route in late:
        route.continue_()
    expect(page.locator(".browse[aria-busy]")).to_have_count(0)
    expect(tile).to_have_attribute("aria-setsize", str(PHOTOS))


def test_back_closes_a_photo_and_keeps_the_place(open_page: OpenPage) -> None:
    page = open_page("/?view=photos&collection=many")
    expect(page.locator(".tile").first).to_be_visible()
    page.mouse.wheel(0, 700)
    while page.evaluate("scrollY") < 600:
        page.wait_for_timeout(20)
    before = page.evaluate("scrollY")
    tile = page.locator(".grid li").nth(page.locator(".grid li").count() // 2).locator("a")
    tile.dispatch_event("click")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert abs(page.evaluate("scrollY") - before) < 400


def test_near_duplicates_are_shown_in_the_details(open_page: OpenPage, site: Site) -> None:
    photo = draw_photo(500, width=400, height=300)
    first, _ = site.upload("twins", encode(photo), encode(photo, ".png"))
    page = open_page(f"/?view=photos&collection=twins&photo={first}")
    section = page.locator("dialog .duplicates")
    expect(section.get_by_role("heading", name="1 near-duplicate")).to_be_visible()
    section.get_by_role("link").click()
    expect(page).not_to_have_url(re.compile(f"photo={first}$"))
    expect(page.get_by_role("dialog")).to_be_visible()


def test_a_deletion_is_sent_only_when_the_time_to_undo_it_is_over(
    open_page: OpenPage, site: Site
) -> None:
    ids = site.upload("bin", encode(draw_photo(601)), encode(draw_photo(602)))
    page = open_page(f"/?view=photos&collection=bin&photo={ids[0]}")
    page.clock.install()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator(".grid li")).to_have_count(1)
    expect(page.locator(".toast")).to_contain_text("is being deleted")
    page.clock.run_for(4000)
    assert len(site.call("GET", "/images", params={"collection": "bin"})["items"]) == 2
    with page.expect_response(lambda response: response.request.method == "DELETE") as answer:
        page.clock.run_for(2000)
    assert answer.value.status == 204
    [left] = site.call("GET", "/images", params={"collection": "bin"})["items"]
    assert left["id"] == ids[1]


def test_undo_keeps_the_photo(open_page: OpenPage, site: Site) -> None:
    [photo] = site.upload("undone", encode(draw_photo(603)))
    page = open_page("/?view=photos&collection=undone")
    page.locator(".tile").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".grid li")).to_have_count(1)
    expect(page.locator(".toast")).to_contain_text("stays")
    expect(page.locator("#spoken")).to_contain_text("stays")
    [left] = site.call("GET", "/images", params={"collection": "undone"})["items"]
    assert left["id"] == photo


def test_control_z_takes_back_one_deletion_after_the_other(open_page: OpenPage, site: Site) -> None:
    site.upload("taken_back", encode(draw_photo(604)), encode(draw_photo(605)))
    page = open_page("/?view=photos&collection=taken_back")
    page.clock.install()
    for left in (1, 0):
        page.locator(".tile").first.click()
        expect(page.get_by_role("dialog").get_by_role("button", name="Delete")).to_be_visible()
        page.keyboard.press("Delete")
        expect(page.locator(".grid li")).to_have_count(left)
    for there in (1, 2):
        page.keyboard.press("Control+z")
        expect(page.locator(".grid li")).to_have_count(there)
    page.clock.run_for(10_000)
    assert len(site.call("GET", "/images", params={"collection": "taken_back"})["items"]) == 2
