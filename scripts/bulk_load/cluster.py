"""The Ray that a bulk load runs on: a cluster's, or one on this machine alone."""

import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

# Before Ray is imported: it tells nobody outside what it is used for, and us of failures alone; and
# a thread that a load which is stopped has left behind starts no Ray of its own.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

import ray
import ray.data
from tenacity import Retrying, retry_if_exception_message, stop_after_attempt

from backend.cores import count_cores
from backend.errors import ConfigurationError
from backend.threads import in_thread

__all__ = ["START_SECONDS", "connected", "ray"]

START_SECONDS: Final = 600
"""For an actor to be given cores and to open the models; machines may have to start."""
_ATTEMPTS: Final = 3
"""To start a Ray here: a busy machine may take longer than the half minute it gives itself."""


@asynccontextmanager
async def connected(address: str | None) -> AsyncIterator[None]:
    """A connection to the cluster at an address, or, with None, to a Ray that ends with it.

    Raises:
        ConfigurationError: there is none.
    """
    # In a thread: on the main one Ray would take the signal that stops this command.
    logging.getLogger("ray._private.worker").setLevel(logging.ERROR)  # it says so
    try:
        await in_thread(_connect, address)
        # Beneath Python it takes it all the same, to end the process three seconds later.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        # Whoever starts the load has a bar of ours; the cluster's dashboard shows Ray's.
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.raise_original_map_exception = True
        context.wait_for_min_actors_s = START_SECONDS
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield
    finally:
        ray.shutdown()


def _connect(address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            for attempt in Retrying(
                retry=retry_if_exception_message(match="(?s).*[Tt]imed out"),
                stop=stop_after_attempt(_ATTEMPTS),
                before_sleep=lambda _: ray.shutdown(),
                reraise=True,
            ):
                with attempt:
                    ray.init(num_cpus=count_cores(), include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except Exception as error:  # Ray's own are of no type
        where = "can be started on this machine" if address is None else f"answers at {address}"
        raise ConfigurationError(f"no Ray {where}: {error}") from error
