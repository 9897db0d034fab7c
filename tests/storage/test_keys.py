"""API keys in the catalog, on SQLite and on MySQL."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backend.storage.keys import ApiKey
from tests.storage.catalogs import OpenCatalog, catalogs

KEY = ApiKey(
    id="0123456789ab",
    secret_sha256="ab" * 32,
    name="Käthes 📷 'key' \\",
    scopes=("read", "write"),
    collections=("b", "A", "a"),
    created_at="2026-01-02T03:04:05.678+00:00",
    expires_at="2027-01-02T03:04:05.678+00:00",
)
NOW = "2026-06-01T00:00:00.000+00:00"


@pytest.fixture(params=["sqlite", "mysql"])
def open_catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenCatalog]:
    """Opens the test's own catalog, each time it is called."""
    yield from catalogs(request, tmp_path)


async def test_several_backends_share_keys_as_they_were_made(open_catalog: OpenCatalog) -> None:
    catalog, another = await open_catalog(), await open_catalog()
    every = replace(KEY, id="ffffffffffff", collections=None, expires_at=None, name="")
    none = replace(KEY, id="eeeeeeeeeeee", collections=(), scopes=())
    for key in (KEY, every, none):
        await catalog.keys.add(key)
        await catalog.keys.add(key)  # the answer may have been lost
    assert await another.keys.all() == [KEY, none, every]
    assert await another.keys.usable(NOW) == [KEY, none, every]
    # A time is over when it has come.
    assert await another.keys.usable(str(KEY.expires_at)) == [every]

    revoked = await another.keys.revoke(KEY.id, NOW)
    assert revoked == replace(KEY, revoked_at=NOW)
    assert await catalog.keys.revoke(KEY.id, str(KEY.expires_at)) == revoked
    assert await catalog.keys.usable(NOW) == [none, every]
    assert await catalog.keys.all() == [revoked, none, every]
    assert await catalog.keys.revoke("0123456789AB", NOW) is None
    await catalog.close()
    await another.close()


async def test_sessions_go_with_their_time_their_number_and_their_key(
    open_catalog: OpenCatalog,
) -> None:
    catalog = await open_catalog()
    other = replace(KEY, id="ffffffffffff")
    await catalog.keys.add(KEY)
    await catalog.keys.add(other)

    async def begin(number: int, of: ApiKey = KEY, end: str = "2026-06-01T01") -> None:
        session = replace(
            KEY,
            id=f"session{number}",
            parent=of.id,
            created_at=f"2026-06-01T00:00:0{number}",
            expires_at=end,
        )
        for _ in range(2):
            await catalog.keys.add_session(session, at_most=2)

    async def sessions() -> list[str]:
        return [key.id for key in await catalog.keys.usable("2026") if key.parent is not None]

    await begin(1)
    await begin(2, other)
    await begin(3)
    assert await sessions() == ["session1", "session2", "session3"]
    await begin(4)
    assert await sessions() == ["session2", "session3", "session4"]
    assert await catalog.keys.all() == [KEY, other]
    await begin(5, other, end="2026-06-01T00:00:06")
    assert await sessions() == ["session2", "session3", "session4", "session5"]
    await begin(6)  # when the time of 5 is over, and 3 is one too many
    assert await sessions() == ["session2", "session4", "session6"]
    await catalog.keys.remove_session("session4")
    await catalog.keys.remove_session(KEY.id)  # which is no session
    assert await catalog.keys.revoke("session3", NOW) is None  # which is no key
    await catalog.keys.revoke(KEY.id, NOW)
    assert await sessions() == ["session2"]
    await catalog.close()
