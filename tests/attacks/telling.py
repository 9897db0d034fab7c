"""Log forging and leaks: what the service says, and lets others say in its name."""

import json
import time
from functools import partial
from typing import Final
from urllib.parse import quote

from tests.attacks.cases import Attacks
from tests.attacks.target import BOUNDARY, TOKEN, Target, forged_lines, form, part
from tests.photos import draw_photo, encode

__all__ = ["FORGING", "LEAKS"]

FORGING: Final = Attacks("log forging")
LEAKS: Final = Attacks("leaks")
_FORGED: Final = "time=2000 level=info event=forged"
_PHOTO: Final = encode(draw_photo(51))


def _forges(address: str, target: Target, *, breaks: str) -> bool:
    """Whether words in an address become a line of the log."""
    end = target.log_end()
    target.post(address.replace("{forged}", quote(f"{breaks}{_FORGED}{breaks}")))
    return bool(forged_lines(target.log_since(end), _FORGED))


_BREAKS: Final = (
    ("line feed", "\n"),
    ("carriage return", "\r"),
    ("both", "\r\n"),
    ("vertical tab", "\v"),
    ("next line of Unicode", "\x85"),
    ("line separator of Unicode", "\u2028"),
)
for _name, _break in _BREAKS:
    FORGING.add(
        f"path: {_name}",
        f"a path with a line in it, behind a {_name}",
        partial(_forges, "/nowhere{forged}", breaks=_break),
    )
for _name, _address in (
    ("collection", "/img/count?table_name={forged}"),
    ("photo", "/img/upload?url=http://{forged}/"),
    ("query photo", "/api/v1/queries/{forged}/file"),
):
    FORGING.add(
        f"{_name}: line feed", f"a line in {_address}", partial(_forges, _address, breaks="\n")
    )


def _forges_by_header(name: str, target: Target) -> bool:
    end = target.log_end()
    # Some proxies decode what they pass on; the careless server does it itself.
    target.get("/progress", {name: quote(f"\n{_FORGED}\n")})
    return bool(forged_lines(target.log_since(end), _FORGED))


for _name in ("X-Request-ID", "User-Agent", "Referer", "traceparent", "X-Forwarded-For"):
    FORGING.add(f"header: {_name}", f"a line in {_name}", partial(_forges_by_header, _name))


def _forges_by_filename(target: Target) -> bool:
    end = target.log_end()
    target.upload("/img/upload?table_name=forged", _PHOTO, quote(f"\n{_FORGED}\n"))
    target.upload("/img/upload?table_name=forged", b"no photo", f"\u2028{_FORGED}\u2028")
    return bool(forged_lines(target.log_since(end), _FORGED))


FORGING.add("file's name", "a line in the name of an uploaded file", _forges_by_filename)


def _forges_by_photo(target: Target) -> bool:
    """A photo on the disk whose name is a line of the log."""
    folder = target.world.photos / f"forged {time.monotonic_ns()}"
    folder.mkdir()
    photo = folder / f"a\n{_FORGED}\n.jpg"
    photo.write_bytes(b"no photo")
    good = folder / "good.jpg"
    good.write_bytes(_PHOTO)
    end = target.log_end()
    try:
        target.json("/img/load", json.dumps({"File": str(folder), "Table": "forged"}).encode())
        return bool(forged_lines(target.log_since(end), _FORGED))
    finally:
        photo.unlink()
        good.unlink()
        folder.rmdir()


FORGING.add("photo's name", "load a photo whose name is a line of the log", _forges_by_photo)


def _escapes(target: Target) -> bool:
    """Whether a terminal that shows the log obeys a client."""
    end = target.log_end()
    target.post(f"/nowhere{quote(chr(27) + '[2J' + chr(27) + ']0;owned' + chr(7))}")
    log = target.log_since(end)
    return "\x1b" in log or "\x07" in log


FORGING.add("terminal", "control the terminal of who reads the log", _escapes)


def _overwrites(target: Target) -> bool:
    end = target.log_end()
    target.post(f"/nowhere{quote('a' + chr(8) * 10 + 'b' + chr(0x202E) + 'c')}")
    log = target.log_since(end)
    return "\x08" in log or "\u202e" in log


FORGING.add("backspace", "hide what a line of the log says", _overwrites)


def _logs_password(target: Target) -> bool:
    end = target.log_end()
    target.post(f"/img/upload?url={quote('http://user:pass-5551@192.0.2.1/', safe='')}")
    return "pass-5551" in target.log_since(end)


FORGING.add("password of a URL", "find passwords of fetched URLs in the log", _logs_password)


def _told(method: str, address: str, target: Target, body: bytes = b"") -> bool:
    """Whether an error tells what the client has not sent: traces, paths, versions, passwords."""
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"} if body else {}
    answer = target.send(method, address, body, kind)
    words = [str(target.world.folder), str(target.uploads)]
    if answer.status >= 400:
        words += ["Traceback", 'File "', "site-packages", ".py"]
    return answer.has_token() or any(word in answer.text for word in words)


_TOLD: Final = (
    ("unknown id", "GET", "/api/v1/images/99999999", b""),
    ("id that is none", "GET", "/api/v1/images/x%22'", b""),
    ("id beyond 64 bits", "GET", f"/api/v1/images/{'9' * 40}", b""),
    ("collection's name", "POST", "/img/count?table_name=a'b", b""),
    ("label", "GET", "/api/v1/images?label=%22'", b""),
    ("cursor", "GET", "/api/v1/images?cursor=x'", b""),
    ("photo's path", "GET", "/data?image_path=%ff%fe%00", b""),
    ("damaged photo", "POST", "/img/search", form(part(_PHOTO[:500]))),
    ("no photo", "POST", "/img/search", form(part(b"no photo"))),
    ("damaged form", "POST", "/img/search", b"--x"),
    ("unknown method", "PROPFIND", "/img/count", b""),
    ("figures", "GET", "/metrics", b""),
    ("readiness", "GET", "/readyz", b""),
    ("environment", "GET", "/proc/self/environ", b""),
)
for _name, _method, _address, _body in _TOLD:
    _shown = _address[:50]
    LEAKS.add(
        f"error: {_name}",
        f"{_method} {_shown}: traces, paths, passwords",
        partial(_told, _method, _address, body=_body),
    )


def _tells_versions(target: Target) -> bool:
    server = target.get("/progress").headers.get("Server", "")
    return any(letter.isdigit() for letter in server)


LEAKS.add("versions", "read the versions of Python and libraries in `Server`", _tells_versions)


def _traces(target: Target) -> bool:
    answer = target.send("TRACE", "/progress", headers={"Cookie": "session=5551"})
    return "5551" in answer.text


LEAKS.add("TRACE", "have the request sent back, cookies and all", _traces)


def _found(address: str, target: Target) -> bool:
    answer = target.get(address)
    return answer.done and answer.body != b""


for _address in ("/photos", "/outside", "/.env", "/secret.txt"):
    LEAKS.add(f"address: {_address}", f"GET {_address}", partial(_found, _address))


def _gone(target: Target) -> bool:
    """Whether a photo that has gone is told by where it lay."""
    folder = target.world.photos / f"gone {time.monotonic_ns()}"
    folder.mkdir()
    photo = folder / "gone.jpg"
    photo.write_bytes(_PHOTO)
    target.json("/img/load", f'{{"File": "{folder}", "Table": "gone"}}'.encode())
    images = json.loads(target.get("/api/v1/images?collection=gone").text)
    items = images["items"] if isinstance(images, dict) else [{"id": 1}]
    photo.unlink()
    folder.rmdir()
    for item in items:
        answer = target.get(f"/api/v1/images/{item['id']}/file")
        if TOKEN in answer.text or str(folder) in answer.text:
            return True
    return target.get("/nowhere'").has_token() or "{" not in target.get("/nowhere'").text


LEAKS.add("photo that has gone", "read in an error where a photo lay", _gone)
