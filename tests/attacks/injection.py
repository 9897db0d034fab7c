"""SQL and filter injection: text that is meant to be run."""

from functools import partial
from typing import Final
from urllib.parse import quote

from tests.attacks.cases import Attacks
from tests.attacks.target import Target
from tests.photos import draw_photo, encode

__all__ = ["ATTACKS"]

ATTACKS: Final = Attacks("SQL and filter injection")


def _counted(name: str, target: Target) -> bool:
    """Whether a name that is no collection's makes the database count, or tell, something."""
    answer = target.post(f"/img/count?table_name={quote(name)}")
    return answer.has_token() or (answer.done and answer.text.strip() != "0")


_NAMES: Final = (
    ("always true", "x' OR '1'='1"),
    ("always true, commented", "x' OR 1=1 --"),
    ("always true, C comment", "x'/**/OR/**/1=1--"),
    ("union", "x' UNION SELECT value FROM secrets --"),
    ("union in mixed case", "x' uNiOn SeLeCt value FROM secrets --"),
    ("union of all", "x' UNION ALL SELECT value FROM secrets ORDER BY 1 DESC --"),
    ("subquery", "x' OR (SELECT count(*) FROM secrets) = 1 --"),
    ("schema", "x' UNION SELECT sql FROM sqlite_master WHERE name='photos' --"),
    ("wildcard", "x' OR collection LIKE '%"),
    ("expression", "x' OR length(collection) > 0 --"),
    ("case", "x' OR CASE WHEN 1 THEN 1 END = 1 --"),
    ("concatenation", "milvus_obj' || '_det"),
)
for _name, _text in _NAMES:
    ATTACKS.add(f"name: {_name}", f"count a collection called {_text}", partial(_counted, _text))


def _stacked(address: str, text: str, target: Target) -> bool:
    """Whether a second statement behind a name is run: it would remove the victim."""
    victim = target.new_collection()
    sent = quote(text.replace("{victim}", victim))
    target.post(address.replace("{name}", sent))
    return target.count(victim) == 0


_STACKED: Final = (
    ("count", "/img/count?table_name={name}", "x'; DELETE FROM photos; --"),
    ("drop", "/img/drop?table_name={name}", "x'; DELETE FROM photos; --"),
    ("drop of all", "/img/drop?table_name={name}", "x' OR '1'='1"),
    ("drop by a union", "/img/drop?table_name={name}", "x' OR collection='{victim}"),
    ("newline", "/img/count?table_name={name}", "x'\n;DELETE FROM photos;\n--"),
    ("update", "/img/count?table_name={name}", "x'; UPDATE photos SET collection='y'; --"),
    ("rename", "/img/count?table_name={name}", "x'; UPDATE photos SET collection=NULL; --"),
)
for _name, _address, _text in _STACKED:
    ATTACKS.add(
        f"second statement: {_name}",
        f"{_address} with {_text!r}",
        partial(_stacked, _address, _text),
    )


def _deletes(address: str, target: Target) -> bool:
    victim = target.new_collection()
    target.send("DELETE", address.replace("{victim}", victim))
    return target.count(victim) == 0


ATTACKS.add(
    "id: always true",
    "DELETE /api/v1/images/0 OR 1=1",
    partial(_deletes, "/api/v1/images/0%20OR%201=1"),
)
ATTACKS.add(
    "id: subquery",
    "DELETE the photo that a SELECT names",
    partial(
        _deletes,
        "/api/v1/images/(SELECT%20id%20FROM%20photos%20WHERE%20collection='{victim}')",
    ),
)
ATTACKS.add(
    "collection in the path",
    "DELETE /api/v1/collections/x' OR '1'='1",
    partial(_deletes, "/api/v1/collections/x'%20OR%20'1'='1"),
)


def _reads(address: str, target: Target) -> bool:
    answer = target.get(address)
    return answer.has_token() or (answer.done and answer.text not in ("[]", ""))


_READ: Final = (
    ("id: union", "/api/v1/images/0%20UNION%20SELECT%201,2,3,value%20FROM%20secrets"),
    ("id: hexadecimal", "/api/v1/images/0x1"),
    ("id: sum", "/api/v1/images/2-1"),
    (
        "collection: union",
        "/api/v1/collections/x'%20UNION%20SELECT%201,2,3,value%20FROM%20secrets--",
    ),
    ("path: always true", "/data?image_path=x'%20OR%20'1'='1"),
    ("path: union", "/data?image_path=x'%20UNION%20SELECT%20path%20FROM%20photos--"),
    ("cursor", "/api/v1/images?cursor=0%20OR%201=1"),
    ("query photo", "/api/v1/search?query=1%20OR%201=1"),
    ("image to search with", "/api/v1/search?image_id=1%20OR%201=1"),
)
for _name, _address in _READ:
    ATTACKS.add(_name, f"GET {_address}", partial(_reads, _address))


def _found(label: str, target: Target) -> bool:
    """Whether a label that nothing bears finds something."""
    answer = target.get(f"/api/v1/images?label={quote(label)}")
    if not answer.done:
        return False
    return '"path"' in answer.text or "/photo" in answer.text or answer.has_token()


_LABELS: Final = (
    ("always true", 'x" or "1"=="1'),
    ("not equal", 'x" or label != "'),
    ("id", 'x" or id > 0 or "'),
    ("comment", 'x" or 1=1 --'),
    ("membership", 'x" or label in ("person") or "'),
    ("pattern", 'x" or label like "%'),
    ("backslash", 'x\\" or 1=1 --'),
    ("union", 'x" UNION SELECT 1, value FROM secrets --'),
)
for _name, _label in _LABELS:
    ATTACKS.add(f"label: {_name}", f"list photos of the label {_label}", partial(_found, _label))


def _filtered(label: str, target: Target) -> bool:
    """The same where the label goes to the vector store: a search with an expression in it."""
    photo = encode(draw_photo(0))
    answer = target.upload(f"/api/v1/search?label={quote(label)}", photo)
    return answer.status == 200 and '"hits":[]' not in answer.text.replace(" ", "")


for _name, _label in _LABELS[:6]:
    ATTACKS.add(
        f"filter: {_name}", f"search for objects of the label {_label}", partial(_filtered, _label)
    )


def _formatted(name: str, target: Target) -> bool:
    return target.post(f"/img/count?table_name={quote(name)}").has_token()


for _name, _text in (("configuration", "{config}"), ("attribute", "{self._run.__globals__}")):
    ATTACKS.add(
        f"format string: {_name}", f"count a collection called {_text}", partial(_formatted, _text)
    )


def _second_order(target: Target) -> bool:
    """A name that is stored, harmless, and would do harm where it is used the next time."""
    victim = target.new_collection()
    name = f"x' OR collection='{victim}"
    target.upload(f"/img/upload?table_name={quote(name)}", encode(draw_photo(6)))
    target.post(f"/img/drop?table_name={quote(name)}")
    return target.count(victim) == 0


ATTACKS.add(
    "second order", "upload into a collection with SQL as its name, then drop it", _second_order
)
