"""The files of uploaded photos."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backend.uploads import UploadFolder
from backend.vision.decode import CONTENT_TYPES

SHA256 = hashlib.sha256(b"photo").hexdigest()


CATALOG = "c" * 32


@pytest.fixture
def uploads(tmp_path: Path) -> UploadFolder:
    """A folder of uploads that does not exist yet."""
    return UploadFolder(tmp_path / "uploads", CATALOG)


def test_a_photo_is_kept_under_its_collection_its_hash_and_its_format(
    uploads: UploadFolder, tmp_path: Path
) -> None:
    path = uploads.path(7, SHA256, "JPEG")
    assert path == tmp_path / "uploads" / CATALOG / "7" / f"{SHA256}.jpeg"
    uploads.write(path, b"photo")
    assert path.read_bytes() == b"photo"
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("image_format", CONTENT_TYPES)
def test_a_photo_of_every_format_is_known_for_one_of_ours(
    uploads: UploadFolder, image_format: str
) -> None:
    path = uploads.path(1, SHA256, image_format)
    uploads.write(path, b"photo")
    assert uploads.files(1) == [path]


def test_an_upload_is_known_by_its_path_alone(uploads: UploadFolder, tmp_path: Path) -> None:
    path = uploads.path(7, SHA256, "JPEG")
    assert uploads.is_upload(path, 7)  # whether it is there or not
    others = [
        path.with_name("holiday.jpeg"),
        path.parent / "folder" / path.name,
        path.parent / ".." / "7" / path.name,
        tmp_path / "uploads" / ("d" * 32) / "7" / path.name,
        tmp_path / path.name,
    ]
    assert not any(uploads.is_upload(other, 7) for other in others)
    assert not uploads.is_upload(path, 8)  # another collection has loaded the folder of uploads


def test_copies_are_told_apart_by_their_number(uploads: UploadFolder) -> None:
    paths = [uploads.path(1, SHA256, "PNG", number=number) for number in (1, 2, 13)]
    assert [path.name for path in paths] == [f"{SHA256}{end}.png" for end in ("", "-2", "-13")]
    for path in paths:
        uploads.write(path, b"photo")
        assert uploads.is_upload(path, 1)
        assert uploads.sha256(path) == SHA256
    assert sorted(uploads.files(1)) == sorted(paths)
    uploads.remove_collection(1)
    assert uploads.files(1) == []


def test_writing_again_replaces(uploads: UploadFolder) -> None:
    path = uploads.path(1, SHA256, "PNG")
    uploads.write(path, b"one")
    uploads.write(path, b"other")
    assert path.read_bytes() == b"other"
    assert uploads.files(1) == [path]


def test_a_write_that_fails_leaves_nothing(uploads: UploadFolder) -> None:
    path = uploads.path(1, SHA256, "PNG")
    path.mkdir(parents=True)  # nothing can take the place of a folder
    (path / "somebody's").touch()
    with pytest.raises(OSError, match=r"(?i)directory|not empty"):
        uploads.write(path, b"photo")
    assert os.listdir(path.parent) == [path.name]


def test_a_write_where_nothing_can_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    uploads = UploadFolder(tmp_path / "file", CATALOG)
    with pytest.raises(OSError, match="directory"):
        uploads.write(uploads.path(1, SHA256, "PNG"), b"photo")


def test_many_photos_written_at_once_are_all_there_and_whole(uploads: UploadFolder) -> None:
    photos = [os.urandom(2**15) for _ in range(64)]
    paths = [uploads.path(1, hashlib.sha256(photo).hexdigest(), "PNG") for photo in photos]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(uploads.write, paths, photos))
    assert sorted(uploads.files(1)) == sorted(paths)
    assert [path.read_bytes() for path in paths] == photos


def test_a_photo_is_removed_and_removing_it_again_is_fine(uploads: UploadFolder) -> None:
    path = uploads.path(1, SHA256, "WEBP")
    uploads.write(path, b"photo")
    uploads.remove(path)
    assert not path.exists()
    uploads.remove(path)
    uploads.remove(uploads.path(99, SHA256, "WEBP"))


def test_a_collection_is_removed_with_its_folder_and_no_other(uploads: UploadFolder) -> None:
    kept = uploads.path(2, SHA256, "TIFF")
    for path in (uploads.path(1, SHA256, "BMP"), uploads.path(1, "0" * 64, "BMP"), kept):
        uploads.write(path, b"photo")
    uploads.remove_collection(1)
    assert uploads.collections() == [2]
    assert uploads.files(1) == []
    assert kept.exists()
    uploads.remove_collection(1)


def test_what_is_not_ours_is_never_removed(uploads: UploadFolder, tmp_path: Path) -> None:
    ours = uploads.path(1, SHA256, "JPEG")
    uploads.write(ours, b"photo")
    others = [
        ours.with_name(name)
        for name in ("holiday.jpeg", f"{SHA256}.gif", f"{SHA256}.jpeg.bak", SHA256.upper(), "notes")
    ]
    for path in others:
        path.write_bytes(b"somebody's")
    assert uploads.files(1) == [ours]
    uploads.remove_collection(1)
    assert not ours.exists()
    assert sorted(ours.parent.iterdir()) == sorted(others)


def test_what_a_crash_left_half_written_is_listed_and_removed(uploads: UploadFolder) -> None:
    path = uploads.path(1, SHA256, "JPEG")
    uploads.write(path, b"photo")
    part = path.with_name(path.name + ".part")
    part.write_bytes(b"pho")
    assert sorted(uploads.files(1)) == sorted([path, part])
    uploads.remove_collection(1)
    assert uploads.collections() == []


def test_only_folders_named_by_a_number_are_collections(
    uploads: UploadFolder, tmp_path: Path
) -> None:
    assert uploads.collections() == []
    for name in ("12", "3", "x", "-1", "1.5", "4 "):
        (tmp_path / "uploads" / CATALOG / name).mkdir(parents=True)
    assert sorted(uploads.collections()) == [3, 12]


def test_a_collection_without_a_folder_has_no_files(uploads: UploadFolder) -> None:
    assert uploads.files(5) == []
    uploads.remove_collection(5)


def test_paths_that_lead_to_uploads_are_known_by_whatever_way(
    uploads: UploadFolder, tmp_path: Path
) -> None:
    there = uploads.path(1, SHA256, "JPEG")
    uploads.write(there, b"photo")
    gone = uploads.path(2, SHA256, "PNG", number=3)
    (tmp_path / "link").symlink_to(tmp_path / "uploads")
    folder = tmp_path / "uploads"
    theirs = {
        str(there): there.name,
        str(gone): gone.name,
        f"{gone}.part": f"{gone.name}.part",
        str(folder / "another catalog" / "7" / there.name): there.name,
        f"{folder}/x/..//{CATALOG}/./1/{there.name}": there.name,
        f"{tmp_path}/link/{CATALOG}/1/{there.name}": there.name,
    }
    others = [
        f"{folder}/holiday.jpeg",
        f"{folder}/{there.name}",
        f"{folder}/{CATALOG}/1/holiday.jpeg",
        f"{folder}/{CATALOG}/1/below/{there.name}",
        f"{folder}2/{CATALOG}/1/{there.name}",
        f"{folder}/{CATALOG}/1/../../../{there.name}",
        "/",
    ]
    assert uploads.names([*theirs, *others]) == theirs
