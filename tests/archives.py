"""Exports for tests: of drawn vectors, and of all that nobody should believe."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from backend.archive import (
    Archive,
    ArchivedCollection,
    ArchivedPhoto,
    ArchiveWriter,
    ImageRow,
    ObjectRows,
    photo_name,
)
from backend.storage.catalog import NewImage, path_key
from backend.tarball import TarballWriter, members, open_member

MAX_PHOTO_BYTES = 10**6


def new_image(path: str, **values: Any) -> NewImage:
    """A photo's row."""
    about = {"sha256": "5" * 64, "size": 10, "mtime_ns": 1, "width": 40, "height": 30}
    return NewImage(**{"path": path, "path_key": path_key(path), **about, **values})


def unit_vectors(count: int, dimension: int, seed: int = 0) -> NDArray[np.float32]:
    """Vectors of unit length, float32 [count, dimension]."""
    drawn = np.random.default_rng(seed).normal(size=(count, dimension))
    vectors: NDArray[np.float32] = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(
        np.float32
    )
    return vectors


@dataclass
class Content:
    """What an export is made of; tests change it into what no export is."""

    collection: ArchivedCollection
    images: list[ImageRow]
    objects: ObjectRows
    photos: dict[str, bytes] = field(default_factory=dict)
    with_photos: bool = True

    def write(self, file: BinaryIO) -> None:
        """Writes it as the service would."""
        archive = ArchiveWriter(file, self.collection)
        with archive.images() as images:
            for start in range(0, len(self.images), 500):
                images.write(self.images[start : start + 500])
        with archive.objects() as objects:
            if len(self.objects.image_ids):
                objects.write(self.objects)
        for name, data in sorted(self.photos.items()):
            archive.photo(name, data)
        for _ in archive.finish(photos=self.with_photos):
            pass

    def change_object(self, **values: Any) -> None:
        """Changes columns of the objects."""
        self.objects = replace(self.objects, **values)

    def change_image(self, number: int, **values: Any) -> None:
        """Changes a photo's row."""
        row = self.images[number]
        self.images[number] = replace(row, image=replace(row.image, **values))


def content(
    collection: ArchivedCollection, photos: int, *, objects_each: int = 1, seed: int = 0
) -> Content:
    """Photos with so many objects each, whose vectors are drawn."""
    count = photos * objects_each
    return Content(
        collection,
        [ImageRow(new_image(f"/photos/{number}.jpg")) for number in range(photos)],
        ObjectRows(
            np.repeat(np.arange(photos), objects_each),
            [f"label {number % 7}" for number in range(count)],
            np.linspace(0.1, 0.9, count),
            np.tile([1.0, 2.0, 30.5, 20.25], (count, 1)),
            unit_vectors(count, collection.dimension, seed),
        ),
    )


def read_all(path: Path) -> tuple[Archive, list[ArchivedPhoto]]:
    """An export, all of it looked at, and its photos.

    Raises:
        InvalidInput: as `Archive`.
    """
    with path.open("rb") as file:
        archive = Archive(file, max_photo_bytes=MAX_PHOTO_BYTES)
        for step in (archive.open, archive.verify):
            for _ in step():
                pass
        return archive, [each for batch in archive.photos() for each in batch]


def member_bytes(path: Path) -> dict[str, bytes]:
    """The members of a tar file."""
    with path.open("rb") as file:
        return {each.name: open_member(file, each).read() for each in members(file)}


def write_members(path: Path, parts: Sequence[tuple[str, bytes]]) -> None:
    """Writes a tar file with a seal that is right, whatever its members are."""
    with path.open("w+b") as file:
        tarball = TarballWriter(file)
        for name, data in parts:
            with tarball.member(name) as member:
                member.write(data)
        for _ in tarball.seal():
            pass


def rewrite(path: Path, change: Callable[[dict[str, bytes]], dict[str, bytes] | None]) -> None:
    """Changes members of an export, and all digests with them: only what it says is wrong."""
    parts = member_bytes(path)
    parts = change(parts) or parts
    write_members(path, list(parts.items()))


def with_table(parts: dict[str, bytes], name: str, data: bytes, **summary: Any) -> None:
    """Exchanges a table, and what the manifest says of it."""
    import hashlib

    manifest = json.loads(parts["manifest.json"])
    about = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), **summary}
    manifest[name.removesuffix(".parquet")] |= about
    parts[name] = data
    parts["manifest.json"] = json.dumps(manifest).encode()


def parquet(table: Any, **options: Any) -> bytes:
    """A table as Parquet, as an export has it but for the options."""
    from pyarrow import parquet as pq

    file = BytesIO()
    pq.write_table(
        table,
        file,
        **{
            "compression": "NONE",
            "use_dictionary": False,
            "write_statistics": False,
            "row_group_size": 1024,
            **options,
        },
    )
    return file.getvalue()


def page_header(
    size: int,
    values: int,
    *,
    kind: int = 0,
    stored_size: int | None = None,
    encoding: int = 0,
    levels: tuple[int, int] = (3, 3),
    statistics: bytes = b"\x1c\0",
) -> bytes:
    """A page's header in Thrift's compact protocol, as Parquet's C++ library writes it."""

    def integers(*numbers: int) -> bytes:
        return b"".join(b"\x15" + _varint(number << 1 ^ number >> 63) for number in numbers)

    about = integers(kind, size, size if stored_size is None else stored_size)
    return about + b"\x2c" + integers(values, encoding, *levels) + statistics + b"\0\0"


def run_lengths(*runs: tuple[int, int]) -> bytes:
    """Levels: how often each, and which."""
    coded = b"".join(_varint(count << 1) + bytes([level]) for count, level in runs)
    return len(coded).to_bytes(4, "little") + coded


def _varint(number: int) -> bytes:
    coded = bytearray()
    while number > 0x7F:
        coded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*coded, number])


def swollen(table: bytes, values: int, *, says: int | None = None) -> bytes:
    """A table whose last column's first page has a few bytes for so many values in its first row.

    `says`: how many its header says that there are.
    """
    from pyarrow import parquet as pq

    about = pq.ParquetFile(BytesIO(table)).metadata.row_group(0)
    column = about.column(about.num_columns - 1)
    start, size = column.data_page_offset, column.total_compressed_size
    levels = run_lengths((1, 0), (values - 1, 1)) + run_lengths((values, 0))
    says = values if says is None else says
    room = next(n for n in range(size, 0, -1) if len(page_header(n, says)) + n == size)
    page = page_header(room, says) + levels.ljust(room, b"\0")
    return table[:start] + page + table[start + size :]


def table_of(data: bytes) -> Any:
    """The table of Parquet's bytes."""
    from pyarrow import parquet as pq

    return pq.read_table(BytesIO(data))


def photo_row(path: str, data: bytes, image_format: str = "jpeg") -> tuple[ImageRow, str]:
    """The row of a photo whose file is taken along, and what it is called."""
    import hashlib

    sha256 = hashlib.sha256(data).hexdigest()
    name = photo_name(sha256, image_format)
    return ImageRow(new_image(path, sha256=sha256, size=len(data)), name), name


def flips(path: Path, every: int) -> Iterator[tuple[int, bytes]]:
    """The file's bytes with one bit flipped: at each block's edges, and every so many bytes."""
    whole = path.read_bytes()
    blocks = range(0, len(whole), 512)
    places = {0, len(whole) - 1, *blocks, *(start + 511 for start in blocks)}
    for place in sorted(places | set(range(0, len(whole), every))):
        yield place, whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
