"""The first tables; those that were made before there were revisions are taken as they are."""

from typing import Any, Final

import sqlalchemy as sa
from alembic.operations import Operations

from backend.errors import ConfigurationError

revision = "0001"
down_revision = None

_metadata = sa.MetaData()
_MYSQL: Final[dict[str, Any]] = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
}
_NUMBERED: Final[dict[str, Any]] = _MYSQL | {"sqlite_autoincrement": True}
_Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_Number: sa.Float[float] = sa.Double().with_variant(sa.Float(), "sqlite")

sa.Table("identity", _metadata, sa.Column("uuid", sa.String(32), primary_key=True), **_MYSQL)
sa.Table(
    "collections",
    _metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("name", sa.String(200), nullable=False, unique=True),
    sa.Column("embedder", sa.String(200), nullable=False),
    sa.Column("embedder_sha256", sa.String(64), nullable=False),
    sa.Column("dim", sa.Integer, nullable=False),
    sa.Column("metric", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    **_NUMBERED,
)
sa.Table(
    "images",
    _metadata,
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
    sa.UniqueConstraint("collection_id", "path_key"),
    sa.Index("images_by_state", "collection_id", "state"),
    sa.Index("images_by_path", "path_key"),
    **_NUMBERED,
)
sa.Table(
    "objects",
    _metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("image_id", _Id, sa.ForeignKey("images.id"), nullable=False, index=True),
    sa.Column("label", sa.String(200), nullable=False),
    sa.Column("score", _Number, nullable=False),
    sa.Column("x1", _Number, nullable=False),
    sa.Column("y1", _Number, nullable=False),
    sa.Column("x2", _Number, nullable=False),
    sa.Column("y2", _Number, nullable=False),
    **_NUMBERED,
)
sa.Table(
    "loads",
    _metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("collection_id", _Id, sa.ForeignKey("collections.id"), nullable=False),
    sa.Column("root", sa.Text, nullable=False),
    sa.Column("prune", sa.Boolean, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("counts", sa.JSON, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("started_at", sa.String(32), nullable=False),
    sa.Column("finished_at", sa.String(32)),
    **_NUMBERED,
)


def upgrade(op: Operations) -> None:
    """Makes the tables and indexes that are missing."""
    connection = op.get_bind()
    inspector = sa.inspect(connection)
    there = set(inspector.get_table_names())
    # All are looked at before the first is made: another program's database stays as it is.
    for table in _metadata.sorted_tables:
        if table.name in there:
            columns = {column["name"] for column in inspector.get_columns(table.name)}
            if missing := set(table.columns.keys()) - columns:
                raise ConfigurationError(
                    f"its table {table.name!r} is another program's: it has no column"
                    f" {', '.join(sorted(missing))}. Name another database"
                )
    for table in _metadata.sorted_tables:
        table.create(connection, checkfirst=True)
        for index in table.indexes:
            index.create(connection, checkfirst=True)
