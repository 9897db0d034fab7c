"""Rankings and what is made of them, against values worked out by hand and by enumeration."""

import itertools
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.retrieval import (
    TOP_K,
    Chance,
    Ranking,
    RetrievalQuality,
    chance_of,
    rank_objects,
    retrieval_quality,
)
from benchmarks.voc import DescribedObjects


def described(labels: list[str], vectors: NDArray[np.float32]) -> DescribedObjects:
    return DescribedObjects(tuple(labels), np.arange(len(labels)), vectors)


def plane(*degrees: float) -> NDArray[np.float32]:
    """Unit vectors in the plane."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def random_objects(count: int, *, seed: int, labels: str = "abcde") -> DescribedObjects:
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((count, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return described(random.choice(list(labels), count).tolist(), vectors)


def average_precision(relevant: tuple[bool, ...]) -> Fraction:
    """The mean of the precisions at the ranks of what was wanted."""
    precisions = [
        Fraction(sum(relevant[: rank + 1]), rank + 1) for rank, hit in enumerate(relevant) if hit
    ]
    return sum(precisions, Fraction()) / len(precisions)


def test_the_nearest_objects_come_first_with_their_squared_distances() -> None:
    gallery = described(["cat", "dog", "cat"], plane(0, 30, 90))
    ranking = rank_objects(gallery, described(["cat", "dog"], plane(0, 90)))
    assert ranking.nearest.tolist() == [[0, 1, 2], [2, 1, 0]]
    assert ranking.matches.tolist() == [[True, False, True], [False, True, False]]
    assert ranking.distances[0] == pytest.approx([0, 2 - np.sqrt(3), 2], abs=1e-6)


def test_average_precision_is_of_the_whole_ranking() -> None:
    gallery = described(["cat", "dog", "cat"], plane(0, 30, 90))
    ranking = rank_objects(gallery, described(["cat", "dog"], plane(0, 90)))
    assert ranking.average_precisions == pytest.approx([(1 + 2 / 3) / 2, 1 / 2])


def test_a_label_that_the_gallery_lacks_is_not_found() -> None:
    ranking = rank_objects(described(["cat"] * 3, plane(0, 30, 90)), described(["cow"], plane(10)))
    assert ranking.average_precisions.tolist() == [0]
    assert ranking.precisions.tolist() == [0]


def test_what_a_small_gallery_lacks_are_misses() -> None:
    ranking = rank_objects(described(["cat"] * 3, plane(0, 30, 90)), described(["cat"], plane(0)))
    assert ranking.matches.shape == (1, 3)
    assert ranking.precisions.tolist() == [3 / TOP_K]


def test_every_query_is_ranked_as_it_would_be_alone() -> None:
    gallery, queries = random_objects(60, seed=1), random_objects(300, seed=2)
    ranking = rank_objects(gallery, queries)
    assert ranking.nearest.shape == (300, TOP_K)
    distances = ((queries.vectors[:, None] - gallery.vectors[None]) ** 2).sum(axis=2)
    order = distances.argsort(axis=1)
    np.testing.assert_array_equal(ranking.nearest, order[:, :TOP_K])
    np.testing.assert_allclose(
        ranking.distances, np.take_along_axis(distances, order[:, :TOP_K], axis=1), atol=1e-5
    )
    relevant = np.array(gallery.labels)[order] == np.array(queries.labels)[:, None]
    expected = [float(average_precision(tuple(row))) for row in relevant.tolist()]
    assert ranking.average_precisions == pytest.approx(expected)


def test_quality_is_the_mean_over_queries_and_over_those_of_a_label() -> None:
    matches = np.zeros((3, TOP_K), bool)
    matches[0, :5] = True
    matches[1, 1] = True
    nothing = np.zeros((3, TOP_K))
    ranking = Ranking(
        nothing.astype(np.int64), nothing.astype(np.float32), matches, np.array([0.6, 0.4, 0.2])
    )
    overall, per_label = retrieval_quality(ranking, ["cat", "cat", "dog"])
    assert (overall.p_at_1, overall.p_at_10, overall.map) == pytest.approx((1 / 3, 6 / 30, 0.4))
    assert set(per_label) == {"cat", "dog"}
    assert asdict(per_label["cat"]) == pytest.approx({"p_at_1": 0.5, "p_at_10": 0.3, "map": 0.5})
    assert per_label["dog"] == RetrievalQuality(0.0, 0.0, 0.2)


def test_chance_is_the_share_of_the_querys_label_in_the_gallery() -> None:
    overall, per_label = chance_of(["cat", "cat", "cat", "dog"], ["cat", "dog", "dog", "cow"])
    assert {label: chance.precision for label, chance in per_label.items()} == {
        "cat": 0.75,
        "dog": 0.25,
        "cow": 0,
    }
    assert overall.precision == pytest.approx((0.75 + 0.25 + 0.25) / 4)
    assert per_label["cow"] == Chance(0, 0)


@given(relevant=st.integers(1, 6), others=st.integers(0, 3))
def test_chances_average_precision_is_the_mean_over_all_orders(relevant: int, others: int) -> None:
    orders = [
        tuple(place in places for place in range(relevant + others))
        for places in itertools.combinations(range(relevant + others), relevant)
    ]
    expected = sum(map(average_precision, orders), Fraction()) / len(orders)
    overall, _ = chance_of(["cat"] * relevant + ["dog"] * others, ["cat"])
    assert overall.map == pytest.approx(float(expected))


def test_random_vectors_reach_what_chance_says() -> None:
    gallery, queries = random_objects(400, seed=3), random_objects(400, seed=4)
    quality, _ = retrieval_quality(rank_objects(gallery, queries), queries.labels)
    chance, _ = chance_of(gallery.labels, queries.labels)
    assert quality.p_at_10 == pytest.approx(chance.precision, abs=0.03)
    assert quality.map == pytest.approx(chance.map, abs=0.01)
