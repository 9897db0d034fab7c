"""An export's file: what goes in comes out bit for bit, and nothing in it is believed."""

import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet as parquet_library

from backend.archive import ArchivedCollection, ImageRow
from backend.errors import InvalidInput, ServiceError, TooLarge
from backend.storage.catalog import path_key
from backend.tarball import TarballWriter
from tests.archives import (
    MAX_PHOTO_BYTES,
    Content,
    content,
    flips,
    new_image,
    parquet,
    photo_row,
    read_all,
    rewrite,
    swollen,
    table_of,
    unit_vectors,
    with_table,
    write_members,
)
from tests.photos import draw_photo, encode

DIMENSION = 8
COLLECTION = ArchivedCollection(
    name="cats", embedder="e", embedder_sha256="a" * 64, dimension=DIMENSION, metric="L2"
)
_JPEG = encode(draw_photo(1))


def _content() -> Content:
    """Four photos: three with two objects each, one of them with its file, and one that failed."""
    made = content(COLLECTION, 3, objects_each=2)
    row, name = photo_row("/photos/näme\n.jpg", _JPEG)
    made.images[1] = row
    made.photos[name] = _JPEG
    made.images.append(ImageRow(new_image("/photos/bad.jpg", sha256="", error="no photo")))
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "export.tar"


def _write(path: Path, made: Content) -> None:
    with path.open("w+b") as file:
        made.write(file)


def _refused(path: Path, words: str) -> None:
    with pytest.raises((InvalidInput, TooLarge), match=words):
        read_all(path)


def test_what_goes_in_comes_out_bit_for_bit(path: Path) -> None:
    made = content(COLLECTION, 1500, objects_each=2)
    made.change_image(7, phash=-(2**63), mtime_ns=2**63 - 1, width=0)
    made.images.insert(0, ImageRow(new_image("/photos/empty.jpg")))  # a photo without an object
    made.change_object(image_ids=made.objects.image_ids + 1)
    _write(path, made)
    archive, photos = read_all(path)
    assert archive.manifest.collection == COLLECTION
    assert (archive.manifest.images.rows, archive.manifest.objects.rows) == (1501, 3000)
    assert [replace(each.image, objects=()) for each in photos] == [
        row.image for row in made.images
    ]
    vectors = np.concatenate([each.embeddings for each in photos])
    assert vectors.tobytes() == made.objects.vectors.tobytes()
    objects = [found for each in photos for found in each.image.objects]
    assert [found.label for found in objects] == list(made.objects.labels)
    assert [found.score for found in objects] == made.objects.scores.tolist()
    assert [list(found.box) for found in objects] == made.objects.boxes.tolist()
    assert [len(each.embeddings) for each in photos[:3]] == [0, 2, 2]


def test_an_empty_collection_is_an_export_too(path: Path) -> None:
    made = content(COLLECTION, 0)
    _write(path, made)
    archive, photos = read_all(path)
    assert photos == []
    assert archive.manifest.photos is not None
    assert archive.manifest.photos.files == 0


def test_any_tar_and_any_parquet_can_read_it(path: Path, tmp_path: Path) -> None:
    made = _content()
    _write(path, made)
    with tarfile.open(path) as tar:
        names = tar.getnames()
        tar.extractall(tmp_path / "out", filter="data")
    assert names == ["images.parquet", "objects.parquet", *made.photos, "manifest.json", "SHA256"]
    images = table_of((tmp_path / "out" / "images.parquet").read_bytes())
    assert images.column("path").to_pylist() == [row.image.path for row in made.images]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["version"] == 1
    assert (tmp_path / "out" / next(iter(made.photos))).read_bytes() == _JPEG


def test_a_flipped_bit_anywhere_is_found(path: Path) -> None:
    _write(path, _content())
    damaged = path.with_name("damaged.tar")
    tried = 0
    for _place, data in flips(path, every=97):
        damaged.write_bytes(data)
        _refused(damaged, "damaged|no export|its end is missing")
        tried += 1
    assert tried > 150


def test_a_missing_end_or_something_behind_it_is_found(path: Path) -> None:
    _write(path, _content())
    whole = path.read_bytes()
    damaged = path.with_name("damaged.tar")
    lengths = [*range(0, len(whole), 500), *range(0, len(whole), 512), len(whole) - 1]
    for length in lengths:
        damaged.write_bytes(whole[:length])
        _refused(damaged, "damaged|no export|its end is missing")
    for more in (b"\0", b"\0" * 512, b"\0" * 10240, whole):
        damaged.write_bytes(whole + more)
        _refused(damaged, "damaged|no export|its end is missing|is none that|there twice")


_Change = Callable[[Content], Any]


def _repeat_path(made: Content) -> None:
    made.change_image(2, path="/photos/0.jpg", path_key=path_key("/photos/0.jpg"))


def _file_of_another(made: Content) -> None:
    [name] = made.photos
    made.photos[name] = encode(draw_photo(2))


def _wrong_format(made: Content) -> None:
    row, name = photo_row("/photos/a.png", _JPEG, "png")
    made.images[1] = row
    made.photos = {name: _JPEG}


def _no_photo(made: Content) -> None:
    row, name = photo_row("/photos/a.jpg", b"<html>")
    made.images[1] = row
    made.photos = {name: b"<html>"}


def _too_large(made: Content) -> None:
    large = _JPEG + bytes(MAX_PHOTO_BYTES + 1 - len(_JPEG))
    made.images[1], name = photo_row("/photos/a.jpg", large)
    made.photos = {name: large}


def _many_objects(made: Content) -> None:
    more = content(COLLECTION, 1, objects_each=4097)
    made.objects = more.objects


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda made: made.change_object(image_ids=np.array([0, 0, 1, 1, 2, 4])), "not in it"),
        (lambda made: made.change_object(image_ids=np.array([-1, 0, 1, 1, 2, 2])), "order"),
        (lambda made: made.change_object(image_ids=np.array([0, 1, 0, 1, 2, 2])), "order"),
        (lambda made: made.change_object(image_ids=np.array([0, 0, 1, 1, 2, 3])), "has failed"),
        (lambda made: made.change_object(labels=["x" * 201] * 6), "label"),
        (lambda made: made.change_object(labels=[""] * 6), "label"),
        (lambda made: made.change_object(scores=np.full(6, np.nan)), "no number"),
        (lambda made: made.change_object(boxes=np.full((6, 4), np.inf)), "no number"),
        (_many_objects, "more than 4096 objects"),
        (_repeat_path, "twice"),
        (lambda made: made.change_image(0, path_key="0" * 64), "path_key"),
        (lambda made: made.change_image(3, path_key="../" * 8), "path_key"),
        (lambda made: made.change_image(0, path=""), "path"),
        (lambda made: made.change_image(0, path="a\0b", path_key=path_key("a\0b")), "path"),
        (lambda made: made.change_image(0, path="x" * 65_536), "65535"),
        (lambda made: made.change_image(0, sha256=""), "sha256"),
        (lambda made: made.change_image(0, sha256="../../etc"), "sha256"),
        (lambda made: made.change_image(0, size=-1), "size"),
        (lambda made: made.change_image(1, sha256="6" * 64), "cannot be its"),
        (lambda made: made.photos.clear(), "has no file"),
        (lambda made: made.photos.update({f"photos/{'7' * 64}.jpeg": _JPEG}), "no photo's"),
        (_file_of_another, "not the photo that it is named after"),
        (_wrong_format, "not the photo that it is named after"),
        (_no_photo, "not the photo that it is named after"),
        (_too_large, "MAX_FILE_BYTES"),
    ],
)
def test_a_well_formed_file_of_wrong_content_is_refused(
    path: Path, change: _Change, words: str
) -> None:
    made = _content()
    change(made)
    _write(path, made)
    _refused(path, words)


def test_what_is_at_the_limits_is_read(path: Path) -> None:
    made = _content()
    made.change_object(labels=["ä" * 200] * 6)
    longest = "/" + "x" * 65_534
    made.change_image(0, path=longest, path_key=path_key(longest))
    large = _JPEG + bytes(MAX_PHOTO_BYTES - len(_JPEG))
    made.images[1], name = photo_row("/photos/a.jpg", large)
    made.photos = {name: large}
    _write(path, made)
    read_all(path)
    _write(path, content(COLLECTION, 1, objects_each=4096))
    read_all(path)


def test_vectors_that_no_embedder_makes_are_not_written(path: Path) -> None:
    made = _content()
    made.change_object(vectors=made.objects.vectors * 2)
    with pytest.raises(ServiceError, match="unit length"):
        _write(path, made)


def _columns(name: str, column: str, values: Any) -> Callable[[dict[str, bytes]], None]:
    """A change of one column."""

    def change(parts: dict[str, bytes]) -> None:
        table = table_of(parts[name])
        number = table.column_names.index(column)
        kind = table.schema.field(column)
        made = values(table) if callable(values) else values
        array = made if isinstance(made, pyarrow.Array) else pyarrow.array(made, kind.type)
        changed = table.set_column(number, pyarrow.field(column, array.type, False), array)
        with_table(parts, name, parquet(changed))

    return change


def _vectors(change: Callable[[Any], Any]) -> Callable[[dict[str, bytes]], None]:
    def values(_table: Any) -> Any:
        vectors = unit_vectors(6, DIMENSION)
        change(vectors)
        kind = pyarrow.list_(pyarrow.field("element", pyarrow.float32(), False), DIMENSION)
        return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.reshape(-1)), type=kind)

    return _columns("objects.parquet", "embedding", values)


def _table(name: str, change: Callable[[Any], Any], **options: Any) -> Any:
    def rewritten(parts: dict[str, bytes]) -> None:
        table = change(table_of(parts[name]))
        with_table(parts, name, parquet(table, **options), rows=table.num_rows)

    return rewritten


def _manifest(**values: Any) -> Callable[[dict[str, bytes]], None]:
    def change(parts: dict[str, bytes]) -> None:
        parts["manifest.json"] = json.dumps(json.loads(parts["manifest.json"]) | values).encode()

    return change


def _collection(**values: Any) -> Callable[[dict[str, bytes]], None]:
    return _manifest(collection=COLLECTION.model_dump() | values)


def _member(name: str, data: bytes = b"x") -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda parts: {name: data, **parts}


def _repeated(parts: dict[str, bytes]) -> None:
    table = table_of(parts["objects.parquet"])
    many = pyarrow.concat_tables([table] * 300)
    with_table(parts, "objects.parquet", parquet(many, row_group_size=1025), rows=1800)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_member("/etc/passwd"), "none that an export has"),
        (_member("../../photo.jpeg"), "none that an export has"),
        (_member(f"photos/../{'0' * 64}.jpeg"), "none that an export has"),
        (_member(f"photos/{'0' * 64}.jpeg.part"), "none that an export has"),
        (_member(f"photos/{'0' * 64}.JPEG"), "none that an export has"),
        (_member(f"photos/{'0' * 64}.html"), "none that an export has"),
        (_member("IMAGES.PARQUET"), "none that an export has"),
        (_member("SHA256"), "none that an export has"),
        (lambda parts: parts.pop("manifest.json") and None, "no manifest"),
        (lambda parts: parts.pop("objects.parquet") and None, "no objects"),
        (_vectors(lambda some: some.fill(np.nan)), "unit length, or no number"),
        (_vectors(lambda some: some[3].__setitem__(0, np.inf)), "unit length, or no number"),
        (_vectors(lambda some: some.fill(0)), "unit length"),
        (_vectors(lambda some: some[5].__imul__(1.02)), "unit length"),
        (_columns("images.parquet", "id", [0, 1, 1, 3]), "numbered"),
        (_columns("images.parquet", "id", [1, 2, 3, 4]), "numbered"),
        (_columns("images.parquet", "width", pyarrow.array([1.0] * 4)), "columns"),
        (_table("images.parquet", lambda table: table.drop(["path"])), "columns"),
        (_table("images.parquet", lambda t: t.append_column("x", [[1] * 4])), "columns"),
        (_table("objects.parquet", lambda table: table, compression="ZSTD"), "compressed"),
        (_repeated, "row group of more than 1024"),
        (lambda parts: with_table(parts, "objects.parquet", b"PAR1" * 99), "cannot be read"),
        (lambda parts: with_table(parts, "objects.parquet", b""), "cannot be read"),
        (
            lambda parts: with_table(
                parts, "images.parquet", parts["images.parquet"], rows=5, bytes=10**12
            ),
            "bytes",
        ),
        (
            lambda parts: with_table(parts, "images.parquet", parts["images.parquet"], rows=5),
            "rows",
        ),
        (
            lambda parts: with_table(
                parts, "images.parquet", parts["images.parquet"], sha256="0" * 64
            ),
            "not what its manifest",
        ),
        (_manifest(version=2), "version '2'.* reads version 1"),
        (_manifest(version=True), "version"),
        (_manifest(format="zip"), "not that of an export"),
        (_manifest(more=1), "more"),
        (_manifest(photos=None), "as many photos"),
        (_manifest(photos={"files": 2, "bytes": len(_JPEG)}), "as many photos"),
        (_collection(name="../up"), "name"),
        (_collection(name="x" * 201), "name"),
        (_collection(dimension=0), "dimension"),
        (_collection(dimension=10**9), "dimension"),
        (_collection(dimension=7), "columns"),
        (_collection(embedder_sha256="z"), "embedder_sha256"),
        (lambda parts: parts.update({"manifest.json": b"["}), "no JSON"),
        (lambda parts: parts.update({"manifest.json": b"[" * 60_000}), "no JSON"),
        (lambda parts: parts.update({"manifest.json": b"[]"}), "not that of an export"),
        (lambda parts: parts.update({"manifest.json": b" " * 65_537}), "65536 bytes"),
    ],
)
def test_a_file_that_is_sealed_but_wrong_is_refused(
    path: Path, change: Callable[[dict[str, bytes]], Any], words: str
) -> None:
    _write(path, _content())
    rewrite(path, change)
    _refused(path, words)


@pytest.mark.parametrize(
    ("says", "words"),
    [(None, "fewer bytes than its values need"), (1, "more or fewer values")],
)
def test_a_few_bytes_that_stand_for_gigabytes_are_refused_before_they_are_read(
    path: Path, says: int | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = content(COLLECTION, 1)
    _write(path, made)
    read_all(path)

    def swell(parts: dict[str, bytes]) -> None:
        with_table(parts, "objects.parquet", swollen(parts["objects.parquet"], 10**9, says=says))

    rewrite(path, swell)
    read: list[int] = []
    monkeypatch.setattr(
        parquet_library.ParquetFile, "read_row_group", lambda _, number, **__: read.append(number)
    )
    before = pyarrow.default_memory_pool().max_memory()
    _refused(path, words)
    assert not read
    assert pyarrow.default_memory_pool().max_memory() - before < 2**20


def _raw(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.GNU_FORMAT)


def _info(name: str, **values: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in values.items():
        setattr(info, field, value)
    return info


@pytest.mark.parametrize(
    "blocks",
    [
        _raw(_info("images.parquet", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
        _raw(_info("images.parquet", type=tarfile.LNKTYPE, linkname="objects.parquet")),
        _raw(_info("images.parquet", type=tarfile.DIRTYPE)),
        _raw(_info("images.parquet", type=tarfile.CHRTYPE)),
        _raw(_info("images.parquet", mode=0o777)),
        _raw(_info("images.parquet", uname="root")),
        _raw(_info("x" * 200)),  # a long name: a member of its own
        _info("x" * 200).tobuf(tarfile.PAX_FORMAT),
        _raw(_info("images.parquet", size=10**15)),
        _raw(_info("images.parquet", size=10**9)),
        b"\0" * 512,
        b"x" * 512,
    ],
)
def test_members_that_are_no_plain_files_of_ours_are_refused(path: Path, blocks: bytes) -> None:
    with path.open("w+b") as file:
        file.write(blocks)
        for _ in TarballWriter(file).seal():
            pass
    _refused(path, "none that an export has|header cannot be read|longer than the file")


def test_a_member_that_is_there_twice_is_refused(path: Path) -> None:
    _write(path, _content())
    first = ("images.parquet", b"")
    write_members(path, [first, first])
    _refused(path, "twice")
    photo = (f"photos/{'0' * 64}.jpeg", b"x")
    write_members(path, [photo, photo])
    _refused(path, "twice")


def test_something_between_two_members_is_refused(path: Path) -> None:
    with path.open("w+b") as file:
        tarball = TarballWriter(file)
        with tarball.member("images.parquet") as member:
            member.write(b"abc")
        file.seek(-1, 1)
        file.write(b"!")
        for _ in tarball.seal():
            pass
    _refused(path, "something behind")
