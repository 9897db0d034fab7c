"""Brings a catalog's tables, of whatever version of this program, to what `tables.py` says.

Alembic without its global proxies: a revision's `upgrade` gets its operations as an argument, so
that two catalogs may be opened at the same time. MySQL commits with every change of a table, so
every revision can be run again after it was broken off anywhere.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from backend.errors import ConfigurationError

__all__ = ["upgrade"]


def upgrade(connection: sa.Connection) -> None:
    """Makes the tables, or brings them up to date; does nothing where they are.

    The caller keeps others out and commits.

    Raises:
        ConfigurationError: a newer version of this program has made them, or another program.
    """
    scripts = ScriptDirectory(Path(__file__).parent)
    known = {script.revision for script in scripts.walk_revisions()}
    context = MigrationContext.configure(
        connection, opts={"fn": lambda revision, _: scripts._upgrade_revs("head", revision)}
    )
    for revision in context.get_current_heads():
        if revision not in known:
            raise ConfigurationError(
                f"a newer version of this program made it: its tables are of revision {revision},"
                f" this one knows them up to {scripts.get_current_head()}. Run the newer version"
            )
    context.run_migrations(op=Operations(context))
