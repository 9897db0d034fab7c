"""Multipart and JSON abuse: bodies that are built to cost more than they are worth."""

import json
from collections.abc import Callable
from functools import partial
from typing import Final

from tests.attacks.cases import Attacks
from tests.attacks.target import BOUNDARY, Target, form, part
from tests.photos import draw_photo, encode

__all__ = ["JSON", "MULTIPART"]

MULTIPART: Final = Attacks("multipart abuse")
JSON: Final = Attacks("JSON abuse")
_PHOTO: Final = encode(draw_photo(31))
_KIND: Final = f"multipart/form-data; boundary={BOUNDARY}"


def _taken(make: Callable[[], bytes], target: Target, *, kind: str = _KIND) -> bool:
    """Whether the server does what such a form asks for."""
    return target.post("/api/v1/detect", make(), [("Content-Type", kind)]).done


_GOOD: Final = part(_PHOTO)
_FORMS: Final[tuple[tuple[str, str, Callable[[], bytes]], ...]] = (
    (
        "many fields",
        "10,000 small fields before the photo",
        lambda: form(*[part(b"x", "a", None)] * 10_000, _GOOD),
    ),
    ("many photos", "300 photos in one request", lambda: form(*[_GOOD] * 300)),
    ("large field", "a text field of 4 MB", lambda: form(part(bytes(2**22), "topk", None), _GOOD)),
    (
        "large header of a part",
        "a part with a header of 1 MB",
        lambda: form(part(_PHOTO, headers=f"X-A: {'a' * 2**20}\r\n")),
    ),
    (
        "many headers of a part",
        "a part with 20,000 headers",
        lambda: form(part(_PHOTO, headers="X-A: a\r\n" * 20_000)),
    ),
    (
        "form inside a part",
        "a multipart body inside a part",
        lambda: form(
            part(
                form(_GOOD, boundary="inner"),
                headers="Content-Type: multipart/mixed; boundary=inner\r\n",
            ),
            _GOOD,
        ),
    ),
    ("no end", "a form that is not closed", lambda: form(_GOOD, end=False)),
    (
        "name of a field with a line break",
        "a part's name with CR and LF in it",
        lambda: form(part(_PHOTO, "image\r\nX-Forged: yes")),
    ),
    (
        "unknown field",
        "a field that nobody knows",
        lambda: form(part(b"1", "is_admin", None), _GOOD),
    ),
    (
        "photo of 40 MB",
        "a photo beyond MAX_UPLOAD_BYTES",
        lambda: form(part(_PHOTO + bytes(40 * 2**20))),
    ),
    ("no photo", "a form without the photo", lambda: form(part(b"x", "other.jpg"))),
    (
        "encoding of a part",
        "a part in base64 that says what it is",
        lambda: form(part(b"AAAA" * 100, headers="Content-Transfer-Encoding: base64\r\n")),
    ),
    (
        "large preamble",
        "8 MB before the first boundary",
        lambda: b"x" * 2**23 + b"\r\n" + form(_GOOD),
    ),
    (
        "large name",
        "a field whose name has 1 MB",
        lambda: form(part(b"1", "a" * 2**20, None), _GOOD),
    ),
)
for _name, _tries, _make in _FORMS:
    MULTIPART.add(_name, _tries, partial(_taken, _make))
_KINDS: Final = (
    ("no boundary", "a form that names no boundary", "multipart/form-data"),
    ("empty boundary", "a form whose boundary is empty", "multipart/form-data; boundary="),
    ("long boundary", "a boundary of 5,000 letters", f"multipart/form-data; boundary={'b' * 5000}"),
    (
        "another boundary",
        "a boundary that the body does not have",
        "multipart/form-data; boundary=other",
    ),
    ("another kind", "a form that says that it is text", "text/plain"),
)
for _name, _tries, _kind in _KINDS:
    MULTIPART.add(_name, _tries, partial(_taken, partial(form, _GOOD), kind=_kind))


def _sent(body: bytes, target: Target, *, kind: str = "application/json") -> bool:
    """Whether such a body starts a load, or brings the server out of step."""
    folder = str(target.world.photos).encode()
    answer = target.post(
        "/api/v1/loads", body.replace(b"{folder}", folder), [("Content-Type", kind)]
    )
    return answer.done or answer.status in (0, 500)


_BODIES: Final = (
    ("depth of arrays", "100,000 arrays, one in the other", b"[" * 100_000),
    (
        "depth of objects",
        "50,000 objects, one in the other",
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    ),
    (
        "depth in a field",
        "a deep array where a text belongs",
        b'{"folder":' + b"[" * 900 + b"]" * 900 + b"}",
    ),
    (
        "digits",
        "a number of 100,000 digits",
        b'{"folder": "{folder}", "prune": ' + b"9" * 100_000 + b"}",
    ),
    ("exponent", "the number 1e999999999", b'{"folder": "{folder}", "prune": 1e999999999}'),
    ("NaN", "NaN, which JSON does not have", b'{"folder": "{folder}", "prune": NaN}'),
    (
        "Infinity",
        "-Infinity, which JSON does not have",
        b'{"folder": "{folder}", "prune": -Infinity}',
    ),
    (
        "many keys",
        "50,000 keys",
        json.dumps({f"k{n}": n for n in range(50_000)} | {"folder": "{folder}"}).encode(),
    ),
    (
        "key that is twice there",
        "the same key with two values",
        b'{"folder": "/nowhere", "folder": "{folder}"}',
    ),
    ("prototype", "a key __proto__", b'{"folder": "{folder}", "__proto__": {"admin": true}}'),
    ("class", "a key __class__", b'{"folder": "{folder}", "__class__": "Admin"}'),
    ("unknown key", "a key that nobody knows", b'{"folder": "{folder}", "is_admin": true}'),
    (
        "large text",
        "a text of 4 MB",
        b'{"folder": "{folder}", "collection": "' + b"a" * 2**22 + b'"}',
    ),
    (
        "control character",
        "a raw control character in a text",
        b'{"folder": "{folder}", "collection": "a\x01"}',
    ),
    (
        "bytes that are no UTF-8",
        "a text that is no UTF-8",
        b'{"folder": "{folder}", "collection": "a\xff"}',
    ),
    ("byte order mark", "a mark before the body", b'\xef\xbb\xbf{"folder": "{folder}", "x": 1}'),
    (
        "text behind the end",
        "a second document behind the first",
        b'{"folder": "{folder}"} {"folder": "/"}',
    ),
    ("array for an object", "an array where an object belongs", b'["{folder}"]'),
    ("wrong type", "an object where a text belongs", b'{"folder": {"$ne": null}}'),
    ("truth as a text", "a text where true belongs", b'{"folder": "{folder}", "prune": "0x1"}'),
)
for _name, _tries, _body in _BODIES:
    JSON.add(_name, _tries, partial(_sent, _body))
JSON.add(
    "another kind",
    "JSON that says that it is a form, as pages of other sites may send it",
    partial(_sent, b'{"folder": "{folder}"}', kind="application/x-www-form-urlencoded"),
)
