"""How an embedder's crops are cut is its own, from its config.pbtxt to the collection it fills."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from backend.app import open_services
from backend.errors import EmbedderMismatch
from backend.settings import Settings
from backend.vision.crops import CropGeometry, crop_objects
from backend.vision.decode import decode
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
