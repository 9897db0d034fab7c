"""More searches than can be answered, for a moment."""

from collections import Counter

from benchmarks.speed import overload
from benchmarks.speed.bench import Bench
from benchmarks.speed.clients import Answers


def test_every_search_is_accounted_for(bench: Bench) -> None:
    report = overload.measure(bench)
    assert report["rate"] == 4 * report["saturation_per_second"]
    refused = report["refused_share"] * report["searches"]
    answered = report["searches"] - refused - sum(report["others"].values())
    assert report["searches"] >= 1
    assert 0 <= answered <= report["searches"]
    memory = report["memory_mb"]
    assert memory["peak"] >= memory["before"] > 50
    assert len(overload.rows(report)) == 6


def test_refusals_and_other_statuses_are_counted_apart() -> None:
    answers = Answers(
        seconds=[0.1, 0.3],
        statuses=Counter({"200": 2, "429": 5, "503": 1, "ServerDisconnectedError": 2}),
        elapsed=4.0,
        cpu_seconds=1.0,
        lateness=[0.0, 0.002],
    )
    report = overload.overloaded(answers, 10.0, 150.0)
    assert report["searches"] == 10
    assert report["refused_share"] == 0.5
    assert report["others"] == {"503": 1, "ServerDisconnectedError": 2}
    assert report["answered_per_second"] == 0.5
    assert report["clients_cpu"] == 0.25
    assert round(report["p99_over_saturation"], 2) == 1.99


def test_where_nothing_was_accepted_there_is_no_p99() -> None:
    answers = Answers(statuses=Counter({"429": 3}), elapsed=1.0, lateness=[0.0])
    report = overload.overloaded(answers, 10.0, 150.0)
    assert report["accepted"] is None
    assert report["p99_over_saturation"] is None
    assert report["refused_share"] == 1.0
