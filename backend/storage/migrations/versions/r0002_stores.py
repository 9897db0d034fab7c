"""Collections name the stores of their vectors; a load is known by its token."""

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0002"
down_revision = "0001"

_collections = sa.table(
    "collections",
    sa.column("id", sa.BigInteger),
    sa.column("name", sa.String),
    sa.column("store", sa.String),
)


def upgrade(op: Operations) -> None:
    """Adds the columns and the index that are missing."""
    inspector = sa.inspect(op.get_bind())
    columns = {column["name"] for column in inspector.get_columns("collections")}
    if "store" not in columns:
        op.add_column("collections", sa.Column("store", sa.String(255)))
    # What the store of a collection was called before it had a name of its own.
    name = _collections.c.name + "_" + sa.cast(_collections.c.id, sa.String(20))
    op.execute(sa.update(_collections).where(_collections.c.store.is_(None)).values(store=name))
    if "other_store" not in columns:
        op.add_column("collections", sa.Column("other_store", sa.String(255)))
    if "token" not in {column["name"] for column in inspector.get_columns("loads")}:
        op.add_column("loads", sa.Column("token", sa.String(32)))
    if "loads_by_token" not in {index["name"] for index in inspector.get_indexes("loads")}:
        op.create_index("loads_by_token", "loads", ["token"], unique=True)
