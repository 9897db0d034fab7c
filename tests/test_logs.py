"""One line an event, whatever the values hold."""

import contextlib
import io
import logging
import re
from collections.abc import Callable, Iterator

import pytest
import structlog
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from backend.logs import configure_logging

FORGED = "2026-01-01T00:00:00Z level=info event=server.ready"
_CONFIGURED = (
    *(None, "pymilvus.bulk_writer"),
    *("backend", "pymilvus", "opentelemetry.sdk._shared_internal"),
)
Said = Callable[[], str]


@pytest.fixture
def logging_is_restored() -> Iterator[None]:
    """Logging is afterwards as it was."""
    loggers = [logging.getLogger(name) for name in _CONFIGURED]
    levels = [logger.level for logger in loggers]
    handlers = [logger.handlers for logger in loggers]
    yield
    structlog.reset_defaults()
    for logger, level, own in zip(loggers, levels, handlers, strict=True):
        logger.setLevel(level)
        logger.handlers = own


@pytest.fixture
def said(logging_is_restored: None, capsys: pytest.CaptureFixture[str]) -> Said:
    """Logging at INFO; call it for what has been said on standard error since the last call."""
    configure_logging("INFO")
    return lambda: capsys.readouterr().err


def _logger() -> structlog.stdlib.BoundLogger:
    logger: structlog.stdlib.BoundLogger = structlog.get_logger("backend.test")
    return logger


def test_an_event_is_one_line_of_time_level_event_and_values(said: Said) -> None:
    _logger().info("load.done", photos=3, root="/photos")
    assert re.fullmatch(
        r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z level=info event=load\.done"
        r" photos=3 root=/photos\n",
        said(),
    )


@pytest.mark.parametrize(
    "breaking", ["\n", "\r\n", "\r"], ids=["newline", "return and newline", "return"]
)
def test_a_line_break_in_a_value_cannot_forge_a_line(said: Said, breaking: str) -> None:
    _logger().warning("load.photo_failed", path=f"/photos/a{breaking}{FORGED}.jpg")
    _logger().info("next")
    lines = said().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("time=")
    assert "event=next" in lines[1]


def test_a_line_break_in_a_library_s_message_cannot_forge_a_line(said: Said) -> None:
    logging.getLogger("aiohttp.server").error("bad request: %s", f"x\n{FORGED}")
    [line] = said().splitlines()
    assert "level=error" in line
    assert "bad request" in line


def test_a_value_cannot_forge_another_value(said: Said) -> None:
    _logger().info("request", path='/a" level=error event="x', status=200)
    line = said()
    assert r'path="/a\" level=error event=\"x"' in line
    assert line.endswith(" status=200\n")


# Characters at which str.splitlines breaks lines and neither terminals nor log readers do are out.
_VALUES = st.text(st.characters(exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"))


@hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=_VALUES)
def test_any_value_stays_in_its_line(said: Said, value: str) -> None:
    with contextlib.redirect_stderr(io.StringIO()) as output:
        _logger().info("photo", path=value, last=1)
    [line] = output.getvalue().splitlines()
    assert line.startswith("time=")
    assert line.endswith(" last=1")


def test_an_exception_is_logged_with_its_cause_in_the_event_s_line(said: Said) -> None:
    try:
        raise RuntimeError(f"two\nlines\n{FORGED}")
    except RuntimeError:
        _logger().exception("request.broke", path="/x")
    [line] = said().splitlines()
    assert "event=request.broke" in line
    assert "RuntimeError: two\\nlines" in line


def test_only_what_is_severe_enough_is_logged(logging_is_restored: None, said: Said) -> None:
    events = ("debug", "info", "warning", "error")
    for level, heard in (("DEBUG", events), ("INFO", events[1:]), ("ERROR", events[3:])):
        configure_logging(level)
        for event in events:
            getattr(_logger(), event)(event)
        assert re.findall(r"event=(\w+)", said()) == list(heard)


def test_what_is_bound_to_a_request_is_in_its_lines_and_its_libraries(said: Said) -> None:
    with structlog.contextvars.bound_contextvars(request="r1"):
        _logger().info("inside", status=200)
        logging.getLogger("some.library").warning("trouble")
    _logger().info("after")
    inside, library, after = said().splitlines()
    assert inside.endswith("event=inside status=200 request=r1")
    assert library.endswith("event=trouble request=r1")
    assert after.endswith("event=after")


def test_a_library_is_heard_from_its_warnings_on(said: Said) -> None:
    configure_logging("DEBUG")
    library = logging.getLogger("some.library")
    library.info("chatter")
    library.warning("trouble")
    assert re.findall(r"event=(\w+)", said()) == ["trouble"]


def test_a_vector_engine_s_retries_are_not_reported_twice(said: Said) -> None:
    logging.getLogger("pymilvus.decorators").error("RPC error")
    assert said() == ""


def test_of_files_that_are_written_for_it_only_failures_are_reported(said: Said) -> None:
    writer = logging.getLogger("pymilvus.bulk_writer.local_bulk_writer")
    writer.info("Flush thread begin")
    writer.error("No space left on device")
    assert re.findall(r'event="([\w ]+)"', said()) == ["No space left on device"]


def test_what_stands_in_for_standard_error_is_logged_to(said: Said) -> None:
    with contextlib.redirect_stderr(io.StringIO()) as progress_bar:
        _logger().info("inside")
    _logger().info("after")
    assert "event=inside" in progress_bar.getvalue()
    assert re.findall(r"event=(\w+)", said()) == ["after"]


def test_nothing_is_logged_to_standard_output(
    logging_is_restored: None, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging("INFO")
    _logger().info("said")
    out, err = capfd.readouterr()
    assert out == ""
    assert "event=said" in err
