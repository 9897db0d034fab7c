"""Thumbnails of catalogued photos: made once, kept, and in which format."""

import asyncio
import hashlib
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image
from structlog.testing import capture_logs

from backend.deadlines import deadline
from backend.decoding.pool import Decoders
from backend.errors import NotFound, TooLarge, Unavailable
from backend.places import THIS_MACHINE
from backend.thumbnails import MediaType, Thumbnails, thumbnail_type
from tests.limits import files_limited_to
from tests.photos import draw_photo, encode

LIMIT = 2**20


def _open(tmp_path: Path, decoders: Decoders, *, max_bytes: int = LIMIT) -> Thumbnails:
    return Thumbnails(
        tmp_path / "thumbnails", max_bytes=max_bytes, decoders=decoders, photos=THIS_MACHINE
    )


@pytest.fixture
async def thumbnails(tmp_path: Path, decoders: Decoders) -> AsyncIterator[Thumbnails]:
    """Of LIMIT bytes, with nothing in it."""
    opened = _open(tmp_path, decoders)
    yield opened
    await opened.close()


@pytest.fixture
def photo(tmp_path: Path) -> tuple[Path, str]:
    """A photo of 320 x 240 pixels: its path and its SHA-256."""
    return _write(tmp_path / "photo.jpg", encode(draw_photo(1)))


def _write(path: Path, data: bytes) -> tuple[Path, str]:
    path.write_bytes(data)
    return path, hashlib.sha256(data).hexdigest()


def _size(thumbnail: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(thumbnail)) as image:
        return image.size


def _kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "thumbnails").glob("*"))


async def _get(
    thumbnails: Thumbnails,
    photo: tuple[Path, str],
    size: int = 128,
    media_type: MediaType = "image/webp",
) -> bytes:
    path, sha256 = photo
    return await thumbnails.get(str(path), sha256, size, media_type)


async def test_a_thumbnail_of_each_size_and_format_is_made(
    thumbnails: Thumbnails, photo: tuple[Path, str], tmp_path: Path
) -> None:
    media_types: list[MediaType] = ["image/avif", "image/webp", "image/jpeg"]
    made = {
        (size, media_type): await _get(thumbnails, photo, size, media_type)
        for size in (128, 256)
        for media_type in media_types
    }
    for (size, media_type), thumbnail in made.items():
        assert _size(thumbnail) == (size, size * 3 // 4)
        assert Image.open(io.BytesIO(thumbnail)).get_format_mimetype() == media_type
    assert len(_kept(tmp_path)) == len(set(made.values())) == 6


async def test_a_kept_thumbnail_needs_no_photo_and_survives_a_restart(
    thumbnails: Thumbnails, photo: tuple[Path, str], tmp_path: Path, decoders: Decoders
) -> None:
    first = await _get(thumbnails, photo)
    photo[0].unlink()
    assert await _get(thumbnails, photo) == first
    again = _open(tmp_path, decoders)
    assert await _get(again, photo) == first
    with pytest.raises(NotFound, match="photo cannot be read any more: No such file"):
        await _get(again, photo, 256)
    await again.close()


async def test_requests_for_the_same_thumbnail_at_once_make_it_once(
    tmp_path: Path, decoders: Decoders, photo: tuple[Path, str]
) -> None:
    thumbnails = _open(
        tmp_path, decoders, max_bytes=0
    )  # nothing is kept: only what is shared is the same
    several = await asyncio.gather(*(_get(thumbnails, photo) for _ in range(20)))
    # The very same object, not only equal bytes.
    assert all(thumbnail is several[0] for thumbnail in several)
    assert await _get(thumbnails, photo) is not several[0]
    await thumbnails.close()


async def test_a_request_that_is_cancelled_does_not_break_the_others(
    thumbnails: Thumbnails, tmp_path: Path
) -> None:
    photo = _write(tmp_path / "large.jpg", encode(draw_photo(2, width=1200, height=800)))
    tasks = [asyncio.create_task(_get(thumbnails, photo)) for _ in range(3)]
    await asyncio.sleep(0.005)
    tasks.pop(0).cancel()
    first, second = await asyncio.gather(*tasks)
    assert first == second
    # Nor does it break its own next one.
    alone = asyncio.create_task(_get(thumbnails, photo, 256))
    await asyncio.sleep(0.005)
    alone.cancel()
    await asyncio.wait([alone])
    assert _size(await _get(thumbnails, photo, 256)) == (256, 171)


async def test_a_request_ends_at_its_deadline(thumbnails: Thumbnails, tmp_path: Path) -> None:
    photo = _write(tmp_path / "photo.png", encode(draw_photo(2, width=1200, height=800), ".png"))
    with pytest.raises(TimeoutError), deadline(0):
        await _get(thumbnails, photo)
    assert await _get(thumbnails, photo)


async def test_the_end_of_the_service_is_told_to_those_who_wait(
    tmp_path: Path, decoders: Decoders
) -> None:
    thumbnails = _open(tmp_path, decoders)
    photos = [
        _write(tmp_path / f"{seed}.jpg", encode(draw_photo(seed, width=1200, height=800)))
        for seed in range(4)
    ]
    tasks = [
        asyncio.create_task(_get(thumbnails, photo, size, "image/avif"))
        for photo in photos
        for size in range(200, 210)
    ]
    while not _kept(tmp_path):
        await asyncio.sleep(0.001)
    await thumbnails.close()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, bytes | Unavailable)


# What the photo's file has become


async def test_a_photo_that_has_changed_has_no_thumbnail_until_it_is_loaded_again(
    thumbnails: Thumbnails, photo: tuple[Path, str], tmp_path: Path
) -> None:
    changed = _write(photo[0], encode(draw_photo(9)))
    with pytest.raises(NotFound, match="has changed since it was indexed: load its folder again"):
        await _get(thumbnails, photo)
    assert _kept(tmp_path) == []
    assert await _get(thumbnails, changed)


async def test_what_is_no_file_has_no_thumbnail(thumbnails: Thumbnails, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "a\0b"):
        with pytest.raises(NotFound, match="cannot be read any more"):
            await _get(thumbnails, (path, "0" * 64))


@pytest.mark.parametrize("sha256", ["", "../../etc/passwd", "F" * 64])
async def test_a_photo_whose_bytes_were_never_known_has_none(
    thumbnails: Thumbnails, photo: tuple[Path, str], sha256: str
) -> None:
    with pytest.raises(NotFound, match="never been readable"):
        await _get(thumbnails, (photo[0], sha256))


async def test_a_photo_that_cannot_be_decoded_says_why(
    thumbnails: Thumbnails, tmp_path: Path
) -> None:
    damaged = _write(tmp_path / "damaged.png", encode(draw_photo(1), ".png")[:5000])
    with pytest.raises(NotFound, match=r"no thumbnail of the photo: .*truncated"):
        await _get(thumbnails, damaged)
    large = _write(tmp_path / "large.png", encode(draw_photo(1, width=1001, height=1000), ".png"))
    with pytest.raises(TooLarge, match="MAX_PIXELS"):
        await _get(thumbnails, large)


# What the cache has become


async def test_a_damaged_file_of_the_cache_is_made_anew(
    thumbnails: Thumbnails, photo: tuple[Path, str], tmp_path: Path
) -> None:
    made = await _get(thumbnails, photo)
    [kept] = _kept(tmp_path)
    whole = kept.read_bytes()
    flipped = bytes([whole[0] ^ 1])
    for damaged in (b"", whole[:40], whole[:-1], flipped + whole[1:], whole + b"x", b"x" * 32):
        kept.write_bytes(damaged)
        assert await _get(thumbnails, photo) == made
        assert kept.read_bytes() == whole
    kept.write_bytes(b"")
    photo[0].unlink()
    with pytest.raises(NotFound):
        await _get(thumbnails, photo)


async def test_a_full_disk_does_not_matter_to_who_asks(
    thumbnails: Thumbnails, photo: tuple[Path, str], tmp_path: Path, decoders: Decoders
) -> None:
    decoders.decode(photo[0].read_bytes())  # in a process that has been started already, then
    with capture_logs() as log, files_limited_to(100):
        full = await _get(thumbnails, photo)
    assert [entry["event"] for entry in log] == ["cache.unusable"]
    assert _kept(tmp_path) == []
    assert await _get(thumbnails, photo) == full
    assert len(_kept(tmp_path)) == 1


async def test_a_folder_that_cannot_be_made_does_not_matter_to_who_asks(
    photo: tuple[Path, str], tmp_path: Path, decoders: Decoders
) -> None:
    (tmp_path / "thumbnails").touch()
    thumbnails = _open(tmp_path, decoders)
    with capture_logs():
        assert _size(await _get(thumbnails, photo)) == (128, 96)
    await thumbnails.close()


@pytest.mark.parametrize("max_bytes", [0, 20_000])
async def test_the_cache_stays_below_its_limit(
    tmp_path: Path, decoders: Decoders, max_bytes: int
) -> None:
    thumbnails = _open(tmp_path, decoders, max_bytes=max_bytes)
    for seed in range(12):
        photo = _write(tmp_path / f"{seed}.jpg", encode(draw_photo(seed)))
        assert _size(await _get(thumbnails, photo)) == (128, 96)
        assert sum(path.stat().st_size for path in _kept(tmp_path)) <= max_bytes
    assert bool(_kept(tmp_path)) == (max_bytes > 0)
    await thumbnails.close()


# The format that a client likes best

CHROMIUM = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"
FIREFOX = "image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5"
SAFARI = (
    "image/webp,image/avif,image/jxl,image/heic,image/heic-sequence,video/*;q=0.8,image/png,"
    "image/svg+xml,image/*;q=0.8,video/*;q=0.8,*/*;q=0.5"
)
NAVIGATION = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,"
    "*/*;q=0.8"
)
OLD_SAFARI = "image/png,image/svg+xml,image/*;q=0.8,video/*;q=0.8,*/*;q=0.5"


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (CHROMIUM, "image/webp"),
        (FIREFOX, "image/webp"),
        (SAFARI, "image/webp"),
        (NAVIGATION, "image/webp"),
        (OLD_SAFARI, "image/jpeg"),
        (None, "image/jpeg"),
        ("", "image/jpeg"),
        ("*/*", "image/jpeg"),
        ("image/*", "image/jpeg"),
        ("image/avif", "image/avif"),
        ("image/webp", "image/webp"),
        ("image/jpeg", "image/jpeg"),
        ("IMAGE/AVIF ; Q=1.0 , image/webp;q=0.9", "image/avif"),
        ("image/avif;q=0.9,image/webp;q=0.8", "image/avif"),
        ("image/avif;q=0.001", "image/avif"),
        ("image/webp;q=0.5,image/jpeg", "image/jpeg"),
        ("image/webp;q=0.5,*/*", "image/jpeg"),
        ("image/webp;q=0.5,image/*;q=0.4", "image/webp"),
        ("image/jpeg;q=0.1,image/webp;q=0.5,*/*", "image/webp"),
        ("image/webp;q=0,image/avif;q=0.000,*/*;q=0.1", "image/jpeg"),
        ("image/webp;level=1;q=0.3,image/avif;q=0.2", "image/webp"),
        # Nothing that there is: a JPEG is better than an error.
        ("text/html", "image/jpeg"),
        ("image/jpeg;q=0", "image/jpeg"),
        # What is no weight counts for nothing.
        ("image/avif;q=2", "image/jpeg"),
        ("image/avif;q=nan,image/webp;q=0.1", "image/webp"),
        ("image/avif;q=-1", "image/jpeg"),
        ("image/avif;q=1.001", "image/jpeg"),
        (";;,,;q=,q=1,=", "image/jpeg"),
    ],
)
def test_the_format_is_the_one_that_the_client_likes_best(
    accept: str | None, media_type: MediaType
) -> None:
    assert thumbnail_type(accept) == media_type
