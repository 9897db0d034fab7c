"""How crops are cut, as the embedder's configuration says; and frames that are drawn by hand."""

import asyncio
import io
import math
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from backend.analysis import PhotoAnalyzer
from backend.app import open_services
from backend.deadlines import deadline
from backend.decoding.pool import DecodedPhoto, Decoders
from backend.errors import (
    EmbedderMismatch,
    EngineUnavailable,
    InvalidImage,
    InvalidInput,
    TooLarge,
)
from backend.metrics import Metrics
from backend.serving.models import Candidates
from backend.settings import Settings
from backend.vision.crops import CropGeometry, crop_objects
from backend.vision.decode import decode
from tests.analyzers import open_analyzer
from tests.photos import draw_photo, encode, write_photos

_EMBEDDER = "resnet50-small"


def _cutting(settings: Settings, geometry: CropGeometry, margin: float) -> Settings:
    """Settings whose embedder is the small one, but for the way its crops are cut."""
    repository = settings.data_dir.parent / f"models-{geometry}-{margin}"
    shutil.copytree(settings.model_repository, repository)
    with (repository / _EMBEDDER / "config.pbtxt").open("a") as config:
        # Of a parameter that is there twice, the last one counts.
        for name, value in (("crop_geometry", geometry), ("crop_margin", margin)):
            config.write(f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}\n')
    return settings.model_copy(update={"model_repository": repository, "embedder_model": _EMBEDDER})


async def test_crops_are_cut_as_the_embedder_s_configuration_says(settings: Settings) -> None:
    data = encode(draw_photo(5, width=320, height=120))
    padding = _cutting(settings, "pad", 0.2).model_copy(update={"whole_image": "always"})
    async with open_services(padding) as services:
        analyzed = await services.analyzer.analyze(data)
        embedder = services.analyzer.embedder
        boxes = np.array([found.box for found in analyzed.objects], np.float32)
        pixels = decode(data, max_pixels=padding.max_pixels)
        crops = crop_objects(pixels, boxes, embedder.size, geometry="pad", margin=0.2)
        stretched = crop_objects(pixels, boxes, embedder.size)
        np.testing.assert_allclose(analyzed.embeddings, await embedder.embed(crops), atol=1e-5)
        assert np.abs(analyzed.embeddings - await embedder.embed(stretched)).max() > 0.01


async def test_a_collection_is_refused_once_crops_are_cut_in_another_way(
    settings: Settings, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 2)
    query = encode(draw_photo(0))
    stretching, padding = _cutting(settings, "stretch", 0.0), _cutting(settings, "pad", 0.2)
    async with open_services(stretching) as services:
        await (await services.indexer.start_load(str(tmp_path / "photos"), "made")).wait()
        assert len(await services.searcher.search(query, "made", 3)) == 2
    async with open_services(padding) as services:
        for refused in (
            services.searcher.search(query, "made", 3),
            services.indexer.add_photo(query, "made"),
        ):
            with pytest.raises(EmbedderMismatch, match=r"crop_geometry pad, crop_margin 0\.2"):
                await refused
    async with open_services(stretching) as services:
        assert len(await services.searcher.search(query, "made", 3)) == 2


async def test_photos_are_analysed_alike_in_the_process_and_by_a_server() -> None:
    async with open_analyzer(Metrics()) as here, open_analyzer(Metrics(), remote=True) as remote:
        for seed in range(3):
            data = encode(draw_photo(seed))
            one, other = await here.analyze(data), await remote.analyze(data)
            assert (one.width, one.height, one.phash) == (other.width, other.height, other.phash)
            assert one.objects == other.objects
            np.testing.assert_array_equal(one.embeddings, other.embeddings)
            assert await here.detect(data) == await remote.detect(data)


@pytest.mark.parametrize("remote", [False, True], ids=["here", "by a server"])
async def test_a_photo_is_decoded_once(remote: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    decode = Decoders.decode

    def counting(
        decoders: Decoders, data: bytes, *, longer_side: int | None = None
    ) -> DecodedPhoto:
        decoded.append(data)
        return decode(decoders, data, longer_side=longer_side)

    monkeypatch.setattr(Decoders, "decode", counting)
    async with open_analyzer(Metrics(), remote=remote) as analyzer:
        photos = [encode(draw_photo(seed)) for seed in (3, 5)]
        for photo in photos:
            analyzed = await analyzer.analyze(photo)
            assert analyzed.objects
            assert analyzed.phash is not None
    assert decoded == photos


def _large_jpeg(seed: int) -> bytes:
    photo = cv2.resize(draw_photo(seed), (3200, 2400), interpolation=cv2.INTER_CUBIC)
    return encode(np.asarray(photo, np.uint8), ".jpg")


async def test_a_large_jpeg_s_objects_are_told_in_its_own_pixels() -> None:
    async with open_analyzer(Metrics(), max_pixels=10**8) as analyzer:
        for seed in (3, 5):
            data = _large_jpeg(seed)
            large = await analyzer.analyze(data)
            small = await analyzer.analyze(encode(draw_photo(seed)))
            assert (large.width, large.height) == (3200, 2400)
            assert [found.label for found in large.objects] == [
                found.label for found in small.objects
            ]
            for one, other in zip(large.objects, small.objects, strict=True):
                # Ten times as large; the detector sees both in 256 pixels.
                np.testing.assert_allclose(one.box, np.array(other.box) * 10, atol=60)


async def test_a_known_object_is_embedded_as_it_was_when_it_was_found(
    analyzer: PhotoAnalyzer,
) -> None:
    data = encode(draw_photo(5, width=1150, height=860), ".jpg")
    analyzed = await analyzer.analyze(data)
    boxes = np.array([found.box for found in analyzed.objects], np.float32)
    np.testing.assert_allclose(
        await analyzer.embed_objects(data, boxes), analyzed.embeddings, atol=1e-6
    )


async def test_crops_of_a_jpeg_decoded_at_a_reduced_scale_are_as_of_the_whole() -> None:
    async with open_analyzer(Metrics(), max_pixels=10**8) as analyzer:
        data = _large_jpeg(5)
        box = np.array([[400, 300, 2000, 1800]], np.float32)
        [reduced] = await analyzer.embed_objects(data, box)
        crops = crop_objects(
            decode(data, max_pixels=10**8),
            box,
            analyzer.embedder.size,
            geometry=analyzer.embedder.crop_geometry,
            margin=analyzer.embedder.crop_margin,
        )
        [whole] = await analyzer.embedder.embed(crops)
        assert reduced @ whole > 0.999


async def test_a_server_works_on_as_many_photos_as_there_is_memory_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = encode(draw_photo(1, width=320, height=240))
    monkeypatch.setattr("backend.analysis._PIXELS_IN_MEMORY", 3 * 320 * 240)
    async with open_analyzer(Metrics(), remote=True) as analyzer:
        detect = analyzer.detector.detect
        working: list[int] = []
        now = 0

        async def counted(images: NDArray[np.uint8]) -> list[Candidates]:
            nonlocal now
            now += 1
            working.append(now)
            await asyncio.sleep(0.02)  # for others to come, where they may
            found = await detect(images)
            now -= 1
            return found

        monkeypatch.setattr(analyzer.detector, "detect", counted)
        await asyncio.gather(*(analyzer.analyze(data) for _ in range(12)))
        assert len(working) == 12
        assert max(working) == 3


async def test_a_photo_that_claims_to_be_huge_is_refused_before_it_waits_for_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = encode(draw_photo(1, width=320, height=240))
    monkeypatch.setattr("backend.analysis._PIXELS_IN_MEMORY", 320 * 240)
    async with open_analyzer(Metrics(), max_pixels=320 * 240, remote=True) as analyzer:
        detect = analyzer.detector.detect
        working, go_on = asyncio.Event(), asyncio.Event()

        async def held(images: NDArray[np.uint8]) -> list[Candidates]:
            working.set()
            await go_on.wait()
            return await detect(images)

        monkeypatch.setattr(analyzer.detector, "detect", held)
        busy = asyncio.create_task(analyzer.analyze(data))
        await working.wait()
        with pytest.raises(TooLarge):
            async with asyncio.timeout(30):
                await analyzer.analyze(encode(draw_photo(1, width=321, height=240)))
        go_on.set()
        await busy


@pytest.mark.parametrize("remote", [False, True], ids=["here", "remote"])
async def test_photos_that_nobody_waits_for_any_more_are_not_counted_as_waiting(
    remote: bool,
) -> None:
    figures = Metrics()
    async with open_analyzer(figures, remote=remote) as analyzer:
        data = encode(draw_photo(1))
        tasks = [asyncio.create_task(analyzer.analyze(data)) for _ in range(40)]
        await asyncio.sleep(0)
        assert b"image_search_photos_waiting 0.0" not in figures.exposition()
        for task in tasks[1:]:
            task.cancel()
        await asyncio.wait(tasks)
        assert b"image_search_photos_waiting 0.0" in figures.exposition()
        assert (await analyzer.analyze(data)).width == 320
        async with asyncio.timeout(30):  # what a thread has begun it ends, whoever has gone
            while b"image_search_photos_analyzing 0.0" not in figures.exposition():
                await asyncio.sleep(0.01)


# A frame that was drawn in the photo


@pytest.fixture(params=[False, True], ids=["here", "remote"])
async def analyzer(request: pytest.FixtureRequest) -> AsyncIterator[PhotoAnalyzer]:
    """The small pair alone, used as one of the process is, and as one of a server."""
    async with open_analyzer(Metrics(), remote=request.param) as opened:
        yield opened


async def test_a_region_is_embedded_as_an_object_of_the_same_box(analyzer: PhotoAnalyzer) -> None:
    data = encode(draw_photo(3))
    for region, box in (
        ((40.0, 30.0, 200.0, 180.0), (40, 30, 200, 180)),
        ((-50.0, -1e30, 1e9, 240.5), (0, 0, 320, 240)),  # what lies outside is cut off
        ((-9.0, 238.0, 2.0, 999.0), (0, 238, 2, 240)),  # two pixels are enough
    ):
        embedding = await analyzer.embed_region(data, region)
        assert embedding.shape == (1, analyzer.embedder.dimension)
        as_object = await analyzer.embed_objects(data, np.array([box], np.float32))
        np.testing.assert_array_equal(embedding, as_object)


async def test_a_region_is_one_of_the_upright_photo(analyzer: PhotoAnalyzer) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    Image.fromarray(draw_photo(3)).save(turned, "PNG", exif=exif)
    upright = encode(np.ascontiguousarray(np.rot90(draw_photo(3), -1)), ".png")  # 240 x 320
    region = (10.0, 250.0, 230.0, 320.0)
    np.testing.assert_array_equal(
        await analyzer.embed_region(turned.getvalue(), region),
        await analyzer.embed_region(upright, region),
    )


async def test_a_region_of_next_to_nothing_is_refused_with_the_photos_size(
    analyzer: PhotoAnalyzer,
) -> None:
    data = encode(draw_photo(1))
    for region in (
        (10, 10, 10, 50),
        (50, 50, 10, 10),
        (10, 10, 50, 11.9),
        (318.5, 0, 400, 240),
        (400, 400, 500, 500),
        (-20, -20, -1, -1),
    ):
        with pytest.raises(InvalidInput, match=r"less than 2 x 2 .* the photo has 320 x 240"):
            await analyzer.embed_region(data, region)
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(InvalidInput, match=r"is no frame.* the photo has 320 x 240"):
            await analyzer.embed_region(data, (0, 0, bad, 10))


async def test_a_region_of_what_is_no_photo_is_refused_as_the_photo_is(
    analyzer: PhotoAnalyzer,
) -> None:
    for data in (b"no photo", encode(draw_photo(1), ".png")[:5000]):
        with pytest.raises(InvalidImage):
            await analyzer.embed_region(data, (0, 0, 10, 10))


async def test_a_region_waits_for_its_turn_no_longer_than_its_deadline(
    analyzer: PhotoAnalyzer,
) -> None:
    data = encode(draw_photo(1))
    count = 8 * (os.cpu_count() or 1)
    before = [asyncio.create_task(analyzer.analyze(data)) for _ in range(count)]
    await asyncio.sleep(0)
    with deadline(0), pytest.raises(EngineUnavailable, match="more photos to work on"):
        await analyzer.embed_region(data, (0, 0, 10, 10))
    for task in before:
        task.cancel()
    await asyncio.wait(before)
    assert len(await analyzer.embed_region(data, (0, 0, 10, 10))) == 1
