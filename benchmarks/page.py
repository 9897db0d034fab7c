"""`python -m benchmarks.page`: how fast the page shows, what it weighs, how smoothly it scrolls.

Starts a service of its own, loads drawn photos, and opens the page in Chromium: first with nothing
in its cache, then to scroll through all photos of the collection. Prints one table, writes JSON.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import requests
from playwright.sync_api import Browser, ViewportSize, sync_playwright
from rich.console import Console
from rich.table import Table

from benchmarks.reporting import environment, percentiles_ms, rounded, write_json
from tests.photos import draw_photo, encode
from tests.service import start

PHOTOS: Final = 10_000
_PAINTS: Final = 7
_STEPS: Final = 300
"""Turns of the mouse wheel."""
_STEP_PIXELS: Final = 600
_STEP_MS: Final = 16
_VIEWPORT: Final = ViewportSize(width=1280, height=800)
_TIMEOUT_SECONDS: Final = 1800

# Each frame's distance to the one before it, as long as it is wanted.
_COUNT_FRAMES: Final = """() => {
  window.frameTimes = [];
  let last = performance.now();
  const count = (now) => {
    window.frameTimes.push(now - last);
    last = now;
    requestAnimationFrame(count);
  };
  requestAnimationFrame(count);
}"""
_WEIGHT: Final = """() => ["navigation", "resource"]
  .flatMap((type) => performance.getEntriesByType(type))
  .filter((entry) => !entry.name.includes("/api/"))
  .reduce((sum, entry) => sum + entry.encodedBodySize, 0)"""
_PAINT: Final = "() => performance.getEntriesByName('first-contentful-paint')[0].startTime"


def measure(photos: int, chromium: str, log: Callable[[str], None]) -> dict[str, Any]:
    """The whole report."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log(f"drawing {photos} photos")
        (folder / "photos").mkdir()
        for seed in range(photos):
            width, height = (120, 160) if seed % 3 else (160, 120)
            content = encode(draw_photo(seed, width=width, height=height))
            (folder / "photos" / f"photo {seed:05d}.jpg").write_bytes(content)
        service = start(folder, (), folder / "data", is_measured=True)
        try:
            log("loading them")
            body = {"folder": str(folder / "photos")}
            load = service.post("/api/v1/loads", json=body).json()
            # The stream of events ends with the load.
            requests.get(
                f"{service.url}/api/v1/loads/{load['id']}/events", timeout=_TIMEOUT_SECONDS
            )
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=chromium, args=["--no-sandbox"]
                )
                try:
                    log("opening the page")
                    opened = _open(browser, service.url)
                    log("scrolling")
                    scrolled = _scroll(browser, service.url)
                    version = browser.version
                finally:
                    browser.close()
        finally:
            service.stop()
    report: dict[str, Any] = rounded(
        {
            **environment("playwright"),
            "chromium": version,
            "photos": photos,
            **opened,
            "scrolling": scrolled,
        }
    )
    return report


def _open(browser: Browser, url: str) -> dict[str, Any]:
    paints, weight = [], 0
    for _ in range(_PAINTS):
        context = browser.new_context(viewport=_VIEWPORT)  # with nothing in its cache
        page = context.new_page()
        page.goto(url)
        page.locator("h1:visible").wait_for()
        page.wait_for_load_state("networkidle")
        paints.append(page.evaluate(_PAINT))
        weight = page.evaluate(_WEIGHT)
        context.close()
    return {
        "first_contentful_paint_ms": statistics.median(paints),
        "opened": _PAINTS,
        "weight_kb": weight / 1000,
    }


def _scroll(browser: Browser, url: str) -> dict[str, Any]:
    context = browser.new_context(viewport=_VIEWPORT)
    page = context.new_page()
    page.goto(f"{url}/?view=photos")
    tiles = page.locator(".tile")
    tiles.first.wait_for()
    page.mouse.move(_VIEWPORT["width"] / 2, _VIEWPORT["height"] / 2)
    page.evaluate(_COUNT_FRAMES)
    most = 0
    for _ in range(_STEPS):
        page.mouse.wheel(0, _STEP_PIXELS)
        page.wait_for_timeout(_STEP_MS)
        most = max(most, tiles.count())
    frames = page.evaluate("() => window.frameTimes")
    found = {
        "pixels": page.evaluate("() => document.scrollingElement.scrollTop"),
        "frames": len(frames),
        "frame": percentiles_ms([each / 1000 for each in frames]),
        "longest_frame_ms": max(frames),
        "most_tiles_in_the_document": most,
    }
    context.close()
    return found


def render(report: dict[str, Any]) -> Table:
    """The report as one table."""
    table = Table(title=f"The page, with {report['photos']:,} photos in the collection")
    table.add_column("what")
    table.add_column("figure", justify="right")
    scrolling = report["scrolling"]
    table.add_row("first contentful paint", f"{report['first_contentful_paint_ms']:.0f} ms")
    table.add_row("weight as sent, without photos", f"{report['weight_kb']:.1f} kB")
    for name, value in scrolling["frame"].items():
        table.add_row(f"scrolling: a frame, {name.removesuffix('_ms')}", f"{value:.1f} ms")
    table.add_row("scrolling: the longest frame", f"{scrolling['longest_frame_ms']:.0f} ms")
    table.add_row("scrolled through", f"{scrolling['pixels']:,} px")
    table.add_row("most tiles in the document", str(scrolling["most_tiles_in_the_document"]))
    return table


def main() -> None:
    """Parses the command line, measures and reports."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("--photos", type=int, default=PHOTOS, help=f"to draw ({PHOTOS})")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser to use")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
    arguments = parser.parse_args()
    progress = Console(stderr=True)
    report = measure(
        arguments.photos,
        arguments.chromium,
        lambda message: progress.print(message, style="dim"),
    )
    Console().print(render(report))
    if arguments.json:
        write_json(arguments.json, report)


if __name__ == "__main__":
    main()
