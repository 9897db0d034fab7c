"""Runs a server in a network namespace of its own, and forwards one port of loopback to it.

    python confined.py FOLDER OUTER_PORT INNER_PORT COMMAND...
    python confined.py                          only tries whether the system permits it

For servers that bind every interface, or ports that cannot be chosen. Nothing listens at
OUTER_PORT before the server does, and all connections break when the server ends, as if it
listened there itself; this process ends then, with the server's exit code. The
file `delay` in FOLDER, where it exists, holds the seconds by which every answer is held back.
SIGUSR1 cuts all connections; SIGTERM is passed on to the server. Being killed kills it.
"""

import asyncio
import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_POLL_SECONDS = 0.02
_CHUNK = 2**18
_libc = ctypes.CDLL(None, use_errno=True)


def enter_namespace() -> None:
    """Moves this process into a new network namespace with a loopback interface that is up.

    Raises:
        OSError: this system does not permit it.
    """
    # Without root only a new user namespace, in which one is root, gives the right to do it.
    flags = _CLONE_NEWNET if os.geteuid() == 0 else _CLONE_NEWNET | _CLONE_NEWUSER
    if _libc.unshare(flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"unshare: {os.strerror(code)}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        # struct ifreq: the interface's name, then its flags.
        request = struct.pack("16sh14x", b"lo", 0)
        _, flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))
        request = struct.pack("16sh14x", b"lo", flags | _IFF_UP)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)


class _Forwarder:
    def __init__(self, folder: Path, inner_port: int) -> None:
        self._delay = folder / "delay"
        self._inner_port = inner_port
        self._open: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            inner_reader, inner_writer = await asyncio.open_connection(
                "127.0.0.1", self._inner_port, limit=_CHUNK
            )
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pass_on(reader, inner_writer, held_back=False))
                    group.create_task(self._pass_on(inner_reader, writer, held_back=True))
            finally:
                inner_writer.transport.abort()
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # either side has gone, or it was cut: the other one sees the same
        finally:
            writer.transport.abort()
            self._open.discard(task)

    async def _pass_on(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, held_back: bool
    ) -> None:
        while data := await source.read(_CHUNK):
            if held_back:
                with suppress(FileNotFoundError):
                    await asyncio.sleep(float(self._delay.read_text()))
            target.write(data)
            await target.drain()
        raise ConnectionError

    def cut(self) -> None:
        for task in self._open:
            task.cancel()


async def _main(folder: Path, outer_port: int, inner_port: int, command: list[str]) -> int:
    # A socket stays in the namespace in which it was made. Bound, it keeps the port; connections
    # are refused until it listens.
    outer = socket.socket()
    outer.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    outer.bind(("127.0.0.1", outer_port))
    enter_namespace()
    server = await asyncio.create_subprocess_exec(
        *command, preexec_fn=lambda: _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    )
    forwarder = _Forwarder(folder, inner_port)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, forwarder.cut)
    loop.add_signal_handler(signal.SIGTERM, server.terminate)
    ended = asyncio.create_task(server.wait())
    while not ended.done():
        with suppress(OSError):
            _, probe = await asyncio.open_connection("127.0.0.1", inner_port)
            probe.close()
            break
        await asyncio.sleep(_POLL_SECONDS)
    listener = await asyncio.start_server(forwarder.accept, sock=outer, limit=_CHUNK)
    code = await ended
    listener.close()
    forwarder.cut()
    return abs(code)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        enter_namespace()
    else:
        _folder, _outer_port, _inner_port, *_command = sys.argv[1:]
        sys.exit(asyncio.run(_main(Path(_folder), int(_outer_port), int(_inner_port), _command)))
