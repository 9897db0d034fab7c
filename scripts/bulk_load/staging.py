"""Where rows lie for Milvus to import: Parquet files in its bucket, or in a folder."""

import asyncio
import posixpath
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import fsspec
import structlog
from pyarrow.parquet import read_metadata
from pymilvus import CollectionSchema
from pymilvus.bulk_writer import BulkFileType, LocalBulkWriter

from backend.errors import ConfigurationError, EngineUnavailable
from backend.storage.vectors import ObjectVector

__all__ = ["Staging"]

_log = structlog.get_logger("backend.bulk_load")

_FILE_BYTES: Final = 128 * 2**20
"""Of vectors in one file. The writer makes numbers of Python's of them, eight times as large; each
file is an import of its own, which takes Milvus some seconds beside its rows."""
_LOCAL: Final = ("file", "local")


class Staging:
    """Lays rows down as Parquet files; a `Stage` of the vector store's."""

    def __init__(self, address: str, *, file_bytes: int = _FILE_BYTES) -> None:
        """Writes nothing yet.

        Args:
            address: a folder, or an address of fsspec's such as s3://bucket/prefix.
            file_bytes: of vectors in one file.

        Raises:
            ConfigurationError: there is no way to write there.
        """
        try:
            self._system, self._root = fsspec.url_to_fs(address)
        except (ImportError, ValueError, OSError) as error:
            raise ConfigurationError(f"--import-files {address}: {error}") from None
        self._address = address
        self._file_bytes = file_bytes
        protocols = self._system.protocol
        protocols = (protocols,) if isinstance(protocols, str) else protocols
        self._is_local = any(protocol in _LOCAL for protocol in protocols)

    @asynccontextmanager
    async def __call__(
        self, schema: CollectionSchema, rows: Sequence[ObjectVector]
    ) -> AsyncIterator[list[str]]:
        """The names by which Milvus knows the files: their paths, or their keys in its bucket.

        Raises:
            EngineUnavailable: nothing can be written there at the moment.
        """
        folder = posixpath.join(self._root, f"import-{uuid.uuid4().hex}")
        try:
            try:
                names = await asyncio.to_thread(self._write, schema, rows, folder)
            except Exception as error:  # libraries of stores have classes of their own
                _log.warning("bulk_load.files_not_written", folder=folder, exc_info=error)
                raise EngineUnavailable(
                    "the files of --import-files",
                    f"{self._address} cannot be written to ({error}): see to it",
                ) from error
            yield names
        finally:
            try:
                await asyncio.to_thread(self._remove, folder)
            except Exception as error:  # it is in nobody's way
                _log.warning("bulk_load.files_left", folder=folder, error=str(error))

    def _write(
        self, schema: CollectionSchema, rows: Sequence[ObjectVector], folder: str
    ) -> list[str]:
        with tempfile.TemporaryDirectory(prefix="bulk-load-") as scratch:
            rows_per_file = max(1, self._file_bytes // rows[0].vector.nbytes)
            with LocalBulkWriter(
                schema,
                scratch,
                # It would go on with the next file while it writes one, and hold both in memory.
                chunk_size=sys.maxsize,
                file_type=BulkFileType.PARQUET,
            ) as writer:
                for number, row in enumerate(rows, 1):
                    writer.append_row(vars(row) | {"vector": row.vector.tolist()})
                    if number % rows_per_file == 0:
                        writer.commit()
                writer.commit()
                written = [Path(name) for files in writer.batch_files for name in files]
            # The writer only logs what goes wrong in its threads.
            count = sum(read_metadata(path).num_rows for path in written)
            if count != len(rows):
                raise OSError(f"only {count} of {len(rows)} rows could be written in {scratch}")
            names = []
            self._system.makedirs(folder, exist_ok=True)
            for number, path in enumerate(written):
                name = posixpath.join(folder, f"{number}{path.suffix}")
                self._system.put_file(str(path), name)
                # A key has no bucket in it: Milvus looks in its own.
                names.append(name if self._is_local else name.partition("/")[2])
            return names

    def _remove(self, folder: str) -> None:
        system: Any = self._system
        if system.exists(folder):
            system.rm(folder, recursive=True)
