"""Up to when a collection's vectors are written, as the vector engine counts time."""

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0007"
down_revision = "0006"


def upgrade(op: Operations) -> None:
    """Adds the column where it is missing."""
    there = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("collections")}
    if "written" not in there:
        op.add_column(
            "collections",
            sa.Column("written", sa.BigInteger(), nullable=False, server_default="0"),
        )
