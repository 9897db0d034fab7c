"""Photos are decoded in processes that may hang, crash, be killed: each is one photo's matter."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from structlog.testing import capture_logs

from backend.decoding.pool import Decoders
from backend.errors import InvalidImage, TooLarge, Unavailable, UnsupportedFormat
from backend.vision.decode import decode, read_header
from backend.vision.thumbnail import make_thumbnail
from tests.decoding.misbehaving import photo_that
from tests.photos import draw_photo, encode

MANY = 10**6
WAIT_SECONDS = 30
MISBEHAVING = "tests.decoding.misbehaving"


def _saved(image_format: str, mode: str = "RGB", **options: object) -> bytes:
    encoded = io.BytesIO()
    image = Image.fromarray(draw_photo(3)).convert(mode)
    image.save(encoded, image_format, **options)
    return encoded.getvalue()


def _turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _saved("JPEG", exif=exif)


def _frames(image_format: str, count: int) -> bytes:
    """A photo and others behind it."""
    frames = [Image.fromarray(draw_photo(seed, width=32, height=24)) for seed in range(count)]
    encoded = io.BytesIO()
    options = {"save_all": True, "append_images": frames[1:]} if count > 1 else {}
    frames[0].save(encoded, image_format, **options)
    return encoded.getvalue()


@pytest.fixture
def misbehaving() -> Iterator[Decoders]:
    """Processes that photos can make misbehave; a photo of few pixels has half a second."""
    opened = Decoders(
        max_pixels=MANY, max_bytes=2**24, seconds=5, memory=2**28, program=MISBEHAVING
    )
    yield opened
    opened.close()


def _processes(pids: Sequence[int]) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in pids]


def _wait_until_gone(processes: Sequence[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, WAIT_SECONDS)
    assert not alive


# What a photo becomes


@pytest.mark.parametrize(
    "data",
    [
        *(_saved(name) for name in ("JPEG", "PNG", "WEBP", "BMP", "TIFF")),
        *(_saved(name, "RGBA") for name in ("PNG", "WEBP", "TIFF")),
        *(_saved("PNG", mode) for mode in ("L", "P", "LA", "I;16", "1")),
        *(_saved("TIFF", compression=name) for name in ("tiff_lzw", "tiff_deflate", "packbits")),
        _saved("JPEG", "CMYK"),
        _saved("JPEG", "L", progressive=True),
        *(_turned(orientation) for orientation in (1, 3, 6, 8)),
        *(_frames(name, 3) for name in ("MPO", "PNG", "WEBP", "TIFF")),
    ],
)
def test_a_photo_becomes_what_it_becomes_in_this_process(decoders: Decoders, data: bytes) -> None:
    """Nothing that decoding needs is missing from a process that can open nothing."""
    photo = decoders.decode(data)
    assert photo.header == decoders.read_header(data) == read_header(data)
    assert np.array_equal(photo.pixels, decode(data, max_pixels=MANY))
    assert photo.pixels.flags.writeable
    for media_type in ("image/avif", "image/webp", "image/jpeg"):
        thumbnail = decoders.make_thumbnail(data, 64, media_type)
        assert thumbnail == make_thumbnail(data, 64, media_type, max_pixels=MANY)


def test_a_jpeg_is_decoded_at_the_scale_that_is_enough(decoders: Decoders) -> None:
    photo = decoders.decode(encode(draw_photo(1, width=1000, height=800)), longer_side=400)
    assert photo.pixels.shape == (400, 500, 3)
    assert (photo.header.width, photo.header.height) == (1000, 800)


def test_a_photo_is_not_overwritten_by_the_next(decoders: Decoders) -> None:
    first = decoders.decode(encode(draw_photo(1), ".png"))
    decoders.decode(encode(draw_photo(2), ".png"))
    assert np.array_equal(first.pixels, draw_photo(1))


def test_photos_are_decoded_side_by_side(decoders: Decoders) -> None:
    photos = {seed: encode(draw_photo(seed), ".png") for seed in range(40)}
    with ThreadPoolExecutor(4) as threads:
        decoded = list(threads.map(decoders.decode, photos.values()))
    for seed, photo in zip(photos, decoded, strict=True):
        assert np.array_equal(photo.pixels, draw_photo(seed))
    assert len(decoders.pids) <= 4


@pytest.mark.parametrize(
    ("data", "error", "reason"),
    [
        (b"", InvalidImage, "the file is empty"),
        (b"no photo", InvalidImage, "the content is no image"),
        (_saved("JPEG")[:100], InvalidImage, "JPEG file is damaged"),
        (_saved("GIF"), UnsupportedFormat, "the format is GIF"),
        (encode(draw_photo(1, width=1001, height=1000)), TooLarge, "MAX_PIXELS"),
    ],
)
def test_what_is_wrong_with_a_photo_is_told_and_costs_no_process(
    decoders: Decoders, data: bytes, error: type[Exception], reason: str
) -> None:
    decoders.decode(_saved("JPEG"))
    before = decoders.pids
    for task in (decoders.read_header, decoders.decode):
        with pytest.raises(error, match=reason):
            task(data)
    with pytest.raises(error, match=reason):
        decoders.make_thumbnail(data, 64, "image/jpeg")
    assert decoders.pids == before


def test_the_memory_of_a_large_photo_is_given_back() -> None:
    decoders = Decoders(max_pixels=10**7)
    try:
        white = np.full((2500, 2500, 3), 255, np.uint8)
        for _ in range(2):
            assert np.array_equal(decoders.decode(encode(white, ".bmp")).pixels, white)
        for pid in (os.getpid(), *decoders.pids):
            status = Path(f"/proc/{pid}/status").read_text()
            [shared] = re.findall(r"RssShmem:\s+(\d+) kB", status)
            assert int(shared) < 2**13
    finally:
        decoders.close()


# Limits


@pytest.mark.parametrize("image_format", ["MPO", "PNG", "WEBP", "TIFF"])
def test_a_photo_of_a_frame_too_many_is_refused(image_format: str) -> None:
    decoders = Decoders(max_pixels=MANY, max_frames=5)
    try:
        for count in (1, 5):
            data = _frames(image_format, count)
            shown = decoders.decode(data).pixels
            first = decode(_frames(image_format, 1), max_pixels=MANY)
            assert np.abs(shown.astype(int) - first).mean() < 8
        with pytest.raises(TooLarge, match="more than the 5 frames that MAX_FRAMES allows"):
            decoders.decode(_frames(image_format, 6))
    finally:
        decoders.close()


def test_a_photo_of_a_byte_too_many_is_refused() -> None:
    data = _saved("PNG")
    fitting = Decoders(max_pixels=MANY, max_bytes=len(data))
    tight = Decoders(max_pixels=MANY, max_bytes=len(data) - 1)
    try:
        assert fitting.decode(data)
        with pytest.raises(TooLarge, match="bytes"):
            tight.decode(data)
    finally:
        fitting.close()
        tight.close()


def test_a_photo_that_takes_more_memory_than_it_may_is_refused() -> None:
    """Of a photo that keeps to the limits, but for whom there is too little."""
    decoders = Decoders(max_pixels=3 * 10**7, memory=2**25)
    try:
        with pytest.raises(InvalidImage):
            decoders.decode(encode(np.zeros((5000, 6000, 3), np.uint8), ".png"))
        assert decoders.decode(_saved("JPEG")).pixels.size
    finally:
        decoders.close()


# Processes that misbehave


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("hang", "not done within 5 s"),
        ("loop", "more of the processor's time"),
        ("crash", "ended by SIGSEGV"),
        ("abort", "ended by SIGABRT"),
        ("be_killed", "ended by SIGKILL"),
        ("leave", "its process ended"),
        ("talk_nonsense", "answers what it cannot mean"),
        ("claim_much", "answers what it cannot mean"),
        ("claim_less_than_nothing", "answers what it cannot mean"),
        ("claim_a_page", "answers what it cannot mean"),
    ],
)
def test_a_process_that_misbehaves_is_one_photos_matter(
    misbehaving: Decoders, deed: str, reason: str
) -> None:
    good = _saved("PNG")
    misbehaving.decode(good)
    before = _processes(misbehaving.pids)
    with capture_logs() as log, pytest.raises(InvalidImage, match=reason):
        misbehaving.decode(photo_that(deed))
    assert [entry["event"] for entry in log] == ["decoder.ended"]
    _wait_until_gone(before)
    assert np.array_equal(misbehaving.decode(good).pixels, draw_photo(3))


@pytest.mark.parametrize("deed", ["bloat", "bloat_at_once", "fail", "recurse", "read_a_file"])
def test_a_photo_that_is_refused_costs_no_process(misbehaving: Decoders, deed: str) -> None:
    good = _saved("PNG")
    misbehaving.decode(good)
    before = misbehaving.pids
    with pytest.raises(InvalidImage):
        misbehaving.decode(photo_that(deed))
    assert misbehaving.pids == before
    assert np.array_equal(misbehaving.decode(good).pixels, draw_photo(3))


def test_a_process_gets_no_secret(misbehaving: Decoders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_PWD", "secret")
    with pytest.raises(InvalidImage, match="KeyError"):
        misbehaving.decode(photo_that("tell_a_secret"))


def test_others_are_decoded_while_one_hangs(misbehaving: Decoders) -> None:
    with ThreadPoolExecutor(1) as threads:
        hanging = threads.submit(misbehaving.decode, photo_that("hang"))
        while not misbehaving.pids:
            time.sleep(0.001)
        for seed in range(20):
            photo = misbehaving.decode(encode(draw_photo(seed), ".png"))
            assert np.array_equal(photo.pixels, draw_photo(seed))
        assert not hanging.done()
        assert isinstance(hanging.exception(), InvalidImage)


def test_a_process_that_is_killed_while_it_has_nothing_to_do_costs_no_photo() -> None:
    decoders = Decoders(max_pixels=MANY)
    try:
        for number in (signal.SIGKILL, signal.SIGSEGV):
            decoders.decode(_saved("PNG"))
            [process] = _processes(decoders.pids)
            process.send_signal(number)
            while process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.001)
            assert np.array_equal(decoders.decode(_saved("PNG")).pixels, draw_photo(3))
            assert process.pid not in decoders.pids
    finally:
        decoders.close()


def test_a_process_that_is_killed_at_work_costs_that_photo() -> None:
    """A real one, by a signal from outside, in the middle of a large photo."""
    decoders = Decoders(max_pixels=10**8)
    try:
        decoders.decode(_saved("PNG"))
        [pid] = decoders.pids
        large = encode(np.zeros((8000, 8000, 3), np.uint8), ".png")
        with ThreadPoolExecutor(1) as threads:
            decoding = threads.submit(decoders.decode, large)
            busy = psutil.Process(pid)
            while busy.memory_info().rss < 150 * 10**6:
                assert not decoding.done()
                time.sleep(0.001)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(InvalidImage, match="SIGKILL"):
                decoding.result()
        assert decoders.decode(_saved("PNG")).pixels.size
    finally:
        decoders.close()


# Processes end


def test_closed_there_are_no_processes_and_no_more_photos(misbehaving: Decoders) -> None:
    with ThreadPoolExecutor(2) as threads:
        misbehaving.decode(_saved("PNG"))
        hanging = threads.submit(misbehaving.decode, photo_that("hang"))
        threads.submit(misbehaving.decode, _saved("PNG")).result()
        processes = _processes(misbehaving.pids)
        assert len(processes) == 2
        misbehaving.close()
        with pytest.raises(Unavailable, match="stopping"):
            hanging.result()
    _wait_until_gone(processes)
    assert misbehaving.pids == []
    with pytest.raises(Unavailable, match="stopping"):
        misbehaving.decode(_saved("PNG"))


def test_no_descriptor_and_no_thread_is_left() -> None:
    before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    decoders = Decoders(
        max_pixels=MANY, max_bytes=2**24, seconds=5, memory=2**28, program=MISBEHAVING
    )
    for deed in ("crash", "leave", "crash"):
        with pytest.raises(InvalidImage):
            decoders.decode(photo_that(deed))
        decoders.decode(_saved("PNG"))
    decoders.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert threading.active_count() == threads


OWNER = """
import sys
from backend.decoding.pool import Decoders
decoders = Decoders(max_pixels=10**6)
decoders.decode(open(sys.argv[1], "rb").read())
print(*decoders.pids, flush=True)
sys.stdin.read()
"""


def test_a_service_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(_saved("PNG"))
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "photo.png")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        processes = _processes([int(pid) for pid in owner.stdout.readline().split()])
        assert processes
        owner.kill()
    _wait_until_gone(processes)


def test_a_program_that_does_not_start_is_no_fault_of_the_photos() -> None:
    decoders = Decoders(max_pixels=MANY, program="tests.decoding.nothing_of_that_name")
    try:
        with pytest.raises(Unavailable, match="does not start"):
            decoders.decode(_saved("PNG"))
        assert decoders.pids == []
    finally:
        decoders.close()
