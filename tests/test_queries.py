"""Photos that were searched with, and what is remembered of them."""

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from structlog.testing import capture_logs

from backend.analysis import AnalyzedPhoto, PhotoAnalyzer
from backend.deadlines import deadline
from backend.errors import EngineUnavailable, InvalidImage, NotFound, Unavailable
from backend.metrics import Metrics, stage_times
from backend.queries import QueryPhotos
from tests.analyzers import open_analyzer
from tests.limits import files_limited_to
from tests.photos import draw_photo, encode

LIMIT = 2**20


class _Analyses:
    """An analyzer over the small pair, and how often it has analysed."""

    def __init__(self, analyzer: PhotoAnalyzer, figures: Metrics) -> None:
        self.analyzer = analyzer
        self._figures = figures

    @property
    def count(self) -> int:
        """Photos that were decoded for an analysis, whether it came to its end or not."""
        [line] = [
            line
            for line in self._figures.exposition().decode().splitlines()
            if line.startswith('image_search_stage_duration_seconds_count{stage="decode"}')
        ]
        return int(float(line.split()[-1]))


@pytest.fixture
async def analyses() -> AsyncIterator[_Analyses]:
    """The real models, in this process."""
    figures = Metrics()
    async with open_analyzer(figures) as analyzer:
        yield _Analyses(analyzer, figures)


def _open(tmp_path: Path, analyses: _Analyses, max_bytes: int = LIMIT) -> QueryPhotos:
    return QueryPhotos(tmp_path / "queries", analyses.analyzer, max_bytes=max_bytes)


@pytest.fixture
async def queries(tmp_path: Path, analyses: _Analyses) -> AsyncIterator[QueryPhotos]:
    """Of LIMIT bytes, with nothing in it."""
    opened = _open(tmp_path, analyses)
    yield opened
    await opened.close()


def _photo(seed: int) -> bytes:
    return encode(draw_photo(seed))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def test_a_query_photo_is_kept_under_its_hash_and_analysed_once(
    queries: QueryPhotos, analyses: _Analyses, tmp_path: Path
) -> None:
    data = _photo(1)
    kept = await queries.keep(data)
    assert kept.id == _sha256(data)
    assert (tmp_path / "queries" / kept.id).read_bytes() == data
    again = await queries.get(kept.id)
    assert (again.id, again.data) == (kept.id, data)
    assert again.photo is kept.photo is (await queries.keep(data)).photo
    assert await queries.read(kept.id) == data
    assert analyses.count == 1
    expected = await analyses.analyzer.analyze(data)
    assert kept.photo.objects == expected.objects
    np.testing.assert_array_equal(kept.photo.embeddings, expected.embeddings)


async def test_after_a_restart_it_is_analysed_again(
    queries: QueryPhotos, analyses: _Analyses, tmp_path: Path
) -> None:
    kept = await queries.keep(_photo(1))
    again = _open(tmp_path, analyses)
    found = await again.get(kept.id)
    assert analyses.count == 2
    assert found.photo.objects == kept.photo.objects
    np.testing.assert_array_equal(found.photo.embeddings, kept.photo.embeddings)
    await again.close()


async def test_what_is_no_photo_is_refused_and_not_kept(
    queries: QueryPhotos, tmp_path: Path
) -> None:
    for data in (b"", b"no photo", encode(draw_photo(1), ".png")[:5000]):
        with pytest.raises(InvalidImage):
            await queries.keep(data)
        with pytest.raises(NotFound):
            await queries.get(_sha256(data))
    assert not (tmp_path / "queries").exists()


@pytest.mark.parametrize(
    "query_id",
    ["", "x", "0" * 63, "0" * 65, "A" * 64, "../" + "0" * 61, "0" * 64 + "\n", "../photo.jpg"],
)
async def test_what_is_no_id_is_never_a_path(
    queries: QueryPhotos, tmp_path: Path, query_id: str
) -> None:
    (tmp_path / "photo.jpg").write_bytes(_photo(1))
    for ask in (queries.get, queries.read):
        with pytest.raises(NotFound, match="64 hex digits"):
            await ask(query_id)


async def test_who_asks_for_what_is_not_there_is_told_to_send_it_again(
    queries: QueryPhotos,
) -> None:
    for ask in (queries.get, queries.read):
        with pytest.raises(NotFound, match=f"{'0' * 64} is kept no more: send the photo again"):
            await ask("0" * 64)


async def test_a_file_that_no_longer_has_its_hash_is_dropped(
    queries: QueryPhotos, tmp_path: Path
) -> None:
    kept = await queries.keep(_photo(1))
    path = tmp_path / "queries" / kept.id
    other = tmp_path / "queries" / "notes"
    other.write_text("somebody's")
    for damaged in (b"", kept.data[:-1], _photo(2)):
        path.write_bytes(damaged)
        with pytest.raises(NotFound, match="send the photo again"):
            await queries.get(kept.id)
        assert not path.exists()
    await queries.keep(kept.data)
    assert path.read_bytes() == kept.data
    assert other.exists()


async def test_the_least_recently_used_goes_first(tmp_path: Path, analyses: _Analyses) -> None:
    small = [_png(seed) for seed in range(6)]
    queries = _open(tmp_path, analyses, sum(map(len, small[:5])))
    ids = [(await queries.keep(data)).id for data in small[:5]]
    await queries.read(ids[0])
    ids.append((await queries.keep(small[5])).id)
    kept = {path.name for path in (tmp_path / "queries").iterdir()}
    assert {ids[0], ids[4], ids[5]} <= kept
    assert ids[1] not in kept
    with pytest.raises(NotFound):
        await queries.get(ids[1])
    await queries.close()


def _png(seed: int) -> bytes:
    """A photo of 8 x 8 pixels, of about 90 bytes."""
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (seed * 20, 0, 99)).save(data, "PNG")
    return data.getvalue()


async def test_only_so_many_analyses_are_remembered(
    queries: QueryPhotos, analyses: _Analyses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.queries._REMEMBERED", 3)
    ids = [(await queries.keep(_png(seed))).id for seed in range(4)]
    await queries.get(ids[1])
    assert analyses.count == 4
    await queries.get(ids[0])
    assert analyses.count == 5
    await queries.get(ids[1])
    assert analyses.count == 5
    await queries.get(ids[2])
    assert analyses.count == 6


@pytest.mark.parametrize("max_bytes", [0, LIMIT])
async def test_a_disk_that_takes_nothing_does_not_matter_to_a_search(
    tmp_path: Path, analyses: _Analyses, max_bytes: int
) -> None:
    queries = _open(tmp_path, analyses, max_bytes)
    await analyses.analyzer.hash_photo(_photo(2))  # what decodes photos has been started already
    with capture_logs(), files_limited_to(100):
        kept = await queries.keep(_photo(1))
    assert len(kept.photo.embeddings) >= 1
    with pytest.raises(NotFound, match="send the photo again"):
        await queries.get(kept.id)
    await queries.close()


async def test_the_same_photo_sent_at_once_is_analysed_once_and_counts_for_each(
    queries: QueryPhotos, analyses: _Analyses
) -> None:
    data = _photo(1)

    async def keep() -> tuple[str, set[str]]:
        with stage_times() as times:
            kept = await queries.keep(data)
        assert all(seconds > 0 for seconds in times.values())
        return kept.id, set(times)

    stages = {"decode", "detect", "cut", "embed"}
    assert await asyncio.gather(*(keep() for _ in range(8))) == [(_sha256(data), stages)] * 8
    assert analyses.count == 1


async def test_a_search_that_is_cancelled_does_not_break_the_others(
    queries: QueryPhotos, analyses: _Analyses
) -> None:
    data = _photo(1)
    tasks = [asyncio.create_task(queries.keep(data)) for _ in range(3)]
    while not analyses.count:
        await asyncio.sleep(0)
    tasks.pop(0).cancel()
    assert [kept.id for kept in await asyncio.gather(*tasks)] == [_sha256(data)] * 2


async def test_a_search_ends_at_its_own_deadline(
    queries: QueryPhotos, analyses: _Analyses, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _photo(1)
    analyze = analyses.analyzer.analyze
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def held(photo: bytes) -> AnalyzedPhoto:
        begun.set()
        await go_on.wait()
        return await analyze(photo)

    monkeypatch.setattr(analyses.analyzer, "analyze", held)
    patient = asyncio.create_task(queries.keep(data))
    await begun.wait()
    with deadline(0), pytest.raises(EngineUnavailable, match="ONNX Runtime has not analysed"):
        await queries.keep(data)
    go_on.set()
    assert (await patient).data == data
    assert analyses.count == 1


async def test_the_end_of_the_service_is_told_to_those_who_wait(
    queries: QueryPhotos, analyses: _Analyses
) -> None:
    search = asyncio.create_task(queries.keep(_photo(1)))
    while not analyses.count:
        await asyncio.sleep(0)
    await queries.close()
    with pytest.raises(Unavailable, match="stopping"):
        await search
