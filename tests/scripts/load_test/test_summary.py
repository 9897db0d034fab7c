import json

from rich.console import Console

from scripts.load_test.figures import Figures, Sample, Step, by_name, figures
from scripts.load_test.summary import Result, as_json, show


def _figures(rate: float, p95: float, *, refused: int = 0) -> Figures:
    samples = [Sample("POST /img/search", 1.0, p95)] * round(10 * rate)
    return figures(samples + [Sample("POST /img/search", 1.0, 1.0, "429")] * refused, 10.0)


def _result(samples: list[Sample], *steps: Step, loaded: int | None = None) -> Result:
    return Result(
        scenario="search",
        api="existing",
        url="http://[::1]:5010",
        users=4,
        seconds=10.0,
        photos=7,
        total=figures(samples, 10.0),
        requests=by_name(samples, 10.0),
        steps=steps,
        loaded=loaded,
    )


def _shown(result: Result) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        show(result, console)
    return captured.get()


_SAMPLES = [
    *[Sample("POST /img/search", 1.0, 20.0)] * 90,
    *[Sample("POST /img/search", 1.0, 1.0, "429")] * 9,
    Sample("GET /data", 1.0, 1.0, "404"),
]


def test_refusals_and_failures_are_told_apart() -> None:
    text = _shown(_result(_SAMPLES))
    assert "http://[::1]:5010" in text
    assert "9 x 429: 9% of the requests were refused." in text
    assert "Failed: 1 x 404." in text
    assert "--steps tells" in text


def test_a_load_meanwhile_is_told() -> None:
    assert "the service has loaded 50 photos, 5.0 a second" in _shown(_result([], loaded=50))


def test_where_latency_bends_is_said_in_words() -> None:
    steps = [Step(1, _figures(10, 50)), Step(2, _figures(19, 60)), Step(4, _figures(20, 130))]
    assert (
        "Latency bends at 19.0 requests/s (2 users, p95 60 ms): with the next step p95 is 2.6"
        " times that of the first step." in _shown(_result(_SAMPLES, *steps))
    )
    assert "does not bend up to 19.0 requests/s" in _shown(_result(_SAMPLES, *steps[:2]))
    nothing = Step(1, _figures(0, 0, refused=3))
    assert "cannot be told" in _shown(_result(_SAMPLES, nothing))


def test_json_has_the_same_figures() -> None:
    steps = [Step(1, _figures(10, 50)), Step(2, _figures(19, 150, refused=10))]
    told = json.loads(json.dumps(as_json(_result(_SAMPLES, *steps))))
    assert told["total"]["refused"] == {"429": 9}
    assert told["total"]["errors"] == {"404": 1}
    assert told["requests"]["POST /img/search"]["p95_ms"] == 20.0
    assert told["requests"]["GET /data"]["p95_ms"] is None
    assert [step["users"] for step in told["steps"]] == [1, 2]
    assert told["steps"][1]["refused_share"] == 0.05
    assert told["knee"] == {
        "users": 1,
        "rate": 10.0,
        "p95_ms": 50,
        "bends": True,
        "reason": "5% of the requests are refused",
    }
    assert as_json(_result(_SAMPLES))["knee"] is None
