"""The catalog's tables as they are now; `migrations` brings older ones here.

The same on SQLite and on MySQL. On MySQL text is utf8mb4 and compared byte by byte, and scores and
boxes are DOUBLE: a FLOAT would give back other numbers than were put in.
"""

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

__all__ = ["answers", "collections", "identity", "images", "loads", "metadata", "objects"]

metadata = sa.MetaData()

_MYSQL: Final[dict[str, Any]] = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
}
# SQLite counts up, and never hands an id out twice, for INTEGER PRIMARY KEY AUTOINCREMENT alone.
_NUMBERED: Final[dict[str, Any]] = _MYSQL | {"sqlite_autoincrement": True}

_Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
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
    sa.Index("loads_by_token", "token", unique=True),
    **_NUMBERED,
)
answers = sa.Table(
    "answers",
    metadata,
    # Of the client's key: MySQL takes keys for one that differ in spaces at their ends.
    sa.Column("key_sha256", sa.String(64), primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    # JSON as it was written: MySQL's own type sorts names. Its TEXT holds 64 KiB alone.
    sa.Column("answer", sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql"), nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Index("answers_by_time", "created_at"),
    **_MYSQL,
)
