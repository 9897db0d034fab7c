"""A service that has enough to do: the page says so, waits, and goes on by itself."""

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import expect

from tests.overload import busy
from tests.page.conftest import OpenPage
from tests.photos import draw_photo, encode, write_photos
from tests.service import Service


def test_a_search_and_an_upload_wait_until_there_is_room_for_them(
    open_page: OpenPage, start_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = start_service("--max-queued", "1")
    photo = {"image": ("a.jpg", encode(draw_photo(3)))}
    assert service.post("/img/upload", files=photo).status_code == 200
    photos = write_photos(tmp_path / "photos", 2, start=7000)
    for path in photos:
        # More than goes out before the answer comes.
        path.write_bytes(path.read_bytes() + bytes(6_000_000))
    with busy(service) as begin:
        first = begin()
        search = open_page("/", base=service.url)
        search.get_by_label("Photo to search with").set_input_files(photos[0])
        panel = search.get_by_role("alert")
        expect(panel).to_contain_text("Busy just now")
        expect(panel).to_contain_text("as much to do as it can")
        expect(panel).to_contain_text("Asking again in")
        upload = open_page("/?view=loads", base=service.url)
        upload.get_by_label("Photos of this device").set_input_files(photos)
        card = upload.locator(".load", has_text="2 photos from this device")
        expect(card).to_contain_text("as much to do as it can at the moment. It goes on by itself.")
        expect(search.get_by_role("alert")).to_contain_text("Asking again in")
    assert first.result().status_code == 200
    expect(card.locator(".state")).to_have_text("Done")
    expect(card).to_contain_text("2 added")
    search.bring_to_front()
    expect(search.locator(".results .tile").first).to_be_visible()
    expect(search.get_by_role("alert")).to_have_count(0)
