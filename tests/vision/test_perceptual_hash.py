"""Photos that look alike have hashes that are alike, others do not, and pairs are all found."""

import time
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from backend.vision.decode import decode
from backend.vision.perceptual_hash import (
    HASH_BITS,
    differing_bits,
    perceptual_hash,
    similar_pairs,
)
from tests.photos import draw_photo, encode

_SEEDS = range(20)
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1


def _hash(photo: NDArray[np.uint8]) -> int:
    value = perceptual_hash(photo)
    assert value is not None
    return value


def _bits(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    return int(differing_bits(np.array([_hash(one)], np.int64), _hash(other))[0])


def _recompressed(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return decode(encode(photo, ".webp"), max_pixels=10**8)


def _halved(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(photo, None, fx=0.5, fy=0.5), np.uint8)


def _brighter(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(np.clip(photo * 1.15, 0, 255), np.uint8)


def _cropped(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(photo[3:-3, 4:-4])


def _with_a_stamp(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    stamped = photo.copy()
    cv2.putText(stamped, "(c) me", (230, 232), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255))
    return stamped


@pytest.mark.parametrize("change", [_recompressed, _halved, _brighter, _cropped, _with_a_stamp])
def test_a_changed_copy_differs_in_few_bits(
    change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
) -> None:
    photos = [draw_photo(seed) for seed in _SEEDS]
    bits = [_bits(photo, change(photo)) for photo in photos]
    assert np.mean(bits) < 5
    assert max(bits) <= 12


def test_different_photos_differ_in_about_half_of_the_bits() -> None:
    hashes = np.array([_hash(draw_photo(seed)) for seed in range(60)], np.int64)
    bits = [
        number
        for index, value in enumerate(hashes.tolist())
        for number in differing_bits(hashes[index + 1 :], value).tolist()
    ]
    assert min(bits) > 12
    assert 28 < np.mean(bits) < 36


def test_a_mirrored_or_turned_photo_is_another() -> None:
    for seed in _SEEDS:
        photo = draw_photo(seed)
        for other in (photo[:, ::-1], photo[::-1], photo.transpose(1, 0, 2)):
            assert _bits(photo, np.ascontiguousarray(other)) > 12


def test_the_same_pixels_have_the_same_64_bits_whatever_their_layout_in_memory() -> None:
    photo = draw_photo(1)
    value = _hash(photo)
    assert _LOWEST <= value <= _HIGHEST
    assert _hash(photo.copy()) == value
    strided = np.zeros((240, 640, 3), np.uint8)
    strided[:, ::2] = photo
    assert _hash(strided[:, ::2]) == value


def test_half_of_the_bits_are_set() -> None:
    # They are compared with their median: no photo is near many others for being dark or plain.
    for seed in _SEEDS:
        assert int(differing_bits(np.array([_hash(draw_photo(seed))], np.int64), 0)[0]) == 32


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_a_plain_photo_has_no_hash(level: int) -> None:
    plain = np.full((50, 70, 3), level, np.uint8)
    assert perceptual_hash(plain) is None
    noise = np.random.default_rng(0).integers(-2, 3, plain.shape)
    noisy = np.clip(plain.astype(int) + noise, 0, 255).astype(np.uint8)
    assert perceptual_hash(noisy) is None


def test_a_faint_photo_has_a_hash_like_its_strong_original() -> None:
    for seed in _SEEDS:
        photo = draw_photo(seed)
        faint = np.round(110 + photo * 0.15).astype(np.uint8)
        assert _bits(photo, faint) <= 8


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 5), (1, 5000), (40_000, 2)])
def test_photos_of_any_shape_are_hashed(shape: tuple[int, int]) -> None:
    photo = np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)
    value = perceptual_hash(photo)
    assert value is None or _LOWEST <= value <= _HIGHEST


def test_a_large_photo_takes_hardly_longer_than_a_small_one() -> None:
    large = cv2.resize(draw_photo(1), (4000, 3000), interpolation=cv2.INTER_CUBIC)

    def seconds() -> float:
        start = time.thread_time()
        perceptual_hash(np.asarray(large, np.uint8))
        return time.thread_time() - start

    assert min(seconds() for _ in range(10)) < 0.005
    assert _bits(np.asarray(large, np.uint8), draw_photo(1)) <= 4


def _set_bits(value: int, places: NDArray[np.int64]) -> int:
    for place in places.tolist():
        value ^= 1 << place
    return value


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


@pytest.mark.parametrize("max_bits", [0, 1, 3, 4, 7, 10, 11, 12, 13, 16])
def test_all_pairs_within_the_limit_are_found_and_no_others(max_bits: int) -> None:
    random = np.random.default_rng(max_bits)
    values = [int(value) for value in random.integers(0, 2**64, 150, dtype=np.uint64)]
    values += [
        _set_bits(value, random.permutation(HASH_BITS)[: random.integers(0, 18)])
        for value in values
    ]
    hashes = np.array([_signed(value) for value in values], np.int64)
    expected = {
        (one, other)
        for one in range(len(values))
        for other in range(one + 1, len(values))
        if (values[one] ^ values[other]).bit_count() <= max_bits
    }
    found = {
        (min(pair), max(pair))
        for ones, others in similar_pairs(hashes, max_bits)
        for pair in zip(ones.tolist(), others.tolist(), strict=True)
    }
    assert found == expected
    assert len(expected) > 5


def test_there_are_no_pairs_of_none_or_one() -> None:
    for hashes in ([], [5]):
        assert list(similar_pairs(np.array(hashes, np.int64), 12)) == []


def test_hashes_that_are_all_alike_are_compared_without_filling_the_memory() -> None:
    # 4,000 hashes that share all parts but one: eight million pairs.
    hashes = np.arange(4000, dtype=np.int64) << 48
    largest = pairs = 0
    for ones, others in similar_pairs(hashes, 1):
        largest = max(largest, len(ones))
        pairs += len(ones)
        assert (differing_bits(hashes[ones] ^ hashes[others], 0) <= 1).all()
    assert largest < 2**18
    assert pairs > 4000
