from pathlib import Path

import numpy as np
import pytest

from backend.vision.decode import decode
from scripts.load_test.errors import LoadTestError
from scripts.load_test.photos import read_photos
from tests.photos import draw_photo, encode, write_photos


def test_a_folder_is_read_with_the_folders_in_it(tmp_path: Path) -> None:
    first, second = write_photos(tmp_path, 1) + write_photos(tmp_path / "deeper", 1, start=1)
    (tmp_path / "notes.txt").write_text("no photo")
    photos = read_photos(tmp_path, 10)
    assert (photos.read, photos.found) == (2, 2)
    sent = [photos.fresh() for _ in range(3)]
    for photo, path in zip(sent, (first, second, first), strict=True):
        assert photo.data.startswith(path.read_bytes())
        assert photo.ending == ".jpg"


def test_no_more_is_read_than_is_asked_for(tmp_path: Path) -> None:
    paths = write_photos(tmp_path, 5)
    photos = read_photos(tmp_path, 3)
    assert (photos.read, photos.found) == (3, 5)
    sizes = [path.stat().st_size for path in paths]
    assert read_photos(tmp_path, 5, most_bytes=sum(sizes[:2])).read == 2
    assert read_photos(tmp_path, 5, most_bytes=sum(sizes)).read == 5


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".bmp", ".tiff"])
def test_each_time_a_photo_has_other_bytes_and_the_same_pixels(tmp_path: Path, ending: str) -> None:
    original = encode(draw_photo(1), ending)
    (tmp_path / f"photo{ending}").write_bytes(original)
    photos = read_photos(tmp_path, 1)
    first, second = photos.fresh(), photos.fresh()
    assert first.data != second.data
    expected = decode(original, max_pixels=10**6)
    for photo in (first, second):
        assert np.array_equal(decode(photo.data, max_pixels=10**6), expected)


def test_a_folder_that_is_missing_or_holds_no_photo_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(LoadTestError, match=f"{missing} cannot be read: No such file"):
        read_photos(missing, 1)
    with pytest.raises(LoadTestError, match=f"{tmp_path} holds no photo"):
        read_photos(tmp_path, 1)


def test_photos_that_cannot_be_read_are_passed_over_unless_none_can(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(LoadTestError, match=r"no photo of .* can be read: .*No such file"):
        read_photos(tmp_path, 5)
    write_photos(tmp_path, 1)
    assert read_photos(tmp_path, 5).read == 1
