"""API keys as the catalog keeps them: never a secret, only its hash.

Several backends share them. Every method is one transaction and may be repeated without harm.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from backend.storage.databases import Database
from backend.storage.tables import api_keys as _keys

__all__ = ["SCOPES", "ApiKey", "KeyTable", "Scope"]

Scope: TypeAlias = Literal["read", "write", "admin"]
SCOPES: Final[tuple[Scope, ...]] = ("read", "write", "admin")


@dataclass(frozen=True)
class ApiKey:
    """A key, or a session that was begun with one.

    Attributes:
        id: what it is called in lists and logs.
        secret_sha256: of its secret, in hex.
        name: what its owner calls it; may be empty.
        scopes: what it may be used for; `admin` is all.
        collections: the only ones that it may be used for; None for all.
        created_at, expires_at, revoked_at: ISO 8601, UTC; None for never.
        parent: of a session, the id of its key.
    """

    id: str
    secret_sha256: str = field(repr=False)
    name: str
    scopes: tuple[Scope, ...]
    collections: tuple[str, ...] | None
    created_at: str
    expires_at: str | None = None
    revoked_at: str | None = None
    parent: str | None = None

    def may(self, scope: Scope) -> bool:
        """Whether it may be used for that."""
        return scope in self.scopes or "admin" in self.scopes

    def reaches(self, collection: str) -> bool:
        """Whether it may be used for that collection."""
        return self.collections is None or collection in self.collections

    def is_usable(self, now: str) -> bool:
        """Whether it is neither revoked nor past its time; `now` as its own times."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class KeyTable:
    """The catalog's API keys. Errors are those of the catalog."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def usable(self, now: str) -> list[ApiKey]:
        """The keys and sessions that may be used at that time."""
        return await self._select(
            _keys.c.revoked_at.is_(None),
            sa.or_(_keys.c.expires_at.is_(None), _keys.c.expires_at > now),
        )

    async def all(self) -> list[ApiKey]:
        """All keys there have ever been, without sessions, oldest first."""
        return await self._select(_keys.c.parent.is_(None))

    async def _select(self, *conditions: sa.ColumnElement[bool]) -> list[ApiKey]:
        query = sa.select(_keys).where(*conditions).order_by(_keys.c.created_at, _keys.c.id)

        async def read(connection: AsyncConnection) -> Sequence[sa.Row[Any]]:
            return (await connection.execute(query)).all()

        return [_key(row) for row in await self._database.read(read)]

    async def add(self, key: ApiKey) -> None:
        """Keeps a new key."""
        await self._database.write(lambda connection: _insert(connection, key))

    async def add_session(self, session: ApiKey, *, at_most: int) -> None:
        """Keeps a session; those whose time is over go, and of its key's all but the newest."""
        assert session.parent is not None
        mine = (
            sa.select(_keys.c.id)
            .where(_keys.c.parent == session.parent)
            .order_by(_keys.c.created_at.desc(), _keys.c.id)
        )
        over = sa.select(_keys.c.id).where(
            _keys.c.parent.is_not(None), _keys.c.expires_at <= session.created_at
        )

        async def write(connection: AsyncConnection) -> None:
            await _insert(connection, session)
            ids = [row.id for row in await connection.execute(mine)][at_most:]
            ids += [row.id for row in await connection.execute(over)]
            if ids:
                await connection.execute(sa.delete(_keys).where(_keys.c.id.in_(sorted(set(ids)))))

        await self._database.write(write)

    async def remove_session(self, session_id: str) -> None:
        """Ends a session; nothing to end is fine."""
        mine = (_keys.c.id == session_id, _keys.c.parent.is_not(None))

        async def write(connection: AsyncConnection) -> None:
            await connection.execute(sa.delete(_keys).where(*mine))

        await self._database.write(write)

    async def revoke(self, key_id: str, now: str) -> ApiKey | None:
        """The key as it is from now on, with its sessions ended; None where there is none."""
        query = sa.select(_keys).where(_keys.c.id == key_id, _keys.c.parent.is_(None))
        change = (
            sa.update(_keys)
            .where(_keys.c.id == key_id, _keys.c.revoked_at.is_(None))
            .values(revoked_at=now)
        )

        async def write(connection: AsyncConnection) -> ApiKey | None:
            if (await connection.execute(query.with_for_update())).one_or_none() is None:
                return None
            await connection.execute(change)
            await connection.execute(sa.delete(_keys).where(_keys.c.parent == key_id))
            return _key((await connection.execute(query)).one())

        return await self._database.write(write)


async def _insert(connection: AsyncConnection, key: ApiKey) -> None:
    # It may be there already, where an answer was lost on the way.
    there = sa.select(_keys.c.id).where(_keys.c.id == key.id).with_for_update()
    if (await connection.execute(there)).one_or_none() is None:
        collections = None if key.collections is None else list(key.collections)
        values = vars(key) | {"scopes": list(key.scopes), "collections": collections}
        await connection.execute(sa.insert(_keys).values(values))


def _key(row: sa.Row[Any]) -> ApiKey:
    values = dict(row._mapping)
    collections = values.pop("collections")
    return ApiKey(
        **values | {"scopes": tuple(values["scopes"])},
        collections=None if collections is None else tuple(collections),
    )
