"""What an actor makes of photos, and when it gives up."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from backend.analysis import AnalyzedPhoto
from backend.errors import EngineGone, EngineUnavailable
from backend.scanning import FoundPhoto
from backend.settings import Settings
from backend.writing import PreparedPhoto
from scripts.bulk_load.preparer import Outcome, Preparer, Task, pack, unpack
from tests.engines.triton import TritonProcess
from tests.photos import write_photos
from tests.service import SMALL_PAIR

_PATIENCE_SECONDS = 2.0


@pytest.fixture
def settings(tmp_path: Path, triton_server: TritonProcess) -> Settings:
    """That have Triton infer."""
    return Settings.model_validate(
        {name.lower(): model for name, model in SMALL_PAIR.items()}
        | {
            "data_dir": tmp_path / "data",
            "allowed_roots": str(tmp_path),
            "triton_url": triton_server.address,
            "engine_timeout": 1,
        }
    )


@pytest.fixture
def preparer(settings: Settings) -> Iterator[Preparer]:
    """One that has little patience."""
    opened = Preparer(settings, patience_seconds=_PATIENCE_SECONDS)
    yield opened
    opened.close()


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    """Photos that the catalog does not know; the last one is none."""
    paths = [*write_photos(tmp_path / "photos", 3), tmp_path / "photos" / "bad.jpg"]
    paths[-1].write_bytes(b"no photo")
    return [(FoundPhoto(str(path), path.stat().st_size, 1), None) for path in paths]


def _errors(outcomes: Sequence[Outcome]) -> list[str | None]:
    assert all(isinstance(outcome, PreparedPhoto) for outcome in outcomes)
    return [each.image.error for each in outcomes if isinstance(each, PreparedPhoto)]


def test_an_engine_that_stays_away_fails_no_photo(
    preparer: Preparer, tasks: list[Task], triton_server: TritonProcess
) -> None:
    triton_server.freeze()
    try:
        with pytest.raises(EngineGone, match="Triton has not come back within 2 s: "):
            preparer(pack(tasks))
    finally:
        triton_server.thaw()
    *good, bad = _errors(unpack(preparer(pack(tasks))))
    assert good == [None] * 3
    assert bad is not None


def test_an_engine_that_is_not_there_at_the_start_is_not_waited_for_for_ever(
    settings: Settings, triton_server: TritonProcess
) -> None:
    triton_server.freeze()
    try:
        with pytest.raises(EngineGone, match=r"models were not there within 2 s: .*Triton"):
            Preparer(settings, patience_seconds=_PATIENCE_SECONDS)
    finally:
        triton_server.thaw()


def test_an_engine_that_is_back_when_patience_ends_fails_no_photo(
    preparer: Preparer, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    analyze, probe = preparer._analyzer.analyze, preparer._analyzer.probe
    is_back = False

    async def analyze_when_back(data: bytes) -> AnalyzedPhoto:
        if not is_back:
            raise EngineUnavailable("Triton", "Triton does not answer")
        return await analyze(data)

    async def come_back() -> None:
        nonlocal is_back
        is_back = True
        await probe()

    monkeypatch.setattr(preparer._analyzer, "analyze", analyze_when_back)
    monkeypatch.setattr(preparer._analyzer, "probe", come_back)
    *good, _ = _errors(unpack(preparer(pack(tasks))))
    assert good == [None] * 3


def test_a_photo_that_an_engine_fails_with_each_time_fails_alone(
    preparer: Preparer, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = Path(tasks[1][0].path).read_bytes()
    analyze = preparer._analyzer.analyze

    async def fail_with_it(data: bytes) -> AnalyzedPhoto:
        if data == poison:
            raise EngineUnavailable("Triton", "Triton has lost its process")
        return await analyze(data)

    monkeypatch.setattr(preparer._analyzer, "analyze", fail_with_it)
    first, second, third, bad = _errors(unpack(preparer(pack(tasks))))
    assert (first, second, third) == (None, "Triton has lost its process", None)
    assert bad is not None
