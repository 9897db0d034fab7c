"""A short run of `python -m tests.killing`: backends die while they load a folder together."""

from pathlib import Path

from tests.engines.mariadb import MariaDBProcess
from tests.engines.milvus import MilvusProcess
from tests.engines.production import Engines
from tests.engines.triton import TritonProcess
from tests.killing import kill_while_loading


def test_backends_that_are_killed_while_they_load_together_lose_and_double_nothing(
    tmp_path: Path,
    triton_server: TritonProcess,
    milvus_server: MilvusProcess,
    mysql_server: MariaDBProcess,
) -> None:
    milvus_server.start_if_given_up()
    engines = Engines({"triton": triton_server, "milvus": milvus_server, "mysql": mysql_server})
    report = kill_while_loading(tmp_path, engines, photos=64, kills=3, seed=3, lease_seconds=5)
    assert report.kills.total() == 3
    assert report.taken_over
    assert min(report.searches[number] for number in range(3)) > 0
