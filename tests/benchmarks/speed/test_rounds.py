"""Figures of rounds, on numbers that can be checked by hand."""

from benchmarks.speed.rounds import each_ms, in_words, medians, percentile_ms, stage_seconds

_EXPOSITION = """\
# TYPE image_search_stage_duration_seconds histogram
image_search_stage_duration_seconds_bucket{le="0.001",stage="decode"} 1.0
image_search_stage_duration_seconds_count{stage="decode"} 2.0
image_search_stage_duration_seconds_sum{stage="decode"} 0.5
image_search_stage_duration_seconds_sum{stage="search"} 1.5e-05
"""


def test_of_each_figure_there_is_the_median_and_the_spread() -> None:
    found = medians([{"a": 3.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 4.0}])
    assert found == {
        "a": 2.0,
        "b": 1.0,
        "spread": {"a": [1.0, 3.0], "b": [1.0, 4.0]},
        "rounds": 3,
    }


def test_figures_of_parts_are_taken_part_by_part() -> None:
    found = medians([{"by": {"a": 1.0, "b": 5.0}}, {"by": {"a": 3.0, "b": 5.0}}])
    assert found["by"] == {"a": 2.0, "b": 5.0}
    assert found["spread"]["by"] == {"a": [1.0, 3.0], "b": [5.0, 5.0]}
    assert in_words({"event_loop": 1.234, "none": 0.001, "b": 2.0}) == "event loop 1.23, b 2.00"


def test_percentiles_are_in_milliseconds() -> None:
    assert percentile_ms([0.1, 0.2, 0.3], 50) == 200.0
    assert percentile_ms([0.1, 0.2, 0.3], 100) == 300.0


def test_stages_are_read_from_what_the_service_tells() -> None:
    assert stage_seconds(_EXPOSITION) == {"decode": 0.5, "search": 1.5e-05}


def test_a_stages_time_is_shared_by_all_that_was_done_in_between() -> None:
    before, after = {"decode": 1.0, "search": 2.0}, {"decode": 1.5, "search": 2.0}
    assert each_ms(before, after, 100) == {"decode": 5.0, "search": 0.0}
