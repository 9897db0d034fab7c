"""`python -m backend …` as a process of its own, forked from one that has its imports done.

Two seconds of a processor are what the interpreter spends on them, and the tests start the program
some hundred times. So one process does them once (multiprocessing's fork server), and each start is
a fork of it: it gets the same arguments, environment, folder and files as it would otherwise, runs
`backend/__main__.py` from its first line, and shares nothing with others. What it does not show is
the start of the interpreter, which tests/test_main.py does.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import MappingProxyType

__all__ = ["ForkedProgram", "run_program"]

_REPOSITORY = Path(__file__).resolve().parent.parent

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.forked_imports"])


class ForkedProgram:
    """A process that runs the program; as a `subprocess.Popen` is used, so is this."""

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], stdout: Path, stderr: Path
    ) -> None:
        """Starts it; what it prints goes to the two files, which may be one."""
        self._process: ForkServerProcess = _CONTEXT.Process(
            target=_run,
            args=(list(arguments), dict(environment), str(stdout), str(stderr)),
            daemon=True,  # ended with the tests, if nobody has before
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """See `subprocess.Popen.returncode`."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """See `subprocess.Popen.poll`."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """See `subprocess.Popen.wait`."""
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired("python -m backend", timeout or 0)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """See `subprocess.Popen.send_signal`."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """See `subprocess.Popen.kill`."""
        self.send_signal(signal.SIGKILL)


def run_program(
    *arguments: str,
    timeout: float,
    environment: Mapping[str, str] = MappingProxyType({}),
    prefix: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Runs the program until it ends; `environment` is added to this process's.

    It is forked, unless it is to be started by another command, `prefix`.

    Raises:
        subprocess.TimeoutExpired: it has not ended in time, and was killed.
    """
    if prefix:
        return subprocess.run(
            [*prefix, sys.executable, "-W", "ignore", "-m", "backend", *arguments],
            cwd=_REPOSITORY,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        program = ForkedProgram(arguments, os.environ | environment, stdout, stderr)
        try:
            code = program.wait(timeout)
        except BaseException:
            program.kill()
            program.wait()
            raise
        return subprocess.CompletedProcess(
            ["python", "-m", "backend", *arguments], code, stdout.read_text(), stderr.read_text()
        )


def _run(arguments: list[str], environment: dict[str, str], stdout: str, stderr: str) -> None:
    """Runs in the fork: makes it what `python -W ignore -m backend` starts as, and that."""
    os.chdir(_REPOSITORY)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # TMPDIR may be another
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(stdout, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    errors = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor, standard in ((nothing, 0), (output, 1), (errors, 2)):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    sys.argv = ["backend", *arguments]
    runpy.run_module("backend", run_name="__main__", alter_sys=True)
