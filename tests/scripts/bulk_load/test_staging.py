"""Rows as files that Milvus imports."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from backend.errors import EngineUnavailable
from backend.storage.vectors import ObjectVector, collection_schema
from scripts.bulk_load.staging import Staging
from tests.object_store import object_store


def _rows(count: int) -> list[ObjectVector]:
    units = np.eye(8, dtype=np.float32)
    return [ObjectVector(i, 10 + i, f"ü {i}", 0.25, units[i % 8]) for i in range(count)]


async def test_files_hold_all_rows_as_long_as_they_are_needed(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    async with Staging(str(folder))(collection_schema(8), _rows(20)) as names:
        [name] = names
        table = pyarrow.parquet.read_table(name).to_pylist()
    assert [row["id"] for row in table] == list(range(20))
    assert table[3] == {
        "id": 3,
        "image_id": 13,
        "label": "ü 3",
        "score": 0.25,
        "vector": np.eye(8)[3].tolist(),
    }
    assert list(folder.iterdir()) == []


async def test_many_rows_are_several_files(tmp_path: Path) -> None:
    async with Staging(str(tmp_path), file_bytes=7 * 8 * 4)(
        collection_schema(8), _rows(21)
    ) as names:
        tables = [pyarrow.parquet.read_table(name).to_pylist() for name in names]
    assert [[row["id"] for row in table] for table in tables] == [
        [*range(7)],
        [*range(7, 14)],
        [*range(14, 21)],
    ]


async def test_they_go_where_what_they_are_for_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        async with Staging(str(tmp_path))(collection_schema(8), _rows(2)):
            raise KeyError
    assert list(tmp_path.iterdir()) == []


async def test_a_place_that_takes_no_files_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EngineUnavailable, match="cannot be written to"):
        async with Staging(str(tmp_path / "file"))(collection_schema(8), _rows(2)):
            raise AssertionError


async def test_in_a_bucket_files_are_named_by_their_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with object_store() as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        store.fill("milvus", {"else": b""})
        async with Staging("s3://milvus/to/import")(collection_schema(8), _rows(20)) as names:
            [name] = names
            assert name.startswith("to/import/import-")
            content = store.client().get_object(Bucket="milvus", Key=name)["Body"].read()
        assert pyarrow.parquet.read_table(io.BytesIO(content)).num_rows == 20
        listed = store.client().list_objects_v2(Bucket="milvus")["Contents"]
    assert [each["Key"] for each in listed] == ["else"]
