"""What has come of a load test, in words, tables and JSON."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scripts.load_test.figures import Figures, Knee, Step, find_knee

__all__ = ["Result", "as_json", "in_words", "knee_in_words", "show"]


@dataclass(frozen=True)
class Result:
    """What has come of a load test.

    Attributes:
        seconds: that it took, from the first user to the last.
        photos: that were sent, again and again.
        loaded: photos that the service loaded meanwhile, where it was to.
        filling: what was done before the first user, in words; None where there was no need.
    """

    scenario: str
    api: str
    url: str
    users: int
    seconds: float
    photos: int
    total: Figures
    requests: Mapping[str, Figures]
    steps: Sequence[Step] = field(default_factory=tuple)
    loaded: int | None = None
    filling: str | None = None


def show(result: Result, console: Console) -> None:
    """Prints the summary."""
    console.print(
        f"\n{result.scenario}, API {result.api}, {in_words(result.users)},"
        f" {result.seconds:.0f} s, {result.photos} photos, {escape(result.url)};"
        " times in milliseconds",
        soft_wrap=True,
    )
    if result.filling is not None:
        console.print(f"Before: {result.filling}.")
    columns = ("request", "per s", "p50", "p95", "p99", "refused", "failed")
    table = _table(columns)
    for name, each in result.requests.items():
        table.add_row(escape(name), *_cells(each), _count(each.refused), _count(each.errors))
    if len(result.requests) > 1:
        total = result.total
        table.add_section()
        table.add_row("all", *_cells(total), _count(total.refused), _count(total.errors))
    console.print(table)
    if result.steps:
        table = _table(("users", "per s", "p50", "p95", "p99", "refused", "failed"))
        for step in result.steps:
            shares = (step.figures.refused_share, step.figures.failed_share)
            table.add_row(str(step.users), *_cells(step.figures), *map("{:.0%}".format, shares))
        console.print(table)
    for line in _sentences(result):
        console.print(escape(line), soft_wrap=True)


def _table(columns: Sequence[str]) -> Table:
    table = Table()
    for number, title in enumerate(columns):
        table.add_column(title, justify="right" if number else "left", no_wrap=number == 0)
    return table


def _cells(each: Figures) -> list[str]:
    times = (each.p50, each.p95, each.p99)
    return [f"{each.rate:.1f}", *("-" if time is None else f"{time:.0f}" for time in times)]


def _count(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in counts.items()) or "0"


def _sentences(result: Result) -> list[str]:
    total = result.total
    lines = []
    if result.loaded is not None:
        lines.append(
            f"Meanwhile the service has loaded {result.loaded} photos,"
            f" {result.loaded / result.seconds:.1f} a second."
        )
    if total.refused:
        lines.append(
            f"{_count(total.refused)}: {total.refused_share:.0%} of the requests were refused. 429"
            " says that the service is full, 503 that an engine does not answer in time; neither"
            " counts as a failure."
        )
    if total.errors:
        lines.append(f"Failed: {_count(total.errors)}. The service's log says why.")
    if result.steps:
        lines.append(knee_in_words(find_knee(result.steps)))
    else:
        lines.append("At which rate latency bends, --steps tells.")
    return lines


def knee_in_words(knee: Knee | None) -> str:
    """Where latency bends, for a person."""
    if knee is None:
        return "Where latency bends cannot be told: a single user got no answer."
    at = knee.step.figures
    place = f"{at.rate:.1f} requests/s ({in_words(knee.step.users)}, p95 {at.p95:.0f} ms)"
    if knee.reason is None:
        return f"Latency does not bend up to {place}: more --users would tell where it does."
    return f"Latency bends at {place}: with the next step {knee.reason}."


def in_words(users: int) -> str:
    """A number of users."""
    return "1 user" if users == 1 else f"{users} users"


def as_json(result: Result) -> dict[str, Any]:
    """The same for programs. `knee` is null where it cannot be told; rates are per second."""
    knee = find_knee(result.steps)
    steps = [{"users": step.users, **_figures(step.figures)} for step in result.steps]
    return {
        "scenario": result.scenario,
        "api": result.api,
        "url": result.url,
        "users": result.users,
        "seconds": round(result.seconds, 3),
        "photos": result.photos,
        "loaded": result.loaded,
        "total": _figures(result.total),
        "requests": {name: _figures(each) for name, each in result.requests.items()},
        "steps": steps,
        "knee": None
        if knee is None
        else {
            "users": knee.step.users,
            "rate": knee.step.figures.rate,
            "p95_ms": knee.step.figures.p95,
            "bends": knee.reason is not None,
            "reason": knee.reason,
        },
    }


def _figures(each: Figures) -> dict[str, Any]:
    values = dataclasses.asdict(each)
    for name in ("p50", "p95", "p99"):
        values[f"{name}_ms"] = values.pop(name)
    return values | {"refused_share": each.refused_share, "failed_share": each.failed_share}
