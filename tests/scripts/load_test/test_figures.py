import pytest

from scripts.load_test.figures import Knee, Sample, Step, by_name, figures, find_knee, percentile


def _step(users: int, rate: float, p95: float, *, refused: int = 0, failed: int = 0) -> Step:
    """Ten seconds in which each answer took as long."""
    samples = [Sample("a", 1.0, p95)] * round(10 * rate)
    samples += [Sample("a", 1.0, 1.0, "429")] * refused + [Sample("a", 1.0, 1.0, "500")] * failed
    return Step(users, figures(samples, 10.0))


@pytest.mark.parametrize(
    ("part", "expected"), [(0.5, 50.0), (0.95, 95.0), (0.99, 99.0), (0.001, 1.0), (1.0, 100.0)]
)
def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed(
    part: float, expected: float
) -> None:
    assert percentile([float(value) for value in range(1, 101)], part) == expected


def test_a_percentile_of_one_value_is_that_and_of_none_is_none() -> None:
    assert percentile([7.0], 0.5) == percentile([7.0], 0.99) == 7.0
    assert percentile([], 0.5) is None


def test_rate_and_latencies_are_those_of_what_was_answered() -> None:
    samples = [Sample("a", 0.1 * number, float(number)) for number in range(1, 21)]
    samples += [Sample("a", 1.0, 0.1, "429")] * 5 + [Sample("a", 1.0, 9e9, "ConnectionError")]
    found = figures(samples, 4.0)
    assert found.requests == 26
    assert found.rate == 5.0
    assert (found.p50, found.p95, found.p99) == (10.0, 19.0, 20.0)


def test_a_429_and_a_503_are_refusals_and_the_rest_are_errors() -> None:
    problems = ["429", "503", "429", "500", "ConnectionRefusedError", None, None, None]
    found = figures([Sample("a", 1.0, 1.0, problem) for problem in problems], 1.0)
    assert found.refused == {"429": 2, "503": 1}
    assert found.errors == {"500": 1, "ConnectionRefusedError": 1}
    assert found.refused_share == 3 / 8
    assert found.failed_share == 2 / 8


def test_where_nothing_was_asked_there_are_no_latencies() -> None:
    found = figures([], 1.0)
    assert (found.requests, found.rate, found.p50, found.p95, found.p99) == (0, 0.0, *[None] * 3)
    assert found.refused_share == found.failed_share == 0.0


def test_each_kind_of_request_has_its_figures() -> None:
    samples = [Sample("b", 1.0, 5.0), Sample("a", 1.0, 1.0), Sample("b", 1.0, 7.0, "500")]
    found = by_name(samples, 2.0)
    assert list(found) == ["a", "b"]
    assert found["a"] == figures(samples[1:2], 2.0)
    assert (found["b"].requests, found["b"].rate, found["b"].errors) == (2, 0.5, {"500": 1})


def test_the_knee_is_the_last_step_before_p95_is_more_than_twice_the_first() -> None:
    steps = [_step(1, 10, 50), _step(2, 18, 60), _step(4, 30, 100), _step(8, 40, 101)]
    assert find_knee(steps) == Knee(steps[2], "p95 is 2.0 times that of the first step")


def test_the_knee_is_the_last_step_before_the_rate_grows_by_less_than_a_tenth() -> None:
    steps = [_step(1, 10, 50), _step(2, 11, 60), _step(4, 12, 70)]
    assert find_knee(steps) == Knee(steps[1], "the rate changes by only +9%")


@pytest.mark.parametrize(
    ("unanswered", "reason"),
    [
        ({"refused": 3}, "1% of the requests are refused"),
        ({"failed": 6}, "3% of the requests fail"),
    ],
)
def test_more_than_one_in_a_hundred_unanswered_is_beyond_the_knee(
    unanswered: dict[str, int], reason: str
) -> None:
    steps = [_step(1, 10, 50), _step(2, 20, 50, **unanswered)]
    assert find_knee(steps) == Knee(steps[0], reason)


def test_one_in_a_hundred_refused_is_not() -> None:
    steps = [_step(1, 10, 50), _step(2, 19.8, 50, refused=2)]
    assert find_knee(steps) == Knee(steps[1], None)


def test_a_step_without_an_answer_is_beyond_the_knee() -> None:
    steps = [_step(1, 10, 50), _step(2, 0, 0, refused=5)]
    assert find_knee(steps) == Knee(steps[0], "nothing is answered")


def test_what_follows_the_knee_does_not_count() -> None:
    steps = [_step(1, 10, 50), _step(2, 20, 500), _step(4, 40, 50)]
    knee = find_knee(steps)
    assert knee is not None
    assert knee.step == steps[0]


def test_without_an_answer_to_a_single_user_there_is_no_knee() -> None:
    assert find_knee([]) is None
    assert find_knee([_step(1, 0, 0, failed=3), _step(2, 10, 50)]) is None
