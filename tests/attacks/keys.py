"""Key misuse: what somebody does who has no key, or one for something else."""

import base64
import hashlib
from functools import partial
from typing import Final
from urllib.parse import quote

from tests.attacks.cases import Attacks
from tests.attacks.target import BOUNDARY, Answer, Target, form, part
from tests.photos import draw_photo, encode

__all__ = ["ATTACKS"]

ATTACKS: Final = Attacks("key misuse")
_KIND: Final = ("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")


def _sends(
    target: Target, method: str, address: str, *headers: tuple[str, str], body: bytes = b""
) -> Answer:
    return target.send(method, address, body, headers, to=target.guarded)


def _bearer(key: str) -> tuple[str, str]:
    return "Authorization", f"Bearer {key}"


_ADDRESSES: Final = (
    ("POST", "/img/count"),
    ("POST", "/img/drop"),
    ("GET", "/progress"),
    ("GET", "/api/v1/images"),
    ("GET", "/api/v1/collections"),
    ("DELETE", "/api/v1/collections/a"),
    ("GET", "/api/v1/info"),
    ("GET", "/metrics"),
)


def _without(method: str, address: str, target: Target) -> bool:
    return _sends(target, method, address).done


for _method, _address in _ADDRESSES:
    ATTACKS.add(
        f"no key: {_address}",
        f"{_method} {_address} without a key",
        partial(_without, _method, _address),
    )


def _with(header: str, value: str, target: Target) -> bool:
    """Whether such a header opens the door; {read} and the like are put in."""
    keys = target.keys
    sent = value
    for name in ("read", "write", "admin", "revoked"):
        key: str = getattr(keys, name)
        sent = sent.replace(f"{{{name}}}", key)
        sent = sent.replace(f"{{{name}:upper}}", key.upper() if key != key.upper() else key.lower())
        sent = sent.replace(f"{{{name}:short}}", key[:-1])
        sent = sent.replace(f"{{{name}:start}}", key[: len(key) // 2])
        sent = sent.replace(f"{{{name}:sha256}}", hashlib.sha256(key.encode()).hexdigest())
        sent = sent.replace(f"{{{name}:reversed}}", key[::-1])
    if value.startswith("Basic "):
        sent = "Basic " + base64.b64encode(sent[6:].encode()).decode()
    return _sends(target, "POST", "/img/count", (header, sent)).done


_WITH: Final = (
    ("empty", "Authorization", ""),
    ("scheme alone", "Authorization", "Bearer"),
    ("empty key", "Authorization", "Bearer "),
    ("made up", "Authorization", "Bearer 0123456789abcdef0123456789abcdef"),
    ("revoked", "Authorization", "Bearer {revoked}"),
    ("in another case", "Authorization", "Bearer {read:upper}"),
    ("one letter short", "Authorization", "Bearer {read:short}"),
    ("first half", "Authorization", "Bearer {read:start}"),
    ("one letter more", "Authorization", "Bearer {read}x"),
    ("backwards", "Authorization", "Bearer {read:reversed}"),
    ("its hash", "Authorization", "Bearer {read:sha256}"),
    ("two keys in one", "Authorization", "Bearer {read} {write}"),
    ("another scheme", "Authorization", "Digest {read}"),
    ("pattern", "Authorization", "Bearer %"),
    ("SQL", "Authorization", "Bearer ' OR '1'='1"),
    ("null", "Authorization", "Bearer null"),
    ("10,000 letters", "Authorization", f"Bearer {'a' * 7000}"),
    ("no ASCII", "Authorization", "Bearer ключ"),
    ("user of a proxy", "X-Forwarded-User", "admin"),
    ("address of loopback", "X-Forwarded-For", "127.0.0.1"),
    ("address of loopback by a proxy", "X-Real-IP", "127.0.0.1"),
    ("forwarded", "Forwarded", "for=127.0.0.1;host=localhost"),
    ("original address", "X-Original-URL", "/healthz"),
)
for _name, _header, _value in _WITH:
    ATTACKS.add(f"key: {_name}", f"{_header}: {_value[:60]}", partial(_with, _header, _value))


def _in_query(name: str, target: Target) -> bool:
    # It would be in every log on the way.
    key = quote(target.keys.read)
    return _sends(target, "POST", f"/img/count?{name}={key}").done


for _name in ("key", "api_key", "access_token"):
    ATTACKS.add(f"key in the address: {_name}", f"a key as ?{_name}=", partial(_in_query, _name))


def _beyond(key: str, method: str, address: str, target: Target, body: bytes = b"") -> bool:
    """Whether a key does what it is not for."""
    bearer = _bearer(getattr(target.keys, key))
    headers = (bearer, _KIND) if body.startswith(b"--") else (bearer,)
    sent = body.replace(b"{folder}", str(target.world.photos).encode())
    answer = _sends(target, method, address, *headers, body=sent)
    # A collection that a key is not for has no photos, as one that there is not.
    return answer.done and answer.text != "0"


_PHOTO: Final = form(part(encode(draw_photo(41))))
_BEYOND: Final = (
    ("drop with read", "read", "POST", "/img/drop?table_name=a", b""),
    ("upload with read", "read", "POST", "/img/upload", _PHOTO),
    ("upload by the resource API with read", "read", "POST", "/api/v1/images", _PHOTO),
    ("load with read", "read", "POST", "/img/load", b'{"File": "{folder}"}'),
    ("delete with read", "read", "DELETE", "/api/v1/images/1", b""),
    ("another collection", "other", "POST", "/img/count?table_name=milvus_obj_det", b""),
    ("upload into another collection", "other", "POST", "/img/upload?table_name=a", _PHOTO),
    ("the default collection", "other", "POST", "/img/count", b""),
    ("drop of another collection", "other", "POST", "/img/drop?table_name=a", b""),
    ("list of all collections", "other", "GET", "/api/v1/collections/milvus_obj_det", b""),
    (
        "photos of another collection",
        "other",
        "GET",
        "/api/v1/images?collection=milvus_obj_det",
        b"",
    ),
)
for _name, _key, _method, _address, _body in _BEYOND:
    ATTACKS.add(
        f"beyond its scope: {_name}",
        f"{_method} {_address} with a key for {'one collection' if _key == 'other' else 'reading'}",
        partial(_beyond, _key, _method, _address, body=_body),
    )


def _two_headers(target: Target) -> bool:
    made_up = _bearer("0" * 40)
    return _sends(target, "POST", "/img/count", made_up, _bearer(target.keys.read)).done


ATTACKS.add("two headers", "two Authorization headers, of which one is right", _two_headers)


def _head(target: Target) -> bool:
    return _sends(target, "HEAD", "/api/v1/images").done


ATTACKS.add("HEAD", "HEAD for GET, without a key", _head)


def _preflighted(target: Target) -> bool:
    headers = (("Origin", "http://evil.example"), ("Access-Control-Request-Method", "POST"))
    return _sends(target, "OPTIONS", "/img/drop", *headers).done


ATTACKS.add("preflight", "a preflight of another site, without a key", _preflighted)


def _logged(target: Target) -> bool:
    """Whether a key that was sent, right or wrong, can be read in the log."""
    end = target.log_end()
    wrong = "wrong-key-" + "7" * 30
    _sends(target, "POST", "/img/count", _bearer(target.keys.read))
    _sends(target, "POST", "/img/count", _bearer(wrong))
    log = target.log_since(end)
    return target.keys.read in log or wrong in log


ATTACKS.add("key in the log", "find keys of others in the log", _logged)


def _echoed(target: Target) -> bool:
    wrong = "wrong-key-" + "8" * 30
    answer = _sends(target, "TRACE", "/img/count", _bearer(wrong))
    return wrong in answer.text or wrong in str(answer.headers)


ATTACKS.add("key in the answer", "have the server repeat a key, by TRACE", _echoed)
