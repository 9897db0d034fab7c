"""Exports and imports: files that somebody has made up, and who may ask for them."""

import json
import re
import tarfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, Final
from urllib.parse import quote

import numpy as np
import pyarrow

from backend.storage.catalog import path_key
from backend.tarball import TarballWriter
from tests.archives import member_bytes, parquet, rewrite, swollen, table_of, with_table
from tests.attacks.cases import Attacks
from tests.attacks.target import Answer, Headers, Target

__all__ = ["ATTACKS", "import_changed"]

ATTACKS: Final = Attacks("exports and imports")
_EXPORT: Final = "/api/v1/collections/milvus_obj_det/export"
_KIND: Final = ("Content-Type", "application/x-tar")
_MOST_GROWTH: Final = 200 * 2**20
"""Bytes that a server may take more for an export of a few KB."""
_VALUES: Final = 100_000_000
_OTHER: Final = {
    "name": "a",
    "embedder": "another",
    "embedder_sha256": "0" * 64,
    "dimension": 8,
    "metric": "L2",
}

_Parts = dict[str, bytes]
_Change = Callable[[_Parts], Any]

_exports: dict[tuple[str, int], bytes] = {}


def _exported(target: Target) -> bytes:
    """A good export of the server's own, with a right seal."""
    if target.address not in _exports:
        answer = target.get(_EXPORT)
        assert answer.done, answer.text
        _exports[target.address] = answer.body
    return _exports[target.address]


def _changed(target: Target, change: _Change) -> bytes:
    """The same with other members, and a seal that is right."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "export.tar"
        path.write_bytes(_exported(target))
        rewrite(path, change)
        return path.read_bytes()


def _import(
    target: Target, name: str, body: bytes, headers: Headers = (), to: Any = None
) -> Answer:
    sent = [_KIND, *(headers.items() if isinstance(headers, dict) else headers)]
    return target.post(f"/api/v1/collections/{name}/import", body, sent, to=to)


def _taken(make: Callable[[Target], bytes], target: Target) -> bool:
    """Whether it is imported, or costs the server more memory than it has bytes."""
    before = target.memory()
    answer = _import(target, "made_up", make(target))
    return answer.done or target.memory() - before > _MOST_GROWTH


def _with(change: _Change) -> Callable[[Target], bytes]:
    return lambda target: _changed(target, change)


def _table(name: str, change: Callable[[Any], Any], **options: Any) -> _Change:
    def rewritten(parts: _Parts) -> None:
        table = change(table_of(parts[name]))
        with_table(parts, name, parquet(table, **options), rows=table.num_rows)

    return rewritten


def _swell(says: int | None, parts: _Parts) -> None:
    with_table(parts, "objects.parquet", swollen(parts["objects.parquet"], _VALUES, says=says))


def _zero(table: Any) -> Any:
    """Vectors of nothing, which pack well."""
    kind = table.schema.field("embedding")
    flat = pyarrow.array(np.zeros(table.num_rows * kind.type.list_size, np.float32))
    zeros = pyarrow.FixedSizeListArray.from_arrays(flat, type=kind.type)
    return table.set_column(table.column_names.index("embedding"), kind, zeros)


def _repeated(table: Any) -> Any:
    return pyarrow.concat_tables([table] * 2000)


def _manifest(**values: Any) -> _Change:
    def change(parts: _Parts) -> None:
        parts["manifest.json"] = json.dumps(json.loads(parts["manifest.json"]) | values).encode()

    return change


def _flipped(target: Target) -> bytes:
    good = bytearray(_exported(target))
    good[len(good) // 2] ^= 1
    return bytes(good)


def _exchanged(parts: _Parts) -> None:
    """Another table under the manifest that says what the first has been."""
    kept = parts["manifest.json"]
    _table("objects.parquet", _zero)(parts)
    parts["manifest.json"] = kept


def _page(parts: _Parts) -> _Parts:
    """A page of HTML under a photo's name."""
    return {"photos/" + "0" * 64 + ".jpeg": b"<script>alert(1)</script>", **parts}


_FILES: Final[tuple[tuple[str, str, Callable[[Target], bytes]], ...]] = (
    (
        "run lengths under a small number",
        "the same in a page that says to have one value",
        _with(partial(_swell, 1)),
    ),
    (
        "packed table",
        "a table that is compressed",
        _with(_table("objects.parquet", _zero, compression="ZSTD")),
    ),
    (
        "dictionary",
        "a table of 6,000 rows of the same few values, each named by a number",
        _with(_table("objects.parquet", _repeated, use_dictionary=True)),
    ),
    (
        "large row group",
        "6,000 rows that must be in memory together",
        _with(_table("objects.parquet", _repeated, row_group_size=10_000)),
    ),
    ("truncated", "an export without its end", lambda target: _exported(target)[:-600]),
    ("flipped bit", "an export of which one bit is another", _flipped),
    ("something behind the end", "bytes behind an export's end", lambda t: _exported(t) + b"x"),
    (
        "exchanged table",
        "a table that its manifest has not the digest of",
        _with(_exchanged),
    ),
    (
        "vectors of no length",
        "vectors that no embedder makes",
        _with(_table("objects.parquet", _zero)),
    ),
    ("page as a photo", "a page of HTML that is called a photo", _with(_page)),
    (
        "another embedder",
        "vectors of another embedder",
        _with(_manifest(collection=_OTHER)),
    ),
    (
        "deep manifest",
        "a manifest of 60,000 arrays, one in the other",
        _with(lambda parts: parts.update({"manifest.json": b"[" * 60_000})),
    ),
    (
        "no tables",
        "an export of a manifest alone",
        _with(lambda parts: {"manifest.json": parts["manifest.json"]}),
    ),
)


def _peak(target: Target) -> int:
    """The most memory that the server has had so far, in bytes: what it takes for a moment too."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{target.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _swollen_up(target: Target) -> bool:
    """Whether memory is spent for what is not there."""
    before = _peak(target)
    answer = _import(target, "made_up", _changed(target, partial(_swell, None)))
    if would := re.search(rb'"would_allocate": (\d+)', answer.body):
        return int(would[1]) > _MOST_GROWTH
    return answer.done or _peak(target) - before > _MOST_GROWTH


ATTACKS.add(
    "import: run lengths",
    "import an export of 10 KB in which a few bytes stand for 100,000,000 values of one row",
    _swollen_up,
)
for _name, _tries, _make in _FILES:
    ATTACKS.add(f"import: {_name}", f"import {_tries}", partial(_taken, _make))


def _sealed(target: Target, members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """A good export with such members before its own, whatever they are."""
    parts = [(tarfile.TarInfo(name), data) for name, data in _members(target).items()]
    with TemporaryFile() as file:
        for info, data in (*members, *parts):
            if info.isreg() and not info.size:
                info.size = len(data)
            file.write(info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512))
        for _ in TarballWriter(file).seal():
            pass
        file.seek(0)
        return file.read()


def _members(target: Target) -> _Parts:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "export.tar"
        path.write_bytes(_exported(target))
        return member_bytes(path)


def _planted(name: str, target: Target) -> bool:
    """Whether a member is written to where its name says."""
    info = tarfile.TarInfo(name.replace("{folder}", str(target.world.folder)))
    answer = _import(target, "planted", _sealed(target, [(info, b"planted")]))
    found = target.written(Path(name).name)
    for path in found:  # the next server's world is the same
        path.unlink()
    return answer.done or bool(found)


for _name, _member in (
    ("climbs", "../planted-climbs.txt"),
    ("climbs from the photos", "photos/../../planted-photos.txt"),
    ("begins at the root", "{folder}/planted-root.txt"),
    ("is called like a page's file", "page/planted-page.js"),
):
    ATTACKS.add(f"member: {_name}", f"import a member {_member}", partial(_planted, _member))


def _special(kind: bytes, values: dict[str, Any], target: Target) -> bool:
    info = tarfile.TarInfo("photos/" + "0" * 64 + ".jpeg")
    info.type = kind
    for name, value in values.items():
        setattr(info, name, value)
    if info.linkname:
        info.linkname = str(target.world.secret)
    return _import(target, "special", _sealed(target, [(info, b"")])).done


for _name, _tries, _type, _values in (
    ("symbolic link", "a photo that is a link to a secret", tarfile.SYMTYPE, {"linkname": "x"}),
    ("hard link", "a photo that is a hard link to a secret", tarfile.LNKTYPE, {"linkname": "x"}),
    ("named pipe", "a photo that is a pipe without an end", tarfile.FIFOTYPE, {}),
    ("sparse file", "a photo of a sparse file", tarfile.GNUTYPE_SPARSE, {}),
    ("huge size", "a photo that says to have a petabyte", tarfile.REGTYPE, {"size": 10**15}),
):
    ATTACKS.add(f"member: {_name}", f"import {_tries}", partial(_special, _type, _values))


def _paths(target: Target, collection: str) -> set[str]:
    """Where the uploads are that a server lists of a collection."""
    listed = target.get(f"/api/v1/images?collection={quote(collection)}").text
    return set(re.findall(rf'"({re.escape(str(target.uploads))}/[^"]+)"', listed))


def import_changed(target: Target, collection: str, change: Callable[[Any], Any]) -> Answer:
    """Imports a good export with another table of photos."""
    return _import(target, collection, _changed(target, _table("images.parquet", change)))


def _names_theirs(target: Target) -> bool:
    """Whether a row that somebody has made up gets hold of an upload to another collection."""
    theirs = sorted(_paths(target, target.new_collection()))[-1]

    def name(table: Any) -> Any:
        for column, value in (("path", theirs), ("path_key", path_key(theirs))):
            number, field = table.column_names.index(column), table.schema.field(column)
            values = [value, *table.column(column).to_pylist()[1:]]
            table = table.set_column(number, field, pyarrow.array(values, field.type))
        return table

    thieves = f"thieves_{len(target.statuses)}"
    assert import_changed(target, thieves, name).done
    return theirs in _paths(target, thieves)


ATTACKS.add(
    "upload of another collection",
    "import a row whose path is that of a photo which was uploaded to another collection",
    _names_theirs,
)


def _asked_with(key: str | None, method: str, target: Target) -> bool:
    """Whether somebody without the scope for it gets an export, or an import made."""
    headers = {} if key is None else {"Authorization": f"Bearer {getattr(target.keys, key)}"}
    if method == "import":
        body = _exported(target)
        return _import(target, f"by_{key}", body, headers, to=target.guarded).done
    return target.send(method, _EXPORT, headers=headers, to=target.guarded).done


for _key in (None, "read", "write", "revoked", "other"):
    for _method, _what in (("GET", "export"), ("import", "import")):
        _whose = "no key" if _key is None else f"a key: {_key}"
        ATTACKS.add(
            f"{_what} with {_whose}",
            f"{_what} a collection with {_whose}, where admin is needed",
            partial(_asked_with, _key, _method),
        )
ATTACKS.add(
    "HEAD of an export", "HEAD of an export without a key", partial(_asked_with, None, "HEAD")
)


def _led_to(headers: dict[str, str], target: Target) -> bool:
    """Whether a page of another site has the user's browser fetch an export."""
    return target.get(_EXPORT, headers).done


_LINK: Final = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
for _name, _headers in (
    ("window", {**_LINK, "Sec-Fetch-Dest": "document"}),
    ("frame", {**_LINK, "Sec-Fetch-Dest": "iframe"}),
    ("page's code", {"Origin": "http://evil.example"}),
    ("link in an old browser", {"Referer": "http://evil.example/"}),
):
    ATTACKS.add(
        f"export from another site: {_name}",
        f"GET {_EXPORT} with {', '.join(f'{key}: {value}' for key, value in _headers.items())}",
        partial(_led_to, _headers),
    )


def _import_from_another_site(target: Target) -> bool:
    origin = {"Origin": "http://evil.example"}
    return _import(target, "forged_import", _exported(target), origin).done


ATTACKS.add(
    "import from another site",
    "POST /api/v1/collections/a/import with Origin: http://evil.example",
    _import_from_another_site,
)
