"""Which photos count as duplicates, in which groups and pages, and which look-alikes do not."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from backend.app import Services
from backend.deadlines import deadline
from backend.duplicates import (
    MAX_BITS,
    MAX_DISTANCE,
    DuplicateFinder,
    FoundGroup,
    photo_distance,
)
from backend.errors import EngineUnavailable, InvalidInput, NotFound, Unavailable, VectorsLost
from backend.storage.catalog import Catalog, Collection, NewImage, NewObject, path_key
from backend.storage.vectors import StoreMissing
from tests.photos import draw_photo, encode
from tests.storage.catalogs import ensure

_DIMENSION = 8
_WHOLE = (0.0, 0.0, 1.0, 1.0)


def _direction(angle: float) -> NDArray[np.float32]:
    """A unit vector at an angle from the first axis, in the plane of the first two."""
    vector = np.zeros(_DIMENSION, np.float32)
    vector[:2] = np.cos(angle), np.sin(angle)
    return vector


def _squared(angle: float) -> float:
    return 2 - 2 * float(np.cos(angle))


@dataclass
class _Vectors:
    """Vectors in memory, as the finder asks for them."""

    engine_name = "memory"
    where = "memory"
    is_server = False
    stores: dict[str, dict[int, NDArray[np.float32]]] = field(default_factory=dict)
    asked: int = 0

    async def vectors(self, store: str, ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        if store not in self.stores:
            raise StoreMissing(self.engine_name, "there is no such store")
        self.asked += len(ids)
        return {id_: self.stores[store][id_] for id_ in ids if id_ in self.stores[store]}

    async def exists(self, store: str) -> bool:
        return store in self.stores


class _Shelf:
    """A catalog with photos of given hashes, bytes and vectors, and a finder that looks at it."""

    def __init__(self, catalog: Catalog, collection: Collection) -> None:
        self.catalog = catalog
        self.collection = collection
        self.vectors = _Vectors({collection.store: {}})
        self.finder = DuplicateFinder(catalog, self.vectors)  # type: ignore[arg-type]

    async def add(
        self,
        *photos: tuple[str, int | None, Sequence[NDArray[np.float32]]],
        collection: Collection | None = None,
    ) -> list[int]:
        """Indexes photos of (bytes, hash, vectors of the objects); returns their ids."""
        mine = collection or self.collection
        count = len(self.vectors.stores[self.collection.store])
        news = [
            NewImage(
                path=f"/{count}/{number}",
                path_key=path_key(f"/{count}/{number}"),
                sha256=content.rjust(64, "0"),
                size=1,
                mtime_ns=1,
                objects=[NewObject("thing", 0.5, _WHOLE)] * len(vectors),
                phash=phash,
            )
            for number, (content, phash, vectors) in enumerate(photos)
        ]
        stored = await self.catalog.begin_images(mine.id, news)
        for image, (_, _, vectors) in zip(stored, photos, strict=True):
            store = self.vectors.stores.setdefault(mine.store, {})
            store.update(zip(image.object_ids, vectors, strict=True))
        ids = [image.id for image in stored]
        assert await self.catalog.finish_images(stored, {}) == []
        return ids

    async def groups(self, max_distance: float | None = None) -> list[list[int]]:
        """The ids in each group of the collection."""
        found = await self.finder.in_collection("photos", limit=1000, max_distance=max_distance)
        return [[image.id for image in group.images] for group in found]


@pytest.fixture
async def shelf(tmp_path: Path) -> AsyncIterator[_Shelf]:
    """An empty one."""
    catalog = await Catalog.open_sqlite(tmp_path)
    opened = _Shelf(catalog, await ensure(catalog))
    yield opened
    await opened.finder.close()
    await catalog.close()


_SAME = [_direction(0.0)]
_NEAR = [_direction(0.1)]
_FAR = [_direction(2.0)]


# One photo


async def test_exact_duplicates_come_first_then_the_nearest(shelf: _Shelf) -> None:
    one, near, nearer, copy, other_copy = await shelf.add(
        ("a", 0, _SAME),
        ("b", 0b11, [_direction(0.2)]),
        ("c", 0b1111, _NEAR),
        ("a", 0, _SAME),
        ("a", 0, _SAME),
    )
    found = await shelf.finder.of_image(one)
    assert [duplicate.image.id for duplicate in found] == [copy, other_copy, nearer, near]
    assert [duplicate.exact for duplicate in found] == [True, True, False, False]
    assert [duplicate.bits for duplicate in found] == [0, 0, 4, 2]
    assert [duplicate.distance for duplicate in found] == pytest.approx(
        [0, 0, _squared(0.1), _squared(0.2)], abs=1e-6
    )


async def test_both_the_hash_and_the_objects_must_be_alike(shelf: _Shelf) -> None:
    one, *_ = await shelf.add(
        ("a", 0, _SAME),
        ("b", 0, _FAR),  # another photo of the same composition
        ("c", 2**40 - 1, _SAME),  # another photo of the same thing
        ("d", None, _SAME),
        ("e", 0, []),
    )
    assert await shelf.finder.of_image(one) == []
    assert await shelf.groups() == []


async def test_the_limits_are_reached_and_not_passed(shelf: _Shelf) -> None:
    def bits(count: int) -> int:
        return (1 << count) - 1

    angle = float(np.arccos(1 - MAX_DISTANCE / 2))
    one, within, *_ = await shelf.add(
        ("a", 0, _SAME),
        ("b", bits(MAX_BITS), [_direction(angle - 1e-3)]),
        ("c", bits(MAX_BITS), [_direction(angle + 1e-3)]),
        ("d", bits(MAX_BITS + 1) << 20, [_direction(angle - 1e-3)]),
    )
    assert [found.image.id for found in await shelf.finder.of_image(one)] == [within]
    assert (await shelf.groups())[0][:2] == [one, within]
    for max_distance, max_bits, count in ((None, MAX_BITS + 1, 2), (4.0, None, 2), (4.0, 64, 3)):
        found = await shelf.finder.of_image(one, max_distance=max_distance, max_bits=max_bits)
        assert len(found) == count
    for max_distance, max_bits in ((0.0, None), (None, MAX_BITS - 1)):
        assert not await shelf.finder.of_image(one, max_distance=max_distance, max_bits=max_bits)


async def test_hashes_with_their_highest_bit_set_are_compared_like_others(shelf: _Shelf) -> None:
    one, other = await shelf.add(("a", -1, _SAME), ("b", 2**63 - 1, _SAME))
    [found] = await shelf.finder.of_image(one)
    assert (found.image.id, found.bits) == (other, 1)
    assert await shelf.groups() == [[one, other]]


async def test_a_photo_without_a_hash_has_its_exact_duplicates(shelf: _Shelf) -> None:
    plain, copy, _ = await shelf.add(("a", None, _SAME), ("a", None, _SAME), ("b", None, _SAME))
    [found] = await shelf.finder.of_image(plain)
    assert (found.image.id, found.exact, found.bits, found.distance) == (copy, True, None, 0)
    assert await shelf.groups() == [[plain, copy]]


async def test_a_copy_from_before_there_were_hashes_takes_part_by_that_of_another(
    shelf: _Shelf,
) -> None:
    old, new, near = await shelf.add(("a", None, _SAME), ("a", 0, _SAME), ("b", 1, _SAME))
    assert await shelf.groups() == [[old, new, near]]


async def test_another_collections_photos_are_no_duplicates(shelf: _Shelf) -> None:
    other = await ensure(shelf.catalog, "other")
    [one] = await shelf.add(("a", 0, _SAME))
    await shelf.add(("a", 0, _SAME), ("b", 0, _SAME), collection=other)
    assert await shelf.finder.of_image(one) == []
    assert await shelf.groups() == []


async def test_photos_that_are_not_indexed_are_no_duplicates(shelf: _Shelf) -> None:
    one, copy, near = await shelf.add(("a", 0, _SAME), ("a", 0, _SAME), ("b", 0, _SAME))
    await shelf.catalog.begin_delete_images([copy])
    await shelf.catalog.fail_photos([near], "gone")
    assert await shelf.finder.of_image(one) == []
    assert await shelf.groups() == []


async def test_what_is_not_there_is_not_found(shelf: _Shelf) -> None:
    one, _ = await shelf.add(("a", 0, _SAME), ("a", 0, _SAME))
    await shelf.catalog.fail_photos([one], "gone")
    for image_id in (one, one + 1000, 2**63 - 1):
        with pytest.raises(NotFound, match=f"no indexed photo {image_id}"):
            await shelf.finder.of_image(image_id)
    with pytest.raises(NotFound, match="no collection 'nothing'"):
        await shelf.finder.in_collection("nothing", limit=10)
    with pytest.raises(InvalidInput, match="no name"):
        await shelf.finder.in_collection("no name", limit=10)


async def test_a_photo_of_a_collection_that_is_being_dropped_is_not_found(shelf: _Shelf) -> None:
    [one] = await shelf.add(("a", 0, _SAME))
    await shelf.catalog.begin_drop(shelf.collection.id)
    with pytest.raises(NotFound, match="was dropped"):
        await shelf.finder.of_image(one)


@pytest.mark.parametrize(
    ("max_distance", "max_bits", "message"),
    [
        (-0.1, None, "max_distance=-0.1: it must be from 0 to 4"),
        (4.1, None, "max_distance=4.1"),
        (float("nan"), None, "max_distance=nan"),
        (None, -1, "max_bits=-1: it must be from 0 to"),
        (None, 65, "max_bits=65"),
    ],
)
async def test_a_limit_that_makes_no_sense_is_refused(
    shelf: _Shelf, max_distance: float | None, max_bits: int | None, message: str
) -> None:
    [one] = await shelf.add(("a", 0, _SAME))
    with pytest.raises(InvalidInput, match=message):
        await shelf.finder.of_image(one, max_distance=max_distance, max_bits=max_bits)
    with pytest.raises(InvalidInput, match=message):
        await shelf.finder.in_collection(
            "photos", limit=1, max_distance=max_distance, max_bits=max_bits
        )


async def test_in_a_whole_collection_more_than_16_bits_are_refused(shelf: _Shelf) -> None:
    await shelf.finder.in_collection("photos", limit=1, max_bits=16)
    with pytest.raises(InvalidInput, match="max_bits=17: it must be from 0 to 16"):
        await shelf.finder.in_collection("photos", limit=1, max_bits=17)


# The distance between two photos


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ([0.0], [0.0], 0.0),
        ([0.0], [np.pi], 4.0),
        ([0.0, 1.0], [1.0, 0.0], 0.0),  # in whatever order
        ([0.0, 1.0], [0.0], _squared(1.0) / 4),  # an object that but one of the photos has
        ([0.0], [0.5, 1.5], (_squared(0.5) + (_squared(0.5) + _squared(1.5)) / 2) / 2),
    ],
)
def test_the_distance_is_the_mean_of_each_object_s_to_the_nearest(
    one: list[float], other: list[float], distance: float
) -> None:
    these, those = (np.stack([_direction(angle) for angle in angles]) for angles in (one, other))
    assert photo_distance(these, those) == pytest.approx(distance, abs=1e-6)
    assert photo_distance(those, these) == pytest.approx(distance, abs=1e-6)
    assert photo_distance(these, those) >= 0


# A whole collection


async def test_groups_are_what_hangs_together(shelf: _Shelf) -> None:
    # The first and the last differ in more than the limit; the ones between link them.
    chain = [(f"c{place}", (1 << 8 * place) - 1, _SAME) for place in range(5)]
    linked = await shelf.add(*chain)
    lone, twin, other_twin = await shelf.add(
        ("x", 0b1010 << 50, _FAR), ("y", -1, _SAME), ("y", -1, _SAME)
    )
    [first, second] = await shelf.finder.in_collection("photos", limit=10)
    assert [image.id for image in first.images] == linked
    assert [image.id for image in second.images] == [twin, other_twin]
    assert (first.exact, second.exact) == (False, True)
    assert lone not in {image.id for group in (first, second) for image in group.images}
    assert [found.image.id for found in await shelf.finder.of_image(linked[0])] == [linked[1]]


async def test_photos_of_one_composition_are_split_by_what_they_show(shelf: _Shelf) -> None:
    first, second, third, fourth, _ = await shelf.add(
        ("a", 0, _SAME), ("b", 1, _FAR), ("c", 2, _NEAR), ("d", 3, _FAR), ("e", 4, [-_SAME[0]])
    )
    assert await shelf.groups() == [[first, third], [second, fourth]]
    assert (await shelf.groups(max_distance=4.0))[0][:2] == [first, second]


async def test_pages_hold_all_groups_once_in_the_order_of_their_first_photos(
    shelf: _Shelf,
) -> None:
    random = np.random.default_rng(5)
    # Sets of photos of one composition, in an order in which their ids interleave; each falls
    # into several groups and single photos.
    compositions = random.integers(-(2**63), 2**63 - 1, 7).tolist()
    composed = [
        (str(number), compositions[number % 7] ^ kind % 2, [_direction(kind * 1.5)])
        for number, kind in enumerate(random.integers(4, size=60).tolist())
    ]
    copies = [(str(number), None, _SAME) for number in (3, 17, 59, 100, 101)]
    await shelf.add(*composed, *copies)
    whole = await shelf.groups()
    assert len(whole) > 10
    assert [group[0] for group in whole] == sorted(group[0] for group in whole)
    assert all(group == sorted(group) for group in whole)
    members = [id_ for group in whole for id_ in group]
    assert len(members) == len(set(members))
    for limit in (1, 2, 7, len(whole)):
        pages: list[list[FoundGroup]] = []
        after = 0
        while page := await shelf.finder.in_collection("photos", after=after, limit=limit):
            pages.append(page)
            after = page[-1].images[0].id
        assert all(len(page) == limit for page in pages[:-1])
        assert [[image.id for image in group.images] for page in pages for group in page] == whole


async def test_a_page_reads_no_more_vectors_than_it_needs(shelf: _Shelf) -> None:
    # A thousand pairs that are far from each other; the first page needs a part of them.
    random = np.random.default_rng(7)
    hashes = random.integers(-(2**63), 2**63 - 1, 1000).tolist()
    await shelf.add(
        *((f"{index}-{copy}", value, _SAME) for index, value in enumerate(hashes) for copy in "ab")
    )
    page = await shelf.finder.in_collection("photos", limit=10)
    assert len(page) == 10
    assert shelf.vectors.asked <= 600
    assert len(await shelf.groups()) == 1000


async def test_exact_duplicates_are_grouped_without_vectors(shelf: _Shelf) -> None:
    await shelf.add(*((str(number % 50), None, _SAME) for number in range(100)))
    assert len(await shelf.groups()) == 50
    assert shelf.vectors.asked == 0


async def test_of_many_copies_each_is_compared_about_once(shelf: _Shelf) -> None:
    ids = await shelf.add(*((str(number), number % 8, _SAME) for number in range(1500)))
    start = time.thread_time()
    assert await shelf.groups() == [ids]
    assert time.thread_time() - start < 5
    assert shelf.vectors.asked == 1500


async def test_more_photos_than_can_be_compared_are_refused_in_words(
    shelf: _Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.duplicates._GROUP", 30)
    await shelf.add(*((str(number), 0, _SAME) for number in range(30)))
    assert len(await shelf.groups()) == 1
    await shelf.add(("more", 1, _SAME))
    with pytest.raises(InvalidInput, match=r"31 photos .* more than the 30 .* smaller max_bits"):
        await shelf.groups()
    assert len(await shelf.finder.of_image(1)) == 30


async def test_of_very_many_that_are_like_a_photo_the_nearest_by_their_hashes_are_compared(
    shelf: _Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.duplicates._CANDIDATES", 3)
    one, *others = await shelf.add(
        ("a", 0, _SAME),
        *((f"{bits}", (1 << bits) - 1, _SAME) for bits in (5, 1, 4, 2, 3)),
    )
    found = await shelf.finder.of_image(one)
    assert [duplicate.bits for duplicate in found] == [1, 2, 3]
    assert {duplicate.image.id for duplicate in found} < set(others)


async def test_a_photo_that_is_removed_meanwhile_is_in_no_group(shelf: _Shelf) -> None:
    one, other, pair, pair_too = await shelf.add(
        ("a", 0, _SAME), ("b", 0, _SAME), ("c", -1, _SAME), ("d", -1, _SAME)
    )

    class Removing(_Vectors):
        async def vectors(self, store: str, ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
            found = await super().vectors(store, ids)
            await shelf.catalog.begin_delete_images([other])
            return found

    finder = DuplicateFinder(shelf.catalog, Removing(shelf.vectors.stores))  # type: ignore[arg-type]
    [group] = await finder.in_collection("photos", limit=1)  # the page is full all the same
    assert [image.id for image in group.images] == [pair, pair_too]
    assert await finder.of_image(one) == []


# Many questions at once


class _Waiting(_Vectors):
    """Vectors that come when they may."""

    def __init__(self, stores: dict[str, dict[int, NDArray[np.float32]]]) -> None:
        super().__init__(stores)
        self.may_come = asyncio.Event()
        self.reading = self.most = 0

    async def vectors(self, store: str, ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        self.reading += 1
        self.most = max(self.most, self.reading)
        await self.may_come.wait()
        self.reading -= 1
        return await super().vectors(store, ids)


async def test_of_many_questions_at_once_one_is_answered_at_a_time(shelf: _Shelf) -> None:
    one, other = await shelf.add(("a", 0, _SAME), ("b", 0, _SAME))
    vectors = _Waiting(shelf.vectors.stores)
    finder = DuplicateFinder(shelf.catalog, vectors)  # type: ignore[arg-type]
    groups = [asyncio.create_task(finder.in_collection("photos", limit=1)) for _ in range(5)]
    photos = [asyncio.create_task(finder.of_image(one)) for _ in range(5)]
    while not vectors.reading:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)  # the others would have come as far
    assert vectors.reading == 1
    vectors.may_come.set()
    for [group] in await asyncio.gather(*groups):
        assert [image.id for image in group.images] == [one, other]
    for [found] in await asyncio.gather(*photos):
        assert found.image.id == other
    assert vectors.most == 1
    await finder.close()


async def test_whoever_would_wait_beyond_the_deadline_is_told_what_to_do(shelf: _Shelf) -> None:
    one, other = await shelf.add(("a", 0, _SAME), ("b", 0, _SAME))
    vectors = _Waiting(shelf.vectors.stores)
    finder = DuplicateFinder(shelf.catalog, vectors)  # type: ignore[arg-type]
    first = asyncio.create_task(finder.of_image(one))
    gone = asyncio.create_task(finder.of_image(one))
    while not vectors.reading:
        await asyncio.sleep(0.01)
    for ask in (
        lambda: finder.of_image(one),
        lambda: finder.in_collection("photos", limit=1),
    ):
        with deadline(0.05), pytest.raises(Unavailable, match="by one request after another"):
            await ask()
    # Neither they nor one who goes away while it waits keep the turn.
    gone.cancel()
    vectors.may_come.set()
    assert [found.image.id for found in await first] == [other]
    with deadline(30):
        assert [found.image.id for found in await finder.of_image(one)] == [other]
    await finder.close()


async def test_objects_of_more_photos_than_are_read_together_are_all_compared(
    shelf: _Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.duplicates._PHOTOS_AT_ONCE", 2)
    ids = await shelf.add(*((f"{number}", 0, _SAME) for number in range(5)))
    assert await shelf.groups() == [ids]
    assert {found.image.id for found in await shelf.finder.of_image(ids[0])} == set(ids[1:])


# When vectors are not where they were


async def test_vectors_that_were_made_anew_meanwhile_are_read_where_they_are(
    shelf: _Shelf,
) -> None:
    one, other = await shelf.add(("a", 0, _SAME), ("b", 0, _SAME))
    old = shelf.collection

    class Replacing(_Vectors):
        async def vectors(self, store: str, ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
            if store == old.store and store in self.stores:
                await shelf.catalog.begin_replacement(old.id, "anew")
                await shelf.catalog.replace_vectors(
                    old, store="anew", embedder="e", embedder_sha256="", dim=_DIMENSION
                )
                self.stores["anew"] = self.stores.pop(store)
            return await super().vectors(store, ids)

    finder = DuplicateFinder(shelf.catalog, Replacing(shelf.vectors.stores))  # type: ignore[arg-type]
    assert [found.image.id for found in await finder.of_image(one)] == [other]


async def test_vectors_that_are_lost_or_dropped_are_told_apart(shelf: _Shelf) -> None:
    one, _ = await shelf.add(("a", 0, _SAME), ("b", 0, _SAME))
    stores = dict(shelf.vectors.stores)
    shelf.vectors.stores.clear()
    with pytest.raises(VectorsLost, match="memory has no vectors of collection 'photos'"):
        await shelf.finder.of_image(one)
    with pytest.raises(VectorsLost):
        await shelf.groups()

    class Dropping(_Vectors):
        async def vectors(self, store: str, ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
            await shelf.catalog.begin_drop(shelf.collection.id)
            raise StoreMissing(self.engine_name, "there is no such store")

    finder = DuplicateFinder(shelf.catalog, Dropping(stores))  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="'photos' was dropped meanwhile"):
        await finder.of_image(one)


async def test_an_engine_that_is_away_is_no_loss(shelf: _Shelf) -> None:
    one, _ = await shelf.add(("a", 0, _SAME), ("b", 0, _SAME))

    class Away(_Vectors):
        async def vectors(self, store: str, ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
            raise StoreMissing(self.engine_name, "it is starting")

        async def exists(self, store: str) -> bool:
            raise EngineUnavailable(self.engine_name, "it is away")

    finder = DuplicateFinder(shelf.catalog, Away())  # type: ignore[arg-type]
    with pytest.raises(StoreMissing):
        await finder.of_image(one)


async def test_a_photo_whose_vectors_are_missing_has_its_exact_duplicates(shelf: _Shelf) -> None:
    one, copy, _ = await shelf.add(("a", 0, _SAME), ("a", 0, _SAME), ("b", 0, _SAME))
    shelf.vectors.stores[shelf.collection.store].clear()
    assert [found.image.id for found in await shelf.finder.of_image(one)] == [copy]
    assert await shelf.groups() == [[one, copy]]


# Through the whole service


async def test_copies_of_a_photo_are_found_and_other_photos_are_not(
    services: Services, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(6):
        (folder / f"{seed}.jpg").write_bytes(encode(draw_photo(seed)))
    photo = draw_photo(2)
    (folder / "copy of 2.jpg").write_bytes((folder / "2.jpg").read_bytes())
    (folder / "2.webp").write_bytes(encode(photo, ".webp"))
    (folder / "2 mirrored.png").write_bytes(encode(np.ascontiguousarray(photo[:, ::-1]), ".png"))
    for level in (10, 200):
        plain = np.full((90, 120, 3), level, np.uint8)
        (folder / f"plain {level}.png").write_bytes(encode(plain, ".png"))
    await (await services.indexer.start_load(str(folder), "t")).wait()
    finder = DuplicateFinder(services.catalog, services.vectors)
    [group] = await finder.in_collection("t", limit=10)
    names = {Path(image.path).name: image for image in group.images}
    assert set(names) == {"2.jpg", "copy of 2.jpg", "2.webp"}
    assert not group.exact
    found = await finder.of_image(names["2.jpg"].id)
    assert [Path(duplicate.image.path).name for duplicate in found] == ["copy of 2.jpg", "2.webp"]
    assert [duplicate.exact for duplicate in found] == [True, False]
    assert found[1].bits is not None
    assert 0 < found[1].distance <= MAX_DISTANCE
    # An upload takes part like what is loaded.
    larger = np.asarray(cv2.resize(draw_photo(4), (480, 360)), np.uint8)
    await services.indexer.add_photo(encode(larger), "t")
    groups = await finder.in_collection("t", limit=10)
    assert len(groups) == 2
