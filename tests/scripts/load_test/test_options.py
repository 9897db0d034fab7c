from pathlib import Path

import pytest

from scripts.load_test.errors import LoadTestError
from scripts.load_test.options import check_url, parse, step_sizes


def test_a_load_test_is_bounded_unless_it_is_told_otherwise() -> None:
    options = parse(["search", "--photos", "folder"])
    assert (options.users, options.seconds, options.steps) == (16, 60, False)
    assert (options.url, options.collection, options.keep) == (
        "http://127.0.0.1:5010",
        "load_test",
        False,
    )
    assert (options.api, options.photos, options.json) == ("v1", Path("folder"), None)


@pytest.mark.parametrize(
    ("flag", "least", "most"),
    [
        ("--users", "1", "512"),
        ("--seconds", "1", "3600"),
        ("--spawn-rate", "0.1", "100"),
        ("--top-k", "1", "1000"),
        ("--most-photos", "1", "100000"),
    ],
)
def test_numbers_have_bounds(
    flag: str, least: str, most: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in (least, most):
        parse(["search", "--photos", "folder", flag, text])
    for text in ("0", f"{most}1", "-1"):
        with pytest.raises(SystemExit):
            parse(["search", "--photos", "folder", flag, text])
        assert f"{flag}: {text} is not between {least} and {most}" in capsys.readouterr().err
    for text in ("nan", "many"):
        with pytest.raises(SystemExit):
            parse(["search", "--photos", "folder", flag, text])
        assert flag in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "a-b", "1a", "a" * 193])
def test_a_collection_has_a_name_that_the_service_takes(name: str) -> None:
    parse(["search", "--photos", "folder", "--collection", "a" * 192])
    with pytest.raises(SystemExit):
        parse(["search", "--photos", "folder", "--collection", name])


def test_a_scenario_of_one_api_takes_that() -> None:
    assert parse(["existing", "--photos", "folder"]).api == "existing"
    with pytest.raises(LoadTestError, match="existing has no calls of the API v1"):
        parse(["existing", "--photos", "folder", "--api", "v1"])


@pytest.mark.parametrize(
    ("users", "sizes"),
    [(1, [1]), (2, [1, 2]), (16, [1, 2, 4, 8, 16]), (20, [1, 2, 4, 8, 16, 20])],
)
def test_steps_double_up_to_all_users(users: int, sizes: list[int]) -> None:
    assert step_sizes(users) == sizes


def test_each_step_has_two_seconds() -> None:
    arguments = ["search", "--photos", "folder", "--steps", "--users", "16", "--seconds"]
    assert parse([*arguments, "10"]).steps
    with pytest.raises(LoadTestError, match="5 steps to 16 users need at least 10 seconds, not 9"):
        parse([*arguments, "9"])


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:5010", "http://127.3.2.1", "https://[::1]:5010", "http://localhost:80"],
)
def test_this_machine_may_be_aimed_at(url: str) -> None:
    assert check_url(url, allow_remote=False) == url
    assert check_url(url + "/", allow_remote=False) == url


@pytest.mark.parametrize(
    "url",
    [
        "http://192.168.0.1:5010",
        "http://example.com",
        "http://127.0.0.1.example.com",
        "http://localhost@example.com",
        "http://0.0.0.0:5010",
        "http://[2001:db8::1]:5010",
    ],
)
def test_another_machine_must_be_allowed(url: str) -> None:
    with pytest.raises(LoadTestError, match=r"another machine than this one.*--allow-remote"):
        check_url(url, allow_remote=False)
    assert check_url(url, allow_remote=True) == url


@pytest.mark.parametrize(
    "url", ["127.0.0.1:5010", "ftp://127.0.0.1", "http://", "http://[::1", "http://localhost:x"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(LoadTestError, match="is no address of a service"):
        check_url(url, allow_remote=True)
