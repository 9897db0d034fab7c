"""The models that the service would use, loaded as it loads them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal

import cv2

from backend.serving.engines import open_local_server
from backend.serving.models import Embedder, Model, default_pair
from backend.settings import InferenceEngine, Settings
from backend.vision.crops import crop_objects
from benchmarks.voc import Cut

__all__ = ["cut_for", "model_in_use"]


@asynccontextmanager
async def model_in_use(
    kind: Literal["detector", "embedder"], engine: InferenceEngine = "onnxruntime"
) -> AsyncIterator[Model]:
    """The model that MODEL_REPOSITORY, DETECTOR_MODEL and EMBEDDER_MODEL choose.

    Raises:
        ConfigurationError: there is no such model, or it is damaged; or no such engine here.
    """
    cv2.setNumThreads(1)  # photos already run side by side, as in the service
    settings = Settings.load()
    detector, embedder = default_pair(settings.model_repository)
    names = {
        "detector": settings.detector_model or detector,
        "embedder": settings.embedder_model or embedder,
    }
    server = await open_local_server(engine, settings.model_repository)
    try:
        yield await server.load(names[kind])
    finally:
        await server.close()


def cut_for(embedder: Embedder) -> Cut:
    """Cuts objects out as the service does for this embedder."""
    return partial(
        crop_objects,
        size=embedder.size,
        geometry=embedder.crop_geometry,
        margin=embedder.crop_margin,
    )
