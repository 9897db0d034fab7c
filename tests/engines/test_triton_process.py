"""The Triton that tests start leaves nothing behind, however it ends."""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.engines.triton import TritonProcess


@pytest.mark.parametrize("end", [TritonProcess.kill, TritonProcess.stop])
def test_models_processes_and_shared_memory_go_with_the_server(
    tmp_path: Path, end: Callable[[TritonProcess], None]
) -> None:
    triton = TritonProcess(tmp_path / "triton")
    triton.start()
    assert triton.process is not None
    server = psutil.Process(triton.process.pid)
    models = server.children()
    memory = [Path(each.path) for each in server.memory_maps() if "/dev/shm/" in each.path]
    assert len(models) == len(memory) == 2
    end(triton)
    assert not any(process.is_running() for process in models)
    assert not any(path.exists() for path in memory)
    assert "Traceback" not in triton.log.read_text("utf-8", "replace")
    triton.remove()
    assert not triton.folder.exists()
