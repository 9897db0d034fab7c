"""Loads that several processes share; the failures of loads that have ended."""

from typing import Any, Final

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.dialects import mysql

revision = "0006"
down_revision = "0005"

_Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_Number: sa.Float[float] = sa.Double().with_variant(sa.Float(), "sqlite")
_LongText = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql")
_metadata = sa.MetaData()
_loads = sa.Table("loads", _metadata, sa.Column("id", _Id, primary_key=True))
_chunks = sa.Table(
    "load_chunks",
    _metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("load_id", _Id, sa.ForeignKey("loads.id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
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
    mysql_engine="InnoDB",
    mysql_charset="utf8mb4",
    mysql_collate="utf8mb4_bin",
    sqlite_autoincrement=True,
)
_COLUMNS: Final[dict[str, Any]] = {
    "failures": _LongText,
    "photos_sha256": sa.String(64),
    "unreadable": _LongText,
    "is_listed": sa.Boolean(),
    "owner": sa.String(100),
    "leased_until": _Number,
}


def upgrade(op: Operations) -> None:
    """Adds the columns, the index and the table that are missing."""
    connection = op.get_bind()
    inspector = sa.inspect(connection)
    there = {column["name"] for column in inspector.get_columns("loads")}
    for name, kind in _COLUMNS.items():
        if name not in there:
            op.add_column("loads", sa.Column(name, kind))
    if "loads_by_state" not in {index["name"] for index in inspector.get_indexes("loads")}:
        op.create_index("loads_by_state", "loads", ["state"])
    _chunks.create(connection, checkfirst=True)
    for index in _chunks.indexes:
        index.create(connection, checkfirst=True)
