"""Searching with the page: by photo, object, several objects, frame; filters, pages, history."""

import re

import pytest
from playwright.sync_api import Page, Route, expect

from tests.page.conftest import PHONE, OpenPage, Site, hits, search_with
from tests.photos import draw_photo, encode

_PUT_PHOTO = """
async ([target, type, url]) => {
  const blob = await (await fetch(url)).blob();
  const transfer = new DataTransfer();
  transfer.items.add(new File([blob], "photo.jpg", { type: "image/jpeg" }));
  const init = { bubbles: true, cancelable: true };
  const event = type === "paste"
    ? new ClipboardEvent(type, { ...init, clipboardData: transfer })
    : new DragEvent(type, { ...init, dataTransfer: transfer });
  document.querySelector(target).dispatchEvent(event);
}
"""


_PUT_ADDRESS = """
([target, type, url]) => {
  const transfer = new DataTransfer();
  transfer.setData(type === "paste" ? "text/plain" : "text/uri-list", `${url}\\r\\n`);
  const init = { bubbles: true, cancelable: true };
  const event = type === "paste"
    ? new ClipboardEvent(type, { ...init, clipboardData: transfer })
    : new DragEvent(type, { ...init, dataTransfer: transfer });
  document.querySelector(target).dispatchEvent(event);
}
"""


def _outlines(page: Page) -> int:
    return page.locator(".query .outline").count()


def _file_url(site: Site) -> str:
    [image, *_] = site.call("GET", "/images", params={"limit": 1})["items"]
    return f"{site.url}/api/v1/images/{image['id']}/file"


def test_a_chosen_photo_shows_its_objects_and_finds_itself_first(
    open_page: OpenPage, site: Site
) -> None:
    page = open_page()
    search_with(page, site.query)
    assert hits(page)[0] == site.query.name
    assert _outlines(page) >= 2
    expect(page.locator(".query .tag").first).to_have_text(re.compile(r"^\w[\w ]* \d+\s%$"))
    first = page.locator(".results .tile").first
    expect(first.locator(".distance")).to_have_text(re.compile(r"0\.00\d$"))
    expect(first.locator(".match")).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Photos with a similar")


def test_a_click_on_an_object_searches_for_it_alone_and_back_returns(
    open_page: OpenPage, site: Site
) -> None:
    page = open_page()
    search_with(page, site.query)
    whole = page.url
    page.locator(".query .outline").nth(1).click(force=True)
    expect(page).to_have_url(re.compile(r"object=1\b"))
    expect(page.locator(".query .outline").nth(1)).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".query .outline").nth(0)).to_have_attribute("aria-pressed", "false")
    expect(page.locator(".results[aria-busy]")).to_have_count(0)
    page.go_back()
    expect(page).to_have_url(whole)
    expect(page.locator(".query .outline[aria-pressed=false]")).to_have_count(0)
    page.go_forward()
    expect(page.locator(".query .outline").nth(1)).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="All objects").click()
    expect(page.locator(".query .outline[aria-pressed=false]")).to_have_count(0)


def test_several_objects_are_matched_all_together_when_that_is_chosen(
    open_page: OpenPage, site: Site
) -> None:
    page = open_page()
    search_with(page, site.query)
    boxes = page.locator(".query .objects input")
    for index in range(2, boxes.count()):
        boxes.nth(index).uncheck()
        expect(page).to_have_url(re.compile("object=0&object=1"))
    page.get_by_role("radio", name="Match all").check()
    expect(page).to_have_url(re.compile("match=all"))
    expect(page.locator(".results .tile").first.locator(".match")).to_have_count(2)


def test_a_dragged_frame_is_searched_for(open_page: OpenPage, site: Site) -> None:
    page = open_page()
    search_with(page, site.query)
    box = page.locator(".query .stage").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + box["height"] * 0.2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.8, steps=5)
    page.mouse.up()
    expect(page).to_have_url(re.compile(r"region=(\d+)%2C(\d+)%2C(\d+)%2C(\d+)"))
    found = re.search(r"region=(\d+)%2C(\d+)%2C(\d+)%2C(\d+)", page.url)
    assert found is not None
    assert [int(each) for each in found.groups()] == pytest.approx([32, 48, 192, 192], abs=4)
    expect(page.get_by_role("heading", level=1)).to_have_text(
        "Photos with something like the frame"
    )
    expect(page.locator(".results .tile").first).to_be_visible()


def test_a_frame_is_moved_and_resized_by_keys_and_searched_for_with_enter(
    open_page: OpenPage, site: Site
) -> None:
    page = open_page()
    search_with(page, site.query)
    page.get_by_role("button", name="Frame", exact=True).click()
    frame = page.locator(".frame")
    expect(frame).to_be_focused()
    expect(frame).to_have_attribute(
        "aria-label", re.compile("Frame of 160 by 120 pixels at 80, 60")
    )
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Shift+ArrowLeft")
    expect(frame).to_have_attribute(
        "aria-label", re.compile("Frame of 154 by 120 pixels at 86, 65")
    )
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("region=86%2C65%2C240%2C185"))
    frame.press("Escape")
    expect(frame).to_be_hidden()


def test_a_finger_draws_a_frame_once_it_is_asked_for(open_page: OpenPage, site: Site) -> None:
    page = open_page("/", viewport=PHONE, has_touch=True, is_mobile=True)
    search_with(page, site.query)
    page.get_by_role("button", name="Frame", exact=True).tap()
    page.locator(".frame").press("Escape")
    stage = page.locator(".query .stage").bounding_box()
    assert stage is not None
    client = page.context.new_cdp_session(page)

    def touch(kind: str, x: float, y: float) -> None:
        points = (
            []
            if kind == "touchEnd"
            else [{"x": stage["x"] + stage["width"] * x, "y": stage["y"] + stage["height"] * y}]
        )
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 0.2, 0.2)
    touch("touchMove", 0.5, 0.5)
    touch("touchMove", 0.7, 0.8)
    touch("touchEnd", 0.7, 0.8)
    expect(page).to_have_url(re.compile("region="))


@pytest.mark.parametrize("how", ["paste", "drop"])
def test_a_photo_is_pasted_or_dropped(open_page: OpenPage, site: Site, how: str) -> None:
    page = open_page()
    page.evaluate(_PUT_PHOTO, ["main", how, _file_url(site)])
    expect(page.locator(".results .tile").first).to_be_visible()
    expect(page).to_have_url(re.compile("query=[0-9a-f]{64}"))


@pytest.mark.parametrize("how", ["paste", "drop"])
def test_an_address_is_pasted_or_dropped(open_page: OpenPage, site: Site, how: str) -> None:
    page = open_page()
    page.evaluate(_PUT_ADDRESS, ["main", how, _file_url(site)])
    expect(page.locator(".results .tile").first).to_be_visible()
    expect(page).to_have_url(re.compile("query=[0-9a-f]{64}"))


def test_the_same_photo_again_shows_its_results_again(open_page: OpenPage, site: Site) -> None:
    page = open_page()
    search_with(page, site.query)
    address = page.url
    search_with(page, site.query)
    assert page.url == address
    assert hits(page)[0] == site.query.name


def test_a_search_that_was_left_is_given_up(open_page: OpenPage, site: Site) -> None:
    page = open_page()
    unanswered: list[Route] = []
    page.route("**/api/v1/search*", lambda route: unanswered.append(route))
    page.get_by_label("Photo to search with").set_input_files(site.query)
    expect(page.locator(".dropzone.busy")).to_contain_text("Looking at the photo")
    views = page.get_by_role("navigation", name="Views")
    views.get_by_role("link", name="Photos").click()
    views.get_by_role("link", name="Search").click()
    expect(page.get_by_role("button", name="Choose a photo")).to_be_visible()
    expect(page.locator(".dropzone.busy")).to_have_count(0)
    assert len(unanswered) == 1


def test_what_has_failed_is_not_tried_again_where_nobody_sees_it(
    open_page: OpenPage, site: Site
) -> None:
    page = open_page()
    page.clock.install()
    asked: list[Route] = []

    def refuse(route: Route) -> None:
        asked.append(route)
        route.abort()

    page.route("**/api/v1/search*", refuse)
    page.get_by_label("Photo to search with").set_input_files(site.query)
    expect(page.get_by_role("alert")).to_contain_text("Asking again in")
    page.get_by_role("navigation", name="Views").get_by_role("link", name="Photos").click()
    expect(page.get_by_role("heading", level=1, name="Photos")).to_be_visible()
    page.clock.run_for(20_000)
    page.evaluate("dispatchEvent(new Event('online'))")
    expect(page.get_by_role("heading", level=1, name="Photos")).to_be_visible()
    assert "view=photos" in page.url
    assert len(asked) == 1


def test_a_refused_photo_leaves_the_results_before_it_one_step_back(
    open_page: OpenPage, site: Site
) -> None:
    page = open_page()
    search_with(page, site.query)
    results = page.url
    page.get_by_label("Photo to search with").set_input_files(
        {"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"these are notes"}
    )
    expect(page.get_by_role("alert")).to_contain_text("no image")
    assert "query=" not in page.url
    page.go_back()
    expect(page).to_have_url(results)
    expect(page.locator(".results .tile").first).to_be_visible()


def test_a_photo_is_fetched_by_its_address(open_page: OpenPage, site: Site) -> None:
    page = open_page()
    page.get_by_label("or the address of a photo").fill(_file_url(site))
    page.locator(".address").get_by_role("button", name="Search").click()
    expect(page.locator(".results .tile").first).to_be_visible()


def test_a_shared_address_shows_the_same(open_page: OpenPage, site: Site) -> None:
    page = open_page()
    search_with(page, site.query)
    page.locator(".query .outline").nth(1).click(force=True)
    expect(page).to_have_url(re.compile("object=1"))
    expect(page.locator(".results[aria-busy]")).to_have_count(0)
    other = open_page(page.url.removeprefix(site.url))
    expect(other.locator(".results .tile").first).to_be_visible()
    assert hits(other) == hits(page)
    expect(other.locator(".query .outline").nth(1)).to_have_attribute("aria-pressed", "true")
    expect(other.get_by_role("heading", level=1)).to_have_text(
        page.get_by_role("heading", level=1).inner_text()
    )


def test_labels_score_and_size_narrow_what_is_found(open_page: OpenPage, site: Site) -> None:
    page = open_page()
    search_with(page, site.query)
    chip = page.locator(".results .chips .chip").first
    label = chip.get_attribute("data-label")
    chip.click()
    expect(page).to_have_url(re.compile(f"label={label}"))
    expect(page.locator(".results .chip[aria-pressed=true]")).to_have_attribute(
        "data-label", str(label)
    )
    expect(page.locator(".results[aria-busy]")).to_have_count(0)
    captions = page.locator(".results .caption > :first-child").all_inner_texts()
    assert set(captions) == {label}
    page.get_by_label("Score").select_option("At least 90 % sure")
    expect(page).to_have_url(re.compile("min_score=0.9"))
    expect(page.get_by_role("heading", name="Nothing is left")).to_be_visible()
    page.get_by_role("button", name="Clear the filters").click()
    expect(page.locator(".results .tile").first).to_be_visible()
    page.get_by_label("Size").select_option("At least 50 % of the photo")
    expect(page).to_have_url(re.compile("min_area=0.5"))
    page.reload()
    expect(page.get_by_label("Size")).to_have_value("At least 50 % of the photo")


def test_more_hits_come_as_one_scrolls(open_page: OpenPage, site: Site) -> None:
    page = open_page("/?collection=many")
    search_with(page, site.query)
    for _ in range(40):
        page.mouse.wheel(0, 900)
        if "230 photos, the nearest first" in page.locator(".results header").inner_text():
            break
        page.wait_for_timeout(50)
    expect(page.locator(".results header")).to_contain_text("230 photos, the nearest first")
    page.locator(".results .tile").last.focus()
    page.keyboard.press("End")
    expect(page.locator(".results li[aria-posinset='230'] a")).to_be_focused()


def test_more_like_an_object_of_a_found_photo(open_page: OpenPage, site: Site) -> None:
    page = open_page()
    search_with(page, site.query)
    page.locator(".results .tile").nth(1).click()
    page.locator("dialog .objects a").first.click()
    expect(page).to_have_url(re.compile(r"like=\d+"))
    expect(page.locator("dialog[open]")).to_have_count(0)
    expect(page.locator(".results .tile").first).to_be_visible()
    expect(page.locator(".query .outline[aria-pressed=true]")).to_have_count(1)
    others = page.locator(".query .outline[aria-pressed=false]")
    if others.count() > 0:
        others.first.click(force=True)
        expect(page).to_have_url(re.compile(r"image=\d+&object=\d+"))
        expect(page.locator(".results .tile").first).to_be_visible()


def test_more_like_an_object_of_a_listed_photo_takes_the_focus_along(open_page: OpenPage) -> None:
    page = open_page("/?view=photos")
    page.locator(".tile").first.click()
    page.locator("dialog .objects a").first.click()
    expect(page.locator(".results .tile").first).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_be_focused()


def test_what_is_no_photo_is_refused_in_words_and_another_can_be_chosen(
    open_page: OpenPage, site: Site
) -> None:
    page = open_page()
    chooser = page.locator("input[type=file][aria-label='Photo to search with']")
    chooser.set_input_files(
        {"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"these are notes"}
    )
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("no image")
    expect(alert).not_to_contain_text("400")
    expect(alert.get_by_role("button", name="Try again")).to_be_visible()
    search_with(page, site.query)
    assert hits(page)[0] == site.query.name


def test_a_query_that_is_kept_no_more_says_what_to_do(open_page: OpenPage) -> None:
    page = open_page(f"/?query={'0' * 64}")
    expect(page.get_by_role("alert")).to_contain_text("send the photo again")
    page.get_by_role("link", name="Choose another photo").click()
    expect(page.get_by_role("heading", name="Find photos by what is in them")).to_be_visible()


def test_a_service_that_cannot_be_reached_is_asked_again(open_page: OpenPage, site: Site) -> None:
    page = open_page()
    search_with(page, site.query)
    page.context.set_offline(True)
    page.locator(".query .outline").nth(1).click(force=True)
    expect(page.get_by_role("alert")).to_contain_text("offline")
    page.context.set_offline(False)
    expect(page.locator(".results .tile").first).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_an_empty_collection_says_what_to_do(open_page: OpenPage, site: Site) -> None:
    site.call("POST", "/collections", json={"name": "nothing_here"})
    page = open_page("/?collection=nothing_here")
    expect(page.get_by_role("heading", name="No photos to search among yet")).to_be_visible()
    page.get_by_role("link", name="Add photos").click()
    expect(page.get_by_role("heading", level=1, name="Add photos")).to_be_visible()
    assert "collection=nothing_here" in page.url


def test_what_a_label_or_a_path_holds_is_text_and_nothing_else(
    open_page: OpenPage, site: Site
) -> None:
    name = "<img src=x onerror=alert(1)>.jpg"
    folder = site.folder / "markup"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(encode(draw_photo(4711)))
    site.load(folder, "markup")
    page = open_page("/?collection=markup&view=photos")
    page.locator(".tile").click()
    expect(page.locator("dialog h2")).to_have_text(name)
