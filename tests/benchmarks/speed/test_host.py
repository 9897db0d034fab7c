"""What a photo costs besides the networks, and the models that stand in for them."""

from pathlib import Path

import numpy as np
import pytest

from backend.serving.models import Detector, Embedder
from backend.serving.onnx import OnnxServer
from backend.vision.detections import select_detections
from backend.vision.letterbox import letterbox
from benchmarks.speed import host
from benchmarks.speed.bench import Bench
from benchmarks.speed.instant import write_instant_models


async def test_instant_models_find_the_objects_that_they_are_to_in_every_photo(
    tmp_path: Path,
) -> None:
    write_instant_models(tmp_path / "models", objects=3)
    server = OnnxServer(tmp_path / "models")
    detector = Detector(await server.load("yolov3-small"))
    embedder = Embedder(await server.load("resnet50-small"))
    square, placement = letterbox(np.zeros((200, 500, 3), np.uint8), detector.size)
    for candidates in await detector.detect(np.stack([square, square])):
        found = select_detections(
            candidates.boxes,
            candidates.scores,
            candidates.labels,
            placement=placement,
            score_threshold=detector.score_threshold,
            nms_threshold=detector.nms_threshold,
        )
        assert len(found) == 3
    vectors = await embedder.embed(np.zeros((5, embedder.size, embedder.size, 3), np.uint8))
    assert vectors.shape == (5, embedder.dimension)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1)
    await server.close()


def test_a_photo_s_cost_stands_beside_that_of_its_decoding(bench: Bench) -> None:
    report = host.measure(bench)
    assert report["photos"] == 20
    assert report["cpu_per_decode"] > 1
    assert 0 < report["share_of_cores"] <= 1
    assert report["cpu_ms"] / report["decode_ms"] == pytest.approx(
        report["cpu_per_decode"], rel=0.9
    )
    assert list(report["cpu_ms_by"]) == ["event_loop", "threads", "decoders", "vectors"]
    assert report["rounds"] == 2
    assert len(host.rows(report)) == 2
