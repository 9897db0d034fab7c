"""`python -m scripts.load_test`: the service under load, and a summary of its answers.

Locust runs the users; `locust -f scripts/load_test/locustfile.py` shows the same on its web page.
"""

import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import gevent
from locust.env import Environment
from locust.runners import LocalRunner
from rich.console import Console

from scripts.load_test.errors import LoadTestError
from scripts.load_test.figures import Sample, Step, by_name, figures
from scripts.load_test.options import Options, parse, step_sizes
from scripts.load_test.photos import read_photos
from scripts.load_test.scenarios import SCENARIOS
from scripts.load_test.stage import Stage
from scripts.load_test.summary import Result, as_json, in_words, show
from scripts.load_test.users import Plan, Recorder, ServiceUser

SOME_FAILED: Final = 1
BAD_INPUT: Final = 2
INTERRUPTED: Final = 130

_GRACE_SECONDS: Final = 10.0
"""After the end, for answers that are under way: the slow ones count as well."""
_SETTLING: Final = 0.2
"""The part of a step that does not count: its users have just come."""
_STEP_SPAWN_RATE: Final = 100.0


@dataclass
class _Measured:
    """What was seen, and whether Ctrl-C has ended it early. Steps are users, begin and end."""

    samples: list[Sample]
    seconds: float = 0.0
    steps: list[tuple[int, float, float]] = field(default_factory=list)
    interrupted: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code.

    0, 1 where requests have failed, 2 where it could not be run, 130 for Ctrl-C.
    """
    # However it is ended, what it has put into the service is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(parse(argv))
    except LoadTestError as error:
        print(f"python -m scripts.load_test: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(options: Options) -> int:
    photos = read_photos(options.photos, options.at_most)
    if options.json is not None:
        try:
            options.json.open("a").close()
        except OSError as error:
            raise LoadTestError(f"{options.json} cannot be written: {error.strerror}") from None
    stage = Stage(
        options.scenario,
        api=options.api,
        url=options.url,
        collection=options.collection,
        top_k=options.top_k,
        photos=photos,
        folder=options.photos,
        at_most=options.at_most,
        keep=options.keep,
    )
    try:
        stage.prepare()
        stage.begin_load()
        ServiceUser.plan = Plan(SCENARIOS[options.scenario], stage.api, photos, options.url)
        measured = _drive(options)
        result = Result(
            scenario=options.scenario,
            api=options.api,
            url=options.url,
            users=options.users,
            seconds=measured.seconds,
            photos=photos.read,
            total=figures(measured.samples, measured.seconds),
            requests=by_name(measured.samples, measured.seconds),
            steps=[_step(measured.samples, *step) for step in measured.steps],
            loaded=stage.end_load(),
            filling=stage.filling,
        )
        show(result, Console(highlight=False))
        if options.json is not None:
            options.json.write_text(json.dumps(as_json(result), indent=2) + "\n", "utf-8")
    finally:
        stage.clean()
    if measured.interrupted:
        return INTERRUPTED
    return SOME_FAILED if result.total.errors else 0


def _drive(options: Options) -> _Measured:
    """Has Locust's users come, ask and go."""
    environment = Environment(
        user_classes=[ServiceUser], host=options.url, stop_timeout=_GRACE_SECONDS
    )
    recorder = Recorder()
    environment.events.request.add_listener(recorder)
    runner = environment.create_local_runner()
    measured = _Measured(recorder.samples)
    try:
        if options.steps:
            _climb(options, runner, recorder, measured)
        else:
            _tell(f"{in_words(options.users)} for {options.seconds:g} s; Ctrl-C ends it early")
            runner.start(options.users, options.spawn_rate)
            gevent.sleep(options.seconds)
    except KeyboardInterrupt:
        measured.interrupted = True
    if runner.spawning_greenlet is not None:
        runner.spawning_greenlet.kill()
    # Before `quit`, which takes a look at the stack first: no answer is read for as long, a tenth
    # of a second and more.
    runner.stop_users(runner.user_classes_count)
    measured.seconds = recorder.seconds()
    runner.quit()
    for told in runner.exceptions.values():
        raise RuntimeError(f"{told['msg']}\n{told['traceback']}")
    return measured


def _climb(options: Options, runner: LocalRunner, recorder: Recorder, measured: _Measured) -> None:
    sizes = step_sizes(options.users)
    seconds = options.seconds / len(sizes)
    for number, users in enumerate(sizes):
        _tell(f"step {number + 1} of {len(sizes)}: {in_words(users)} for {seconds:.1f} s")
        runner.start(users, _STEP_SPAWN_RATE)
        gevent.sleep(seconds * _SETTLING)
        begin = recorder.seconds()
        gevent.sleep(seconds * (1 - _SETTLING))
        measured.steps.append((users, begin, recorder.seconds()))


def _step(samples: Sequence[Sample], users: int, begin: float, end: float) -> Step:
    seen = [each for each in samples if begin <= each.ended < end]
    return Step(users, figures(seen, end - begin))


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
