"""The service under test as a process, and how a client speaks with it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests

from backend.settings import Settings
from tests.forked import ForkedProgram

MILVUS_LITE = "milvus"
"""What the process of the embedded vector engine is called."""

REPOSITORY = Path(__file__).resolve().parent.parent

# Before a command: a process of root's reads every folder, unless these capabilities are taken.
AS_A_USER = (
    ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
)

# Which models are the default depends on whether the official ones are exported in this checkout.
SMALL_PAIR = {"DETECTOR_MODEL": "yolov3-small", "EMBEDDER_MODEL": "resnet50-small"}

# Photos are fetched from servers of the tests too: on this machine, at any port.
FETCHES_FROM_HERE = (
    *("--url-fetch", "true", "--url-fetch-networks", "127.0.0.1/32"),
    *("--url-fetch-ports", "1-65535"),
)

_SETTINGS = {name.upper() for name in Settings.model_fields}
_READY_SECONDS = 60
_TIMEOUT = 120
_STOP_SECONDS = 10


def as_flags(settings: Mapping[str, str]) -> list[str]:
    """Settings as flags of the command line."""
    return [
        part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)
    ]


@dataclass
class Service:
    """A service's process, its log file and, once it is ready, its address."""

    process: subprocess.Popen[bytes] | ForkedProgram
    log: Path
    url: str = ""

    def wait_until_ready(self, seconds: float) -> None:
        """Returns when the service has found its engines; fails where it ends before."""
        self._wait_for("ready", seconds)

    def wait_until_listening(self, seconds: float) -> None:
        """Returns when the service takes requests; fails where it ends before."""
        self._wait_for("listening", seconds)

    def _wait_for(self, event: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            text = self.log.read_text("utf-8", "replace")
            if found := re.search(rf"event=server\.{event} url=(\S+)", text):
                self.url = found[1]
                return
            assert self.process.poll() is None, f"the service ended:\n{text}"
            time.sleep(0.02)
        raise AssertionError(f"the service was not {event} in {seconds} s:\n{text}")

    def stop(self) -> None:
        """Ends the process with SIGTERM, as an operator would, and waits for it."""
        if self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def kill(self) -> None:
        """Ends the process with SIGKILL, as a crash would."""
        self.process.kill()
        self.process.wait()

    @property
    def milvus_lite(self) -> psutil.Process:
        """The process of the embedded vector engine."""
        children = psutil.Process(self.process.pid).children()
        [engine] = [child for child in children if child.name() == MILVUS_LITE]
        return engine

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=_TIMEOUT, **options)

    def post(self, path: str, **options: Any) -> requests.Response:
        return requests.post(self.url + path, timeout=_TIMEOUT, **options)

    def load(self, folder: Path | str, **options: Any) -> requests.Response:
        return self.post("/img/load", json={"File": str(folder)}, **options)

    def count(self, table: str | None = None) -> int:
        params = {"table_name": table} if table else {}
        answer = self.post("/img/count", params=params)
        assert answer.status_code == 200, answer.text
        return int(answer.json())

    def search(
        self, photo: bytes, top_k: object = None, table: str | None = None
    ) -> requests.Response:
        return self.post(
            "/img/search",
            files={"image": ("query.jpg", photo)},
            data={} if top_k is None else {"topk": str(top_k)},
            params={"table_name": table} if table else {},
        )

    def progress(self) -> tuple[int, int]:
        """As the web client reads it: split at ',' and ':'."""
        text = json.loads(self.get("/progress").text)
        current, total = (int(part.split(":")[1]) for part in text.split(","))
        return current, total


def resident_bytes(pid: int) -> int:
    """Memory of a process and of those that it has started."""
    process = psutil.Process(pid)
    total = 0
    for each in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += each.memory_info().rss
    return total


def start(
    folder: Path,
    flags: Sequence[str],
    data_dir: Path,
    prefix: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    *,
    is_measured: bool = False,
) -> Service:
    """Starts the service, see `launch`; returns once it is ready."""
    service = launch(folder, flags, data_dir, prefix, environment, is_measured=is_measured)
    try:
        service.wait_until_ready(_READY_SECONDS)
    except BaseException:
        service.kill()
        raise
    return service


def launch(
    folder: Path,
    flags: Sequence[str],
    data_dir: Path,
    prefix: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    *,
    is_measured: bool = False,
) -> Service:
    """Starts the service's process on a free loopback port, its log in `folder`.

    It is forked (see `forked.py`), unless it is measured, or started by another command, `prefix`.
    `environment` is what it has besides.
    """
    log = folder / f"service-{len(list(folder.glob('service-*.log')))}.log"
    arguments = ("serve", "--port", "0", "--data-dir", str(data_dir), *flags)
    variables = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
    variables |= SMALL_PAIR | dict(environment or {})
    log.touch()
    if not is_measured and not prefix:
        return Service(ForkedProgram(arguments, variables, log, log), log)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-W", "ignore", "-m", "backend", *arguments],
            cwd=REPOSITORY,
            env=variables,
            stdin=subprocess.DEVNULL,
            stderr=output,
            stdout=output,
        )
    return Service(process, log)
