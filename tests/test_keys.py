"""API keys: how they are made, what is kept of them, and when they are good."""

import asyncio
import hashlib
import re
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backend.errors import InvalidInput
from backend.keys import KeyRing, expiry, make_key, revoke_key
from backend.storage.catalog import Catalog
from backend.storage.keys import KeyTable


@pytest.fixture
async def table(tmp_path: Path) -> AsyncIterator[KeyTable]:
    catalog = await Catalog.open_sqlite(tmp_path)
    yield catalog.keys
    await catalog.close()


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _past(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


async def test_a_key_is_found_by_its_text_and_by_nothing_like_it(table: KeyTable) -> None:
    key, text = await make_key(table, ["read"])
    other, other_text = await make_key(table, ["read"])
    ring = KeyRing(table)
    assert await ring.find(text) == key
    assert await ring.find(other_text) == other
    last = "A" if text[-1] != "A" else "B"
    prefix, id_, secret = text.split("_", 2)
    for wrong in (
        "",
        text[:-1],
        text[:-1] + last,
        text + "A",
        f" {text}",
        f"{text}\n",
        text.upper(),
        f"{prefix}_{other.id}_{secret}",
        f"iss_{id_}_{secret}",
        key.secret_sha256,
        f"{prefix}_{id_}_{key.secret_sha256[:43]}",
    ):
        assert await ring.find(wrong) is None, wrong


async def test_secrets_are_of_256_bits_and_only_their_hashes_are_kept(
    table: KeyTable, tmp_path: Path
) -> None:
    texts = [(await make_key(table, ["read"], name="a"))[1] for _ in range(20)]
    found = [re.fullmatch(r"isk_([0-9a-f]{12})_([A-Za-z0-9_-]{43})", text) for text in texts]
    assert len({match[2] for match in found if match}) == 20
    session = await KeyRing(table).begin_session((await table.all())[0])
    database = sqlite3.connect(tmp_path / "catalog.db")
    dump = "\n".join(database.iterdump())
    database.close()
    for match in found:
        assert match
        assert match[2] not in dump
        assert hashlib.sha256(match[2].encode()).hexdigest() in dump
    assert session[17:] not in dump
    assert all(key.secret_sha256 not in repr(key) for key in await table.all())


async def test_a_key_keeps_what_it_was_made_with(table: KeyTable) -> None:
    key, _ = await make_key(
        table, ["write", "read", "write"], collections=["b", "a", "b"], name="The camera"
    )
    assert (key.scopes, key.collections, key.name) == (("read", "write"), ("b", "a"), "The camera")
    assert await table.all() == [key]
    assert (key.may("read"), key.may("write"), key.may("admin")) == (True, True, False)
    assert (key.reaches("a"), key.reaches("A"), key.reaches("c")) == (True, False, False)
    admin, _ = await make_key(table, ["admin"])
    assert all(admin.may(scope) for scope in ("read", "write", "admin"))
    assert admin.reaches("anything")


async def test_a_key_is_not_made_for_what_is_no_collection(table: KeyTable) -> None:
    with pytest.raises(InvalidInput, match="no collection's name"):
        await make_key(table, ["read"], collections=["my photos"])
    assert await table.all() == []


@pytest.mark.parametrize(
    ("text", "hours"), [("1h", 1), ("12h", 12), ("30d", 720), ("9999h", 9999), ("2w", 336)]
)
def test_a_time_is_read(text: str, hours: int) -> None:
    end = datetime.fromisoformat(expiry(text))
    assert abs(end - datetime.now(UTC) - timedelta(hours=hours)) < timedelta(seconds=10)


@pytest.mark.parametrize(
    "text", ["", "0h", "12", "h", "-1d", "1.5d", "10000h", "1m", "\u0661d", "1d "]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no time"):
        expiry(text)


async def test_a_key_ends_with_its_time_though_nobody_looks_at_the_catalog(
    table: KeyTable,
) -> None:
    end = (datetime.now(UTC) + timedelta(seconds=0.3)).isoformat(timespec="milliseconds")
    _, short = await make_key(table, ["read"], expires_at=end)
    _, over = await make_key(table, ["read"], expires_at=_past(1))
    ring = KeyRing(table, _Clock())  # whose time stands still
    assert await ring.find(short) is not None
    assert await ring.find(over) is None
    await asyncio.sleep(0.35)
    assert await ring.find(short) is None


async def test_a_key_that_is_revoked_is_good_for_two_seconds_at_most(table: KeyTable) -> None:
    clock = _Clock()
    ring = KeyRing(table, clock)
    key, text = await make_key(table, ["read"])
    assert await ring.find(text) == key
    assert await revoke_key(table, key.id) is not None
    clock.now += 1.9
    assert await ring.find(text) == key  # the catalog is not asked for each request
    assert await ring.is_good(key)
    clock.now += 0.2
    assert not await ring.is_good(key)
    assert await ring.find(text) is None


async def test_a_new_key_is_good_at_once(table: KeyTable) -> None:
    ring = KeyRing(table)
    for _ in range(2):
        _, text = await make_key(table, ["read"])
        assert await ring.find(text) is not None


async def test_made_up_keys_have_the_catalog_asked_twice_a_second_at_most(
    table: KeyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    usable = table.usable

    async def count(now: str) -> list[object]:
        nonlocal asked
        asked += 1
        return list(await usable(now))

    monkeypatch.setattr(table, "usable", count)
    ring = KeyRing(table)
    texts = [f"isk_{number:012x}_{'A' * 43}" for number in range(200)]
    assert set(await asyncio.gather(*map(ring.find, texts))) == {None}
    assert asked == 1
    assert set(await asyncio.gather(*map(ring.find, texts))) == {None}
    assert asked == 2
    await ring.find("no key at all")
    assert asked == 2


async def test_revoking_again_or_what_is_not_there_changes_nothing(table: KeyTable) -> None:
    key, _ = await make_key(table, ["read"])
    first = await revoke_key(table, key.id)
    assert first is not None
    assert await revoke_key(table, key.id) == first
    assert await revoke_key(table, "0" * 12) is None
    assert await table.all() == [first]


# Sessions


async def test_a_session_can_read_what_its_key_can_and_no_more(table: KeyTable) -> None:
    key, text = await make_key(table, ["admin"], collections=["a"])
    ring = KeyRing(table)
    session_text = await ring.begin_session(key)
    for looked_up_in in (ring, KeyRing(table)):  # another backend's, too
        session = await looked_up_in.find_session(session_text)
        assert session is not None
        assert (session.parent, session.scopes, session.collections) == (key.id, ("read",), ("a",))
        # Neither takes the other's place.
        assert await looked_up_in.find(session_text) is None
        assert await looked_up_in.find("isk" + session_text[3:]) is None
        assert await looked_up_in.find_session("iss" + text[3:]) is None
    assert await table.all() == [key]


async def test_a_session_ends_with_its_key_and_within_its_time(table: KeyTable) -> None:
    end = (datetime.now(UTC) + timedelta(minutes=5)).isoformat(timespec="milliseconds")
    key, _ = await make_key(table, ["read"], expires_at=end)
    ring = KeyRing(table)
    text = await ring.begin_session(key)
    session = await ring.find_session(text)
    assert session is not None
    assert session.expires_at == end
    await revoke_key(table, key.id)
    assert await KeyRing(table).find_session(text) is None

    ended = await ring.begin_session(key)
    await ring.end_session(ended)
    assert await ring.find_session(ended) is None
    await ring.end_session(ended)
    await ring.end_session("nothing")


async def test_a_key_has_a_hundred_sessions_and_what_is_over_goes(
    table: KeyTable, tmp_path: Path
) -> None:
    key, _ = await make_key(table, ["read"])
    ring = KeyRing(table)
    first = await ring.begin_session(key)
    texts = [await ring.begin_session(key) for _ in range(100)]
    fresh = KeyRing(table)
    assert await fresh.find_session(first) is None
    assert await fresh.find_session(texts[0]) is not None
    assert await fresh.find_session(texts[-1]) is not None

    database = sqlite3.connect(tmp_path / "catalog.db")
    database.execute("UPDATE api_keys SET expires_at = ? WHERE parent IS NOT NULL", (_past(1),))
    database.commit()
    assert await KeyRing(table).find_session(texts[-1]) is None
    await ring.begin_session(key)
    [(left,)] = database.execute("SELECT COUNT(*) FROM api_keys WHERE parent IS NOT NULL")
    database.close()
    assert left == 1
