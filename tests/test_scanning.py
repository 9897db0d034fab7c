"""Which photos a folder holds, and what is said of the rest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from backend.errors import Forbidden, InvalidInput
from backend.files import EVERYWHERE, PhotoFolders
from backend.scanning import FolderScan, scan_folder
from backend.vision.decode import EXTENSIONS


def _write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"photo")


def _scan(folder: Path) -> FolderScan:
    return scan_folder(str(folder), start=Path("/nowhere"), within=EVERYWHERE)


def _names(scan: FolderScan) -> list[str]:
    return [os.path.relpath(photo.path, scan.root) for photo in scan.photos]


def _problem(scan: FolderScan) -> str:
    [photo] = scan.photos
    assert photo.problem is not None
    return photo.problem


# What is found


def test_photos_come_in_the_order_of_their_names_each_folder_before_those_in_it(
    tmp_path: Path,
) -> None:
    _write(tmp_path, "b.jpg", "a/2.jpg", "a/1.jpg", "c/x/deep.png", "c/1.jpg", "a.jpg", "a/z/0.jpg")
    assert _names(_scan(tmp_path)) == [
        "a.jpg",
        "b.jpg",
        "a/1.jpg",
        "a/2.jpg",
        "a/z/0.jpg",
        "c/1.jpg",
        "c/x/deep.png",
    ]


def test_a_photo_comes_with_its_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"12345")
    os.utime(path, ns=(1, 1_700_000_000_123_456_789))
    [photo] = _scan(tmp_path).photos
    assert (photo.path, photo.size, photo.problem) == (str(path), 5, None)
    assert photo.mtime_ns == path.stat().st_mtime_ns == 1_700_000_000_123_456_789


@pytest.mark.parametrize("extension", sorted(EXTENSIONS))
def test_every_known_ending_counts_in_any_case(tmp_path: Path, extension: str) -> None:
    _write(tmp_path, f"a{extension}", f"b{extension.upper()}", f"c{extension.title()}")
    assert len(_scan(tmp_path).photos) == 3


def test_what_is_no_photo_or_hidden_is_counted_and_passed_over(tmp_path: Path) -> None:
    _write(tmp_path, "a.jpg", "b.txt", "c.gif", "jpg", "d.jpg.part", ".e.jpg", ".f/g.jpg", "h.jpg~")
    scan = _scan(tmp_path)
    assert _names(scan) == ["a.jpg"]
    assert scan.passed_over == 7


def test_a_folder_that_is_named_like_a_photo_is_a_folder(tmp_path: Path) -> None:
    _write(tmp_path, "album.jpg/a.jpg")
    assert _names(_scan(tmp_path)) == ["album.jpg/a.jpg"]


@pytest.mark.parametrize(
    "name",
    ["é.jpg", "e\u0301.jpg", "猫 und Hund.jpg", "\N{CAT FACE}.png", "a\nb.jpg", " .jpg", "%.jpg"],
)
def test_names_in_any_script_are_found_as_they_are(tmp_path: Path, name: str) -> None:
    _write(tmp_path, name)
    [photo] = _scan(tmp_path).photos
    assert (photo.path, photo.problem) == (f"{tmp_path}/{name}", None)


def test_a_name_that_is_not_utf_8_is_a_photo_with_a_problem(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"photo")
    _write(tmp_path, "good.jpg")
    scan = _scan(tmp_path)
    problems = {os.fsencode(os.path.basename(photo.path)): photo.problem for photo in scan.photos}
    assert problems == {
        b"caf\xe9.jpg": "the file's name is not valid UTF-8: rename it",
        b"good.jpg": None,
    }


def test_photos_in_a_folder_whose_name_is_not_utf_8_have_the_same_problem(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    _write(folder, "a.jpg")
    assert "not valid UTF-8" in _problem(_scan(tmp_path))


def test_a_deep_tree_is_walked_to_its_end(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 500)
    _write(deep, "a.jpg")
    assert _names(_scan(tmp_path)) == ["d/" * 500 + "a.jpg"]


# Links and odd files


def test_a_link_to_a_photo_is_followed(tmp_path: Path) -> None:
    _write(tmp_path, "elsewhere/real.jpg")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link.jpg").symlink_to(tmp_path / "elsewhere" / "real.jpg")
    [photo] = _scan(folder).photos
    assert (photo.path, photo.size, photo.problem) == (str(folder / "link.jpg"), 5, None)


def test_a_link_to_nothing_is_a_photo_with_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to(tmp_path / "gone.jpg")
    assert _problem(_scan(tmp_path)) == "the link leads to a file that does not exist"


def test_a_loop_of_links_is_a_photo_with_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a.jpg")
    scan = _scan(tmp_path)
    assert _problem(scan).startswith("the file cannot be read: Too many levels")
    assert scan.passed_over == 1


@pytest.mark.parametrize("name", ["album", "album.jpg"])
def test_a_link_to_a_folder_is_passed_over(tmp_path: Path, name: str) -> None:
    _write(tmp_path, "elsewhere/b.jpg", "folder/a.jpg")
    (tmp_path / "folder" / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "folder" / "up").symlink_to(tmp_path, target_is_directory=True)
    scan = _scan(tmp_path / "folder")
    assert _names(scan) == ["a.jpg"]
    assert scan.passed_over == 2


def test_a_folder_to_load_may_itself_be_a_link(tmp_path: Path) -> None:
    _write(tmp_path, "real/a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    scan = _scan(tmp_path / "link")
    assert (scan.root, _names(scan)) == (str(tmp_path / "link"), ["a.jpg"])


@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_is_a_photo_with_a_problem_and_is_never_opened(tmp_path: Path, linked: bool) -> None:
    pipe = tmp_path / ("pipe" if linked else "a.jpg")
    os.mkfifo(pipe)  # whoever opened it would wait here for ever
    if linked:
        (tmp_path / "a.jpg").symlink_to(pipe)
    assert _problem(_scan(tmp_path)) == "this is no regular file"


def test_a_device_is_a_photo_with_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to("/dev/zero")
    assert _problem(_scan(tmp_path)) == "this is no regular file"


# Folders that cannot be read

SCAN_SCRIPT = """
import sys
from pathlib import Path
from backend.errors import InvalidInput
from backend.files import EVERYWHERE
from backend.scanning import scan_folder
try:
    scan = scan_folder(sys.argv[1], start=Path("/"), within=EVERYWHERE)
except InvalidInput as error:
    print(error)
else:
    print([photo.path for photo in scan.photos], scan.unreadable)
"""


def _scan_as_an_ordinary_user(folder: Path) -> str:
    # root reads everything, but for one that has given that up.
    drop = "-dac_override,-dac_read_search"
    ordinary = ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}"]
    prefix = ordinary if os.geteuid() == 0 else []
    done = subprocess.run(
        [*prefix, sys.executable, "-c", SCAN_SCRIPT, str(folder)],
        capture_output=True,
        check=True,
        text=True,
    )
    return done.stdout.strip()


def test_a_folder_below_that_cannot_be_read_is_reported_and_the_rest_is_found(
    tmp_path: Path,
) -> None:
    _write(tmp_path, "a/1.jpg", "b/2.jpg", "c/3.jpg")
    locked = tmp_path / "b"
    locked.chmod(0)
    try:
        answer = _scan_as_an_ordinary_user(tmp_path)
    finally:
        locked.chmod(0o755)
    photos = [f"{tmp_path}/a/1.jpg", f"{tmp_path}/c/3.jpg"]
    assert answer == f"{photos} { ({str(locked): 'Permission denied'}) }"


def test_a_folder_to_load_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, "locked/1.jpg")
    locked = tmp_path / "locked"
    locked.chmod(0)
    try:
        answer = _scan_as_an_ordinary_user(locked)
    finally:
        locked.chmod(0o755)
    assert answer == f"the folder {locked} cannot be read: Permission denied"


# Which folder is meant


def test_a_relative_folder_starts_where_it_is_said(tmp_path: Path) -> None:
    _write(tmp_path, "photos/a.jpg")
    scan = scan_folder("photos", start=tmp_path, within=EVERYWHERE)
    assert scan.root == str(tmp_path / "photos")
    assert scan_folder("./photos/../photos/", start=tmp_path, within=EVERYWHERE).root == scan.root


def test_an_absolute_folder_starts_nowhere_else(tmp_path: Path) -> None:
    _write(tmp_path, "a.jpg")
    assert scan_folder(f"{tmp_path}/", start=Path("/etc"), within=EVERYWHERE).root == str(tmp_path)


def test_a_relative_start_is_the_working_folder_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path, "a/b.jpg")
    monkeypatch.chdir(tmp_path)
    assert scan_folder("a", start=Path(), within=EVERYWHERE).root == str(tmp_path / "a")


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, "photos/a.jpg")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert scan_folder("~/photos", start=Path("/etc"), within=EVERYWHERE).root == str(
        tmp_path / "photos"
    )
    assert scan_folder("~", start=Path("/etc"), within=EVERYWHERE).root == str(tmp_path)


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("", "'' is no folder's name"),
        ("photos\0", r"'photos\\x00' is no folder's name"),
        ("missing", "the folder missing does not exist on the server"),
        ("~no_such_user/photos", "the folder ~no_such_user/photos does not exist on the server"),
        ("file.jpg", "file.jpg is a file: name the folder that it is in"),
        ("file.jpg/below", "file.jpg/below is a file"),
        ("x" * 300, "cannot be read: File name too long"),
        (os.fsdecode(b"caf\xe9"), "is not valid UTF-8: rename it"),
    ],
)
def test_a_folder_that_cannot_be_loaded_is_refused_with_a_reason(
    tmp_path: Path, folder: str, message: str
) -> None:
    _write(tmp_path, "file.jpg")
    with pytest.raises(InvalidInput, match=message):
        scan_folder(folder, start=tmp_path, within=EVERYWHERE)


@pytest.mark.parametrize("names", [[], ["a.txt", "b/c.gif", ".hidden.jpg"]])
def test_a_folder_without_a_photo_is_refused_with_what_was_looked_for(
    tmp_path: Path, names: list[str]
) -> None:
    _write(tmp_path, *names)
    counts = rf"holds no photo \({len(names)} other entries, 0 unreadable folders\)"
    with pytest.raises(InvalidInput, match=rf"{counts}: files that end in \.bmp, .*\.webp"):
        _scan(tmp_path)


# Folders that photos may not be taken from


def _refusal(folder: Path | str, within: Path) -> str:
    with pytest.raises(Forbidden) as refusal:
        scan_folder(str(folder), start=within, within=PhotoFolders([within]))
    return str(refusal.value)


def test_a_folder_within_those_that_are_allowed_is_listed(tmp_path: Path) -> None:
    _write(tmp_path, "photos/a/b.jpg")
    within = PhotoFolders([tmp_path / "photos"])
    for folder in ("photos", "photos/a", "other/../photos"):
        assert len(scan_folder(folder, start=tmp_path, within=within).photos) == 1


def test_a_folder_elsewhere_is_refused_whether_it_exists_or_not(tmp_path: Path) -> None:
    _write(tmp_path, "photos/a.jpg", "secrets/b.jpg")
    (tmp_path / "photos" / "way").symlink_to(tmp_path / "secrets")
    (tmp_path / "photos" / "lost").symlink_to(tmp_path / "nothing")
    for folder in ("../secrets", "../nothing", "way", "lost", "..", "/", "/proc/self/root", "/dev"):
        message = _refusal(folder, tmp_path / "photos")
        assert message.startswith(f"the folder {folder} cannot be read: it lies outside")
        assert str(tmp_path) not in message


def test_a_folder_that_is_exchanged_for_a_link_while_it_is_listed_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path, "photos/a.jpg", "photos/below/b.jpg", "secrets/c.jpg")
    within = PhotoFolders([tmp_path / "photos"])
    open_folder = within.open_folder

    def exchange(path: str, *, may_be_link: bool) -> int:
        if path.endswith("below"):
            (tmp_path / "photos" / "below").rename(tmp_path / "before")
            (tmp_path / "photos" / "below").symlink_to(tmp_path / "secrets")
        return open_folder(path, may_be_link=may_be_link)

    monkeypatch.setattr(within, "open_folder", exchange)
    scan = scan_folder("photos", start=tmp_path, within=within)
    assert [Path(photo.path).name for photo in scan.photos] == ["a.jpg"]
    assert list(scan.unreadable) == [str(tmp_path / "photos" / "below")]
