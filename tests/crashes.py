"""Kills the service at random moments of a load and checks that nothing is lost or doubled.

`python -m tests.crashes --rounds 20 --seed 1` runs as many as asked for; the test suite runs a few.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from backend.app import open_services
from backend.checking import CollectionReport, check_collections
from backend.settings import Settings
from tests.photos import draw_photo, encode, write_photos
from tests.service import start

_PHOTOS = 60
_CHANGED_PER_ROUND = 20
_LONGEST_DELAY_SECONDS = 1.2
"""About what loading the changed photos takes on two cores: most deaths come before its end."""


def crash_rounds(folder: Path, *, rounds: int, seed: int) -> list[int]:
    """Loads a folder whose photos change, killing the service in each round; checks the end.

    Each round changes some photos, starts the service, which resumes the load of the round before,
    asks for the load, uploads a photo and, after a random delay, kills the process.

    Returns:
        For each round, how many photos were done with when the process died.

    Raises:
        AssertionError: a photo is missing, doubled or out of date, or catalog and vectors differ.
    """
    draw = random.Random(seed)
    photos = write_photos(folder / "photos", _PHOTOS)
    data_dir = folder / "data"
    indexed_at_death = []
    uploads = []
    for number in range(rounds):
        for path in draw.sample(photos, _CHANGED_PER_ROUND):
            path.write_bytes(encode(draw_photo(1000 * (number + 1) + draw.randrange(1000))))
        service = start(folder, ["--load-concurrency", "4"], data_dir)
        end = time.monotonic() + draw.uniform(0, _LONGEST_DELAY_SECONDS)
        service.load(folder / "photos", params={"wait": "false"})
        upload = encode(draw_photo(10**6 + number))
        answer = service.post("/img/upload", files={"image": ("upload.jpg", upload)})
        assert answer.status_code == 200, answer.text
        uploads.append(upload)
        current = 0
        while time.monotonic() < end and service.process.poll() is None:
            current = service.progress()[0]
            time.sleep(0.005)
        service.kill()
        indexed_at_death.append(current)
    service = start(folder, [], data_dir)
    assert service.load(folder / "photos").status_code == 200
    assert service.progress() == (_PHOTOS, _PHOTOS)
    assert service.count() == _PHOTOS + len(uploads)
    for path in draw.sample(photos, 10):
        [nearest, distance] = service.search(path.read_bytes()).json()[0]
        assert (nearest, distance < 1e-3) == (str(path), True)
    for upload in uploads:
        [nearest, distance] = service.search(upload).json()[0]
        assert (Path(nearest).read_bytes() == upload, distance < 1e-3) == (True, True)
    service.stop()
    report, paths = asyncio.run(_inspect(data_dir))
    assert Counter(paths).most_common(1)[0][1] == 1
    assert set(paths) > set(map(str, photos))
    assert len(paths) == _PHOTOS + len(uploads)
    assert (report.missing, report.orphaned, report.gone) == (set(), set(), [])
    assert report.objects > 0
    return indexed_at_death


async def _inspect(data_dir: Path) -> tuple[CollectionReport, list[str]]:
    async with open_services(Settings(data_dir=data_dir)) as services:
        [report] = await check_collections(
            services.catalog, services.vectors, services.analyzer.embedder, services.writer
        )
        paths = []
        async for page in services.catalog.images(
            report.collection.id, ["pending", "indexed", "failed", "deleting"]
        ):
            assert {image.state for image in page} == {"indexed"}
            paths += [image.path for image in page]
    return report, paths


def main() -> None:
    """Runs the rounds that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.crashes", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        deaths = crash_rounds(Path(folder), rounds=options.rounds, seed=options.seed)
    done = ", ".join(map(str, deaths))
    inside = sum(count < _PHOTOS for count in deaths)
    print(f"{len(deaths)} kills, {inside} of them in the middle of a load: nothing lost or twice")
    print(f"photos done when it died, of {_PHOTOS}: {done}")


if __name__ == "__main__":
    main()
