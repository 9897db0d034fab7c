"""The page in a real browser, Debian's Chromium, before a real service with photos in it."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

from tests.engines.process import missing_engine
from tests.photos import draw_photo, encode, write_photos
from tests.service import FETCHES_FROM_HERE, REPOSITORY, Service, start

PHOTOS = 36
BROKEN = 2
MANY = 230
"""More than a page of the list holds."""

DESKTOP = ViewportSize(width=1280, height=800)
PHONE = ViewportSize(width=360, height=740)

_PATIENCE_MS = 15_000
_SCORE_THRESHOLD = "0.05"
"""Of the detector: lower than its own, so that it sees several objects in drawn shapes."""


@dataclass(frozen=True)
class Site:
    """A service with photos: `photos`, the default collection, and `many`."""

    service: Service
    folder: Path

    @property
    def url(self) -> str:
        return self.service.url

    @property
    def query(self) -> Path:
        """A photo of the collection in which several objects are found."""
        return self.folder / "photos" / "photo 0039.jpg"

    def call(self, method: str, path: str, **options: Any) -> Any:
        answer = requests.request(method, f"{self.url}/api/v1{path}", timeout=60, **options)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def load(self, folder: Path, collection: str | None = None) -> None:
        """Loads a folder and waits for it."""
        load = self.call("POST", "/loads", json={"folder": str(folder), "collection": collection})
        requests.get(f"{self.url}/api/v1/loads/{load['id']}/events", timeout=120)

    def upload(self, collection: str, *photos: bytes) -> list[int]:
        """Puts photos into a collection of a test's own; their ids."""
        files = [("image", (f"upload {i}.jpg", photo)) for i, photo in enumerate(photos)]
        answer = self.call("POST", "/images", params={"collection": collection}, files=files)
        return [result["image"]["id"] for result in answer["results"]]


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A service that the tests share: what they change lies in collections of their own."""
    folder = tmp_path_factory.mktemp("site")
    repository = folder / "models"
    shutil.copytree(REPOSITORY / "model_repository", repository, symlinks=True)
    config = repository / "yolov3-small" / "config.pbtxt"
    text = config.read_text("utf-8")
    changed = text.replace('string_value: "0.2"', f'string_value: "{_SCORE_THRESHOLD}"')
    assert changed != text
    config.write_text(changed, "utf-8")

    write_photos(folder / "photos", PHOTOS, start=10)
    for number in range(BROKEN):
        (folder / "photos" / f"broken {number}.jpg").write_bytes(b"no photo")
    for seed in range(MANY):
        path = folder / "many" / f"small {seed:04d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(draw_photo(seed, width=48 + seed % 48, height=48)))

    flags = ("--model-repository", str(repository), *FETCHES_FROM_HERE)
    service = start(folder, flags, folder / "data")
    try:
        site = Site(service, folder)
        site.load(folder / "photos")
        site.load(folder / "many", "many")
        yield site
    finally:
        service.stop()


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium, headless; ended with the package, since its loop would be in others' way."""
    executable = shutil.which("chromium")
    if executable is None:
        missing_engine("Chromium is not installed: apt-get install chromium")
    expect.set_options(timeout=_PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, site: Site) -> Iterator[OpenPage]:
    """Opens a path of the page in a fresh profile; what must never happen fails the test.

    That is an error in the page's own code, whatever its Content-Security-Policy forbids, and a
    request to anybody but the service.
    """
    wrong: list[str] = []
    contexts = []

    def watch(page: Page, base: str) -> None:
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("console", lambda message: _judge(message.type, message.text, wrong))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((base, "blob:", "data:"))
                else wrong.append(f"request: {request.url}")
            ),
        )
        page.on(
            "response",
            lambda response: (
                wrong.append(f"{response.status}: {response.url}")
                if "/page/" in response.url and response.status >= 400
                else None
            ),
        )

    def open_path(
        path: str = "/", base: str = site.url, *, wait: bool = True, **options: Any
    ) -> Page:
        context = browser.new_context(
            **{"viewport": DESKTOP, "reduced_motion": "reduce", **options}
        )
        context.set_default_timeout(_PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        watch(page, base)
        page.goto(base + path)
        if wait:
            page.wait_for_selector("main h1:visible, main [role=alert]:visible")
        return page

    yield open_path
    for context in contexts:
        context.close()
    assert wrong == []


def _judge(kind: str, text: str, wrong: list[str]) -> None:
    # That the service has refused something is told in words on the page, and tested there.
    if kind in ("error", "warning") and not text.startswith("Failed to load resource"):
        wrong.append(f"{kind}: {text}")


def search_with(page: Page, photo: Path) -> None:
    """Searches with a photo by the file chooser, and waits for what is found."""
    page.locator("input[type=file][aria-label='Photo to search with']").set_input_files(photo)
    expect(page.locator(".results .tile").first).to_be_visible()


def hits(page: Page) -> list[str]:
    """The names of the photos that are shown, in their order."""
    return [
        name or ""
        for name in page.locator(".results .tile img").evaluate_all(
            "images => images.map(image => image.alt)"
        )
    ]
