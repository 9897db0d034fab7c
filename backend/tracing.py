"""What the service does, as OpenTelemetry's traces, sent to a collector over OTLP.

A request is a trace: its span, and within it one for each stage of its work. So is a load, and each
photo of it, which is linked to it: a folder of a hundred thousand photos would make a trace that
nothing could show. Without a collector nothing of OpenTelemetry is imported.
"""

import asyncio
import importlib.metadata
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Final

import structlog
from structlog.contextvars import bound_contextvars

from backend.errors import ConfigurationError
from backend.plain_text import without_credentials

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Span

__all__ = ["Answered", "Traces"]

_log = structlog.get_logger(__name__)

Answered = Callable[[int], None]
"""Is told the status that a request is answered with."""

_DISTRIBUTION: Final = "image-similarity-search"
_PATH: Final = "/v1/traces"
_FLUSH_SECONDS: Final = 1.0
"""For the last spans, when the service stops; a stop takes at most five seconds."""


class Traces:
    """The traces of one application; where no endpoint is named, there are none, and no cost.

    Standard variables that have no setting of ours (OTEL_EXPORTER_OTLP_HEADERS,
    OTEL_TRACES_SAMPLER, OTEL_BSP_SCHEDULE_DELAY, …) are read by OpenTelemetry itself.
    """

    def __init__(self, endpoint: str | None = None, service_name: str = "") -> None:
        """Spans are sent while `sending`.

        Args:
            endpoint: the collector's URL, to which /v1/traces is added; None for no traces.
            service_name: what the collector is told that the spans are of.

        Raises:
            ConfigurationError: OpenTelemetry is not installed, or is not of use.
        """
        self._endpoint = endpoint
        if endpoint is None:
            return
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

            # Here, so that what is missing ends the start.
            import opentelemetry.exporter.otlp.proto.http.trace_exporter  # noqa: F401 isort: skip
        except ImportError as missing:
            raise ConfigurationError(
                f"OTEL_EXPORTER_OTLP_ENDPOINT={without_credentials(endpoint)}: traces need"
                f" OpenTelemetry, which is not installed ({missing}): run pip install"
                " 'image-similarity-search[tracing]' (in a checkout pip install -e '.[tracing]'),"
                " or unset the variable"
            ) from None
        version = importlib.metadata.version(_DISTRIBUTION)
        resource = Resource.create({"service.name": service_name, "service.version": version})
        # Its own, not OpenTelemetry's global one: applications in one process do not share it.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._tracer = self._provider.get_tracer("backend", version)
        self._propagator = TraceContextTextMapPropagator()

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Sends spans in the background; at the end waits up to a second for the last ones.

        A collector that is away costs nothing but the spans, and the log one line.
        """
        if self._endpoint is None:
            yield
            return
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        url = f"{self._endpoint.removesuffix('/')}{_PATH}"
        exporter = _telling(OTLPSpanExporter(endpoint=url), without_credentials(url))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        try:
            yield
        finally:
            # Not a thread of asyncio's, for whose end the process would wait.
            ending = threading.Thread(target=self._provider.shutdown, daemon=True)
            ending.start()
            await asyncio.to_thread(ending.join, _FLUSH_SECONDS)
            if ending.is_alive():
                exporter.shutdown()  # it tries no more

    # Spans

    def request(
        self,
        method: str,
        route: str | None,
        path: str,
        headers: Mapping[str, str],
        request_id: str,
    ) -> AbstractContextManager[Answered]:
        """The span of a request, as a part of the client's trace where it names one.

        Yields what is to be told the answer's status.

        Args:
            method: one of HTTP's.
            route: the path's template; None where the path leads nowhere.
            path: without the query.
            headers: those of the request; of use is `traceparent`.
            request_id: see `http.middlewares`.
        """
        if self._endpoint is None:
            return nullcontext(_ignore)
        return self._request(method, route, path, headers, request_id)

    @contextmanager
    def _request(
        self,
        method: str,
        route: str | None,
        path: str,
        headers: Mapping[str, str],
        request_id: str,
    ) -> Iterator[Answered]:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, StatusCode

        attributes = {
            "http.request.method": method,
            "url.path": _encodable(path),
            "request.id": request_id,
        }
        if route is not None:
            attributes["http.route"] = route
        with (
            self._tracer.start_as_current_span(
                method if route is None else f"{method} {route}",
                context=self._propagator.extract(headers, Context()),
                kind=SpanKind.SERVER,
                attributes=attributes,
                record_exception=False,  # those that come so far are answers
                set_status_on_exception=False,
            ) as span,
            _named_in_the_log(span),
        ):

            def answered(status: int) -> None:
                span.set_attribute("http.response.status_code", status)
                if status >= 500:
                    span.set_attribute("error.type", str(status))
                    span.set_status(StatusCode.ERROR)

            yield answered

    def work(self, name: str, **attributes: str | int) -> AbstractContextManager[None]:
        """The span of work that is a trace of its own, linked to that which it is done for."""
        if self._endpoint is None:
            return nullcontext()
        return self._work(name, attributes)

    @contextmanager
    def _work(self, name: str, attributes: Mapping[str, str | int]) -> Iterator[None]:
        from opentelemetry.context import Context
        from opentelemetry.trace import Link, get_current_span

        cause = get_current_span().get_span_context()
        with (
            self._tracer.start_as_current_span(
                name,
                context=Context(),
                links=[Link(cause)] if cause.is_valid else [],
                attributes={
                    key: _encodable(value) if isinstance(value, str) else value
                    for key, value in attributes.items()
                },
            ) as span,
            _named_in_the_log(span),
        ):
            yield

    def stage(self, name: str) -> AbstractContextManager[object]:
        """The span of a stage of that which is traced; where nothing is, there is none."""
        if self._endpoint is None:
            return nullcontext()
        from opentelemetry.trace import get_current_span

        if not get_current_span().get_span_context().is_valid:
            return nullcontext()
        return self._tracer.start_as_current_span(name)


def _ignore(_status: int) -> None:
    """Nobody is to be told."""


def _encodable(text: str) -> str:
    """A file's name that is not UTF-8 with its odd bytes escaped: OTLP's strings are UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


@contextmanager
def _named_in_the_log(span: "Span") -> Iterator[None]:
    """Has every line that is logged inside bear the trace's id."""
    context = span.get_span_context()
    if not context.is_valid:  # OTEL_SDK_DISABLED
        yield
        return
    with bound_contextvars(trace=f"{context.trace_id:032x}"):
        yield


class _Heard(logging.Filter):
    """Keeps the lines of one thread from the log, of which a batch of spans may bring several.

    Attributes:
        first: what the first of them says.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()
        self.first = ""

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter.filter`."""
        if record.thread != self._thread:
            return True
        self.first = self.first or record.getMessage()
        return False


def _telling(exporter: "SpanExporter", url: str) -> "SpanExporter":
    """The exporter, which now tells the log when it can send no more, and when it can again."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    logger = logging.getLogger(type(exporter).__module__)

    class Telling(SpanExporter):
        """Runs in the thread that sends."""

        lost = 0

        def export(self, spans: "Sequence[ReadableSpan]") -> "SpanExportResult":
            """See `SpanExporter.export`."""
            heard = _Heard()
            logger.addFilter(heard)
            try:
                result = exporter.export(spans)
            finally:
                logger.removeFilter(heard)
            if result is SpanExportResult.SUCCESS:
                if self.lost:
                    _log.info("traces.sent_again", url=url, lost_spans=self.lost)
                self.lost = 0
                return result
            if not self.lost:
                _log.warning(
                    "traces.not_sent",
                    url=url,
                    reason=without_credentials(heard.first),
                    hint="OTEL_EXPORTER_OTLP_ENDPOINT must be a collector's OTLP over HTTP, whose"
                    " port is mostly 4318; spans are lost until it takes them, nothing else is",
                )
            self.lost += len(spans)
            return result

        def shutdown(self) -> None:
            """See `SpanExporter.shutdown`."""
            exporter.shutdown()

    return Telling()
