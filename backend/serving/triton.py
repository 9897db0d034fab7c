"""Runs the models of Triton inference servers, over gRPC.

Inference may be repeated without harm, so a call that a server lost is made again, by another
server where there are several. Each server has a channel of its own and takes its turn: what is
wrong with one, a model that it has not loaded or whose process has died, is mended there.
"""

import asyncio
import itertools
import math
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

import grpc
import numpy as np
import structlog
from numpy.typing import NDArray
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from backend.deadlines import deadline, time_left
from backend.errors import ConfigurationError, EngineUnavailable, ServiceError
from backend.serving.gathering import Gatherer, Outputs, Spare
from backend.serving.models import SHA256_PARAMETER, ModelSpec, spec_of

__all__ = ["TritonModel", "TritonServer"]

_log = structlog.get_logger(__name__)

_RETRY_SECONDS: Final = 3.0
"""For a server that is lost to come back: the callers' callers wait for longer outages."""
_CHECK_SECONDS: Final = 5.0
"""How long a server is trusted to hold the same model still. Looking costs a millisecond."""
_SPARE_CALLS: Final = 2
"""Of a server, beyond those that its models run: they are there when one of them is done. With two
the detector and the embedder each have one; with one, and a call less a photo, cores wait."""
_RESTART_SECONDS: Final = 10.0
"""At least so far apart are two restarts of a model: one that always dies must not keep a server
busy with nothing else."""
_CHANNEL_OPTIONS: Final = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # What is lost is made again here, where another server may be asked.
    ("grpc.enable_retries", 0),
    ("grpc.enable_channelz", 0),
    ("grpc.use_local_subchannel_pool", 1),
    # A connection that is dead without a word is found out, and not more often than Triton's
    # defaults forgive: it drops who pings three times without data in between.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 2),
    # A server that is back is in use again within about a second. The minimum is also the time
    # that an attempt to connect may take.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "FP32": np.dtype("<f4"),
    "INT32": np.dtype("<i4"),
    "UINT8": np.dtype("u1"),
}
_PIXELS_TAG: Final = bytes([pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2])
"""Begins a field of bytes in a serialized message; its length follows, and the bytes."""
_DEAD_PROCESS: Final = "is not healthy"
"""Part of what Triton says of a model whose process has died."""
_NOT_ALLOWED: Final = "is not allowed"
"""Part of what a Triton that loads models by itself says of being told to."""
_NO_HINT: Final = "try again in a few seconds"
_HINTS: Final = {
    "handshake failed": "the two do not agree on TLS, see TRITON_TLS and TRITON_CA",
    "http1": "this is no gRPC; it has a port of its own, 8001 where Triton is not told otherwise",
}
"""By a part of what gRPC says."""
_LOST: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class _LostCall(Exception):
    """A call that is worth making again, `mended` where there is reason to hope for more."""

    def __init__(self, reason: str, *, mended: bool = False) -> None:
        super().__init__(reason)
        self.mended = mended


class TritonServer:
    """One Triton server, or several that hold the same models. Made inside the event loop."""

    engine_name = "Triton"

    def __init__(
        self, urls: Sequence[str], *, timeout: float, tls: bool = False, ca: Path | None = None
    ) -> None:
        """Connects when it is first asked for something.

        Args:
            urls: HOST:PORT of each server's gRPC.
            timeout: seconds that a call may take, making it again included.
            tls: whether the servers speak TLS.
            ca: PEM file of who signs their certificates; without it, the system's.

        Raises:
            ConfigurationError: an address or the file is not usable.
        """
        addresses = [_address(url) for url in urls if url.strip()]
        if not addresses:
            raise ConfigurationError(
                "TRITON_URL is empty: it must be the HOST:PORT of Triton's gRPC"
            )
        credentials = _credentials(ca) if tls else None
        self._timeout = timeout
        self._members = [_Member(address, credentials) for address in addresses]
        self._turns = itertools.count()
        self.spare = Spare(_SPARE_CALLS * len(addresses))

    async def load(self, name: str) -> "TritonModel":
        """See `ModelServer.load`. The model is what the servers' configuration of it says.

        Servers that do not answer are passed over as long as one does.

        Raises:
            EngineUnavailable: none of the servers answers.
        """
        async with _answering_until(self.time_until()):
            found = await asyncio.gather(
                *(member.describe(name) for member in self._members), return_exceptions=True
            )
            specs: dict[str, ModelSpec] = {}
            for member, result in zip(self._members, found, strict=True):
                if isinstance(result, ModelSpec):
                    specs[member.address] = result
                elif not isinstance(result, _LostCall | TimeoutError):
                    raise result
            if not specs:
                assert isinstance(found[0], BaseException)
                raise found[0]
        (address, spec), *others = specs.items()
        for other, its_spec in others:
            if its_spec != spec:
                raise ConfigurationError(
                    f"the Triton servers {address} and {other} (TRITON_URL) hold different models"
                    f" {name!r}: give them the same model repository"
                )
        return TritonModel(spec, self)

    def places(self, name: str) -> int:
        """How many calls of a model all servers together run side by side."""
        return sum(member.instances(name) for member in self._members)

    def time_until(self) -> float:
        """When a call that is made now must have been answered, on the event loop's clock."""
        return asyncio.get_running_loop().time() + time_left(self._timeout)

    async def infer(self, spec: ModelSpec, request: bytes, end: float) -> pb.ModelInferResponse:
        """One inference, by the server whose turn it is; made again where it is lost.

        Args:
            spec: the model.
            request: a serialized `ModelInferRequest` of it.
            end: when to give up, on the event loop's clock.

        Raises:
            EngineUnavailable: no server has answered in time.
            ServiceError: the request is wrong.
        """
        loop = asyncio.get_running_loop()
        start = loop.time()
        member = self._pick()
        failure: grpc.aio.AioRpcError | None = None
        # Nearly all calls end here; to be ready for failures takes as long as all the rest of it.
        if member.is_trusted(spec.name):
            try:
                return await member.call(request, end - start)
            except grpc.aio.AioRpcError as error:
                failure = error
        async with _answering_until(end), asyncio.timeout_at(end):
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(_LostCall),
                wait=wait_random_exponential(multiplier=0.1, max=0.5),
                stop=_gives_up,
                reraise=True,
            ):
                with attempt:
                    if failure is None:
                        member = self._pick()
                        await member.check(spec)
                        start = loop.time()
                        try:
                            return await member.call(request, end - start)
                        except grpc.aio.AioRpcError as error:
                            failure = error
                    trouble, failure = failure, None
                    await member.mend(spec.name, trouble, since=start)
        raise AssertionError("the loop ends by returning or raising")

    async def close(self) -> None:
        """See `ModelServer.close`; calls that are in flight are cancelled."""
        await asyncio.gather(*(member.close() for member in self._members))

    def _pick(self) -> "_Member":
        members = self._members
        if len(members) > 1:
            members = [member for member in members if member.is_promising()] or members
        return members[next(self._turns) % len(members)]


class TritonModel:
    """A model that Triton servers run. See `Model`."""

    def __init__(self, spec: ModelSpec, server: TritonServer) -> None:
        self.spec = spec
        self._server = server
        self._max_rows = max(1, spec.max_batch_size)
        self._gatherer = Gatherer(
            self._call,
            max_rows=self._max_rows,
            places=partial(server.places, spec.name),
            spare=server.spare,
        )

    async def infer(self, batch: NDArray[np.uint8]) -> Outputs:
        """See `Model.infer`. The arrays are read-only.

        Raises:
            EngineUnavailable: Triton has not answered in time.
        """
        [tensor] = self.spec.inputs
        if batch.shape[1:] != tuple(tensor.dims):
            raise ServiceError(
                f"the model {self.spec.name!r} takes {tensor.name!r} of {list(tensor.dims)}, not of"
                f" {list(batch.shape[1:])}"
            )
        end = self._server.time_until()
        step = self._max_rows
        async with _answering_until(end):
            if len(batch) <= step:
                return await self._gatherer.infer(batch, end)
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(self._gatherer.infer(batch[start : start + step], end))
                        for start in range(0, len(batch), step)
                    ]
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None
        parts = [task.result() for task in tasks]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    async def _call(self, batches: Sequence[NDArray[np.uint8]], end: float) -> Outputs:
        rows = sum(map(len, batches))
        response = await self._server.infer(self.spec, self._request(batches, rows), end)
        return _outputs(self.spec, response, rows)

    def _request(self, batches: Sequence[NDArray[np.uint8]], rows: int) -> bytes:
        """A serialized `ModelInferRequest`: several batches' rows as one batch.

        Its last field, the pixels, is appended by hand: that copies them once instead of three
        times.
        """
        [tensor] = self.spec.inputs
        described = pb.ModelInferRequest.InferInputTensor(
            name=tensor.name, datatype=tensor.dtype, shape=(rows, *tensor.dims)
        )
        message = pb.ModelInferRequest(model_name=self.spec.name, inputs=[described])
        size = sum(batch.nbytes for batch in batches)
        head = message.SerializeToString() + _PIXELS_TAG + _varint(size)
        return b"".join((head, *(np.ascontiguousarray(batch).data for batch in batches)))


class _Member:
    """One server."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None) -> None:
        self.address = address
        self._channel = (
            grpc.aio.secure_channel(address, credentials, options=_CHANNEL_OPTIONS)
            if credentials
            else grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        )
        self._calls: Any = GRPCInferenceServiceStub(self._channel)
        self._infer: Any = self._channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        # By the models' names. Times are the event loop's.
        self._mending: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._instances: dict[str, int] = {}
        self._checked: dict[str, float] = {}
        self._restarted: dict[str, float] = {}
        self._shunned_until = -math.inf

    def is_promising(self) -> bool:
        """Whether there is a connection, and no call has just got no answer.

        Where there is no connection, begins to make one.
        """
        state = self._channel.get_state(try_to_connect=True)
        is_connected = state is grpc.ChannelConnectivity.READY
        return is_connected and asyncio.get_running_loop().time() >= self._shunned_until

    def instances(self, name: str) -> int:
        """How many copies of a model the server runs side by side, as far as it has said."""
        return self._instances.get(name, 1)

    async def describe(self, name: str) -> ModelSpec:
        """The model, which is loaded where it is not.

        Raises:
            ConfigurationError: it is missing, does not load, or does not say which it is.
            _LostCall, TimeoutError: the server does not answer.
        """
        request = pb.ModelConfigRequest(name=name)
        try:
            with _lost_calls(self.address):
                try:
                    response = await self._calls.ModelConfig(request, timeout=_time_left())
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.NOT_FOUND:
                        raise
                    await self._load(name)
                    response = await self._calls.ModelConfig(request, timeout=_time_left())
        except grpc.aio.AioRpcError as error:
            raise ConfigurationError(
                f"{self.address} (TRITON_URL) does not answer as Triton does, but with"
                f" {error.code().name}: {error.details()}"
            ) from None
        sha256 = response.config.parameters[SHA256_PARAMETER].string_value
        if not sha256:
            raise ConfigurationError(
                f"the model {name!r} of Triton at {self.address} does not say which ONNX file it"
                f" is made of: its configuration has no parameter {SHA256_PARAMETER!r}. Export it"
                f" again (python -m scripts.export_models {name}) and have Triton load it anew"
            )
        self._instances[name] = sum(
            group.count * max(1, len(group.gpus)) for group in response.config.instance_group
        )
        spec = spec_of(response.config, sha256=sha256)
        self._checked[name] = asyncio.get_running_loop().time()
        return spec

    def is_trusted(self, name: str) -> bool:
        """Whether the server was seen to hold the model just now."""
        now = asyncio.get_running_loop().time()
        return now - self._checked.get(name, -math.inf) < _CHECK_SECONDS

    async def check(self, spec: ModelSpec) -> None:
        """Makes sure that the server holds the model of that description.

        Raises:
            EngineUnavailable: it holds another one, or none.
            _LostCall, TimeoutError: the server does not answer.
        """
        if self.is_trusted(spec.name):
            return
        async with self._mending[spec.name]:
            if self.is_trusted(spec.name):
                return
            try:
                found = await self.describe(spec.name)
                if found != spec:
                    del self._checked[spec.name]
                    raise ConfigurationError(
                        f"Triton at {self.address} (TRITON_URL) now holds another model"
                        f" {spec.name!r} than when the service started"
                    )
            except ConfigurationError as error:
                _log.error("triton.model_changed", address=self.address, error=str(error))
                raise EngineUnavailable(
                    "Triton",
                    f"Triton (TRITON_URL) holds another model {spec.name!r} than when the service"
                    " started, or none: have Triton load it as it was, or restart the service",
                ) from None

    async def call(self, request: bytes, seconds: float) -> pb.ModelInferResponse:
        """One inference of a serialized request. Raises `AioRpcError`, as gRPC does."""
        return await self._infer(request, timeout=seconds)

    async def mend(self, name: str, failure: grpc.aio.AioRpcError, *, since: float) -> NoReturn:
        """Does what can be done about a call that failed and was made at that time.

        Raises:
            _LostCall: it may well succeed when it is made again.
            TimeoutError, ServiceError, EngineUnavailable: it will not.
        """
        self._checked.pop(name, None)  # it may be another model that comes back
        if failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            self._shunned_until = asyncio.get_running_loop().time() + _CHECK_SECONDS
        if failure.code() in (*_LOST, grpc.StatusCode.DEADLINE_EXCEEDED):
            with _lost_calls(self.address):
                raise failure
        code, details = failure.code(), failure.details() or ""
        _log.error("triton.failed", address=self.address, code=code.name, error=details)
        if code is grpc.StatusCode.NOT_FOUND:
            raise _LostCall(details)  # `check` loads it
        if code is grpc.StatusCode.INTERNAL and _DEAD_PROCESS in details:
            await self._restart(name, since=since)
            raise _LostCall(details, mended=True)
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            # What it says may name files: that is for the log.
            raise ServiceError(
                f"Triton refuses what it is asked of the model {name!r}: see the service's log"
            )
        raise EngineUnavailable(
            "Triton",
            f"Triton (TRITON_URL) fails to run the model {name!r}: try again in a few seconds",
        )

    async def close(self) -> None:
        """Cancels what is in flight and closes the connection."""
        await self._channel.close()

    async def _load(self, name: str) -> None:
        _log.info("triton.loads_model", address=self.address, model=name)
        try:
            await self._calls.RepositoryModelLoad(
                pb.RepositoryModelLoadRequest(model_name=name), timeout=_time_left()
            )
        except grpc.aio.AioRpcError as error:
            if _is_lost(error):
                raise
            index = await self._calls.RepositoryIndex(
                pb.RepositoryIndexRequest(), timeout=_time_left()
            )
            reasons = {model.name: model.reason for model in index.models}
            if name in reasons:
                raise ConfigurationError(
                    f"Triton at {self.address} (TRITON_URL) cannot load the model {name!r}:"
                    f" {(reasons[name] or error.details() or '').strip()}"
                ) from None
            raise ConfigurationError(
                f"Triton at {self.address} (TRITON_URL) has no model {name!r}; its repository"
                f" holds {', '.join(sorted(reasons)) or 'none'}: name one of them in DETECTOR_MODEL"
                " or EMBEDDER_MODEL, or export the model into Triton's repository"
            ) from None

    async def _restart(self, name: str, *, since: float) -> None:
        """Has Triton start the model's process anew, unless it has since then.

        A process that dies stays dead, and Triton says that model and server are ready.
        """
        loop = asyncio.get_running_loop()
        async with self._mending[name]:
            last = self._restarted.get(name, -math.inf)
            if last >= since:
                return
            if loop.time() - last < _RESTART_SECONDS:
                raise EngineUnavailable(
                    "Triton",
                    f"Triton (TRITON_URL) loses the process of the model {name!r} again and again:"
                    " try again in a few seconds",
                )
            self._restarted[name] = loop.time()
            _log.warning("triton.restarts_model", address=self.address, model=name)
            with _lost_calls(self.address):
                try:
                    await self._calls.RepositoryModelUnload(
                        pb.RepositoryModelUnloadRequest(model_name=name), timeout=_time_left()
                    )
                    await self._calls.RepositoryModelLoad(
                        pb.RepositoryModelLoadRequest(model_name=name), timeout=_time_left()
                    )
                except grpc.aio.AioRpcError as error:
                    if _is_lost(error):
                        raise
                    _log.error(
                        "triton.model_not_restarted", address=self.address, error=error.details()
                    )
                    raise EngineUnavailable(
                        "Triton",
                        f"Triton (TRITON_URL) has lost the process of the model {name!r} and does"
                        " not start it again: restart Triton",
                    ) from None
            self._restarted[name] = loop.time()


@asynccontextmanager
async def _answering_until(end: float) -> AsyncIterator[None]:
    """Gives gRPC's calls inside until then, on the event loop's clock.

    Raises:
        EngineUnavailable: in place of `_LostCall` and TimeoutError.
    """
    try:
        with deadline(max(0.0, end - asyncio.get_running_loop().time())):
            yield
    except (_LostCall, TimeoutError) as error:
        reason = str(error) or "no answer in time"
        _log.error("triton.failed", error=reason)
        hint = next((hint for said, hint in _HINTS.items() if said in reason), _NO_HINT)
        raise EngineUnavailable("Triton", f"Triton (TRITON_URL) does not answer: {hint}") from error


@contextmanager
def _lost_calls(address: str) -> Iterator[None]:
    """Raises `_LostCall` or TimeoutError where gRPC says that a call has got no answer."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise TimeoutError(f"{address} has not answered in time") from None
        if _is_lost(error):
            raise _LostCall(f"{address}: {error.details()}") from None
        raise


def _is_lost(error: grpc.aio.AioRpcError) -> bool:
    return error.code() in _LOST and _NOT_ALLOWED not in (error.details() or "")


def _time_left() -> float:
    return time_left(math.inf)


def _gives_up(state: RetryCallState) -> bool:
    error = state.outcome.exception() if state.outcome else None
    mended = isinstance(error, _LostCall) and error.mended
    return not mended and (state.seconds_since_start or 0) >= _RETRY_SECONDS


def _address(url: str) -> str:
    host, _, port = url.strip().rpartition(":")
    if not host or "/" in host or not port.isdecimal() or int(port) > 65535:
        raise ConfigurationError(
            f"TRITON_URL={url.strip()}: it must be the HOST:PORT of Triton's gRPC, such as"
            " triton:8001"
        )
    return f"{host}:{port}"


def _credentials(ca: Path | None) -> grpc.ChannelCredentials:
    if ca is None:
        return grpc.ssl_channel_credentials()
    try:
        ssl.create_default_context(cafile=ca)
        return grpc.ssl_channel_credentials(ca.read_bytes())
    except ssl.SSLError as error:
        raise ConfigurationError(f"TRITON_CA={ca} holds no certificates: {error}") from None
    except OSError as error:
        raise ConfigurationError(f"TRITON_CA={ca}: {error.strerror}") from None


def _varint(number: int) -> bytes:
    """A number as protocol buffers write it: seven bits a byte, the lowest first."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def _outputs(
    spec: ModelSpec, response: pb.ModelInferResponse, count: int
) -> dict[str, NDArray[Any]]:
    """The arrays of an answer, which share its memory.

    Raises:
        ServiceError: they are not what the model's configuration says.
    """
    # Not by `tritonclient`'s own `as_numpy`, which looks at the name alone.
    raw = {
        tensor.name: (tensor, content)
        for tensor, content in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    arrays: dict[str, NDArray[Any]] = {}
    for expected in spec.outputs:
        tensor, content = raw[expected.name]
        shape = (count, *expected.dims)
        if tensor.datatype != expected.dtype or tuple(tensor.shape) != shape:
            raise ServiceError(
                f"Triton's model {spec.name!r} answers {expected.name!r} as {tensor.datatype}"
                f" {list(tensor.shape)}, not {expected.dtype} {list(shape)} as its configuration"
                " says"
            )
        array = np.frombuffer(content, _DTYPES[expected.dtype])
        arrays[expected.name] = array.reshape(shape)
    return arrays
