"""`python -m scripts.screenshots`: pictures of the page's main states.

Starts a service of its own, loads photos, opens the page in Chromium and writes PNG files.
`python -m benchmarks.page` measures how fast the page is.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import requests
from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from scripts.screenshots.scenes import write_scenes
from tests.service import REPOSITORY, Service, start

_OUTPUT: Final = REPOSITORY / "docs" / "screenshots"
_SCENES: Final = 60
_DESKTOP: Final = ViewportSize(width=1280, height=800)
_PHONE: Final = ViewportSize(width=390, height=760)
_SETTLED_MS: Final = 500
_TIMEOUT: Final = 600


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.screenshots", description=__doc__)
    parser.add_argument("--photos", type=Path, help="a folder of photos instead of drawn ones")
    parser.add_argument("--output", type=Path, default=_OUTPUT, help="default: docs/screenshots")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser to use")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photos = options.photos or folder / "photos"
        if options.photos is None:
            write_scenes(photos, _SCENES)
        with _service(folder, photos) as service, sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=options.chromium, args=["--no-sandbox"]
            )
            _take(browser, service.url, _telling(service), options.output)
            browser.close()


@contextmanager
def _service(folder: Path, photos: Path) -> Iterator[Service]:
    service = start(folder, (), folder / "data")
    try:
        load = service.post("/api/v1/loads", json={"folder": str(photos)}).json()
        # The stream of events ends with the load.
        requests.get(f"{service.url}/api/v1/loads/{load['id']}/events", timeout=_TIMEOUT)
        yield service
    finally:
        service.stop()


def _telling(service: Service) -> Path:
    """The photo to search with: of two kinds of objects, as certain as can be."""
    photos = service.get("/api/v1/images", params={"limit": 500}).json()["items"]
    details = [service.get(f"/api/v1/images/{photo['id']}").json() for photo in photos]

    def rank(photo: Any) -> tuple[int, float]:
        objects = photo["objects"]
        kinds = len({each["label"] for each in objects})
        return min(kinds, 2), min(each["score"] for each in objects)

    return Path(max(details, key=rank)["path"])


def _take(browser: Browser, url: str, query: Path, output: Path) -> None:
    def shoot(page: Page, name: str) -> None:
        page.mouse.move(1, 1)
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(_SETTLED_MS)
        path = output / f"{name}.png"
        page.screenshot(path=path)
        # 256 colors of its own show a page as well as all colors do, at a third of the size.
        Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")

    def search(page: Page) -> None:
        page.goto(url)
        page.get_by_label("Photo to search with").set_input_files(query)
        page.locator(".results .tile").first.wait_for()

    context = browser.new_context(viewport=_DESKTOP)
    page = context.new_page()
    page.goto(url)
    page.locator(".samples .tile").first.wait_for()
    shoot(page, "start")
    search(page)
    shoot(page, "results")
    page.locator(".results .tile").nth(1).click()
    page.locator("dialog .objects a").first.wait_for()
    shoot(page, "detail")
    for view in ("loads", "collections"):
        page.goto(f"{url}/?view={view}")
        if view == "collections":
            page.locator(".collection summary").first.click()
            page.locator(".bars a").first.wait_for()
        shoot(page, view)
    context.close()

    context = browser.new_context(viewport=_DESKTOP, color_scheme="dark")
    page = context.new_page()
    search(page)
    shoot(page, "dark")
    context.close()

    context = browser.new_context(
        viewport=_PHONE, device_scale_factor=2, is_mobile=True, has_touch=True
    )
    page = context.new_page()
    search(page)
    shoot(page, "phone")
    context.close()


if __name__ == "__main__":
    main()
