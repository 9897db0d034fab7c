"""Others' photos in stores, and what is no store: addresses that lead out of what is allowed."""

import time
from functools import partial
from typing import Any, Final
from urllib.parse import quote

import pyarrow

from backend.storage.catalog import path_key
from tests.attacks.cases import Attacks
from tests.attacks.exports import import_changed
from tests.attacks.target import BUCKET, OTHERS_BUCKET, Target

__all__ = ["ATTACKS"]

ATTACKS: Final = Attacks("stores of photos")
_SECRET: Final = f"s3://{OTHERS_BUCKET}/photos/secret.jpg"


def _loads(folder: str, target: Target) -> bool:
    """Whether photos are loaded from there, or it is at least asked for them."""
    word = f"word-{time.monotonic_ns()}"
    address = folder.replace("{world}", str(target.world.folder)).replace("{word}", word)
    address = address.replace("{port}", str(target.canary.port))
    answer = target.json("/img/load", f'{{"File": "{address}", "Table": "stored"}}'.encode())
    return answer.done or target.canary.heard(word)


_LOADS: Final = (
    ("another bucket", f"s3://{OTHERS_BUCKET}/photos"),
    ("a longer name with the same beginning", f"s3://{BUCKET}/photos2"),
    ("the whole bucket", f"s3://{BUCKET}"),
    ("dots", f"s3://{BUCKET}/photos/../photos2"),
    ("encoded dots", f"s3://{BUCKET}/photos/%2e%2e/photos2"),
    ("encoded slash", f"s3://{BUCKET}/photos/..%2fphotos2"),
    ("backslash", f"s3://{BUCKET}/photos/..\\\\photos2"),
    ("doubled slashes", f"s3://{BUCKET}//photos2"),
    ("protocol's other name", f"s3a://{OTHERS_BUCKET}/photos"),
    ("protocol in capitals", f"S3://{OTHERS_BUCKET}/photos"),
    ("chained cache", f"simplecache::s3://{OTHERS_BUCKET}/photos"),
    ("chained local files", "simplecache::file://{world}/outside"),
    ("chained folder", "dir::file://{world}/outside"),
    ("local URL", "local://{world}/outside"),
    ("file URL of a host", "file://localhost{world}/outside"),
    ("internal server", "http://127.0.0.1:{port}/{word}/"),
    ("internal server behind a cache", "simplecache::http://127.0.0.1:{port}/{word}/"),
    ("internal server by WebDAV's name", "webdav+http://127.0.0.1:{port}/{word}/"),
)
for _name, _folder in _LOADS:
    ATTACKS.add(f"load: {_name}", f"POST /img/load of {_folder}", partial(_loads, _folder))


def _reads(address: str, target: Target) -> bool:
    """Whether `/data` answers what lies there."""
    path = address.replace("{world}", str(target.world.folder))
    return target.get(f"/data?image_path={path}").has_token()


_READS: Final = (
    ("another bucket", _SECRET),
    ("dots", f"s3://{BUCKET}/photos/../photos2/secret.jpg"),
    ("encoded dots", f"s3://{BUCKET}/photos/%252e%252e/photos2/secret.jpg"),
    ("chained cache", f"simplecache::{_SECRET}"),
    ("local URL", "local://{world}/secret.txt"),
)
for _name, _address in _READS:
    ATTACKS.add(f"read: {_name}", f"GET /data of {_address}", partial(_reads, _address))


def _imports(address: str, target: Target) -> bool:
    """Whether a row that somebody has made up gets hold of a photo of others."""
    path = address.replace("{world}", str(target.world.folder))

    def name(table: Any) -> Any:
        for column, value in (("path", path), ("path_key", path_key(path))):
            number, field = table.column_names.index(column), table.schema.field(column)
            values = [value, *table.column(column).to_pylist()[1:]]
            table = table.set_column(number, field, pyarrow.array(values, field.type))
        return table

    assert import_changed(target, f"robbers_{time.monotonic_ns()}", name).done
    return target.get(f"/data?image_path={quote(path, safe='')}").has_token()


_IMPORTS: Final = (
    ("another bucket", _SECRET),
    ("dots", f"s3://{BUCKET}/photos/../photos2/secret.jpg"),
    ("chained cache", f"simplecache::{_SECRET}"),
    ("file URL", "file://{world}/outside/secret.jpg"),
)
for _name, _address in _IMPORTS:
    ATTACKS.add(
        f"import: {_name}",
        f"import a row whose path is {_address}, and GET it",
        partial(_imports, _address),
    )
