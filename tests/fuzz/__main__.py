"""`python -m tests.fuzz --images 20000 --requests 5000 --seed 1`; the test suite runs a tenth."""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.reporting import environment, rounded, write_json
from tests.fuzz.images import MOST_GROWTH as IMAGES_GROWTH
from tests.fuzz.images import fuzz_images
from tests.fuzz.requests import MOST_GROWTH as REQUESTS_GROWTH
from tests.fuzz.requests import fuzz_requests


def main() -> None:
    """Changes and sends as many as the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--requests", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    report: dict[str, Any] = {**environment("pillow", "aiohttp"), "seed": options.seed}
    if options.images:
        images = fuzz_images(options.images, options.seed, _print_now)
        _print_now(
            f"{options.images} photos in {images.seconds:.0f} s: {images.decoded} decoded, the"
            f" others refused ({dict(images.refused)}); the slowest took {images.slowest:.2f} s;"
            f" memory grew by {images.growth / 2**20:.0f} MiB of {IMAGES_GROWTH / 2**20:.0f} that"
            " it may after the first tenth;"
            f" {len(images.ended)} ended the process that decoded them"
        )
        for line in images.ended:
            _print_now(f"  {line}")
        report["images"] = {
            "count": options.images,
            **vars(images),
            "most_growth": IMAGES_GROWTH,
        }
    if options.requests:
        requests = fuzz_requests(options.requests, options.seed, _print_now)
        _print_now(
            f"{options.requests} requests in {requests.seconds:.0f} s:"
            f" {dict(sorted(requests.answers.items()))} (0: closed without an answer, -1: given up"
            f" by the client); memory grew by {requests.growth / 2**20:.0f} MiB of"
            f" {REQUESTS_GROWTH / 2**20:.0f} that it may after the first tenth"
        )
        answers = {str(status): count for status, count in sorted(requests.answers.items())}
        report["requests"] = {
            "count": options.requests,
            **vars(requests),
            "answers": answers,
            "most_growth": REQUESTS_GROWTH,
        }
    if options.json:
        write_json(options.json, rounded(report))


def _print_now(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
