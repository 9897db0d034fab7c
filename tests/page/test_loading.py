"""Photos in, by the page: folders with live progress, files of the browser, what fails and why."""

import re
import time
from pathlib import Path

from playwright.sync_api import expect

from tests.engines.process import free_port
from tests.page.conftest import OpenPage, Site
from tests.photos import write_photos
from tests.service import start


def test_a_folder_is_loaded_with_live_progress_and_its_failures(
    open_page: OpenPage, site: Site, tmp_path: Path
) -> None:
    write_photos(tmp_path / "album", 60, start=3000)
    (tmp_path / "album" / "damaged.jpg").write_bytes(b"no photo")
    page = open_page("/?view=loads&collection=album")
    page.evaluate(
        """() => {
          window.seen = new Set();
          window.words = [];
          new MutationObserver(() => {
            window.words.push(document.querySelector(".load")?.textContent ?? "");
            const bar = document.querySelector(".load [role=progressbar]");
            if (bar) window.seen.add(bar.ariaValueNow);
          }).observe(document.querySelector(".loads"), {
            subtree: true, childList: true, attributes: true,
          });
        }"""
    )
    page.get_by_label("Folder", exact=True).fill(str(tmp_path / "album"))
    page.get_by_role("button", name="Load", exact=True).click()
    card = page.locator(".load", has_text=str(tmp_path / "album"))
    expect(card.locator(".state")).to_have_text("Done", timeout=60_000)
    seen = [int(part) for part in page.evaluate("[...window.seen]")]
    assert any(0 < part < 100 for part in seen), "the bar has jumped to its end"
    words = page.evaluate("window.words")
    assert any(re.search(r"[\d.]+ a second", each) for each in words), "no rate was shown"
    assert any(re.search(r"(\d+ \w+|a second) left", each) for each in words), (
        "no time left was shown"
    )
    expect(card).to_contain_text("61 of 61 photos")
    expect(card).to_contain_text("60 added")
    card.get_by_text("1 photo failed").click()
    expect(card.locator(".failures li")).to_contain_text("damaged.jpg")
    expect(card.locator(".failures li")).to_contain_text("no image")
    page.reload()
    expect(page.locator(".load", has_text=str(tmp_path / "album"))).to_contain_text("60 added")
    page.get_by_role("navigation", name="Views").get_by_role("link", name="Photos").click()
    expect(page.get_by_role("link", name="60 indexed")).to_be_visible()


def test_a_load_is_cancelled_and_resumed(open_page: OpenPage, site: Site, tmp_path: Path) -> None:
    write_photos(tmp_path / "long", 150, start=4000)
    page = open_page("/?view=loads&collection=long")
    page.get_by_label("Folder", exact=True).fill(str(tmp_path / "long"))
    page.get_by_role("button", name="Load", exact=True).click()
    card = page.locator(".load", has_text=str(tmp_path / "long"))
    card.get_by_role("button", name="Cancel").click()
    expect(card.locator(".state")).to_have_text("Cancelled")
    card.get_by_role("button", name="Resume").click()
    expect(card.locator(".state")).to_have_text("Done", timeout=60_000)
    expect(card).to_contain_text("150 of 150 photos")


def test_a_folder_that_is_none_is_refused_in_words(open_page: OpenPage) -> None:
    page = open_page("/?view=loads")
    page.get_by_label("Folder", exact=True).fill("/no/such/folder")
    page.get_by_role("button", name="Load", exact=True).click()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("/no/such/folder")
    expect(alert).not_to_contain_text(re.compile(r"\b400\b"))


def test_files_are_sent_a_few_at_a_time_and_what_is_refused_is_listed(
    open_page: OpenPage, site: Site, tmp_path: Path
) -> None:
    photos = write_photos(tmp_path, 20, start=5000)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo")
    page = open_page("/?view=loads&collection=sent")
    requests: list[str] = []
    page.on("request", lambda each: requests.append(each.url) if each.method == "POST" else None)
    page.get_by_label("Photos of this device").set_input_files([*photos, broken])
    card = page.locator(".load", has_text="21 photos from this device")
    expect(card.locator(".state")).to_have_text("Done", timeout=60_000)
    expect(card).to_contain_text("20 added")
    card.get_by_text("1 photo failed").click()
    expect(card.locator(".failures li")).to_contain_text("broken.jpg")
    assert len([url for url in requests if "/images?" in url]) == 3
    page.get_by_label("Photos of this device").set_input_files(photos[:2])
    again = page.locator(".load", has_text="2 photos from this device")
    expect(again).to_contain_text("2 were there before")


def test_a_folder_of_this_device_is_sent_with_all_that_is_below_it(
    open_page: OpenPage, tmp_path: Path
) -> None:
    write_photos(tmp_path / "album", 2, start=5100)
    write_photos(tmp_path / "album" / "below", 2, start=5200)
    page = open_page("/?view=loads&collection=album_sent")
    page.get_by_label("A folder of this device").set_input_files(tmp_path / "album")
    card = page.locator(".load", has_text="4 photos from this device")
    expect(card).to_contain_text("4 added", timeout=60_000)


def test_an_upload_goes_on_after_the_service_was_out_of_reach_without_what_has_gone_meanwhile(
    open_page: OpenPage, tmp_path: Path
) -> None:
    photos = write_photos(tmp_path, 3, start=6000)
    page = open_page("/?view=loads&collection=patient")
    page.context.set_offline(True)
    page.get_by_label("Photos of this device").set_input_files(photos)
    card = page.locator(".load", has_text="3 photos from this device")
    expect(card).to_contain_text("It goes on by itself")
    photos[1].unlink()
    page.context.set_offline(False)
    expect(card.locator(".state")).to_have_text("Done")
    expect(card).to_contain_text("2 added")
    card.get_by_text("1 photo failed").click()
    expect(card.locator(".failures li")).to_contain_text(photos[1].name)
    expect(card.locator(".failures li")).to_contain_text("cannot read it")


def test_a_folder_that_is_dropped_on_photos_is_added_with_all_below(
    open_page: OpenPage, tmp_path: Path
) -> None:
    write_photos(tmp_path / "trip", 2, start=6100)
    write_photos(tmp_path / "trip" / "day 2", 1, start=6102)
    (tmp_path / "trip" / "notes.txt").write_text("no photo", "utf-8")
    page = open_page("/?view=photos&collection=dropped")
    page.evaluate(
        """() => {
          window.accepted = 0;
          addEventListener("dragover", (event) => { window.accepted += event.defaultPrevented; });
        }"""
    )
    client = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(tmp_path / "trip")], "dragOperationsMask": 1}

    def drag(kind: str) -> None:
        client.send("Input.dispatchDragEvent", {"type": kind, "x": 600, "y": 400, "data": data})

    drag("dragEnter")
    # As a hand that moves on: Chromium lets a drop go by that comes before the page's answer, and
    # now and then a move that does.
    end = time.monotonic() + 30
    while page.evaluate("window.accepted") < 3:
        assert time.monotonic() < end
        drag("dragOver")
        page.wait_for_timeout(50)
    expect(page.locator(".veil")).to_have_text("Drop the photos to add them")
    drag("drop")
    expect(page).to_have_url(re.compile("view=loads"))
    card = page.locator(".load", has_text="3 photos from this device")
    expect(card.locator(".state")).to_have_text("Done")
    expect(card).to_contain_text("3 added")
    expect(page.locator(".toast")).to_have_text("1 file is no photo: not sent.")


def test_a_load_is_followed_over_a_restart_and_reasons_of_the_one_before_are_found(
    open_page: OpenPage, tmp_path: Path
) -> None:
    write_photos(tmp_path / "first", 1, start=7000)
    (tmp_path / "first" / "damaged.jpg").write_bytes(b"no photo")
    write_photos(tmp_path / "album", 60, start=7001)
    flags = ("--port", str(free_port()))
    service = start(tmp_path, flags, tmp_path / "data")
    try:
        service.load(tmp_path / "first")
        page = open_page("/?view=loads", base=service.url)
        page.get_by_label("Folder", exact=True).fill(str(tmp_path / "album"))
        page.get_by_role("button", name="Load", exact=True).click()
        card = page.locator(".load", has_text=str(tmp_path / "album"))
        expect(card).to_contain_text(re.compile(r"[1-9]\d* added"))
        service.kill()
        expect(card).to_contain_text("The service does not answer: it is asked again")
        service = start(tmp_path, flags, tmp_path / "data")
        expect(card.locator(".state")).to_have_text("Done", timeout=60_000)
        expect(card).to_contain_text("60 of 60 photos")
        first = page.locator(".load", has_text=str(tmp_path / "first"))
        page.reload()
        first.get_by_text("1 photo failed").click()
        expect(first.locator(".failures")).to_contain_text("damaged.jpg")
    finally:
        service.kill()
