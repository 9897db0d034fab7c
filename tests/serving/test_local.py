"""Models run in the process, alike on every engine that can."""

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from backend.errors import ConfigurationError
from backend.serving.engines import open_local_server
from backend.serving.local import LocalServer, ServedModel
from backend.serving.models import Detector, Embedder
from backend.settings import InferenceEngine, Settings
from backend.vision.letterbox import letterbox
from tests.photos import draw_photo
from tests.serving.bfloat16 import needs_bf16
from tests.serving.tiny_models import (
    Port,
    adding_model,
    config_text,
    constant_model,
    passing_model,
    write_model,
)

CROPS: Port = ("crops", "UINT8", (2, 2, 3))
EMBEDDINGS: Port = ("embeddings", "FP32", (12,))
CONFIG = config_text("tiny", [CROPS], [EMBEDDINGS], max_batch_size=4)


@pytest.fixture(
    params=["onnxruntime", "openvino-f32", pytest.param("openvino-bf16", marks=needs_bf16)]
)
def engine(request: pytest.FixtureRequest) -> InferenceEngine:
    """Each engine that this processor can run."""
    name: InferenceEngine = request.param
    return name


@pytest.fixture
async def server(tmp_path: Path, engine: InferenceEngine) -> AsyncIterator[LocalServer]:
    """A server over an empty repository, the test's own folder."""
    opened = await open_local_server(engine, tmp_path)
    yield opened
    await opened.close()


async def _load(server: LocalServer, tmp_path: Path, max_batch_size: int = 4) -> ServedModel:
    config = config_text("tiny", [CROPS], [EMBEDDINGS], max_batch_size=max_batch_size)
    write_model(tmp_path, "tiny", adding_model(), config)
    return await server.load("tiny")


def _batch(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 2, 2, 3), np.uint8)


def _expected(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
    return batch.reshape(len(batch), 12).astype(np.float32) + 1


# Loading


async def test_a_model_is_loaded_with_its_description_and_its_files_hash(
    server: LocalServer, tmp_path: Path
) -> None:
    model = await _load(server, tmp_path)
    assert model.spec.name == "tiny"
    assert model.spec.max_batch_size == 4
    assert model.spec.sha256 == hashlib.sha256(adding_model()).hexdigest()


async def test_a_missing_model_is_named_with_what_to_do(
    server: LocalServer, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"no model 'tiny'.*1/model\.onnx.*export_models"):
        await server.load("tiny")


async def test_a_model_without_a_configuration_is_refused(
    server: LocalServer, tmp_path: Path
) -> None:
    write_model(tmp_path, "tiny", adding_model(), CONFIG)
    (tmp_path / "tiny" / "config.pbtxt").unlink()
    with pytest.raises(ConfigurationError, match=r"config\.pbtxt: No such file"):
        await server.load("tiny")


async def test_a_folder_in_the_models_place_is_refused(server: LocalServer, tmp_path: Path) -> None:
    (tmp_path / "tiny" / "1" / "model.onnx").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=r"model 'tiny': .*model\.onnx: Is a directory"):
        await server.load("tiny")


@pytest.mark.parametrize("damage", ["empty", "text", "cut off"])
async def test_a_damaged_onnx_file_is_refused(
    server: LocalServer, tmp_path: Path, damage: str
) -> None:
    whole = adding_model()
    content = {"empty": b"", "text": b"no model\n" * 99, "cut off": whole[: len(whole) // 2]}
    write_model(tmp_path, "tiny", content[damage], CONFIG)
    with pytest.raises(ConfigurationError, match=r"model 'tiny': .*model\.onnx does not load"):
        await server.load("tiny")


async def test_a_configuration_of_another_name_is_refused(
    server: LocalServer, tmp_path: Path
) -> None:
    write_model(tmp_path, "tiny", adding_model(), config_text("other", [CROPS], [EMBEDDINGS]))
    with pytest.raises(ConfigurationError, match="names the model 'other', not 'tiny'"):
        await server.load("tiny")


async def test_an_onnx_file_other_than_the_one_that_its_configuration_states_is_refused(
    server: LocalServer, tmp_path: Path
) -> None:
    write_model(tmp_path, "tiny", adding_model(), CONFIG, said="0" * 64)
    with pytest.raises(
        ConfigurationError, match=r"not the ONNX file.* not 0{12}….*export_models tiny$"
    ):
        await server.load("tiny")


async def test_a_sound_model_with_other_weights_is_noticed(
    server: LocalServer, tmp_path: Path
) -> None:
    """Nothing else would tell: its inputs, outputs and sizes are right."""
    sha256 = hashlib.sha256(adding_model(added=1.0)).hexdigest()
    folder = write_model(tmp_path, "tiny", adding_model(added=1.5), CONFIG, said=sha256)
    with pytest.raises(ConfigurationError, match="exchanged or damaged"):
        await server.load("tiny")
    (folder / "1" / "model.onnx").write_bytes(adding_model(added=1.0))
    assert (await server.load("tiny")).spec.sha256 == sha256


async def test_a_sum_may_be_stated_in_capital_letters(server: LocalServer, tmp_path: Path) -> None:
    said = hashlib.sha256(adding_model()).hexdigest().upper()
    write_model(tmp_path, "tiny", adding_model(), CONFIG, said=said)
    assert (await server.load("tiny")).spec.name == "tiny"


async def test_a_configuration_that_states_no_onnx_file_is_refused_with_the_line_that_it_lacks(
    server: LocalServer, tmp_path: Path
) -> None:
    folder = write_model(tmp_path, "tiny", adding_model(), CONFIG, said="")
    with pytest.raises(
        ConfigurationError, match=r"cannot be checked.*add to config\.pbtxt"
    ) as error:
        await server.load("tiny")
    line = str(error.value).partition("add to config.pbtxt: ")[2]
    (folder / "config.pbtxt").write_text(f"{CONFIG}{line}\n", "utf-8")
    assert (await server.load("tiny")).spec.name == "tiny"


async def test_weights_in_another_file_are_never_read(
    server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No sum covers them. ONNX Runtime would look for them in the folder that the service is in."""
    folder = write_model(tmp_path, "tiny", b"", CONFIG)
    model = folder / "1" / "model.onnx"
    onnx.save(
        onnx.load_from_string(adding_model()),
        model,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=1,
    )
    assert (folder / "1" / "weights.bin").is_file()
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    line = f'parameters {{ key: "sha256" value {{ string_value: "{sha256}" }} }}'
    (folder / "config.pbtxt").write_text(f"{CONFIG}{line}\n", "utf-8")
    monkeypatch.chdir(folder / "1")
    with pytest.raises(ConfigurationError, match=r"does not load.*no SHA-256 covers them"):
        await server.load("tiny")


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([("images", "UINT8", (2, 2, 3))], [EMBEDDINGS], r"names the inputs \['images'\].*crops"),
        ([CROPS, ("more", "UINT8", (1,))], [EMBEDDINGS], r"names the inputs \['crops', 'more'\]"),
        ([CROPS], [("vectors", "FP32", (12,))], r"the outputs \['vectors'\].*\['embeddings'\]"),
        ([CROPS], [EMBEDDINGS, ("more", "FP32", (1,))], r"outputs \['embeddings', 'more'\]"),
        ([CROPS], [], r"names the outputs \[\].*\['embeddings'\]"),
        ([("crops", "FP32", (2, 2, 3))], [EMBEDDINGS], r"'crops' is FP32 .*UINT8"),
        ([("crops", "UINT8", (4, 4, 3))], [EMBEDDINGS], r"\[4, 4, 3\].*\[2, 2, 3\]"),
        ([("crops", "UINT8", (12,))], [EMBEDDINGS], r"input 'crops' is UINT8 \[12\]"),
        ([CROPS], [("embeddings", "INT32", (12,))], r"is INT32 \[12\].*FP32 \[12\]"),
        ([CROPS], [("embeddings", "FP32", (13,))], r"is FP32 \[13\].*FP32 \[12\]"),
        ([CROPS], [("embeddings", "BF16", (12,))], r"'embeddings' is BF16"),
    ],
)
async def test_a_configuration_that_does_not_describe_its_onnx_file_is_refused(
    server: LocalServer, tmp_path: Path, inputs: list[Port], outputs: list[Port], message: str
) -> None:
    write_model(tmp_path, "tiny", adding_model(), config_text("tiny", inputs, outputs))
    with pytest.raises(ConfigurationError, match=message):
        await server.load("tiny")


async def test_a_model_without_an_input_is_refused(server: LocalServer, tmp_path: Path) -> None:
    config = config_text("tiny", [], [("embeddings", "FP32", (2,))])
    write_model(tmp_path, "tiny", constant_model(), config)
    with pytest.raises(ConfigurationError, match="tiny"):
        await server.load("tiny")


async def test_a_model_of_a_fixed_batch_is_refused_where_its_configuration_promises_more(
    server: LocalServer, tmp_path: Path
) -> None:
    write_model(tmp_path, "tiny", adding_model(batch=1), CONFIG)
    with pytest.raises(ConfigurationError, match="tiny"):
        await server.load("tiny")


async def test_a_size_that_the_onnx_file_leaves_open_is_the_configurations(
    server: LocalServer, tmp_path: Path
) -> None:
    wide: Port = ("crops", "UINT8", (2, 2, 3))
    open_input = passing_model([("crops", "UINT8", ("side", "side", 3))], [EMBEDDINGS])  # type: ignore[list-item]
    write_model(tmp_path, "tiny", open_input, config_text("tiny", [wide], [EMBEDDINGS]))
    assert (await server.load("tiny")).spec.inputs[0].dims == (2, 2, 3)


# Running


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 11])
async def test_a_batch_of_any_size_equals_its_items_one_by_one(
    server: LocalServer, tmp_path: Path, count: int
) -> None:
    model = await _load(server, tmp_path, max_batch_size=4)
    batch = _batch(count)
    outputs = await model.infer(batch)
    assert list(outputs) == ["embeddings"]
    assert (outputs["embeddings"] == _expected(batch)).all()
    one_by_one = [(await model.infer(batch[i : i + 1]))["embeddings"] for i in range(count)]
    assert (outputs["embeddings"] == np.concatenate(one_by_one)).all()


async def test_no_request_to_the_network_is_larger_than_the_largest_batch(
    server: LocalServer, tmp_path: Path
) -> None:
    # Every output is [1, …] here, whatever the batch: their number tells the requests.
    model_file = passing_model([CROPS], [EMBEDDINGS])
    write_model(tmp_path, "tiny", model_file, CONFIG)
    model = await server.load("tiny")
    for count, requests in ((4, 1), (5, 2), (9, 3)):
        assert len((await model.infer(_batch(count)))["embeddings"]) == requests


async def test_many_requests_at_once_get_each_its_own_answer(
    server: LocalServer, tmp_path: Path
) -> None:
    model = await _load(server, tmp_path)
    batches = [_batch(1 + seed % 9, seed) for seed in range(200)]
    answers = await asyncio.gather(*map(model.infer, batches))
    for batch, answer in zip(batches, answers, strict=True):
        assert (answer["embeddings"] == _expected(batch)).all()


async def test_two_models_run_side_by_side(server: LocalServer, tmp_path: Path) -> None:
    for name, added in (("one", 1.0), ("two", 2.0)):
        config = config_text(name, [CROPS], [EMBEDDINGS])
        write_model(tmp_path, name, adding_model(added=added), config)
    one, two = await asyncio.gather(server.load("one"), server.load("two"))
    batch = _batch(6)
    first, second = await asyncio.gather(one.infer(batch), two.infer(batch))
    assert (second["embeddings"] - first["embeddings"] == 1).all()


async def test_a_batch_of_the_wrong_shape_is_an_error_and_spoils_nothing(
    server: LocalServer, tmp_path: Path
) -> None:
    model = await _load(server, tmp_path)
    with pytest.raises(Exception, match=r"crops|input"):
        await model.infer(np.zeros((1, 3, 3, 3), np.uint8))
    batch = _batch(2)
    assert ((await model.infer(batch))["embeddings"] == _expected(batch)).all()


async def test_closing_ends_every_thread(tmp_path: Path, engine: InferenceEngine) -> None:
    before = set(threading.enumerate())
    server = await open_local_server(engine, tmp_path)
    model = await _load(server, tmp_path)
    await asyncio.gather(*(model.infer(_batch(9)) for _ in range(20)))
    started = {thread.name for thread in set(threading.enumerate()) - before}
    assert any(name.startswith("network") for name in started)
    await server.close()
    left = [thread.name for thread in set(threading.enumerate()) - before]
    assert [name for name in left if name.startswith("network")] == []


# The committed models


async def test_the_committed_detector_keeps_its_contract_on_a_photo(
    engine: InferenceEngine,
) -> None:
    server = await open_local_server(engine, Settings().model_repository)
    try:
        detector = Detector(await server.load("yolov3-small"))
        square, _ = letterbox(draw_photo(1), detector.size)
        other, _ = letterbox(draw_photo(2), detector.size)
        both = await detector.detect(np.stack([square, other]))
        [alone] = await detector.detect(square[np.newaxis])
    finally:
        await server.close()
    assert len(detector.labels) == 20
    for candidates in both:
        assert candidates.boxes.shape == (len(candidates.scores), 4)
        assert (candidates.boxes[:, 2:] >= candidates.boxes[:, :2]).all()
        assert ((candidates.scores >= 0) & (candidates.scores <= 1)).all()
        assert (np.diff(candidates.scores) <= 0).all()
        assert set(candidates.labels.tolist()) <= set(range(20))
    np.testing.assert_allclose(alone.scores, both[0].scores, atol=1e-5)


async def test_the_committed_embedder_gives_unit_vectors_that_tell_crops_apart(
    engine: InferenceEngine,
) -> None:
    server = await open_local_server(engine, Settings().model_repository)
    try:
        embedder = Embedder(await server.load("resnet50-small"))
        crops = np.stack(
            [draw_photo(seed, width=embedder.size, height=embedder.size) for seed in (1, 2, 1)]
        )
        vectors = await embedder.embed(crops)
    finally:
        await server.close()
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, embedder.dimension)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-6)
    assert float(((vectors[0] - vectors[1]) ** 2).sum()) > 1e-3
