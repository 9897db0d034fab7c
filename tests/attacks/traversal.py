"""Path traversal: files read, written or loaded that are none of the client's business."""

import os
import threading
import time
from functools import partial
from typing import Final
from urllib.parse import quote

from tests.attacks.cases import Attacks
from tests.attacks.target import Target
from tests.photos import draw_photo, encode

__all__ = ["ATTACKS"]

ATTACKS: Final = Attacks("path traversal")
_SWAPS_SECONDS: Final = 0.5


def _reads(query: str, target: Target) -> bool:
    """Whether `/data` answers what lies outside; {world} and {name} are put in."""
    path = query.replace("{world}", str(target.world.folder))
    return target.get(f"/data?image_path={path}").has_token()


_READS: Final = (
    ("absolute path", "an absolute path of a text file", "{world}/secret.txt"),
    ("absolute path of a photo", "a photo that is not indexed", "{world}/outside/secret.jpg"),
    ("dots", "`..` up from the photos' folder", "../secret.txt"),
    ("dots from a photo", "`..` behind a folder that is served", "{world}/photos/../secret.txt"),
    ("encoded dots", "`..` as %2e%2e", "%2e%2e/secret.txt"),
    ("encoded slash", "the slash as %2f", "..%2fsecret.txt"),
    ("all encoded", "dots and slash encoded", "%2E%2E%2Fsecret.txt"),
    ("encoded twice", "the percent signs encoded again", "%252e%252e%252fsecret.txt"),
    ("overlong UTF-8", "dots of two bytes each", "%c0%ae%c0%ae/secret.txt"),
    ("overlong slash", "a slash of two bytes", "..%c0%afsecret.txt"),
    ("IIS encoding", "dots as %u002e", "%u002e%u002e/secret.txt"),
    ("fullwidth dots", "dots that become ASCII when normalised", "%ef%bc%8e%ef%bc%8e/secret.txt"),
    ("backslash", "backslashes for slashes", "..\\secret.txt"),
    ("encoded backslash", "the backslash as %5c", "..%5csecret.txt"),
    ("NUL byte", "an ending that a NUL cuts off", "../secret.txt%00.jpg"),
    ("NUL byte, encoded twice", "the same past one decoding", "../secret.txt%2500.jpg"),
    ("nested dots", "what is left when `../` is taken out once", "....//secret.txt"),
    ("dots with a parameter", "`..;` that some servers cut", "..;/secret.txt"),
    ("trailing dots", "a name that Windows would shorten", "../secret.txt..."),
    ("trailing space", "a name that gets stripped", "../secret.txt%20"),
    ("an ending that is taken off", "`.jpg` behind a text file", "../secret.txt.jpg"),
    ("another case", "capitals where the disk has none", "../SECRET.TXT"),
    ("tilde", "the home folder", "~/secret.txt"),
    ("variable", "an environment variable in the path", "$HOME/secret.txt"),
    ("file URL", "a path as file://", "file://{world}/secret.txt"),
    ("doubled slashes", "slashes that collapse", "/{world}//.//secret.txt"),
    ("process's root", "the disk by way of /proc", "/proc/self/root{world}/secret.txt"),
    ("process's environment", "passwords in /proc/self/environ", "/proc/self/environ"),
    ("hidden file", "the `.env` beside the photos", "../.env"),
)
for _name, _tries, _query in _READS:
    ATTACKS.add(f"read: {_name}", f"GET /data with {_tries}", partial(_reads, _query))


def _device(target: Target) -> bool:
    return target.get("/data?image_path=/dev/zero").done


ATTACKS.add("read: device", "GET /data of a file without an end, /dev/zero", _device)


def _listing(target: Target) -> bool:
    answer = target.get(f"/data?image_path={target.world.photos}")
    return answer.done and "photo 0000" in answer.text


ATTACKS.add("read: folder", "GET /data of a folder, to list it", _listing)


def _wildcard(target: Target) -> bool:
    return target.get("/data?image_path=%25photo%25").done


ATTACKS.add("read: wildcard", "GET /data with SQL's % for any photo", _wildcard)


def _static(path: str, target: Target) -> bool:
    return target.get(path).has_token()


_STATIC: Final = (
    ("dots", "/../secret.txt"),
    ("encoded dots", "/%2e%2e/secret.txt"),
    ("dots behind the page", "/page/../secret.txt"),
    ("encoded slash behind the page", "/page/..%2fsecret.txt"),
    ("backslash behind the page", "/page/..%5csecret.txt"),
    ("environment file", "/.env"),
    ("query's file", "/api/v1/queries/..%2fsecret.txt/file"),
)
for _name, _path in _STATIC:
    ATTACKS.add(f"address: {_name}", f"GET {_path}", partial(_static, _path))


def _linked(target: Target) -> bool:
    """A link among the photos that leads out of them."""
    folder = target.world.photos / f"linked {os.getpid()} {time.monotonic_ns()}"
    folder.mkdir()
    link = folder / "link.jpg"
    link.symlink_to(target.world.secret_photo)
    try:
        target.json("/img/load", f'{{"File": "{folder}", "Table": "links"}}'.encode())
        return target.get(f"/data?image_path={quote(str(link))}").has_token()
    finally:
        link.unlink()
        folder.rmdir()


ATTACKS.add("link: to a photo", "load and read a link that leads out of the folder", _linked)


def _linked_folder(target: Target) -> bool:
    link = target.world.photos / f"link {time.monotonic_ns()}"
    link.symlink_to(target.world.outside)
    try:
        answer = target.json("/img/load", f'{{"File": "{link}", "Table": "links"}}'.encode())
        path = quote(str(link / "secret.jpg"))
        return answer.done or target.get(f"/data?image_path={path}").has_token()
    finally:
        link.unlink()


ATTACKS.add("link: to a folder", "load a folder that is a link to another one", _linked_folder)


def _swapped(target: Target, *, back_and_forth: bool) -> bool:
    """An indexed photo that becomes a link to another file after it has been checked."""
    folder = target.world.photos / f"swapped {time.monotonic_ns()}"
    folder.mkdir()
    photo = folder / "photo.jpg"
    real, link = folder / "real.part", folder / "link.part"
    content = encode(draw_photo(11))
    photo.write_bytes(content)
    address = f"/data?image_path={quote(str(photo))}"
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            link.symlink_to(target.world.secret_photo)
            link.replace(photo)
            real.write_bytes(content)
            real.replace(photo)

    try:
        target.json("/img/load", f'{{"File": "{folder}", "Table": "swapped"}}'.encode())
        if not back_and_forth:
            photo.unlink()
            photo.symlink_to(target.world.secret_photo)
            return target.get(address).has_token()
        swapping = threading.Thread(target=swap)
        swapping.start()
        try:
            end = time.monotonic() + _SWAPS_SECONDS
            while time.monotonic() < end:
                if target.get(address).has_token():
                    return True
            return False
        finally:
            stop.set()
            swapping.join()
    finally:
        for path in (photo, real, link):
            path.unlink(missing_ok=True)
        folder.rmdir()


ATTACKS.add(
    "race: swapped once",
    "replace an indexed photo by a link out of the folder",
    partial(_swapped, back_and_forth=False),
)
ATTACKS.add(
    "race: swapped all the time",
    "the same, back and forth while it is read",
    partial(_swapped, back_and_forth=True),
)


def _folder_swapped(target: Target) -> bool:
    """A folder on an indexed photo's way that becomes a link."""
    folder = target.world.photos / f"moved {time.monotonic_ns()}"
    folder.mkdir()
    photo = folder / "secret.jpg"
    photo.write_bytes(encode(draw_photo(12)))
    try:
        target.json("/img/load", f'{{"File": "{folder}", "Table": "moved"}}'.encode())
        photo.unlink()
        folder.rmdir()
        folder.symlink_to(target.world.outside)
        return target.get(f"/data?image_path={quote(str(photo))}").has_token()
    finally:
        folder.unlink()


ATTACKS.add(
    "race: folder swapped",
    "replace an indexed photo's folder by a link to another",
    _folder_swapped,
)


def _kind_swapped(target: Target) -> bool:
    """An indexed photo that becomes a page with a script in it."""
    folder = target.world.photos / f"page {time.monotonic_ns()}"
    folder.mkdir()
    photo = folder / "photo.jpg"
    photo.write_bytes(encode(draw_photo(13)))
    try:
        target.json("/img/load", f'{{"File": "{folder}", "Table": "pages"}}'.encode())
        photo.write_text("<script>alert(document.domain)</script>")
        return "<script>" in target.get(f"/data?image_path={quote(str(photo))}").text
    finally:
        photo.unlink()
        folder.rmdir()


ATTACKS.add("race: photo made a page", "replace an indexed photo by HTML", _kind_swapped)


def _sniffed(target: Target) -> bool:
    """A photo with HTML in it that a browser is left to guess the type of."""
    answer = target.get(f"/data?image_path={quote(str(target.world.photos / 'photo 0000.jpg'))}")
    safe = (
        answer.headers.get("X-Content-Type-Options") == "nosniff"
        and answer.headers.get("Content-Type") == "image/jpeg"
    )
    return answer.done and not safe


ATTACKS.add("read: sniffed type", "have a browser take a photo for a page", _sniffed)


def _loads(folder: str, target: Target) -> bool:
    """Whether a folder that is not the photos' is loaded."""
    path = folder.replace("{world}", str(target.world.folder))
    answer = target.json("/img/load", f'{{"File": "{path}", "Table": "loaded"}}'.encode())
    return answer.done


_LOADS: Final = (
    ("absolute path", "{world}/outside"),
    ("dots", "{world}/photos/../outside"),
    ("relative", "../outside"),
    ("all of the disk", "/"),
    ("a longer name with the same beginning", "{world}/photos2"),
    ("process's root", "/proc/self/root{world}/outside"),
    ("encoded dots", "{world}/photos/%2e%2e/outside"),
    ("NUL byte", "{world}/outside\\u0000/photos"),
    ("tilde", "~/outside"),
    ("file URL", "file://{world}/outside"),
)


def _loads_as_resource(target: Target) -> bool:
    body = f'{{"folder": "{target.world.outside}", "collection": "loaded"}}'
    return target.json("/api/v1/loads", body.encode()).done


for _name, _folder in _LOADS:
    ATTACKS.add(f"load: {_name}", f"POST /img/load of {_folder}", partial(_loads, _folder))
ATTACKS.add(
    "load: by the resource API", "POST /api/v1/loads of a folder outside", _loads_as_resource
)


def _writes(filename: str, target: Target) -> bool:
    """Whether an upload is kept under the name that the client gives it."""
    name = f"evil-{time.monotonic_ns()}.jpg"
    sent = filename.replace("{world}", str(target.world.folder)).replace("{name}", name)
    target.upload("/img/upload?table_name=written", encode(draw_photo(14)), sent)
    found = target.written(name)
    for path in found:
        path.unlink(missing_ok=True)
    return bool(found)


_WRITES: Final = (
    ("plain name", "{name}"),
    ("dots", "../../{name}"),
    ("absolute path", "{world}/{name}"),
    ("encoded dots", "..%2f..%2f{name}"),
    ("backslashes", "..\\..\\{name}"),
    ("NUL byte", "{name}%00.png"),
    ("a folder of its own", ".ssh/{name}"),
)
for _name, _filename in _WRITES:
    ATTACKS.add(f"write: {_name}", f"upload a file called {_filename}", partial(_writes, _filename))


def _writes_by_collection(target: Target) -> bool:
    name = f"evil-{time.monotonic_ns()}.jpg"
    target.upload("/img/upload?table_name=..%2fevil", encode(draw_photo(14)), name)
    return bool(target.written(name))


ATTACKS.add(
    "write: collection with dots",
    "upload into a collection called ../evil",
    _writes_by_collection,
)


def _double_ending(target: Target) -> bool:
    name = f"evil-{time.monotonic_ns()}.php"
    target.upload("/img/upload?table_name=written", encode(draw_photo(15)), name)
    return bool(target.written(name))


ATTACKS.add("write: ending of a script", "upload a photo called evil.php", _double_ending)
