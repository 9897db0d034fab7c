"""API keys: how they are made, and told to be good.

A key is 256 random bits, so its SHA-256 is as hard to turn back as a slow hash would be, and is
checked in microseconds. A session stands in for a key where a browser cannot send it (images): it
can only read, ends by itself, and with its key.
"""

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from backend.names import check_collection_name
from backend.single_flight import SingleFlight
from backend.storage.catalog import utc_now
from backend.storage.keys import SCOPES, ApiKey, KeyTable, Scope

__all__ = [
    "MAX_KEY_NAME",
    "SCOPES",
    "SESSION_SECONDS",
    "ApiKey",
    "KeyRing",
    "Scope",
    "expiry",
    "make_key",
    "revoke_key",
]

MAX_KEY_NAME: Final = 200
SESSION_SECONDS: Final = 3600
_SESSIONS: Final = 100
"""Of one key, at the same time: as many browsers."""
_FRESH_SECONDS: Final = 2.0
"""For so long a key that has been revoked may still be taken."""
_PAUSE_SECONDS: Final = 0.5
"""Between two looks at the catalog. For a key that is not known there is always one, so that one
that was just made is good; whoever makes them up waits, and costs next to nothing."""
_KEY: Final = re.compile(r"isk_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_SESSION: Final = re.compile(r"iss_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_NOBODYS: Final = "0" * 64
_UNITS: Final = {"h": "hours", "d": "days", "w": "weeks"}


async def make_key(
    table: KeyTable,
    scopes: Sequence[Scope],
    *,
    collections: Sequence[str] | None = None,
    name: str = "",
    expires_at: str | None = None,
) -> tuple[ApiKey, str]:
    """A new key, and the text that is sent with requests: it is nowhere to be had again.

    Raises:
        InvalidInput: a collection's name is none.
        EngineUnavailable: the catalog does not answer.
    """
    for collection in collections or ():
        check_collection_name(collection)
    key, secret = _new(
        name=name,
        scopes=tuple(scope for scope in SCOPES if scope in scopes),
        collections=None if collections is None else tuple(dict.fromkeys(collections)),
        expires_at=expires_at,
    )
    await table.add(key)
    return key, f"isk_{key.id}_{secret}"


async def revoke_key(table: KeyTable, key_id: str) -> ApiKey | None:
    """The key, which nobody can use any more; None where there is none of that id."""
    return await table.revoke(key_id, utc_now())


def expiry(text: str) -> str:
    """When a key ends that is to be good for a time such as 12h, 30d or 8w: ISO 8601, UTC.

    Raises:
        ValueError: the text is no such time.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,3})([hdw])", text, re.ASCII)
    if found is None:
        raise ValueError(f"{text!r} is no time: write 12h, 30d or 8w, of at most 9999")
    return _iso(datetime.now(UTC) + timedelta(**{_UNITS[found[2]]: int(found[1])}))


class KeyRing:
    """The keys that are good now, as the catalog has them, or had them two seconds ago."""

    def __init__(self, table: KeyTable, clock: Callable[[], float] = time.monotonic) -> None:
        self._table = table
        self._clock = clock
        self._keys: Mapping[str, ApiKey] = {}
        self._read_at = -1e9
        self._reading: SingleFlight[None] = SingleFlight()

    async def close(self) -> None:
        """Ends a look at the catalog that is under way."""
        await self._reading.close()

    async def find(self, text: str) -> ApiKey | None:
        """The key of that text; None where there is none that is good.

        Raises:
            EngineUnavailable: the catalog cannot be asked.
        """
        found = _KEY.fullmatch(text)
        return None if found is None else await self._find(found[1], found[2])

    async def find_session(self, text: str) -> ApiKey | None:
        """As `find`, of a session."""
        found = _SESSION.fullmatch(text)
        return None if found is None else await self._find(found[1], found[2], session=True)

    async def _find(self, key_id: str, secret: str, *, session: bool = False) -> ApiKey | None:
        asked_at = self._clock()
        while self._read_at < asked_at - (_FRESH_SECONDS if key_id in self._keys else 0):
            await self._reading.run("keys", self._read)
        key = self._keys.get(key_id)
        given = hashlib.sha256(secret.encode()).hexdigest()
        good = hmac.compare_digest(given, _NOBODYS if key is None else key.secret_sha256)
        if key is None or not good or (key.parent is not None) is not session:
            return None
        return key if self._is_good(key_id) else None

    async def is_good(self, key: ApiKey) -> bool:
        """Whether a key that has been found is good still."""
        if self._read_at < self._clock() - _FRESH_SECONDS:
            await self._reading.run("keys", self._read)
        return self._is_good(key.id)

    def _is_good(self, key_id: str) -> bool:
        key, now = self._keys.get(key_id), utc_now()
        if key is None or not key.is_usable(now):
            return False
        return key.parent is None or self._is_good(key.parent)

    async def _read(self) -> None:
        await asyncio.sleep(max(0.0, self._read_at + _PAUSE_SECONDS - self._clock()))
        asked_at = self._clock()
        self._keys = {key.id: key for key in await self._table.usable(utc_now())}
        self._read_at = asked_at

    async def begin_session(self, key: ApiKey) -> str:
        """The text of a new session of a key's, which can read what the key can."""
        end = _iso(datetime.now(UTC) + timedelta(seconds=SESSION_SECONDS))
        session, secret = _new(
            name=key.name,
            scopes=("read",) if key.may("read") else (),
            collections=key.collections,
            expires_at=end if key.expires_at is None else min(end, key.expires_at),
            parent=key.parent or key.id,
        )
        await self._table.add_session(session, at_most=_SESSIONS)
        self._keys = {**self._keys, session.id: session}
        return f"iss_{session.id}_{secret}"

    async def end_session(self, text: str) -> None:
        """Ends a session; one that is none, or not good, is nothing to end."""
        session = await self.find_session(text)
        if session is not None:
            await self._table.remove_session(session.id)
            self._keys = {id_: key for id_, key in self._keys.items() if id_ != session.id}


def _new(
    *,
    name: str,
    scopes: tuple[Scope, ...],
    collections: tuple[str, ...] | None,
    expires_at: str | None,
    parent: str | None = None,
) -> tuple[ApiKey, str]:
    secret = secrets.token_urlsafe(32)
    key = ApiKey(
        id=secrets.token_hex(6),
        secret_sha256=hashlib.sha256(secret.encode()).hexdigest(),
        name=name,
        scopes=scopes,
        collections=collections,
        created_at=utc_now(),
        expires_at=expires_at,
        parent=parent,
    )
    return key, secret


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")
