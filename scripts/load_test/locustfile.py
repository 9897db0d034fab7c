"""The same users for Locust's web page.

`locust -f scripts/load_test/locustfile.py --photos FOLDER --scenario mixed`, in the repository's
folder; how many users there are and for how long is said on the page, or by Locust's own flags.
The page is on loopback, and so is the service, unless flags say otherwise.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import LocalRunner, Runner

from scripts.load_test.apis import APIS
from scripts.load_test.errors import LoadTestError
from scripts.load_test.options import (
    DEFAULT_COLLECTION,
    DEFAULT_LOAD,
    DEFAULT_PHOTOS,
    DEFAULT_TOP_K,
    DEFAULT_URL,
    check_url,
    choose_api,
)
from scripts.load_test.photos import read_photos
from scripts.load_test.scenarios import SCENARIOS
from scripts.load_test.stage import Stage
from scripts.load_test.users import Plan, ServiceUser


def _add_options(parser: LocustArgumentParser) -> None:
    parser.set_defaults(host=DEFAULT_URL, web_host="127.0.0.1", **DEFAULT_LOAD)
    add = partial(parser.add_argument, include_in_web_ui=False)  # they count from the start
    add("--photos", required=True, metavar="FOLDER", help="of the photos to send")
    add("--scenario", choices=list(SCENARIOS), default="search", help="what users do")
    add("--api", choices=list(APIS), help="whose calls they make")
    add("--collection", default=DEFAULT_COLLECTION, help="made, and dropped at the end")
    add("--allow-remote", action="store_true", help="allow a --host of another machine")


def _prepare(environment: Environment, runner: Runner, **_: Any) -> None:
    try:
        stage = _stage(environment, runner)
    except LoadTestError as error:
        sys.exit(f"locust: error: {error}")
    events.test_start.add_listener(partial(_begin, stage))
    events.test_stop.add_listener(partial(_end, stage))
    events.quitting.add_listener(partial(_clean, stage))


def _stage(environment: Environment, runner: Runner) -> Stage:
    """The collection, filled, and the users' plan."""
    options = environment.parsed_options
    assert options is not None  # Locust's command line has made the environment
    if not isinstance(runner, LocalRunner):
        raise LoadTestError("the users share one process: leave out --processes and --master")
    folder = Path(options.photos)
    photos = read_photos(folder, DEFAULT_PHOTOS)
    url = check_url(options.host, allow_remote=options.allow_remote)
    stage = Stage(
        options.scenario,
        api=choose_api(options.scenario, options.api),
        url=url,
        collection=options.collection,
        top_k=DEFAULT_TOP_K,
        photos=photos,
        folder=folder,
        at_most=DEFAULT_PHOTOS,
        keep=False,
    )
    try:
        stage.prepare()
    except BaseException:
        stage.clean()
        raise
    ServiceUser.plan = Plan(SCENARIOS[options.scenario], stage.api, photos, url)
    return stage


def _begin(stage: Stage, **_: Any) -> None:
    stage.begin_load()


def _end(stage: Stage, **_: Any) -> None:
    stage.end_load()


def _clean(stage: Stage, **_: Any) -> None:
    stage.clean()


events.init_command_line_parser.add_listener(_add_options)
events.init.add_listener(_prepare)
