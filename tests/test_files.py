"""Files are read from the folders that are allowed, wherever a path seems to lead."""

import os
import shutil
import threading
from pathlib import Path

import pytest

from backend.errors import Forbidden, InsufficientStorage, InvalidImage, TooLarge
from backend.files import EVERYWHERE, KEPT_FREE_BYTES, PhotoFolders, check_room


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An allowed folder with a photo; beside it, a secret."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"photo")
    (tmp_path / "secret").write_bytes(b"secret")
    return folder


def _read(root: Path, path: Path | str) -> bytes:
    with PhotoFolders([root]).open_file(str(path)) as file:
        return file.read()


def test_what_lies_in_an_allowed_folder_is_read(root: Path, tmp_path: Path) -> None:
    (root / "below").mkdir()
    (root / "below" / "link.jpg").symlink_to(root / "a.jpg")
    (tmp_path / "way-in").symlink_to(root)
    for path in (
        root / "a.jpg",
        root / "below" / "link.jpg",
        f"{root}/below/../a.jpg",
        f"{root}//a.jpg",
        tmp_path / "way-in" / "a.jpg",
    ):
        assert _read(root, path) == b"photo"


def test_an_allowed_folder_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert _read(tmp_path / "link", root / "a.jpg") == b"photo"
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(Forbidden):  # it leads elsewhere by now
        _read(tmp_path / "link", root / "a.jpg")


@pytest.mark.parametrize(
    "path",
    [
        "{root}/../secret",
        "{root}/link",
        "{root}/folder/secret",
        "{root}/relative",
        "{root}/../photos-of-others/a.jpg",
        "/proc/self/environ",
        "/proc/self/root{root}/../secret",
        "/dev/zero",
        "/etc/passwd",
    ],
)
def test_what_lies_elsewhere_is_refused(path: str, root: Path, tmp_path: Path) -> None:
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "folder").symlink_to(tmp_path)
    (root / "relative").symlink_to("../secret")
    (tmp_path / "photos-of-others").mkdir()
    (tmp_path / "photos-of-others" / "a.jpg").write_bytes(b"secret")
    with pytest.raises(Forbidden) as refusal:
        _read(root, path.format(root=root))
    assert str(tmp_path) not in str(refusal.value)


@pytest.mark.parametrize(
    "name",
    ["a.jpg\0.png", "\udcff.jpg", "\ud800.jpg\ud800", "A.JPG", "a.jpg/", "a.jpg/.", "%61.jpg"],
)
def test_another_spelling_is_another_file(name: str, root: Path) -> None:
    with pytest.raises(OSError, match=r"No such file|Not a directory|no file's name"):
        _read(root, f"{root}/{name}")


def test_without_a_folder_nothing_is_read(root: Path) -> None:
    with pytest.raises(Forbidden):
        PhotoFolders([]).open_file(str(root / "a.jpg"))


def test_one_more_folder_is_allowed_beside_the_others(root: Path, tmp_path: Path) -> None:
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / "b.jpg").write_bytes(b"upload")
    both = PhotoFolders([root]).with_folder(tmp_path / "uploads")
    assert both.read_file(str(root / "a.jpg"), 5) == b"photo"
    assert both.read_file(str(tmp_path / "uploads" / "b.jpg"), 6) == b"upload"
    with pytest.raises(Forbidden):
        both.open_file(str(tmp_path / "secret"))


def test_a_folder_within_an_allowed_one_may_be_none(root: Path) -> None:
    (root / "uploads").mkdir()
    (root / "uploads" / "b.jpg").write_bytes(b"upload")
    (root / "link.jpg").symlink_to(root / "uploads" / "b.jpg")
    folders = PhotoFolders([root], without=[root / "uploads", root / "nothing"])
    assert folders.read_file(str(root / "a.jpg"), 5) == b"photo"
    for path in (root / "uploads" / "b.jpg", root / "link.jpg"):
        with pytest.raises(Forbidden):
            folders.open_file(str(path))
    with pytest.raises(Forbidden):
        folders.open_folder(str(root / "uploads"), may_be_link=False)
    assert folders.with_folder(root / "uploads").read_file(str(root / "link.jpg"), 6) == b"upload"


def test_the_whole_disk_may_be_allowed(root: Path) -> None:
    for everywhere in (EVERYWHERE, PhotoFolders([Path("/")])):
        assert everywhere.read_file(str(root / "a.jpg"), 5) == b"photo"


def test_a_file_of_a_byte_too_many_is_refused(root: Path) -> None:
    with pytest.raises(TooLarge, match="more than the 4 bytes"):
        EVERYWHERE.read_file(str(root / "a.jpg"), 4)


def test_what_is_no_file_is_not_opened(root: Path) -> None:
    os.mkfifo(root / "pipe.jpg")
    # Opening it for writing without a wait fails for as long as nobody has it open for reading.
    for path in (root / "pipe.jpg", root):
        with pytest.raises(InvalidImage, match="no regular file"):
            _read(root, path)
    with pytest.raises(OSError, match="No such device or address"):
        os.open(root / "pipe.jpg", os.O_WRONLY | os.O_NONBLOCK)


def test_a_file_that_is_exchanged_all_the_time_is_the_photo_or_refused(
    root: Path, tmp_path: Path
) -> None:
    """A link is moved into the photo's place and back as fast as can be; never is it followed."""
    (root / "photo").write_bytes(b"photo")
    ended = threading.Event()

    def exchange() -> None:
        while not ended.is_set():
            (root / "next").symlink_to(tmp_path / "secret")
            os.replace(root / "next", root / "a.jpg")
            (root / "next").hardlink_to(root / "photo")
            os.replace(root / "next", root / "a.jpg")

    exchanging = threading.Thread(target=exchange)
    exchanging.start()
    outcomes = set()
    try:
        # Until both have been met, and a while longer.
        for attempt in range(200_000):
            try:
                outcomes.add(_read(root, root / "a.jpg"))
            except Forbidden:
                outcomes.add(b"refused")
            if attempt > 2000 and len(outcomes) > 1:
                break
    finally:
        ended.set()
        exchanging.join()
    assert outcomes == {b"photo", b"refused"}


def test_no_descriptor_is_left_open(root: Path, tmp_path: Path) -> None:
    (root / "link").symlink_to(tmp_path / "secret")
    folders = PhotoFolders([root])
    before = os.listdir("/proc/self/fd")
    for path in (root / "a.jpg", root / "link", root / "nothing", root):
        try:
            folders.open_file(str(path)).close()
        except (OSError, Forbidden, InvalidImage):
            continue
    assert os.listdir("/proc/self/fd") == before


def test_a_disk_is_not_filled_to_the_last_byte(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there yet"
    check_room(folder, 0)
    disk = shutil.disk_usage(tmp_path)
    slack = 2**28  # what others write and remove meanwhile
    kept = min(KEPT_FREE_BYTES, disk.total // 20)
    check_room(folder, disk.free - kept - slack)
    with pytest.raises(InsufficientStorage, match=f"{kept} are kept free"):
        check_room(folder, disk.free - kept + slack)
    assert not folder.exists()
