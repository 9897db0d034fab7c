"""Hashes that are alike where photos look alike, and finding those that are.

The hash is pHash in its common form (C. Zauner, "Implementation and Benchmarking of Perceptual
Image Hash Functions", 2010; N. Krawetz, "Looks Like It", hackerfactor.com, 2011): which of the 64
lowest frequencies of the photo's brightness are above their median. Scaling, compressing and
brightening hardly change it; a mirrored or turned photo has another.

Pairs are found by multi-index hashing (M. Norouzi, A. Punjani, D. Fleet, "Fast Search in Hamming
Space with Multi-Index Hashing", CVPR 2012): two hashes that differ in few bits differ in very few
of some part of them, and by their parts they can be looked up.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["HASH_BITS", "differing_bits", "perceptual_hash", "similar_pairs"]

HASH_BITS: Final = 64

_SIDE: Final = 32
_FREQUENCIES: Final = 8
"""A side of the square of lowest frequencies: its square is HASH_BITS."""
_SAMPLED: Final = 256
"""Pixels a side that brightness is averaged from: averaging all of a large photo's would take
longer than a tenth of its decoding, and gives the same hashes to within a bit."""
_MIN_CONTRAST: Final = 2.0
"""Standard deviation of the brightness, of 255, below which there is nothing but noise to hash."""

_PARTS: Final = 4
_PART_BITS: Final = HASH_BITS // _PARTS
_PAIRS_AT_ONCE: Final = 2**17
"""Pairs that are compared at once: few enough to stay in a processor's cache."""


def perceptual_hash(photo: NDArray[np.uint8]) -> int | None:
    """64 bits that a photo shares, nearly all, with its resized or recompressed copies.

    Args:
        photo: RGB uint8 [H, W, 3], upright; a reduced copy of some 256 pixels does as well.

    Returns:
        The bits as a signed integer, as databases keep it. None for a photo of one plain colour:
        its bits would say nothing, and be the same for all such photos.
    """
    if max(photo.shape) > _SAMPLED:
        sampled = cv2.resize(photo, (_SAMPLED, _SAMPLED), interpolation=cv2.INTER_LINEAR)
        photo = np.asarray(sampled, np.uint8)
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY).astype(np.float32)
    brightness = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    if brightness.std() < _MIN_CONTRAST:
        return None
    lowest = cv2.dct(brightness)[:_FREQUENCIES, :_FREQUENCIES].ravel()
    return int(np.packbits(lowest > np.median(lowest)).view(">i8")[0])


def differing_bits(hashes: NDArray[np.int64], other: int) -> NDArray[np.uint8]:
    """In how many bits each of the hashes, int64 [N], differs from another: uint8 [N]."""
    bits: NDArray[np.uint8] = np.bitwise_count((hashes ^ np.int64(other)).view(np.uint64))
    return bits


def similar_pairs(
    hashes: NDArray[np.int64], max_bits: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """All pairs of hashes that differ in at most `max_bits` bits, some of them more than once.

    Args:
        hashes: int64 [N]. With ones that are equal, it takes the longer the more there are.
        max_bits: the time grows fast with it; up to 15, 100,000 hashes take seconds.

    Returns:
        The pairs part by part: indices int64 [P] of their first and of their second hashes.
    """
    unsigned = hashes.view(np.uint64)
    radius, rest = divmod(max_bits, _PARTS)
    for part in range(_PARTS):
        keys = ((unsigned >> np.uint64(part * _PART_BITS)) % 2**_PART_BITS).astype(np.int64)
        order = np.argsort(keys, kind="stable")
        ordered = _Ordered(unsigned[order], keys[order])
        # Were all the first parts to differ in more bits than `radius`, and the others in as many
        # or more, it would be more than `max_bits` together.
        for mask in _masks(radius if part <= rest else radius - 1):
            for first, second in ordered.pairs(mask, max_bits):
                yield order[first], order[second]


def _masks(radius: int) -> Iterator[int]:
    """Every way in which parts of two hashes may differ."""
    for count in range(min(radius, _PART_BITS) + 1):
        for places in combinations(range(_PART_BITS), count):
            yield sum(1 << place for place in places)


class _Ordered:
    """Hashes in the order of one of their parts, by which they are looked up."""

    def __init__(self, hashes: NDArray[np.uint64], keys: NDArray[np.int64]) -> None:
        self._hashes = hashes
        self._keys = keys
        # Where the hashes of each key begin and how many there are.
        self._begins = np.searchsorted(keys, np.arange(2**_PART_BITS))
        self._sizes = np.bincount(keys, minlength=2**_PART_BITS)
        self._lower = [np.flatnonzero(keys & 1 << bit == 0) for bit in range(_PART_BITS)]

    def pairs(
        self, mask: int, max_bits: int
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Positions of the pairs that differ in this part by the mask, each once."""
        if mask == 0:
            positions = np.arange(len(self._keys))
            begins = positions + 1
            sizes = self._begins[self._keys] + self._sizes[self._keys] - begins
        else:
            # From the keys without the mask's highest bit to those that have it.
            positions = self._lower[mask.bit_length() - 1]
            wanted = self._keys[positions] ^ mask
            begins, sizes = self._begins[wanted], self._sizes[wanted]
        ends = np.cumsum(sizes)
        start = 0
        while start < len(positions):
            done = int(ends[start] - sizes[start])
            stop = max(start + 1, int(np.searchsorted(ends, done + _PAIRS_AT_ONCE, "right")))
            some = slice(start, stop)
            before = ends[some] - sizes[some] - done
            total = int(ends[stop - 1]) - done
            second = np.repeat(begins[some] - before, sizes[some]) + np.arange(total)
            differing = np.repeat(self._hashes[positions[some]], sizes[some])
            differing ^= self._hashes[second]
            close = np.flatnonzero(np.bitwise_count(differing) <= max_bits)
            if len(close):
                first = positions[some][np.searchsorted(ends[some] - done, close, "right")]
                yield first, second[close]
            start = stop
