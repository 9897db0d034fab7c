"""The catalog's tables as they are now; `migrations` brings older ones here.

The same on SQLite and on MySQL. On MySQL text is utf8mb4 and compared byte by byte, and scores and
boxes are DOUBLE: a FLOAT would give back other numbers than were put in.
"""

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

__all__ = [
    "answers",
    "api_keys",
    "collections",
    "identity",
    "images",
    "load_chunks",
    "loads",
    "metadata",
    "objects",
]

metadata = sa.MetaData()

_MYSQL: Final[dict[str, Any]] = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
}
# SQLite counts up, and never hands an id out twice, for INTEGER PRIMARY KEY AUTOINCREMENT alone.
_NUMBERED: Final[dict[str, Any]] = _MYSQL | {"sqlite_autoincrement": True}

_Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# MySQL's TEXT holds 64 KiB alone.
_LongText = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql")
_Number: sa.Float[float] = sa.Double().with_variant(sa.Float(), "sqlite")

identity = sa.Table(
    "identity", metadata, sa.Column("uuid", sa.String(32), primary_key=True), **_MYSQL
)
collections = sa.Table(
    "collections",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("name", sa.String(200), nullable=False, unique=True),
    sa.Column("embedder", sa.String(200), nullable=False),
    sa.Column("embedder_sha256", sa.String(64), nullable=False),
    sa.Column("dim", sa.Integer, nullable=False),
    sa.Column("metric", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("store", sa.String(255)),  # null in no row: a column that came later
    sa.Column("other_store", sa.String(255)),
    sa.Column("written", sa.BigInteger, nullable=False, server_default="0"),
    **_NUMBERED,
)
images = sa.Table(
    "images",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("collection_id", _Id, sa.ForeignKey("collections.id"), nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("path_key", sa.String(64), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("mtime_ns", sa.BigInteger, nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("phash", sa.BigInteger),
    sa.UniqueConstraint("collection_id", "path_key"),
    sa.Index("images_by_state", "collection_id", "state"),
    sa.Index("images_by_path", "path_key"),
    sa.Index("images_by_hash", "collection_id", "sha256"),
    **_NUMBERED,
)
objects = sa.Table(
    "objects",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("image_id", _Id, sa.ForeignKey("images.id"), nullable=False, index=True),
    sa.Column("label", sa.String(200), nullable=False),
    sa.Column("score", _Number, nullable=False),
    sa.Column("x1", _Number, nullable=False),
    sa.Column("y1", _Number, nullable=False),
    sa.Column("x2", _Number, nullable=False),
    sa.Column("y2", _Number, nullable=False),
    sa.Index("objects_by_label", "label", "image_id"),
    **_NUMBERED,
)
loads = sa.Table(
    "loads",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("collection_id", _Id, sa.ForeignKey("collections.id"), nullable=False),
    sa.Column("root", sa.Text, nullable=False),
    sa.Column("prune", sa.Boolean, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("counts", sa.JSON, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("started_at", sa.String(32), nullable=False),
    sa.Column("finished_at", sa.String(32)),
    # Tells a load that was begun twice, because the first answer was lost, from two loads.
    sa.Column("token", sa.String(32)),
    # The first failures, as JSON: lists of path and reason.
    sa.Column("failures", _LongText),
    # The rest is of loads that several processes share (`shares.py`), and null in others.
    sa.Column("photos_sha256", sa.String(64)),
    sa.Column("unreadable", _LongText),
    sa.Column("is_listed", sa.Boolean),
    sa.Column("owner", sa.String(100)),
    sa.Column("leased_until", _Number),
    sa.Index("loads_by_token", "token", unique=True),
    sa.Index("loads_by_state", "state"),
    **_NUMBERED,
)
load_chunks = sa.Table(
    "load_chunks",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("load_id", _Id, sa.ForeignKey("loads.id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    # As JSON: lists of path, size, time, and what is wrong with it.
    sa.Column("photos", _LongText, nullable=False),
    sa.Column("is_done", sa.Boolean, nullable=False),
    sa.Column("owner", sa.String(100)),
    sa.Column("leased_until", _Number),
    sa.Column("waiting_for", sa.String(32)),
    sa.Column("indexed", sa.Integer, nullable=False),
    sa.Column("unchanged", sa.Integer, nullable=False),
    sa.Column("failed", sa.Integer, nullable=False),
    sa.Column("objects", sa.Integer, nullable=False),
    sa.Column("failures", _LongText),
    sa.UniqueConstraint("load_id", "number"),
    sa.Index("load_chunks_by_state", "load_id", "is_done", "number"),
    **_NUMBERED,
)
answers = sa.Table(
    "answers",
    metadata,
    # Of the client's key: MySQL takes keys for one that differ in spaces at their ends.
    sa.Column("key_sha256", sa.String(64), primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    # JSON as it was written: MySQL's own type sorts names.
    sa.Column("answer", _LongText, nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Index("answers_by_time", "created_at"),
    **_MYSQL,
)
api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("secret_sha256", sa.String(64), nullable=False),
    # Of a session: the key that it was begun with.
    sa.Column("parent", sa.String(32)),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("collections", sa.JSON(none_as_null=True)),  # null: all
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("expires_at", sa.String(32)),
    sa.Column("revoked_at", sa.String(32)),
    **_MYSQL,
)
