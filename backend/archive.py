"""What an export is: a collection in one file, in open formats, of which nothing is believed.

A tar file (`tarball`) of `images.parquet`, `objects.parquet`, the photos as `photos/SHA256.FORMAT`
where they are asked for, and `manifest.json`, which says which embedder the vectors are of and how
many rows and bytes there are. The tables are plain Parquet, uncompressed, in small row groups: what
is read of one is never much larger than its bytes in the file, whoever has made it, since its pages
are looked at first (`parquet_pages`).

Photos are numbered from 0 in the order of their rows; objects follow each other in that order.
Everything here blocks, in steps that are short: call each in a thread (`threads.in_steps`).
"""

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, BinaryIO, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backend.errors import InvalidInput, ServiceError, TooLarge
from backend.names import MAX_NAME_LENGTH, NAME_PATTERN
from backend.parquet_pages import check_pages
from backend.storage.catalog import NewImage, NewObject, path_key, utc_now
from backend.tarball import (
    Member,
    MemberFile,
    TarballWriter,
    check_seal,
    members,
    open_member,
)
from backend.vision.decode import CONTENT_TYPES, SNIFF_BYTES, sniff

__all__ = [
    "Archive",
    "ArchiveWriter",
    "ArchivedCollection",
    "ArchivedPhoto",
    "ImageRow",
    "Manifest",
    "ObjectRows",
    "check_installed",
    "check_photo",
    "photo_name",
]

_ENCODINGS: Final = frozenset({"PLAIN", "RLE"})
"""Of values as they are, and of which are there."""
_LEAST_BYTES: Final = {"INT32": 4, "INT64": 8, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 4}
"""Of a value that is there, by its type in the file; of a text its length alone."""
_MAGIC_BYTES: Final = 4
"""`PAR1`, at the beginning of a table."""

_FORMAT: Final = "image-similarity-search collection"
_VERSION: Final = 1
_MANIFEST: Final = "manifest.json"
_IMAGES: Final = "images.parquet"
_OBJECTS: Final = "objects.parquet"
_PHOTO: Final = re.compile(
    rf"photos/([0-9a-f]{{64}})\.({'|'.join(name.lower() for name in CONTENT_TYPES)})"
)
_SHA256: Final = re.compile("[0-9a-f]{64}")

_ROWS: Final = 1024
"""Of a row group: 8 MB of 2048-d."""
_MAX_MANIFEST_BYTES: Final = 2**16
_MAX_PHOTOS: Final = 2_000_000
_MAX_OBJECTS_PER_PHOTO: Final = 4096
_MAX_DIMENSION: Final = 32_768
"""Milvus' own limit."""
_MAX_PATH_BYTES: Final = 65_535
"""What MySQL's text columns hold."""
_MAX_LABEL_CHARACTERS: Final = 200
_MAX_CHUNK_BYTES: Final = _ROWS * 4 * (_MAX_DIMENSION + 1024)
"""Of one column's values in a row group."""
_MAX_FOOTER_BYTES: Final = 2**20
"""Of one string in a table's footer, and how many things one list in it may have."""
_UNIT: Final = 0.01
"""By how much the length of a vector may differ from 1: an embedder's in FP16 are that exact."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ArchivedCollection(_Part):
    """The collection, and what its vectors are of."""

    name: str = Field(pattern=f"^{NAME_PATTERN}$", max_length=MAX_NAME_LENGTH)
    embedder: str = Field(min_length=1, max_length=200)
    embedder_sha256: str = Field(pattern=f"^{_SHA256.pattern}$")
    dimension: int = Field(ge=1, le=_MAX_DIMENSION)
    metric: str = Field(max_length=16)


class TableSummary(_Part):
    """A table's size and the SHA-256, in hex, of its bytes."""

    rows: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=f"^{_SHA256.pattern}$")


class PhotosSummary(_Part):
    """How many photos are in the file; photos of the same bytes are in it once."""

    files: int = Field(ge=0)
    bytes: int = Field(ge=0)


class Manifest(_Part):
    """What is in the file. `photos` is null where there are none, and none were asked for."""

    format: Literal["image-similarity-search collection"]
    version: Literal[1]
    created_at: str = Field(max_length=64)
    collection: ArchivedCollection
    images: TableSummary
    objects: TableSummary
    photos: PhotosSummary | None


@dataclass(frozen=True)
class ImageRow:
    """A photo's row. `error` is set where it has failed; `photo` names its file in the archive."""

    image: NewImage
    photo: str | None = None


@dataclass(frozen=True)
class ObjectRows:
    """Objects of photos, N of them.

    Attributes:
        image_ids: int64 [N], the numbers of their photos' rows, ascending.
        labels: N of them.
        scores: float64 [N].
        boxes: float64 [N, 4], xyxy in pixels of the upright photo.
        vectors: float32 [N, D].
    """

    image_ids: NDArray[np.int64]
    labels: Sequence[str]
    scores: NDArray[np.float64]
    boxes: NDArray[np.float64]
    vectors: NDArray[np.float32]


@dataclass(frozen=True)
class ArchivedPhoto:
    """A photo with its objects, and their embeddings, float32 [N, D]; `photo` as in ImageRow."""

    image: NewImage
    embeddings: NDArray[np.float32]
    photo: str | None


def check_installed() -> None:
    """Raises ServiceError where what reads and writes Parquet is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise ServiceError(
            "exports are Parquet, and pyarrow, which reads and writes it, is not installed: "
            "pip install 'image-similarity-search[backup]'"
        )


def photo_name(sha256: str, image_format: str) -> str:
    """What a photo of these bytes is called in an archive."""
    return f"photos/{sha256}.{image_format.lower()}"


def check_photo(data: bytes, sha256: str) -> str | None:
    """The format (a key of CONTENT_TYPES) of a photo's bytes; None where it is not these bytes."""
    if hashlib.sha256(data).hexdigest() != sha256:
        return None
    return sniff(data[:SNIFF_BYTES])


# Writing


class ArchiveWriter:
    """Writes an archive: first the images, then the objects, then photos, then `finish`."""

    def __init__(self, file: BinaryIO, collection: ArchivedCollection) -> None:
        """`file` is empty, and can be read and sought in."""
        self._tarball = TarballWriter(file)
        self._collection = collection
        self._summaries: dict[str, TableSummary] = {}
        self._photos: PhotosSummary | None = None

    @contextmanager
    def images(self) -> Iterator["ImageTable"]:
        """The table of photos, for as long as it is open."""
        with self._table(_IMAGES, _image_schema()) as table:
            yield ImageTable(table)

    @contextmanager
    def objects(self) -> Iterator["ObjectTable"]:
        """The table of objects, for as long as it is open."""
        with self._table(_OBJECTS, _object_schema(self._collection.dimension)) as table:
            yield ObjectTable(table)

    @contextmanager
    def _table(self, name: str, schema: Any) -> Iterator["_Table"]:
        with self._tarball.member(name) as file:
            table = _Table(file, schema)
            try:
                yield table
            finally:
                table.close()
        self._summaries[name] = TableSummary(rows=table.rows, bytes=file.size, sha256=file.sha256)

    def photo(self, name: str, data: bytes) -> None:
        """Adds a photo; in the order of their names."""
        with self._tarball.member(name) as file:
            file.write(data)
        before = self._photos or PhotosSummary(files=0, bytes=0)
        self._photos = PhotosSummary(files=before.files + 1, bytes=before.bytes + len(data))

    def finish(self, *, photos: bool) -> Iterator[None]:
        """Ends the archive, step by step; `photos`: whether there might have been some."""
        self.manifest = Manifest(
            format=_FORMAT,
            version=_VERSION,
            created_at=utc_now(),
            collection=self._collection,
            images=self._summaries[_IMAGES],
            objects=self._summaries[_OBJECTS],
            photos=self._photos or (PhotosSummary(files=0, bytes=0) if photos else None),
        )
        with self._tarball.member(_MANIFEST) as file:
            file.write(self.manifest.model_dump_json(indent=2).encode() + b"\n")
        yield from self._tarball.seal()


class _Table:
    def __init__(self, file: MemberFile, schema: Any) -> None:
        from pyarrow import parquet

        self.rows = 0
        self.schema = schema
        # One chunk of values after the other, as they are: what is not compressed cannot swell.
        self._writer = parquet.ParquetWriter(
            file, schema, compression="NONE", use_dictionary=False, write_statistics=False
        )

    def write(self, columns: Sequence[Any]) -> None:
        import pyarrow

        batch = pyarrow.record_batch(columns, schema=self.schema)
        for start in range(0, batch.num_rows, _ROWS):
            self._writer.write_batch(batch.slice(start, _ROWS), row_group_size=_ROWS)
        self.rows += batch.num_rows

    def close(self) -> None:
        try:
            self._writer.close()
        finally:
            self._writer.is_open = False  # or it would try once more when it is collected


class ImageTable:
    """The table of photos that is being written."""

    def __init__(self, table: _Table) -> None:
        self._table = table

    @property
    def rows(self) -> int:
        """How many there are so far: the number of the next."""
        return self._table.rows

    def write(self, rows: Sequence[ImageRow]) -> None:
        """Appends rows."""
        import pyarrow

        images = [row.image for row in rows]
        values: dict[str, Sequence[Any]] = {
            "id": range(self.rows, self.rows + len(rows)),
            "path": [image.path for image in images],
            "path_key": [image.path_key for image in images],
            "sha256": [image.sha256 for image in images],
            "bytes": [image.size for image in images],
            "mtime_ns": [image.mtime_ns for image in images],
            "width": [image.width for image in images],
            "height": [image.height for image in images],
            "error": [image.error for image in images],
            "phash": [image.phash for image in images],
            "photo": [row.photo for row in rows],
        }
        schema = self._table.schema
        self._table.write([pyarrow.array(values[field.name], field.type) for field in schema])


class ObjectTable:
    """The table of objects that is being written."""

    def __init__(self, table: _Table) -> None:
        self._table = table

    def write(self, rows: ObjectRows) -> None:
        """Appends rows.

        Raises:
            ServiceError: a vector is not of unit length.
        """
        import pyarrow

        if not _are_units(rows.vectors):
            raise ServiceError(
                "the collection has a vector that is not of unit length, which no embedder makes:"
                " python -m backend check --repair with this embedder's settings embeds it anew"
            )
        schema = self._table.schema
        flat = pyarrow.array(np.ascontiguousarray(rows.vectors).reshape(-1))
        self._table.write(
            [
                pyarrow.array(rows.image_ids),
                pyarrow.array(rows.labels, pyarrow.string()),
                pyarrow.array(rows.scores),
                *(pyarrow.array(np.ascontiguousarray(edge)) for edge in rows.boxes.T),
                pyarrow.FixedSizeListArray.from_arrays(flat, type=schema.field("embedding").type),
            ]
        )


# Reading


class Archive:
    """An archive that is read: nothing in it is believed before it has been looked at.

    Every method may raise InvalidInput, with what is wrong.
    """

    manifest: Manifest

    def __init__(self, file: BinaryIO, *, max_photo_bytes: int) -> None:
        self._file = file
        self._max_photo_bytes = max_photo_bytes
        self._tables: dict[str, Member] = {}
        self._photos: dict[str, Member] = {}

    def open(self) -> Iterator[None]:
        """Reads the whole file once, step by step; then `manifest` says what is in it."""
        yield from check_seal(self._file)
        previous = ""
        for number, member in enumerate(members(self._file)):
            if member.name in (_IMAGES, _OBJECTS, _MANIFEST) and member.name not in self._tables:
                self._tables[member.name] = member
            elif _PHOTO.fullmatch(member.name) and member.name > previous:
                self._photos[member.name] = member
                previous = member.name
            else:
                raise InvalidInput(
                    f"its member {member.name!r} is none that an export has, or is there twice"
                )
            if len(self._photos) > _MAX_PHOTOS:
                raise InvalidInput(f"it has more than {_MAX_PHOTOS} photos")
            if number % 1000 == 0:
                yield
        for name in (_IMAGES, _OBJECTS, _MANIFEST):
            if name not in self._tables:
                raise InvalidInput(f"it has no {name}")
        self.manifest = self._read_manifest()

    def _read_manifest(self) -> Manifest:
        member = self._tables[_MANIFEST]
        if member.size > _MAX_MANIFEST_BYTES:
            raise InvalidInput(f"its {_MANIFEST} has more than {_MAX_MANIFEST_BYTES} bytes")
        with open_member(self._file, member) as file:
            text = file.read()
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            raise InvalidInput(f"its {_MANIFEST} is no JSON") from None
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise InvalidInput(f"its {_MANIFEST} is not that of an export")
        if (type(found.get("version")), found.get("version")) != (int, _VERSION):
            raise InvalidInput(
                f"it is an export of version {str(found.get('version'))[:20]!r}, this program reads"
                f" version {_VERSION}: import it with the program that has made it, or a newer one"
            )
        try:
            return Manifest.model_validate(found)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise InvalidInput(f"its {_MANIFEST}: {where}: {error.errors()[0]['msg']}") from None

    def verify(self) -> Iterator[int]:
        """Reads all of the tables and photos, step by step; gives how many objects are done."""
        for name, summary in ((_IMAGES, self.manifest.images), (_OBJECTS, self.manifest.objects)):
            if self._tables[name].size != summary.bytes:
                raise InvalidInput(f"its {name} has not as many bytes as its {_MANIFEST} says")
            yield from self._check_digest(self._tables[name], summary.sha256)
        there = PhotosSummary(
            files=len(self._photos), bytes=sum(each.size for each in self._photos.values())
        )
        if there != (self.manifest.photos or PhotosSummary(files=0, bytes=0)):
            raise InvalidInput(f"it has not as many photos as its {_MANIFEST} says")
        keys: set[bytes] = set()
        wanted: set[str] = set()
        objects = 0
        for batch in self.photos():
            for each in batch:
                key = bytes.fromhex(each.image.path_key)
                if key in keys:
                    raise InvalidInput(f"its photo {each.image.path!r} is there twice")
                keys.add(key)
                if each.photo is not None:
                    if each.photo not in self._photos:
                        raise InvalidInput(f"its photo {each.image.path!r} has no file in it")
                    wanted.add(each.photo)
                objects += len(each.embeddings)
            yield objects
        if stray := sorted(self._photos.keys() - wanted):
            raise InvalidInput(f"its file {stray[0]!r} is no photo's")
        for name in sorted(wanted):
            self.read_photo(name)
            yield objects

    def _check_digest(self, member: Member, sha256: str) -> Iterator[int]:
        digest = hashlib.sha256()
        with open_member(self._file, member) as file:
            while data := file.read(2**24):
                digest.update(data)
                yield 0
        if digest.hexdigest() != sha256:
            raise InvalidInput(f"its {member.name} is not what its {_MANIFEST} says")

    def read_photo(self, name: str) -> bytes:
        """The bytes of a photo, by its name in the archive."""
        member = self._photos[name]
        if member.size > self._max_photo_bytes:
            raise TooLarge(
                f"its file {name!r} has more than the {self._max_photo_bytes} bytes that"
                " MAX_FILE_BYTES allows"
            )
        with open_member(self._file, member) as file:
            data = file.read()
        _, sha256, ending = re.split(r"[/.]", name)
        image_format = check_photo(data, sha256)
        if image_format is None or image_format.lower() != ending:
            raise InvalidInput(f"its file {name!r} is not the photo that it is named after")
        return data

    def photo_bytes(self, name: str) -> int:
        """How many bytes a photo has."""
        return self._photos[name].size

    def photos(self) -> Iterator[list[ArchivedPhoto]]:
        """All photos with their objects, some at a time, in their order."""
        objects = self._objects()
        pending: list[_Object] = []
        found = next(objects, None)
        for images in self._images():
            batch: list[ArchivedPhoto] = []
            held = 0
            for number, row in images:
                pending.clear()
                while found is not None and found.image_id == number:
                    pending.append(found)
                    if len(pending) > _MAX_OBJECTS_PER_PHOTO:
                        raise InvalidInput(
                            f"a photo of its has more than {_MAX_OBJECTS_PER_PHOTO} objects"
                        )
                    found = next(objects, None)
                if found is not None and found.image_id < number:
                    raise InvalidInput(f"its {_OBJECTS} is not in the order of its {_IMAGES}")
                batch.append(_join(row, pending, self.manifest.collection.dimension))
                held += len(pending)
                if held >= _ROWS:
                    yield batch
                    batch, held = [], 0
            if batch:
                yield batch
        if found is not None:
            raise InvalidInput(f"its {_OBJECTS} has objects of photos that are not in it")

    def _images(self) -> Iterator[list[tuple[int, ImageRow]]]:
        first = 0
        for columns in self._rows(_IMAGES, _image_schema(), self.manifest.images.rows):
            rows = [
                dict(zip(columns, values, strict=True))
                for values in zip(*columns.values(), strict=True)
            ]
            yield [(first + number, _image(row, first + number)) for number, row in enumerate(rows)]
            first += len(rows)

    def _objects(self) -> Iterator["_Object"]:
        schema = _object_schema(self.manifest.collection.dimension)
        for columns in self._rows(_OBJECTS, schema, self.manifest.objects.rows):
            vectors = columns["embedding"]
            if not _are_units(vectors):
                raise InvalidInput(
                    f"its {_OBJECTS} has a vector that is not of unit length, or no number"
                )
            numbers = [columns[name] for name in ("score", "x1", "y1", "x2", "y2")]
            if not all(np.isfinite(column).all() for column in numbers):
                raise InvalidInput(f"its {_OBJECTS} has a score or a box that is no number")
            for image_id, label, score, *box, vector in zip(
                columns["image_id"].tolist(),
                columns["label"],
                *(column.tolist() for column in numbers),
                vectors,
                strict=True,
            ):
                if not 0 < len(label) <= _MAX_LABEL_CHARACTERS:
                    raise InvalidInput(
                        f"its {_OBJECTS} has a label that is empty or has more than"
                        f" {_MAX_LABEL_CHARACTERS} characters"
                    )
                x1, y1, x2, y2 = box
                yield _Object(image_id, NewObject(label, score, (x1, y1, x2, y2)), vector)

    def _rows(self, name: str, schema: Any, rows: int) -> Iterator[Mapping[str, Any]]:
        """A table's columns, one row group at a time: arrays of numbers, lists of text."""
        import pyarrow
        from pyarrow import parquet

        text = [field.name for field in schema if pyarrow.types.is_string(field.type)]
        try:
            with open_member(self._file, self._tables[name]) as file:
                table = parquet.ParquetFile(
                    file,
                    # A text that is there many times is held once.
                    read_dictionary=text,
                    pre_buffer=False,
                    thrift_string_size_limit=_MAX_FOOTER_BYTES,
                    thrift_container_size_limit=_MAX_FOOTER_BYTES,
                )
                _check_table(name, table, schema, rows)
                end = _MAGIC_BYTES
                for number in range(table.num_row_groups):
                    end = self._check_pages(name, table.metadata.row_group(number), schema, end)
                    group = table.read_row_group(number, use_threads=False)
                    group.validate(full=True)
                    yield {
                        field.name: _values(name, field, group.column(field.name))
                        for field in schema
                    }
        except KeyError:  # what it says of a column that is to be read in its own way
            raise InvalidInput(f"its {name} has not the columns of an export") from None
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = str(error).partition("\n")[0][:200]
            raise InvalidInput(f"its {name} cannot be read: {reason}") from None

    def _check_pages(self, name: str, group: Any, schema: Any, end: int) -> int:
        """Looks at a row group before it is read; returns where it ends.

        `end` is where the one before has ended.
        """
        member = self._tables[name]

        def read(start: int, size: int) -> bytes:
            return os.pread(self._file.fileno(), size, member.offset + start)

        for number, field in enumerate(schema):
            column = group.column(number)
            start, size = column.data_page_offset, column.total_compressed_size
            if start < end or size < 0 or start + size > member.size:
                raise InvalidInput(f"its {name} has columns in places where there are none")
            end = start + size
            try:
                check_pages(
                    read,
                    start=start,
                    size=size,
                    values=column.num_values,
                    width=0 if field.nullable else _LEAST_BYTES[column.physical_type],
                )
            except InvalidInput as error:
                raise InvalidInput(f"its {name} {error}") from None
        return end


@dataclass(frozen=True, slots=True)
class _Object:
    image_id: int
    found: NewObject
    vector: NDArray[np.float32]


def _image_schema() -> Any:
    import pyarrow

    text, integer, size = pyarrow.string(), pyarrow.int64(), pyarrow.int32()
    required = {"id": integer, "path": text, "path_key": text, "sha256": text}
    required |= {"bytes": integer, "mtime_ns": integer, "width": size, "height": size}
    optional = {"error": text, "phash": integer, "photo": text}
    return pyarrow.schema(
        [
            *(pyarrow.field(*each, nullable=False) for each in required.items()),
            *(pyarrow.field(*each) for each in optional.items()),
        ]
    )


def _object_schema(dimension: int) -> Any:
    import pyarrow

    number = pyarrow.field("element", pyarrow.float32(), nullable=False)
    columns = [
        ("image_id", pyarrow.int64()),
        ("label", pyarrow.string()),
        *((name, pyarrow.float64()) for name in ("score", "x1", "y1", "x2", "y2")),
        ("embedding", pyarrow.list_(number, dimension)),
    ]
    return pyarrow.schema([pyarrow.field(*each, nullable=False) for each in columns])


def _check_table(name: str, table: Any, schema: Any, rows: int) -> None:
    import pyarrow

    def shape(field: Any) -> tuple[str, str, bool]:
        kind = field.type
        return field.name, str(getattr(kind, "value_type", kind)), field.nullable

    there = table.schema_arrow
    expected = [
        pyarrow.field(field.name, pyarrow.dictionary(pyarrow.int32(), field.type), field.nullable)
        if pyarrow.types.is_string(field.type)
        else field
        for field in schema
    ]
    if not there.equals(pyarrow.schema(expected)):
        for wanted, found in zip_longest(expected, there):
            if wanted is None or found is None or not wanted.equals(found):
                shown = "no such column" if found is None else f"{found.name!r}: {shape(found)[1]}"
                wished = "no more columns" if wanted is None else f"{wanted.name!r}"
                raise InvalidInput(
                    f"its {name} has not the columns of an export: {shown[:100]}, not {wished} as"
                    " it should be"
                )
        raise InvalidInput(f"its {name} has not the columns of an export")
    about = table.metadata
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    if about.num_rows != rows or sum(group.num_rows for group in groups) != rows:
        raise InvalidInput(f"its {name} has not as many rows as its {_MANIFEST} says")
    for group in groups:
        if not 0 <= group.num_rows <= _ROWS:
            raise InvalidInput(f"its {name} has a row group of more than {_ROWS} rows")
        for number in range(group.num_columns):
            column = group.column(number)
            if column.compression != "UNCOMPRESSED":
                raise InvalidInput(f"its {name} is compressed, which an export's is not")
            if (
                column.has_dictionary_page
                or not _ENCODINGS.issuperset(column.encodings)
                or column.physical_type not in _LEAST_BYTES
            ):
                raise InvalidInput(f"its {name} is encoded in another way than an export's")
            values = group.num_rows * _values_of_a_row(schema.field(number))
            if column.num_values != values or column.total_compressed_size > _MAX_CHUNK_BYTES:
                raise InvalidInput(f"its {name} has values that are larger than an export's")


def _values_of_a_row(field: Any) -> int:
    import pyarrow

    kind = field.type
    return kind.list_size if pyarrow.types.is_fixed_size_list(kind) else 1


def _values(name: str, field: Any, column: Any) -> Any:
    import pyarrow

    if column.null_count and not field.nullable:
        raise InvalidInput(f"its {name} lacks values of {field.name!r}")
    if pyarrow.types.is_fixed_size_list(field.type):
        flat = column.combine_chunks().flatten()
        if flat.null_count:
            raise InvalidInput(f"its {name} lacks values of {field.name!r}")
        return flat.to_numpy(zero_copy_only=False).reshape(-1, field.type.list_size)
    if pyarrow.types.is_string(field.type):
        values: list[str | None] = []
        for chunk in column.chunks:
            words = chunk.dictionary
            if any(len(word.as_buffer()) > _MAX_PATH_BYTES for word in words if word.is_valid):
                raise InvalidInput(f"its {name} has a text of more than {_MAX_PATH_BYTES} bytes")
            known = words.to_pylist()
            values += [
                None if index is None else known[index] for index in chunk.indices.to_pylist()
            ]
        return values
    return column.to_pylist() if field.nullable else column.to_numpy()


def _image(row: Mapping[str, Any], number: int) -> ImageRow:
    path = row["path"]

    def refuse(what: str) -> InvalidInput:
        return InvalidInput(f"its photo {path[:500]!r} {what}")

    if row["id"] != number:
        raise InvalidInput(f"its {_IMAGES} is not numbered from 0 on")
    failed = row["error"] is not None
    if not _SHA256.fullmatch(row["path_key"]) or not (failed or row["path_key"] == path_key(path)):
        raise refuse("has a path_key that is not its path's")
    if not _SHA256.fullmatch(row["sha256"]) and not (failed and row["sha256"] == ""):
        raise refuse("has a sha256 that is none")
    if not path or "\0" in path:
        raise refuse("has a path that is none")
    if min(row["bytes"], row["width"], row["height"]) < 0:
        raise refuse("has a size below 0")
    photo = row["photo"]
    if photo is not None:
        named = _PHOTO.fullmatch(photo)
        if named is None or named[1] != row["sha256"] or failed:
            raise refuse("names a file that cannot be its")
    image = NewImage(
        path=path,
        path_key=row["path_key"],
        sha256=row["sha256"],
        size=int(row["bytes"]),
        mtime_ns=int(row["mtime_ns"]),
        width=int(row["width"]),
        height=int(row["height"]),
        error=row["error"],
        phash=row["phash"],
    )
    return ImageRow(image, photo)


def _join(row: ImageRow, objects: Sequence[_Object], dimension: int) -> ArchivedPhoto:
    if objects and row.image.error is not None:
        raise InvalidInput(f"its photo {row.image.path[:500]!r} has failed, but has objects")
    vectors = np.array([each.vector for each in objects], np.float32).reshape(-1, dimension)
    fields = {**vars(row.image), "objects": tuple(each.found for each in objects)}
    return ArchivedPhoto(NewImage(**fields), vectors, row.photo)


def _are_units(vectors: NDArray[np.float32]) -> bool:
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    return bool((np.abs(lengths - 1) <= _UNIT).all())  # also false where one is no number
