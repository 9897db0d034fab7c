"""What both engines do alike: Milvus Lite and a Milvus server, really."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from backend.errors import EngineUnavailable, InvalidInput, ServiceError
from backend.storage.vectors import (
    MAX_HITS,
    MilvusLite,
    MilvusOptions,
    MilvusServer,
    ObjectFilter,
    ObjectVector,
    _string,
)
from tests.engines.milvus import MilvusProcess

Engine = MilvusLite | MilvusServer

DIMENSION = 8
STORE = "photos_1"


# They take seconds to start: the tests share one of each, one after the other.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["lite", "server"])
async def vectors(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Engine]:
    """The shared engine."""
    folder = tmp_path_factory.mktemp("vectors")
    if request.param == "lite":
        lite = await MilvusLite.open(folder)
        yield lite
        await lite.close()
        return
    # What is strongly consistent waits for a tick, every 200 ms by default.
    process = MilvusProcess(folder / "milvus", options={"proxy.timeTickInterval": "20"})
    try:
        process.start()
        server = await MilvusServer.open(MilvusOptions(process.host, process.port))
        yield server
        await server.close()
    finally:
        process.remove()


@pytest_asyncio.fixture(loop_scope="module")
async def store(vectors: Engine) -> str:
    """An empty collection; emptied, not made anew, since making one takes up to three seconds."""
    await vectors.create(STORE, DIMENSION)
    await vectors._delete(STORE, "id >= 0")
    return STORE


def _unit(count: int, seed: int = 0, dimension: int = DIMENSION) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).normal(size=(count, dimension))
    unit: NDArray[np.float32] = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(
        np.float32
    )
    return unit


def _rows(
    units: NDArray[np.float32], *, first: int = 1, per_image: int = 2, label: str = "cat"
) -> list[ObjectVector]:
    return [
        ObjectVector(first + index, 100 + (first + index) // per_image, label, 0.5, unit)
        for index, unit in enumerate(units)
    ]


async def _found(
    vectors: Engine, store: str, unit: NDArray[np.float32], limit: int = 10
) -> list[int]:
    [hits] = await vectors.search(store, unit[np.newaxis], limit)
    return [hit.object_id for hit in hits]


async def test_the_nearest_rows_come_first_with_their_squared_distances(
    vectors: Engine,
    store: str,
) -> None:
    units, queries = _unit(300), _unit(5, seed=1)
    rows = _rows(units)
    await vectors.upsert(store, rows)
    answers = await vectors.search(store, queries, 20)
    assert len(answers) == 5
    for query, hits in zip(queries, answers, strict=True):
        distances = ((units.astype(np.float64) - query) ** 2).sum(axis=1)
        nearest = np.argsort(distances)[:20]
        assert [hit.object_id for hit in hits] == [rows[index].id for index in nearest]
        assert [hit.image_id for hit in hits] == [rows[index].image_id for index in nearest]
        np.testing.assert_allclose([hit.distance for hit in hits], distances[nearest], atol=1e-5)


async def test_the_same_vector_is_at_distance_0_and_its_opposite_at_4(
    vectors: Engine, store: str
) -> None:
    [unit] = _unit(1)
    await vectors.upsert(store, _rows(np.stack([unit, -unit])))
    [hits] = await vectors.search(store, unit[np.newaxis], 10)
    assert [hit.object_id for hit in hits] == [1, 2]
    np.testing.assert_allclose([hit.distance for hit in hits], [0, 4], atol=1e-5)


async def test_a_collection_may_be_made_again_and_keeps_its_rows(
    vectors: Engine, store: str
) -> None:
    await vectors.upsert(store, _rows(_unit(3)))
    await vectors.create(store, DIMENSION)
    assert await vectors.ids(store) == {1, 2, 3}


async def test_vectors_are_given_back_as_they_were_written(vectors: Engine, store: str) -> None:
    units = _unit(600)
    await vectors.upsert(store, _rows(units))
    wanted = [7, 600, 1, *range(300, 590), 601, 10**12]
    found = await vectors.vectors(store, wanted)
    assert set(found) == set(wanted) - {601, 10**12}
    for id_, vector in found.items():
        assert vector.dtype == np.float32
        np.testing.assert_array_equal(vector, units[id_ - 1])
    await vectors.delete(store, [7])
    assert set(await vectors.vectors(store, [7, 8])) == {8}
    assert await vectors.vectors(store, []) == {}


async def test_rows_of_the_same_id_are_replaced(vectors: Engine, store: str) -> None:
    old, new = _unit(1), _unit(1, seed=9)
    await vectors.upsert(store, [ObjectVector(7, 1, "cat", 0.5, old[0])])
    await vectors.upsert(store, [ObjectVector(7, 2, "dog", 0.6, new[0])])
    assert await vectors.ids(store) == {7}
    [hits] = await vectors.search(store, new, 10)
    assert [(hit.object_id, hit.image_id) for hit in hits] == [(7, 2)]
    assert hits[0].distance == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("write", ["upsert", "insert"])
async def test_what_is_written_is_found_and_what_is_deleted_is_not_at_once(
    vectors: Engine, store: str, write: str
) -> None:
    for index, unit in enumerate(_unit(200)):
        row = ObjectVector(index + 1, index + 1, "cat", 0.5, unit)
        await getattr(vectors, write)(store, [row])
        assert await _found(vectors, store, unit, 1) == [row.id]
        if index % 5 == 0:
            await vectors.delete(store, [row.id])
            assert row.id not in await _found(vectors, store, unit)


async def test_what_was_inserted_is_replaced_by_an_upsert_and_deleted_like_other_rows(
    vectors: Engine, store: str
) -> None:
    units = _unit(300)
    await vectors.insert(store, _rows(units))
    await vectors.insert(store, [])
    assert await vectors.ids(store) == set(range(1, 301))
    await vectors.upsert(store, [ObjectVector(7, 9, "dog", 0.6, units[8])])
    [hits] = await vectors.search(store, units[8:9], 2)
    assert {hit.object_id for hit in hits} == {7, 9}
    await vectors.delete(store, [7])
    assert 7 not in await vectors.ids(store)
    assert await _found(vectors, store, units[6], 1) != [7]


async def test_no_rows_to_write_or_to_delete_do_nothing(vectors: Engine, store: str) -> None:
    await vectors.upsert(store, _rows(_unit(2)))
    await vectors.upsert(store, [])
    await vectors.delete(store, [])
    assert await vectors.ids_of_images(store, []) == set()
    assert await vectors.ids(store) == {1, 2}


async def test_an_empty_collection_answers_every_query_with_nothing(
    vectors: Engine, store: str
) -> None:
    assert await vectors.search(store, _unit(3), 10) == [[], [], []]
    assert await vectors.ids(store) == set()


# Deleting


async def test_the_rows_of_an_image_are_told_and_no_others(vectors: Engine, store: str) -> None:
    rows = _rows(_unit(12), per_image=3)
    await vectors.upsert(store, rows)
    some = {rows[0].image_id, rows[5].image_id}
    told = await vectors.ids_of_images(store, sorted(some))
    assert told == {row.id for row in rows if row.image_id in some}


async def test_deleting_is_repeatable_and_takes_rows_that_are_not_there(
    vectors: Engine,
    store: str,
) -> None:
    rows = _rows(_unit(4), per_image=1)
    await vectors.upsert(store, rows)
    for _ in range(2):
        await vectors.delete(store, [rows[0].id, 424_242])
    assert await vectors.ids(store) == {2, 3, 4}


async def test_all_rows_of_images_are_told_however_many_they_are(vectors: Engine) -> None:
    store = "many"  # of its own: so many that are deleted stay in an index's graph for a while
    await vectors.create(store, DIMENSION)
    first = [ObjectVector(i, i, "cat", 0.5, unit) for i, unit in enumerate(_unit(2500), 1)]
    # More than one query gives out, of two images.
    second = [
        ObjectVector(i, 5000 + i % 2, "cat", 0.5, first[0].vector) for i in range(3000, 20_000)
    ]
    await vectors.upsert(store, first)
    await vectors.upsert(store, second)
    told = await vectors.ids_of_images(store, [*range(100, 2400), 5000, 5001, 424_242])
    assert told == {*range(100, 2400), *range(3000, 20_000)}
    await vectors.drop(store)


async def test_the_ids_are_all_there_however_far_apart_they_are(
    vectors: Engine, store: str
) -> None:
    ids = {1, 2, 16_383, 16_384, 16_385, 10**5, 10**6 - 1, 10**6, 10**9, 10**12}
    ids |= set(range(5 * 10**6, 5 * 10**6 + 2000))
    [unit] = _unit(1)
    await vectors.upsert(store, [ObjectVector(id_, 1, "cat", 0.5, unit) for id_ in sorted(ids)])
    async with asyncio.timeout(10):
        assert await vectors.ids(store) == ids


async def test_rows_are_deleted_by_their_ids(vectors: Engine, store: str) -> None:
    await vectors.upsert(store, _rows(_unit(6)))
    await vectors.delete(store, [2, 3, 424_242])
    await vectors.delete(store, [])
    assert await vectors.ids(store) == {1, 4, 5, 6}


# Many rows


async def test_ids_are_complete_over_gaps_and_beyond_what_one_query_returns(
    vectors: Engine,
    store: str,
) -> None:
    [unit] = _unit(1)
    everyone = {
        1,
        *range(MAX_HITS - 5, 2 * MAX_HITS + 5),  # more than one query returns, without a gap
        12 * MAX_HITS - 1,  # after a gap of several ranges, on the edge of one
        12 * MAX_HITS,
        400_000,
    }
    await vectors.upsert(store, [ObjectVector(i, i, "cat", 0.5, unit) for i in sorted(everyone)])
    assert await vectors.ids(store) == everyone
    # The largest limit is answered in full.
    [hits] = await vectors.search(store, unit[np.newaxis], MAX_HITS)
    assert len({hit.object_id for hit in hits}) == MAX_HITS


# Labels


@pytest.mark.parametrize("label", ["é" * 200, "漢" * 200, "\N{CAT FACE}" * 200, "a'\"\\;]", ""])
async def test_any_label_that_the_catalog_takes_is_taken(
    vectors: Engine, store: str, label: str
) -> None:
    unit = _unit(1)
    await vectors.upsert(store, _rows(unit, label=label))
    assert await _found(vectors, store, unit[0]) == [1]
    stored = await vectors._ask("query", store, expr="id >= 0", output_fields=["label"], limit=9)
    assert [row["label"] for row in stored] == [label]


# Conditions

_LABELS = [
    *("cat", "cats", "cat ", " cat", "Cat", "", " ", "it's", "c_t", "c%", "%", "_", "100%"),
    *('"', "'", '""', "\\", "\\\\", '\\"', "'\\''", "a'\"\\;]", "[", "]", '"]', "{label}", "{}"),
    *(
        "\n",
        "\r\n",
        "a\nb",
        "a\\\nb",
        "anb",
        "\t",
        "\x00",
        "a\x00b",
        "\x7f",
        "\x01\x07\x08\x0b\x0c",
    ),
    *("\\n", "\\r\\n", "\\t", "\\x41", "\\101", "\\u0041", "A", "??/", "$meta", 'R"(cat)"', "u8"),
    *("é", "e\u0301", "漢", "\N{CAT FACE}", "\U0010ffff", "\u2028", "\x85", "\ufeff"),
    *('" or id > 0 or "', "' or id > 0 or '", '"] or id > 0 or label in ["', '\\" or id > 0 //'),
    *("漢" * 200, "\\" * 200, '"' * 200),
]


async def test_a_label_finds_its_own_rows_and_no_others_whatever_it_holds(
    vectors: Engine, store: str
) -> None:
    units = _unit(2 * len(_LABELS))
    rows = [
        ObjectVector(index + 1, 1, _LABELS[index // 2], 0.5, unit)
        for index, unit in enumerate(units)
    ]
    await vectors.upsert(store, rows)
    for index, label in enumerate(_LABELS):
        [hits] = await vectors.search(store, units[:1], 500, ObjectFilter(labels=(label,)))
        assert sorted(hit.object_id for hit in hits) == [2 * index + 1, 2 * index + 2], label
    for chosen in (_LABELS[::2], _LABELS[1::3], _LABELS):
        [hits] = await vectors.search(store, units[:1], 500, ObjectFilter(labels=tuple(chosen)))
        assert {_LABELS[(hit.object_id - 1) // 2] for hit in hits} == set(chosen)
        assert len(hits) == 2 * len(chosen)
    [hits] = await vectors.search(store, units[:1], 500, ObjectFilter(labels=("no such",)))
    assert hits == []


async def test_a_label_is_found_or_refused_in_words_where_a_line_ends_in_it_in_another_way(
    vectors: Engine, store: str
) -> None:
    [unit] = _unit(1)
    await vectors.upsert(store, [ObjectVector(1, 1, "a\rb", 0.5, unit)])
    search = vectors.search(store, unit[np.newaxis], 5, ObjectFilter(labels=("a\rb",)))
    if vectors.is_server:
        [[hit]] = await search
        assert hit.object_id == 1
    else:
        with pytest.raises(InvalidInput, match=r"Milvus Lite cannot .* label 'a\\rb'.*leave this"):
            await search


@given(st.text(st.sampled_from("\"'\\\r\nx") | st.characters(codec="utf-8")))
async def test_no_text_ends_the_literal_that_it_is_in(text: str) -> None:
    # As Milvus' grammar has it (Plan.g4, StringLiteral).
    literal = re.compile(r'"(?:[^"\\\r\n]|\\[^\r\n]|\\\n|\\\r\n)*"')
    assert literal.fullmatch(_string(text, MilvusServer._line_breaks, "Milvus"))
    if "\r" in text.replace("\r\n", ""):
        with pytest.raises(InvalidInput):
            _string(text, MilvusLite._line_breaks, "Milvus Lite")
    else:
        assert literal.fullmatch(_string(text, MilvusLite._line_breaks, "Milvus Lite"))


async def test_a_score_meets_the_threshold_as_32_bit_numbers_compare(
    vectors: Engine, store: str
) -> None:
    random = np.random.default_rng(4)
    near = np.float32(0.7)
    scores = [
        *(0.0, 1e-9, 0.1, 0.2, 0.3, 0.5, 0.6999999, 0.7, 0.7000001, 0.9999999, 1.0),
        *(float(near), float(np.nextafter(near, np.float32(0))), 0.7 + 1e-12, 0.7 - 1e-12),
        *random.random(100).tolist(),
    ]
    units = _unit(len(scores))
    rows = [
        ObjectVector(index, 1, "cat", score, unit)
        for index, (score, unit) in enumerate(zip(scores, units, strict=True), 1)
    ]
    await vectors.upsert(store, rows)
    for threshold in [*scores[:20], -1.0, 2.0, 1, 5e-324]:
        where = ObjectFilter(min_score=threshold)
        [hits] = await vectors.search(store, units[:1], 500, where)
        assert {hit.object_id for hit in hits} == {
            row.id for row in rows if np.float32(row.score) >= np.float32(threshold)
        }, threshold


async def test_all_conditions_together_are_those_of_a_sorted_list_of_all_rows(
    vectors: Engine, store: str
) -> None:
    random = np.random.default_rng(5)
    units, queries = _unit(3000), _unit(3, seed=1)
    labels = random.choice(["cat", "dog", "it's"], 3000)
    scores = random.random(3000)
    rows = [
        ObjectVector(i + 1, 100 + i // 2, str(labels[i]), float(scores[i]), units[i])
        for i in range(3000)
    ]
    await vectors.upsert(store, rows)
    everyone = tuple(range(100, 1600))
    for where in (
        ObjectFilter(labels=("cat", "it's")),
        ObjectFilter(not_image_ids=everyone[:1400]),
        ObjectFilter(("dog",), 0.5, everyone[300:600]),
    ):
        allowed = [
            row
            for row in rows
            if (not where.labels or row.label in where.labels)
            and (where.min_score is None or np.float32(row.score) >= np.float32(where.min_score))
            and row.image_id not in where.not_image_ids
        ]
        answers = await vectors.search(store, queries, 50, where)
        assert len(answers) == 3
        for query, hits in zip(queries, answers, strict=True):
            allowed.sort(key=lambda row: float(((row.vector - query) ** 2).sum()))
            assert [(hit.object_id, hit.image_id) for hit in hits] == [
                (row.id, row.image_id) for row in allowed[:50]
            ]


# Vectors


async def test_vectors_come_back_as_they_were_written_as_far_as_they_are_there(
    vectors: Engine, store: str
) -> None:
    units = _unit(450)
    await vectors.upsert(store, _rows(units))
    await vectors.delete(store, [7])
    found = await vectors.vectors(store, [*range(450, 0, -1), 3, 424_242])  # several requests
    assert sorted(found) == [*range(1, 7), *range(8, 451)]
    for id_, vector in found.items():
        assert vector.dtype == np.float32
        np.testing.assert_array_equal(vector, units[id_ - 1])
    assert await vectors.vectors(store, []) == {}


async def test_a_vector_that_was_replaced_is_read_anew_at_once(vectors: Engine, store: str) -> None:
    for unit in _unit(20):
        await vectors.upsert(store, [ObjectVector(1, 1, "cat", 0.5, unit)])
        np.testing.assert_array_equal((await vectors.vectors(store, [1]))[1], unit)


# Collections


async def test_a_drop_takes_one_collection_and_another_may_take_its_name(
    vectors: Engine, store: str
) -> None:
    await vectors.upsert(store, _rows(_unit(2)))
    await vectors.create("dropped_2", 4)
    await vectors.upsert("dropped_2", _rows(_unit(3, dimension=4)))
    await vectors.drop("dropped_2")
    assert await vectors.ids(store) == {1, 2}
    await vectors.create("dropped_2", 16)
    assert await vectors.ids("dropped_2") == set()
    await vectors.upsert("dropped_2", _rows(_unit(1, dimension=16)))
    assert await vectors.ids("dropped_2") == {1}
    await vectors.drop("dropped_2")
    await vectors.drop("dropped_2")


async def test_dropping_what_was_never_made_is_fine(vectors: Engine, store: str) -> None:
    await vectors.upsert(store, _rows(_unit(1)))
    await vectors.drop("never_made")
    assert await vectors.ids(store) == {1}


# Errors


@pytest.mark.parametrize(
    "call",
    [
        lambda vectors: vectors.search("never_made", _unit(1), 10),
        lambda vectors: vectors.upsert("never_made", _rows(_unit(1))),
        lambda vectors: vectors.ids_of_images("never_made", [1]),
        lambda vectors: vectors.delete("never_made", [1]),
        lambda vectors: vectors.ids("never_made"),
        lambda vectors: vectors.vectors("never_made", [1]),
    ],
)
async def test_a_collection_that_is_gone_is_named_as_the_cause(
    vectors: Engine, call: Callable[[Engine], Awaitable[object]]
) -> None:
    with pytest.raises(EngineUnavailable, match="has lost the vectors") as refused:
        await call(vectors)
    assert "never_made" not in str(refused.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda vectors: vectors.search(STORE, _unit(1), MAX_HITS + 1),
        lambda vectors: vectors.upsert(STORE, _rows(_unit(1, dimension=DIMENSION + 1))),
        lambda vectors: vectors._delete(STORE, "no such field ="),
    ],
    ids=["too many hits", "another dimension", "no expression"],
)
async def test_what_will_never_work_is_told_apart_from_what_may_be_tried_again(
    vectors: Engine, store: str, call: Callable[[Engine], Awaitable[object]]
) -> None:
    with pytest.raises(ServiceError, match="refuses") as refused:
        await call(vectors)
    assert not isinstance(refused.value, EngineUnavailable)
