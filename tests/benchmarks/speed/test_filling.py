"""Collections that are written for a measurement."""

from pathlib import Path

import numpy as np

from benchmarks.speed.filling import describe, fill
from benchmarks.speed.networks import Networks, ready_tensors
from tests.photos import draw_photo, encode
from tests.service import start


def test_a_service_finds_the_copies_of_a_photos_objects(tmp_path: Path) -> None:
    photos = [encode(draw_photo(seed)) for seed in range(3)]
    objects = describe(ready_tensors(photos), Networks())
    np.testing.assert_allclose(np.linalg.norm(objects.vectors, axis=1), 1, atol=1e-5)
    fill(objects, {tmp_path / "data": 10 * len(objects)})
    service = start(tmp_path, [], tmp_path / "data")
    try:
        assert service.count() == 10 * 3
        for photo in photos:
            hits = service.search(photo, 5).json()
            assert len(hits) == 5
            assert all(distance < 0.2 for _, distance in hits)
    finally:
        service.stop()
