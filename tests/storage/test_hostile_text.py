"""Text from outside is data to the stores: never a part of a statement or of an expression.

`test_vectors.py` has labels in expressions of Milvus and Milvus Lite.
"""

import ast
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from backend.storage.catalog import Catalog, KeptAnswer, NewObject, utc_now
from tests.service import REPOSITORY
from tests.storage.catalogs import OpenCatalog, all_images, catalogs, ensure, index

HOSTILE = [
    *("'", '"', "`", "\\", "''", "\\'", "\\\\'", "%", "_", "%s", "%(x)s", ":x", "?", "{0}", "\0x"),
    *("'; DROP TABLE images; --", '"; DROP TABLE images; --', "`; DROP TABLE images; --"),
    *(
        "' OR '1'='1",
        '" OR "1"="1',
        "' OR 1=1 #",
        "') OR ('1'='1",
        "1 OR 1=1",
        "' UNION SELECT 1 --",
    ),
    *("x' AND SLEEP(9) --", "/*!50000 x */", "-- ", "#", "/*", "*/", ";", "\x1a", "\n", "\r\n"),
    *("\\x27 OR 1=1", "\uff0527", "\u02bc OR 1=1"),
]


@pytest.fixture(params=["sqlite", "mysql"])
def open_catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenCatalog]:
    """Opens the test's own catalog."""
    yield from catalogs(request, tmp_path)


@pytest.fixture
async def catalog(open_catalog: OpenCatalog) -> AsyncIterator[Catalog]:
    """An empty catalog of the test's own."""
    opened = await open_catalog()
    yield opened
    await opened.close()


async def test_every_text_comes_out_as_it_went_in_and_finds_itself_alone(catalog: Catalog) -> None:
    photos = await ensure(catalog)
    texts = [text for text in HOSTILE if "\0" not in text]  # no path can hold it
    for text in texts:
        await index(catalog, photos, [f"/photos/{text}"], [NewObject(text, 0.5, (0, 0, 1, 1))])
    assert [image.path for image in await all_images(catalog, photos)] == [
        f"/photos/{text}" for text in texts
    ]
    assert dict(await catalog.label_counts(photos.id)) == dict.fromkeys(texts, 1)
    for text in texts:
        [found] = await catalog.list_images(
            photos.id, state="indexed", label=text, after=0, limit=len(texts)
        )
        assert found.path == f"/photos/{text}"


async def test_no_text_is_more_than_a_name(catalog: Catalog) -> None:
    photos = await ensure(catalog)
    await index(catalog, photos, ["/photos/a.jpg"], [NewObject("cat", 0.5, (0, 0, 1, 1))])
    for text in HOSTILE:
        assert await catalog.collection(text) is None
        assert await catalog.collection_in_any_state(text) is None
        assert await catalog.indexed_image([text]) is None
        assert await catalog.kept_answer(text) is None
        assert (
            await catalog.list_images(photos.id, state="indexed", label=text, after=0, limit=9)
            == []
        )
    assert await catalog.count_images(photos.id) == 1


async def test_roots_reasons_and_keys_are_kept_as_they_are(catalog: Catalog) -> None:
    photos = await ensure(catalog)
    texts = [text for text in HOSTILE if "\0" not in text]
    for text in texts:
        load = await catalog.begin_load(photos.id, f"/photos/{text}", prune=False)
        await catalog.end_load(load, "failed", {}, text)
        row = await catalog.load(load)
        assert row is not None
        assert (row.root, row.error) == (f"/photos/{text}", text)
        answer = KeptAnswer(text, "ab" * 32, 200, {"text": text}, utc_now())
        assert await catalog.keep_answer(answer) == answer
    for text in texts:
        kept = await catalog.kept_answer(text)
        assert kept is not None
        assert kept.answer == {"text": text}


def test_no_statement_is_put_together_from_text() -> None:
    """Statements are SQLAlchemy's expressions; those in words are whole, but for one that names the
    database of the settings, which is quoted as its dialect does."""
    found = []
    for path in sorted((REPOSITORY / "backend").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and _called(node) in _TAKE_SQL:
                found += [ast.unparse(part) for part in node.args if _is_put_together(part)]
    assert sorted(found) == [
        "f'CREATE DATABASE IF NOT EXISTS {name} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin'",
        "f'PRAGMA {pragma}'",
    ]


_TAKE_SQL = {"text", "exec_driver_sql", "literal_column", "execute", "DDL"}


def _called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _is_put_together(argument: ast.expr) -> bool:
    return any(isinstance(part, ast.JoinedStr | ast.BinOp) for part in ast.walk(argument))
