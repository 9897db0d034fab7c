"""Logging: one line an event, `time level event key=value…`, on standard error."""

import logging
import sys
import warnings
from typing import Any, TextIO

import structlog

from backend.plain_text import printable

__all__ = ["configure_logging"]


class _OneLine(structlog.stdlib.ProcessorFormatter):
    """Escapes what would end a rendered line, or move a terminal's cursor."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's line."""
        return printable(super().format(record))


class _CurrentStderr(logging.StreamHandler[TextIO]):
    """Writes to what sys.stderr is now: a progress bar puts itself in its place."""

    @property
    def stream(self) -> TextIO:
        """The present standard error."""
        return sys.stderr

    @stream.setter
    def stream(self, _stream: TextIO) -> None:
        """Ignored: the base class sets what it was created with."""


def configure_logging(level: str) -> None:
    """Sends this program's events of a level and its libraries' warnings to standard error.

    Values are quoted, and control characters in them escaped: no photo's name can forge a line.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,  # the request's id
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = _CurrentStderr()
    handler.setFormatter(
        _OneLine(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.LogfmtRenderer(key_order=["time", "level", "event"]),
            ],
        )
    )
    logging.captureWarnings(capture=True)
    # Milvus Lite reads its own version that way; there is nothing to be done about it here.
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("backend").setLevel(level)
    # It reports every gRPC retry and every refused value, which we report ourselves.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    # Of files for Milvus it tells each step; what fails in its threads it tells nobody else.
    files = logging.getLogger("pymilvus.bulk_writer")
    files.handlers = [handler]
    files.setLevel(logging.ERROR)
    # That spans are lost we report once, and not as long as it lasts.
    logging.getLogger("opentelemetry.sdk._shared_internal").setLevel(logging.CRITICAL)
