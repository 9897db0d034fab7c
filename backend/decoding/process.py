"""One process that decodes photos, as the service sees it. Blocks: call it in a thread.

The service trusts nothing that comes back: answers are JSON, numbers are looked at before they are
used, the shared memory's size is sealed, and pixels are copied out of it. A process that has been
taken over can open nothing; it may still do what needs no descriptor, such as to remove files of
the user's (SECURITY.md, "What is not protected").
"""

import contextlib
import fcntl
import json
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from backend.decoding.worker import MESSAGE_BYTES
from backend.errors import (
    InvalidImage,
    OutOfProcesses,
    ServiceError,
    TooLarge,
    Unavailable,
    UnsupportedFormat,
)

__all__ = ["NONSENSE", "DecoderEnded", "DecoderProcess"]

NONSENSE: Final = "its process answers what it cannot mean"

_PACKAGE_ROOT: Final = Path(__file__).resolve().parents[2]
_START_SECONDS: Final = 60.0
"""It takes 0.2; a machine that is busy with much else takes its time."""
_KEPT_BYTES: Final = 2**24
"""Of shared memory between photos; what a larger one has taken is given back."""
_INHERITED: Final = ("LD_LIBRARY_PATH", "PATH", "PYTHONDONTWRITEBYTECODE", "TZ")
_ERRORS: Final = {error.__name__: error for error in (InvalidImage, TooLarge, UnsupportedFormat)}


class DecoderEnded(Exception):
    """The process has ended, or was killed, over a photo; the text says why."""


class DecoderProcess:
    """Decodes one photo at a time."""

    def __init__(self, program: str, *, photo_bytes: int, result_bytes: int, memory: int) -> None:
        """Starts the process; it is ready with its first message.

        Args:
            program: name of the module that runs in it.
            photo_bytes: that a photo may have at most.
            result_bytes: that its pixels may have at most.
            memory: bytes that decoding may take besides.

        Raises:
            OutOfProcesses: there is no memory, or no process, to be had.
        """
        self._is_ready = False
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as passed:
            try:
                photo, self._photo = _shared_memory(photo_bytes, passed)
                result, self._result = _shared_memory(result_bytes, passed)
                self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                undo.callback(self._socket.close)
                passed.callback(other.close)
                descriptors = (other.fileno(), photo, result)
                self._process = subprocess.Popen(
                    [
                        *(sys.executable, "-S", "-P", "-W", "ignore", "-m", program),
                        *map(str, (*descriptors, memory)),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=_environment(),
                    pass_fds=descriptors,
                    process_group=0,  # Ctrl-C is for the service, which then ends it
                )
            except OSError as error:
                raise OutOfProcesses(
                    f"no process can be started to decode the photo: {error.strerror}"
                ) from None
            undo.pop_all()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def ask(self, asked: Mapping[str, object], data: bytes, seconds: float) -> Mapping[str, Any]:
        """What it answers to a question about a photo.

        Raises:
            InvalidImage, TooLarge, UnsupportedFormat: its answer is that.
            DecoderEnded: it has ended over the photo, or not answered within `seconds`; it is of no
                more use.
            Unavailable: it has not even started.
        """
        try:
            if not self._is_ready:
                self._receive(_START_SECONDS)
                self._is_ready = True
        except DecoderEnded as end:
            raise Unavailable(f"the process that decodes photos does not start: {end}") from None
        if len(data) > len(self._photo):
            raise TooLarge(f"the photo has more than {len(self._photo)} bytes")
        np.copyto(np.frombuffer(self._photo, np.uint8, len(data)), np.frombuffer(data, np.uint8))
        self._send({**asked, "bytes": len(data)})
        answer = self._receive(seconds)
        _give_back(self._photo, len(data))
        if "error" in answer:
            error: type[ServiceError] = _ERRORS.get(str(answer["error"]), InvalidImage)
            raise error(str(answer.get("reason")))
        return answer

    def result(self, *shape: object) -> NDArray[np.uint8]:
        """What it has said it has made: uint8, of that shape.

        Raises:
            DecoderEnded: it cannot have; it is of no more use.
        """
        sides = [side for side in shape if isinstance(side, int) and side > 0]
        size = math.prod(sides)
        if len(sides) != len(shape) or size > len(self._result):
            raise DecoderEnded(NONSENSE)
        made = np.frombuffer(self._result, np.uint8, size).reshape(sides).copy()
        _give_back(self._result, size)
        return made

    def _send(self, message: Mapping[str, object]) -> None:
        try:
            self._socket.send(json.dumps(message).encode())
        except OSError:
            raise self._ended() from None

    def _receive(self, seconds: float) -> Mapping[str, Any]:
        self._socket.settimeout(seconds)
        try:
            message = self._socket.recv(MESSAGE_BYTES)
        except TimeoutError:
            raise DecoderEnded(f"it was not done within {seconds:g} s") from None
        except OSError:
            message = b""
        if not message:
            raise self._ended()
        try:
            answer = json.loads(message)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise DecoderEnded(NONSENSE)
        return answer

    def _ended(self) -> DecoderEnded:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)  # what it has closed first was the socket
        code = self._process.returncode
        if code == -signal.SIGPROF:
            return DecoderEnded("it took more of the processor's time than a photo of its size may")
        if code is not None and code < 0:
            return DecoderEnded(f"its process was ended by {signal.Signals(-code).name}")
        return DecoderEnded("its process ended")

    def kill(self) -> None:
        """Ends the process, whatever it does; who waits for an answer is told."""
        self._process.kill()

    def close(self) -> None:
        """Forgets a process that has been killed."""
        self._process.wait()
        self._socket.close()


def _shared_memory(size: int, passed: contextlib.ExitStack) -> tuple[int, mmap.mmap]:
    """Memory of which nothing is taken yet, and its descriptor, which is closed with `passed`."""
    descriptor = os.memfd_create("photo", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    passed.callback(os.close, descriptor)
    os.ftruncate(descriptor, size)
    # Made smaller by the other side, what is beyond its end would be the end of the service.
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return descriptor, mmap.mmap(descriptor, size)


def _give_back(shared: mmap.mmap, size: int) -> None:
    """Gives memory back to the system, if it is much."""
    if size > _KEPT_BYTES:
        shared.madvise(mmap.MADV_REMOVE)


def _environment() -> dict[str, str]:
    """What the process needs to find its modules, and no secret."""
    path = os.pathsep.join([str(_PACKAGE_ROOT), *filter(None, sys.path)])
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    # A thread for each core would be made when NumPy is loaded, and do nothing ever.
    return kept | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
