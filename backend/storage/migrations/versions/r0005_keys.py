"""API keys."""

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0005"
down_revision = "0004"

_metadata = sa.MetaData()
_api_keys = sa.Table(
    "api_keys",
    _metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("secret_sha256", sa.String(64), nullable=False),
    sa.Column("parent", sa.String(32)),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("collections", sa.JSON(none_as_null=True)),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("expires_at", sa.String(32)),
    sa.Column("revoked_at", sa.String(32)),
    mysql_engine="InnoDB",
    mysql_charset="utf8mb4",
    mysql_collate="utf8mb4_bin",
)


def upgrade(op: Operations) -> None:
    """Adds the table where it is missing."""
    _api_keys.create(op.get_bind(), checkfirst=True)
