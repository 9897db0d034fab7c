"""Who keeps the processors busy: the parts of a service, and the servers that it uses."""

from collections.abc import Iterable

import psutil

from tests.service import MILVUS_LITE

__all__ = ["processor_seconds", "service_seconds"]


def processor_seconds(processes: Iterable[psutil.Process]) -> float:
    """Processor time so far of processes, and of those that they have started."""
    return sum(
        _own_seconds(each)
        for process in processes
        for each in (process, *process.children(recursive=True))
    )


def service_seconds(service: psutil.Process) -> dict[str, float]:
    """Processor time so far of a service, by part.

    Parts are `event_loop`, `threads` (all others of its process), `decoders` (the processes that
    decode photos) and `vectors` (Milvus Lite; nothing where the vectors are on a server).
    """
    loop = next(
        each.user_time + each.system_time for each in service.threads() if each.id == service.pid
    )
    parts = {
        "event_loop": loop,
        "threads": _own_seconds(service) - loop,
        "decoders": 0.0,
        "vectors": 0.0,
    }
    for child in service.children(recursive=True):
        parts["vectors" if child.name() == MILVUS_LITE else "decoders"] += _own_seconds(child)
    return parts


def _own_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
