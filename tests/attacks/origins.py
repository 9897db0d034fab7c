"""Cross-site request forgery, and DNS rebinding: what a page of somebody else's may do."""

from functools import partial
from typing import Final

from tests.attacks.cases import Attacks
from tests.attacks.target import BOUNDARY, Target, form, part
from tests.photos import draw_photo, encode

__all__ = ["ORIGINS", "REBINDING"]

ORIGINS: Final = Attacks("cross-site request forgery")
REBINDING: Final = Attacks("DNS rebinding")
_EVIL: Final = "http://evil.example"
_FORM: Final = ("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")


def _drops(headers: dict[str, str], target: Target) -> bool:
    """Whether a page with these headers may drop a collection."""
    name = target.new_collection()
    host, port = target.address
    sent = {
        key: value.replace("{host}", host).replace("{port}", str(port))
        for key, value in headers.items()
    }
    target.post(f"/img/drop?table_name={name}", headers=sent)
    return target.count(name) == 0


_DROPS: Final = (
    ("another site", {"Origin": _EVIL}),
    ("another site by TLS", {"Origin": "https://evil.example"}),
    ("no origin", {"Origin": "null"}),
    ("empty origin", {"Origin": ""}),
    ("origin that begins like ours", {"Origin": "http://{host}.evil.example"}),
    ("origin that begins like ours with its port", {"Origin": "http://{host}:{port}.evil.example"}),
    ("origin that ends like ours", {"Origin": "http://evil{host}"}),
    ("origin with ours as its user", {"Origin": "http://{host}:{port}@evil.example"}),
    ("origin with ours as its path", {"Origin": "http://evil.example/{host}:{port}"}),
    ("origin with ours as its query", {"Origin": "http://evil.example?http://{host}:{port}"}),
    ("file on the user's disk", {"Origin": "file://"}),
    ("browser's extension", {"Origin": "chrome-extension://abcdef"}),
    ("origin with a space", {"Origin": "http://{host}:{port} http://evil.example"}),
    ("two origins with a comma", {"Origin": "http://{host}:{port}, http://evil.example"}),
    ("Fetch Metadata alone", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}),
    (
        "Fetch Metadata of a form",
        {"Origin": _EVIL, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    ),
    ("forwarded host", {"Origin": _EVIL, "X-Forwarded-Host": "evil.example"}),
)
for _name, _headers in _DROPS:
    _shown = ", ".join(f"{key}: {value}" for key, value in _headers.items())
    ORIGINS.add(f"drop: {_name}", f"POST /img/drop with {_shown}", partial(_drops, _headers))


def _loads_by_form(target: Target) -> bool:
    # text/plain: what a form may send anywhere without a preflight.
    body = f'{{"File": "{target.world.photos}", "Table": "forged"}}'.encode()
    headers = {"Origin": _EVIL, "Content-Type": "text/plain"}
    return target.post("/img/load", body, headers).done


ORIGINS.add("load: by a form", "POST /img/load as text/plain from another site", _loads_by_form)


def _uploads_by_form(address: str, target: Target) -> bool:
    body = form(part(encode(draw_photo(21))))
    return target.post(address, body, [("Origin", _EVIL), _FORM]).done


for _address in ("/img/upload", "/api/v1/images"):
    ORIGINS.add(
        f"upload: {_address}",
        f"POST {_address} with a form of another site",
        partial(_uploads_by_form, _address),
    )


def _resource(method: str, address: str, target: Target) -> bool:
    name = target.new_collection()
    headers = {"Origin": _EVIL, "Sec-Fetch-Site": "cross-site"}
    return target.send(method, address.replace("{name}", name), headers=headers).done


_RESOURCES: Final = (
    ("drop of a collection", "DELETE", "/api/v1/collections/{name}"),
    ("delete of a photo", "DELETE", "/api/v1/images/1"),
    ("reading of photos", "GET", "/api/v1/images"),
    ("reading of collections", "GET", "/api/v1/collections"),
)
for _name, _method, _address in _RESOURCES:
    ORIGINS.add(
        f"resource API: {_name}",
        f"{_method} {_address} from another site",
        partial(_resource, _method, _address),
    )


def _overridden(target: Target) -> bool:
    name = target.new_collection()
    headers = {"X-HTTP-Method-Override": "DELETE"}
    target.get(f"/api/v1/collections/{name}", headers)
    return target.count(name) == 0


ORIGINS.add("method in a header", "drop by GET with X-HTTP-Method-Override: DELETE", _overridden)


def _by_get(address: str, target: Target) -> bool:
    name = target.new_collection()
    target.get(address.replace("{name}", name))
    return target.count(name) == 0


ORIGINS.add(
    "drop by GET",
    "GET /img/drop, as an image on a page would",
    partial(_by_get, "/img/drop?table_name={name}"),
)


def _readable(headers: dict[str, str], target: Target) -> bool:
    """Whether a browser would let a page of another site read the photos' list."""
    answer = target.post("/img/count", headers=headers)
    return answer.headers.get("Access-Control-Allow-Origin") in ("*", headers["Origin"])


ORIGINS.add(
    "answer read by another site",
    "read the answer of /img/count in a page of another site",
    partial(_readable, {"Origin": _EVIL}),
)
ORIGINS.add(
    "answer read by a sandboxed page",
    "the same in a frame without an origin",
    partial(_readable, {"Origin": "null"}),
)


def _credentials(target: Target) -> bool:
    answer = target.get("/progress", {"Origin": _EVIL})
    return answer.headers.get("Access-Control-Allow-Credentials") == "true"


ORIGINS.add(
    "credentials of the user", "have a page send the user's credentials along", _credentials
)


def _preflight(method: str, address: str, target: Target) -> bool:
    headers = {"Origin": _EVIL, "Access-Control-Request-Method": method}
    answer = target.send("OPTIONS", address, headers=headers)
    origin = answer.headers.get("Access-Control-Allow-Origin")
    return answer.done and origin in ("*", _EVIL)


for _method, _address in (("DELETE", "/api/v1/collections/a"), ("POST", "/img/load")):
    ORIGINS.add(
        f"preflight: {_method}",
        f"ask whether {_method} {_address} may come from another site",
        partial(_preflight, _method, _address),
    )


def _rebound(host: str, target: Target) -> bool:
    """Whether a name that leads here by an attacker's DNS is answered."""
    name = host.replace("{host}", target.address[0]).replace("{port}", str(target.address[1]))
    return target.send("POST", "/img/count", host=name).done


_HOSTS: Final = (
    ("another name", "evil.example"),
    ("another name with the port", "evil.example:{port}"),
    ("a name that begins like ours", "{host}.evil.example:{port}"),
    ("a name that ends like ours", "evil{host}:{port}"),
    ("a name below localhost's letters", "localhost.evil.example"),
    ("a public resolver of addresses", "127.0.0.1.nip.io:{port}"),
    ("ours as the user", "{host}:{port}@evil.example"),
    ("a name behind a comma", "{host}:{port}, evil.example"),
    ("an address of somebody else's", "192.0.2.1:{port}"),
    ("no name", ""),
)
for _name, _host in _HOSTS:
    REBINDING.add(f"Host: {_name}", f"POST /img/count with Host: {_host}", partial(_rebound, _host))


def _photo_rebound(target: Target) -> bool:
    photo = str(target.world.photos / "photo 0000.jpg").replace(" ", "%20")
    return target.send("GET", f"/data?image_path={photo}", host="evil.example").done


REBINDING.add("photo", "GET /data with Host: evil.example", _photo_rebound)


def _resource_rebound(target: Target) -> bool:
    headers = {"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}
    return target.send("GET", "/api/v1/images", headers=headers, host="evil.example").done


REBINDING.add(
    "page of that name",
    "the resource API from a page that is of one origin with it",
    _resource_rebound,
)


def _raw_host(lines: str, target: Target) -> bool:
    host = f"{target.address[0]}:{target.address[1]}"
    return target.raw(lines.replace("{host}", host).encode()).done


_RAW: Final = (
    ("two Hosts", "GET /progress HTTP/1.1\r\nHost: {host}\r\nHost: evil.example\r\n\r\n"),
    (
        "two Hosts, ours last",
        "GET /progress HTTP/1.1\r\nHost: evil.example\r\nHost: {host}\r\n\r\n",
    ),
    ("no Host", "GET /progress HTTP/1.1\r\nConnection: close\r\n\r\n"),
    ("absolute target", "GET http://evil.example/progress HTTP/1.1\r\nHost: evil.example\r\n\r\n"),
)
for _name, _lines in _RAW:
    REBINDING.add(
        f"request: {_name}", f"a request with {_name.lower()}", partial(_raw_host, _lines)
    )
