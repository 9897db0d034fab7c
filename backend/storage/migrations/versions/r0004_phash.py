"""Photos have a perceptual hash; those that are there get theirs from `check --repair`."""

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0004"
down_revision = "0003"


def upgrade(op: Operations) -> None:
    """Adds the column where it is missing."""
    columns = sa.inspect(op.get_bind()).get_columns("images")
    if "phash" not in {column["name"] for column in columns}:
        op.add_column("images", sa.Column("phash", sa.BigInteger))
