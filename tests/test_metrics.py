"""The figures of one application: what is counted, once, and in a form that Prometheus reads."""

import asyncio
import time
from contextvars import Context

import pytest
from prometheus_client.parser import text_string_to_metric_families

from backend.app import Services
from backend.errors import EngineUnavailable
from backend.metrics import LoadProgress, Metrics, Stage, stage_times
from tests.photos import draw_photo, encode

PREFIX = "image_search_"


def value(figures: Metrics, name: str, **labels: str) -> float | None:
    """A sample's value as Prometheus would read it; None where there is no such sample."""
    for family in text_string_to_metric_families(figures.exposition().decode()):
        for sample in family.samples:
            if sample.name == PREFIX + name and sample.labels == labels:
                return sample.value
    return None


def test_two_applications_do_not_count_into_each_other_s_figures() -> None:
    one, other = Metrics(), Metrics()
    one.count_indexed(photos=3, objects=7)
    assert value(one, "photos_indexed_total") == 3
    assert value(one, "objects_indexed_total") == 7
    assert value(other, "photos_indexed_total") == 0


def test_the_process_and_the_platform_are_told_of() -> None:
    names = {
        family.name for family in text_string_to_metric_families(Metrics().exposition().decode())
    }
    assert {"process_cpu_seconds", "process_resident_memory_bytes", "python_info"} <= names


def test_names_follow_prometheus_conventions() -> None:
    figures = Metrics()
    figures.count_request("GET", "/x", 200, 0.1)
    for family in text_string_to_metric_families(figures.exposition().decode()):
        if not family.name.startswith(PREFIX) or family.name.endswith("_created"):
            continue
        assert family.documentation
        names = {sample.name for sample in family.samples}
        if family.type == "counter":
            assert names == {f"{family.name}_total"} or not names
        else:
            assert not any(name.endswith("_total") for name in names)
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_size"))


def test_a_request_is_counted_by_its_labels_and_timed_by_its_route() -> None:
    figures = Metrics()
    figures.count_request("GET", "/data", 200, 0.004)
    figures.count_request("GET", "/data", 404, 0.2)
    for status in ("200", "404"):
        labels = {"method": "GET", "route": "/data", "status": status}
        assert value(figures, "requests_total", **labels) == 1
    assert value(figures, "request_duration_seconds_count", route="/data") == 2
    assert value(figures, "request_duration_seconds_bucket", route="/data", le="0.005") == 1
    assert value(figures, "request_duration_seconds_sum", route="/data") == pytest.approx(0.204)


@pytest.mark.parametrize("name", ["request_in_flight", "photo_waiting", "photo_analyzing"])
def test_what_is_under_way_is_counted_until_it_ends_or_fails(name: str) -> None:
    figures = Metrics()
    shown = {"request_in_flight": "requests_in_flight", "photo_waiting": "photos_waiting"}
    gauge = shown.get(name, "photos_analyzing")
    with getattr(figures, name)(), getattr(figures, name)():
        assert value(figures, gauge) == 2
    with pytest.raises(ValueError, match="damaged"), getattr(figures, name)():
        raise ValueError("damaged")
    assert value(figures, gauge) == 0


def test_a_stage_is_timed_also_where_it_fails() -> None:
    figures = Metrics()
    assert value(figures, "stage_duration_seconds_count", stage="detect") == 0
    with figures.stage("detect"):
        time.sleep(0.02)
    with pytest.raises(ValueError, match="damaged"), figures.stage("detect"):
        raise ValueError("damaged")
    assert value(figures, "stage_duration_seconds_count", stage="detect") == 2
    seconds = value(figures, "stage_duration_seconds_sum", stage="detect")
    assert seconds is not None
    assert 0.02 <= seconds < 1
    assert value(figures, "stage_duration_seconds_count", stage="embed") == 0


async def test_a_request_s_stages_are_its_own_those_of_its_tasks_included() -> None:
    figures = Metrics()

    async def work(*stages: Stage) -> None:
        for stage in stages:
            with figures.stage(stage):
                await asyncio.sleep(0.01)

    async def request(*stages: Stage) -> dict[Stage, float]:
        with stage_times() as times:
            await asyncio.create_task(work(*stages))
            await asyncio.create_task(work("write"), context=Context())  # it outlives the request
        await work("decode")
        return times

    one, other = await asyncio.gather(request("detect", "embed", "detect"), request("search"))
    assert set(one) == {"detect", "embed"}
    assert one["detect"] > one["embed"] > 0.005
    assert set(other) == {"search"}
    assert value(figures, "stage_duration_seconds_count", stage="write") == 2


async def test_an_event_loop_that_is_held_up_is_seen_to_be_late() -> None:
    figures = Metrics()
    watching = asyncio.create_task(figures.watch_event_loop())
    while value(figures, "event_loop_lag_seconds_count") == 0:
        await asyncio.sleep(0.01)
    time.sleep(0.6)  # noqa: ASYNC251 - as code does that forgets to await
    while value(figures, "event_loop_lag_seconds_count") == 1:
        await asyncio.sleep(0.01)
    watching.cancel()
    late = value(figures, "event_loop_lag_seconds_sum")
    assert late is not None
    assert late >= 0.5


def test_sizes_of_batches_are_told_by_stage() -> None:
    figures = Metrics()
    assert value(figures, "batch_size_count", stage="embed") == 0
    for size in (1, 5):
        figures.batch("embed", size)
    figures.batch("write", 64)
    assert value(figures, "batch_size_sum", stage="embed") == 6
    assert value(figures, "batch_size_count", stage="embed") == 2
    assert value(figures, "batch_size_bucket", stage="write", le="64.0") == 1


async def test_a_photo_that_is_indexed_tells_of_its_batches(services: Services) -> None:
    await services.indexer.add_photo(encode(draw_photo(1)), "t")
    figures = services.searcher._figures
    assert value(figures, "batch_size_sum", stage="write") == 1
    assert value(figures, "batch_size_sum", stage="embed") not in (None, 0)


def test_a_failure_of_an_engine_is_counted_once_however_far_it_comes() -> None:
    figures = Metrics()
    figures.add_engine("Milvus")
    assert value(figures, "engine_errors_total", engine="Milvus") == 0
    failure = EngineUnavailable("Milvus", "Milvus does not answer")
    figures.count_engine_error(failure)
    figures.count_engine_error(failure)
    assert value(figures, "engine_errors_total", engine="Milvus") == 1
    figures.count_engine_error(EngineUnavailable("Milvus", "Milvus does not answer"))
    figures.count_engine_error(EngineUnavailable("MySQL", "MySQL does not answer"))
    assert value(figures, "engine_errors_total", engine="Milvus") == 2
    assert value(figures, "engine_errors_total", engine="MySQL") == 1


def test_loads_are_shown_as_they_are_now() -> None:
    figures = Metrics()
    assert value(figures, "loads_running") == 0
    figures.show_loads(
        LoadProgress(running=2, waiting=1, found=100, processed=40, failed=3, pace=6)
    )
    names = ["loads_running", "loads_waiting"]
    names += [f"load_photos_{what}" for what in ("found", "processed", "failed", "in_flight_limit")]
    assert [value(figures, name) for name in names] == [2, 1, 100, 40, 3, 6]
    figures.show_loads(
        LoadProgress(running=0, waiting=0, found=100, processed=100, failed=3, pace=9)
    )
    assert [value(figures, name) for name in names] == [0, 0, 100, 100, 3, 9]
