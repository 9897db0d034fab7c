"""The small pair of models in this process, without any store."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from backend.analysis import PhotoAnalyzer
from backend.decoding.pool import Decoders
from backend.metrics import Metrics
from backend.serving.models import Detector, Embedder
from backend.serving.onnx import OnnxServer
from backend.settings import Settings
from tests.service import SMALL_PAIR


@asynccontextmanager
async def open_analyzer(
    figures: Metrics, *, max_pixels: int = 10**6, remote: bool = False
) -> AsyncIterator[PhotoAnalyzer]:
    """An analyzer; what it does is counted in `figures`. `remote`: as of models of a server."""
    server = OnnxServer(Settings().model_repository)
    decoders = Decoders(max_pixels=max_pixels)
    analyzer = PhotoAnalyzer(
        Detector(await server.load(SMALL_PAIR["DETECTOR_MODEL"])),
        Embedder(await server.load(SMALL_PAIR["EMBEDDER_MODEL"])),
        figures,
        engine_name=server.engine_name,
        whole_image="fallback",
        decoders=decoders,
        workers=None if remote else server.workers,
    )
    yield analyzer
    await analyzer.close()
    decoders.close()
    await server.close()
