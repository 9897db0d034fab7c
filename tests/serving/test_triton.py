"""Models that Triton runs. The server is a real one."""

import asyncio
import ipaddress
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from numpy.typing import NDArray

from backend.deadlines import deadline
from backend.errors import ConfigurationError, EngineUnavailable, ServiceError
from backend.serving.models import Detector, Embedder
from backend.serving.onnx import OnnxServer
from backend.serving.triton import TritonModel, TritonServer
from tests.engines.process import free_port
from tests.engines.triton import REPOSITORY, TritonProcess
from tests.serving.tiny_models import Port, adding_model, config_text, passing_model, write_model

DETECTOR, EMBEDDER = "yolov3-small", "resnet50-small"
TIMEOUT = 30
CROPS: Port = ("crops", "UINT8", (2, 2, 3))
EMBEDDINGS: Port = ("embeddings", "FP32", (12,))


def put_model(
    repository: Path, name: str, content: bytes, *ports: Port, said: str | None = None
) -> None:
    """Puts a model into a repository; `said` as for `write_model`."""
    write_model(repository, name, content, config_text(name, ports[:1], ports[1:]), said=said)


def pixels(model: TritonModel, count: int, seed: int = 0) -> NDArray[np.uint8]:
    """A batch of noise that the model takes."""
    shape = (count, *model.spec.inputs[0].dims)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., TritonServer]]:
    """Connects to addresses; closes the connections at the end."""
    opened: list[TritonServer] = []

    def connect(*urls: str, timeout: float = TIMEOUT, **options: Any) -> TritonServer:
        opened.append(TritonServer(urls, timeout=timeout, **options))
        return opened[-1]

    yield connect
    for server in opened:
        await server.close()


@pytest.fixture
async def server(
    triton_server: TritonProcess, connect: Callable[..., TritonServer]
) -> TritonServer:
    """A connection to the Triton that tests share."""
    return connect(triton_server.address)


@pytest.fixture
def start_triton(tmp_path: Path) -> Iterator[Callable[..., TritonProcess]]:
    """Starts a Triton of the test's own, which may end in any way."""
    processes: list[TritonProcess] = []

    def start(**options: Any) -> TritonProcess:
        processes.append(TritonProcess(tmp_path / "triton", **options))
        processes[-1].start()
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.remove()


@pytest.fixture
def triton(start_triton: Callable[..., TritonProcess]) -> TritonProcess:
    """A Triton of the test's own, with the small embedder."""
    return start_triton(models=[EMBEDDER])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    """A Triton over a repository that tests fill; nothing is loaded at its start."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "repository").mkdir()
    process = TritonProcess(folder / "triton", repository=folder / "repository", models=[])
    process.start()
    yield process
    process.remove()


async def recovery_seconds(work: Callable[[], Awaitable[object]], limit: float = 20) -> float:
    """Seconds until the work succeeds."""
    start = time.monotonic()
    while True:
        try:
            await work()
        except EngineUnavailable:
            assert time.monotonic() - start < limit
            await asyncio.sleep(0.05)
        else:
            return time.monotonic() - start


# Answers


@pytest.mark.parametrize("name", [DETECTOR, EMBEDDER])
async def test_answers_are_those_of_the_same_model_in_the_process(
    server: TritonServer, name: str
) -> None:
    embedded = OnnxServer(REPOSITORY)
    model, same = await server.load(name), await embedded.load(name)
    assert model.spec == same.spec
    for count in (1, 5, model.spec.max_batch_size + 8):
        batch = pixels(model, count, seed=count)
        expected, actual = await same.infer(batch), await model.infer(batch)
        assert list(actual) == list(expected)
        for output, array in expected.items():
            assert actual[output].dtype == array.dtype
            np.testing.assert_array_equal(actual[output], array, strict=True)
    await embedded.close()


async def test_the_models_fulfil_the_contract(server: TritonServer) -> None:
    detector = Detector(await server.load(DETECTOR))
    embedder = Embedder(await server.load(EMBEDDER))
    assert (detector.size, len(detector.labels)) == (256, 20)
    assert (embedder.size, embedder.dimension, embedder.crop_margin) == (128, 512, 0.05)
    [candidates] = await detector.detect(np.zeros((1, 256, 256, 3), np.uint8))
    assert candidates.boxes.shape == (300, 4)
    vectors = await embedder.embed(np.zeros((2, 128, 128, 3), np.uint8))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


async def test_a_batch_may_be_any_view_of_an_array(server: TritonServer) -> None:
    model = await server.load(EMBEDDER)
    mirrored = pixels(model, 4)[::2, :, ::-1]
    expected = await model.infer(np.ascontiguousarray(mirrored))
    np.testing.assert_array_equal(
        (await model.infer(mirrored))["embeddings"], expected["embeddings"]
    )


async def test_requests_in_flight_together_are_run_in_batches(
    server: TritonServer, triton_server: TritonProcess
) -> None:
    model = await server.load(EMBEDDER)
    batches = [pixels(model, 1, seed) for seed in range(60)]
    alone = (await model.infer(batches[7]))["embeddings"]
    before = triton_server.executions(EMBEDDER)
    answers = await asyncio.gather(*(model.infer(batch) for batch in batches))
    after = triton_server.executions(EMBEDDER)
    assert after[0] - before[0] == 60
    assert after[1] - before[1] < 40
    np.testing.assert_array_equal(answers[7]["embeddings"], alone)


async def test_a_wrong_request_is_no_outage(server: TritonServer) -> None:
    model = await server.load(EMBEDDER)
    with pytest.raises(ServiceError, match=r"takes 'crops' of \[128, 128, 3\]") as error:
        await model.infer(np.zeros((1, 4, 4, 3), np.uint8))
    assert not isinstance(error.value, EngineUnavailable)


# Loading


async def test_a_missing_model_is_named_with_those_that_there_are(server: TritonServer) -> None:
    with pytest.raises(
        ConfigurationError, match=r"\(TRITON_URL\) has no model 'nope'.*holds .*resnet50-small"
    ):
        await server.load("nope")


async def test_a_model_that_triton_cannot_load_is_refused_with_its_reason(
    connect: Callable[..., TritonServer], tiny: TritonProcess
) -> None:
    put_model(tiny.repository, "damaged", b"no model", CROPS, EMBEDDINGS)
    with pytest.raises(ConfigurationError, match=r"cannot load the model 'damaged': .+"):
        await connect(tiny.address).load("damaged")


async def test_a_model_that_does_not_say_which_file_it_is_is_refused(
    connect: Callable[..., TritonServer], tiny: TritonProcess
) -> None:
    put_model(tiny.repository, "old", adding_model(), CROPS, EMBEDDINGS, said="")
    with pytest.raises(ConfigurationError, match=r"'old'.*no parameter 'sha256'.*export_models"):
        await connect(tiny.address).load("old")


@pytest.mark.parametrize(
    ("name", "kind", "ports", "message"),
    [
        ("wide", Embedder, [("crops", "UINT8", (2, 4, 3)), EMBEDDINGS], r"\[2, 4, 3\]"),
        ("floats", Embedder, [("crops", "FP32", (2, 2, 3)), EMBEDDINGS], "not FP32"),
        ("matrix", Embedder, [CROPS, ("embeddings", "FP32", (3, 4))], r"not FP32 \[3, 4\]"),
        ("vectors", Embedder, [CROPS, ("vectors", "FP32", (12,))], "no output 'embeddings'"),
        ("embedder", Detector, [CROPS, EMBEDDINGS], "input must be 'images' alone"),
        (
            "unlabelled",
            Detector,
            [
                ("images", "UINT8", (8, 8, 3)),
                ("boxes", "FP32", (5, 4)),
                ("scores", "FP32", (5,)),
                ("labels", "INT32", (5,)),
            ],
            "no parameter 'labels'",
        ),
    ],
)
async def test_a_model_of_another_contract_is_refused(
    connect: Callable[..., TritonServer],
    tiny: TritonProcess,
    name: str,
    kind: type[Detector] | type[Embedder],
    ports: list[Port],
    message: str,
) -> None:
    put_model(tiny.repository, name, passing_model(ports[:1], ports[1:]), *ports)
    model = await connect(tiny.address).load(name)
    with pytest.raises(ConfigurationError, match=f"model {name}.*{message}"):
        kind(model)


async def test_an_answer_that_is_not_what_the_configuration_says_is_an_error(
    connect: Callable[..., TritonServer], tiny: TritonProcess
) -> None:
    shorter: Port = ("embeddings", "FP32", (11,))
    content = passing_model([CROPS], [shorter])
    put_model(tiny.repository, "lying", content, CROPS, EMBEDDINGS)
    model = await connect(tiny.address).load("lying")
    with pytest.raises(ServiceError, match=r"'lying' answers 'embeddings' as FP32 \[1, 11\]"):
        await model.infer(pixels(model, 1))


async def test_a_triton_that_loads_models_by_itself_is_taken_as_it_is(
    connect: Callable[..., TritonServer],
    start_triton: Callable[..., TritonProcess],
    tmp_path: Path,
) -> None:
    put_model(tmp_path / "repository", "tiny", adding_model(), CROPS, EMBEDDINGS)
    process = start_triton(repository=tmp_path / "repository", control_mode="none")
    server = connect(process.address)
    model = await server.load("tiny")
    np.testing.assert_array_equal(
        (await model.infer(np.ones((6, 2, 2, 3), np.uint8)))["embeddings"], np.full((6, 12), 2.0)
    )
    with pytest.raises(ConfigurationError, match="has no model 'nope'; its repository holds tiny"):
        await server.load("nope")


@pytest.mark.parametrize("url", ["triton", "http://triton:8001", "triton:", "triton:grpc", ":1"])
async def test_an_address_that_cannot_be_one_is_refused(
    connect: Callable[..., TritonServer], url: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"TRITON_URL={url}: it must be the HOST:PORT"):
        connect(url)


async def test_no_address_at_all_is_refused(connect: Callable[..., TritonServer]) -> None:
    with pytest.raises(ConfigurationError, match="TRITON_URL is empty"):
        connect("", " ")


async def test_a_server_that_is_no_triton_is_refused(
    connect: Callable[..., TritonServer],
) -> None:
    other = grpc.aio.server()
    port = other.add_insecure_port("127.0.0.1:0")
    await other.start()
    with pytest.raises(ConfigurationError, match=r"TRITON_URL.* not answer as Triton.*UNIMPL"):
        await connect(f"127.0.0.1:{port}").load(EMBEDDER)
    await other.stop(None)


async def test_a_port_that_speaks_http_is_told_from_grpcs(
    connect: Callable[..., TritonServer],
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    http = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = http.sockets[0].getsockname()[1]
    with pytest.raises(EngineUnavailable, match="no gRPC; it has a port of its own, 8001"):
        await connect(f"127.0.0.1:{port}").load(EMBEDDER)
    http.close()


# Outages


async def test_a_triton_that_is_not_there_yet_is_unavailable_and_soon_said_to_be(
    connect: Callable[..., TritonServer],
) -> None:
    server = connect(f"127.0.0.1:{free_port()}")
    start = time.monotonic()
    with pytest.raises(EngineUnavailable, match=r"Triton \(TRITON_URL\) does not answer") as error:
        await server.load(EMBEDDER)
    assert error.value.engine == "Triton"
    assert time.monotonic() - start < 5


async def test_a_triton_that_was_killed_is_in_use_again_as_soon_as_it_is_back(
    connect: Callable[..., TritonServer], triton: TritonProcess
) -> None:
    model = await connect(triton.address).load(EMBEDDER)
    batch = pixels(model, 2)
    expected = (await model.infer(batch))["embeddings"]
    in_flight = asyncio.gather(
        *(model.infer(pixels(model, 64)) for _ in range(4)), return_exceptions=True
    )
    await asyncio.sleep(0.1)
    await asyncio.to_thread(triton.kill)
    start = time.monotonic()
    assert {type(result) for result in await in_flight} == {EngineUnavailable}
    assert time.monotonic() - start < 6
    await asyncio.to_thread(triton.start)
    assert await recovery_seconds(lambda: model.infer(batch)) < 2.5
    np.testing.assert_array_equal((await model.infer(batch))["embeddings"], expected)


async def test_a_frozen_triton_costs_a_call_its_deadline_and_no_more(
    connect: Callable[..., TritonServer], triton: TritonProcess
) -> None:
    model = await connect(triton.address, timeout=1).load(EMBEDDER)
    batch = pixels(model, 1)
    await model.infer(batch)
    triton.freeze()
    start = time.monotonic()
    with pytest.raises(EngineUnavailable, match="does not answer"):
        await model.infer(batch)
    assert 0.9 < time.monotonic() - start < 1.5
    start = time.monotonic()
    with deadline(0.3), pytest.raises(EngineUnavailable, match="does not answer"):
        await model.infer(batch)
    assert time.monotonic() - start < 0.8
    triton.thaw()
    assert await recovery_seconds(lambda: model.infer(batch)) < 2.5


async def test_a_model_whose_process_dies_is_started_again_and_not_without_end(
    connect: Callable[..., TritonServer], triton: TritonProcess
) -> None:
    model = await connect(triton.address).load(EMBEDDER)
    batch = pixels(model, 2)
    expected = (await model.infer(batch))["embeddings"]
    triton.kill_model_process(EMBEDDER)
    answers = await asyncio.gather(*(model.infer(batch) for _ in range(4)), return_exceptions=True)
    if triton.start_if_ended():
        # Triton now and then ends when a process of its has been killed, instead of going on.
        triton.wait_until_ready(60)
        np.testing.assert_array_equal((await model.infer(batch))["embeddings"], expected)
        return
    for answer in answers:
        assert not isinstance(answer, BaseException), answer
        np.testing.assert_array_equal(answer["embeddings"], expected)
    triton.kill_model_process(EMBEDDER)
    with pytest.raises(EngineUnavailable) as refused:
        await model.infer(batch)
    assert triton.start_if_ended() or "again and again" in str(refused.value)


async def test_a_model_that_was_unloaded_is_loaded_again(
    connect: Callable[..., TritonServer], triton: TritonProcess
) -> None:
    model = await connect(triton.address).load(EMBEDDER)
    batch = pixels(model, 1)
    expected = (await model.infer(batch))["embeddings"]
    triton.unload(EMBEDDER)
    np.testing.assert_array_equal((await model.infer(batch))["embeddings"], expected)


async def test_another_model_under_the_same_name_is_not_used(
    connect: Callable[..., TritonServer], tiny: TritonProcess
) -> None:
    put_model(tiny.repository, "changing", adding_model(), CROPS, EMBEDDINGS)
    model = await connect(tiny.address).load("changing")
    batch = pixels(model, 1)
    await model.infer(batch)
    shutil.rmtree(tiny.repository / "changing")
    put_model(tiny.repository, "changing", adding_model(added=2.0), CROPS, EMBEDDINGS)
    tiny.unload("changing")
    with pytest.raises(EngineUnavailable, match=r"another model 'changing'.*restart the service"):
        await model.infer(batch)


async def test_what_is_cancelled_is_not_run(
    connect: Callable[..., TritonServer], triton: TritonProcess
) -> None:
    server = connect(triton.address)
    model = await server.load(EMBEDDER)
    batch = pixels(model, 1)
    await model.infer(batch)
    before, _ = triton.executions(EMBEDDER)
    many = [asyncio.create_task(model.infer(pixels(model, 64))) for _ in range(40)]
    await asyncio.sleep(0.3)
    for task in many:
        task.cancel()
    results = await asyncio.gather(*many, return_exceptions=True)
    assert any(isinstance(result, asyncio.CancelledError) for result in results)
    await model.infer(batch)
    await asyncio.sleep(0.3)
    after, _ = triton.executions(EMBEDDER)
    assert after - before < 15 * 32


async def test_closing_cancels_what_is_in_flight(
    connect: Callable[..., TritonServer], triton: TritonProcess
) -> None:
    server = connect(triton.address)
    model = await server.load(EMBEDDER)
    running = asyncio.create_task(model.infer(pixels(model, 64)))
    await asyncio.sleep(0.05)
    await server.close()
    with pytest.raises((asyncio.CancelledError, EngineUnavailable)):
        await running


# Several servers


async def test_a_dead_server_is_passed_over(
    connect: Callable[..., TritonServer], triton: TritonProcess
) -> None:
    model = await connect(f"127.0.0.1:{free_port()}", triton.address).load(EMBEDDER)
    batch = pixels(model, 1)
    start = time.monotonic()
    for _ in range(10):
        await model.infer(batch)
    assert time.monotonic() - start < 3


async def test_servers_take_turns_and_stand_in_for_one_that_is_killed(
    connect: Callable[..., TritonServer], triton: TritonProcess, triton_server: TritonProcess
) -> None:
    model = await connect(triton.address, triton_server.address).load(EMBEDDER)
    batch = pixels(model, 1)
    for _ in range(3):
        await model.infer(batch)
    before = [process.executions(EMBEDDER)[0] for process in (triton, triton_server)]
    for _ in range(10):
        await model.infer(batch)
    after = [process.executions(EMBEDDER)[0] for process in (triton, triton_server)]
    assert [now - then for now, then in zip(after, before, strict=True)] == [5, 5]
    in_flight = asyncio.gather(*(model.infer(pixels(model, 32)) for _ in range(8)))
    await asyncio.sleep(0.1)
    await asyncio.to_thread(triton.kill)
    assert len(await in_flight) == 8


async def test_a_frozen_server_is_passed_over_after_one_call(
    connect: Callable[..., TritonServer], triton: TritonProcess, triton_server: TritonProcess
) -> None:
    model = await connect(triton.address, triton_server.address, timeout=1).load(EMBEDDER)
    batch = pixels(model, 1)
    for _ in range(4):
        await model.infer(batch)
    triton.freeze()
    failed = 0
    for _ in range(12):
        try:
            await model.infer(batch)
        except EngineUnavailable:
            failed += 1
    assert failed == 1
    assert (await connect(triton.address, triton_server.address, timeout=1).load(EMBEDDER)).spec


async def test_servers_with_different_models_are_refused(
    connect: Callable[..., TritonServer], tiny: TritonProcess, triton_server: TritonProcess
) -> None:
    shutil.copytree(REPOSITORY / EMBEDDER, tiny.repository / EMBEDDER)
    for config in ("config.pbtxt", "configs/cpu.pbtxt"):
        path = tiny.repository / EMBEDDER / config
        path.write_text(path.read_text().replace("a5b8", "beef"))
    with pytest.raises(ConfigurationError, match=r"hold different models 'resnet50-small'"):
        await connect(triton_server.address, tiny.address).load(EMBEDDER)


# TLS


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "triton")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir()
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


async def test_tls_is_spoken_with_whoever_the_file_vouches_for(
    connect: Callable[..., TritonServer],
    start_triton: Callable[..., TritonProcess],
    tmp_path: Path,
) -> None:
    certificate = write_certificate(tmp_path / "triton's")
    others, _ = write_certificate(tmp_path / "another's")
    put_model(tmp_path / "repository", "tiny", adding_model(), CROPS, EMBEDDINGS)
    process = start_triton(
        repository=tmp_path / "repository", models=["tiny"], certificate=certificate
    )
    model = await connect(process.address, tls=True, ca=certificate[0]).load("tiny")
    assert len((await model.infer(pixels(model, 3)))["embeddings"]) == 3
    with pytest.raises(EngineUnavailable, match="do not agree on TLS, see TRITON_TLS"):
        await connect(process.address, tls=True, ca=others).load("tiny")
    with pytest.raises(EngineUnavailable):
        await connect(process.address, timeout=5).load("tiny")


async def test_a_file_without_certificates_is_refused(
    connect: Callable[..., TritonServer], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"TRITON_CA=.*missing\.pem: No such file"):
        connect("127.0.0.1:1", tls=True, ca=tmp_path / "missing.pem")
    (tmp_path / "text.pem").write_text("no certificate")
    with pytest.raises(ConfigurationError, match=r"TRITON_CA=.*text\.pem holds no certificates"):
        connect("127.0.0.1:1", tls=True, ca=tmp_path / "text.pem")
