"""Answers are kept by the keys of their requests; photos are found by their bytes and labels."""

from typing import Final

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.dialects import mysql

revision = "0003"
down_revision = "0002"

_metadata = sa.MetaData()
_answers = sa.Table(
    "answers",
    _metadata,
    sa.Column("key_sha256", sa.String(64), primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("answer", sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql"), nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Index("answers_by_time", "created_at"),
    mysql_engine="InnoDB",
    mysql_charset="utf8mb4",
    mysql_collate="utf8mb4_bin",
)
_INDEXES: Final = {
    "images_by_hash": ("images", ["collection_id", "sha256"]),
    "objects_by_label": ("objects", ["label", "image_id"]),
}


def upgrade(op: Operations) -> None:
    """Adds the table and the indexes that are missing."""
    connection = op.get_bind()
    _answers.create(connection, checkfirst=True)
    for index in _answers.indexes:
        index.create(connection, checkfirst=True)
    inspector = sa.inspect(connection)
    for name, (table, columns) in _INDEXES.items():
        if name not in {index["name"] for index in inspector.get_indexes(table)}:
            op.create_index(name, table, columns)
