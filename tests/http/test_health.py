"""What balancers and operators ask."""

from typing import Any

from tests.photos import draw_photo, encode
from tests.service import Service

_EMBEDDED = ["ONNX Runtime", "Milvus Lite", "SQLite"]


def _states(service: Service) -> tuple[int, dict[str, Any]]:
    answer = service.get("/readyz")
    return answer.status_code, answer.json()


def test_a_service_that_works_is_alive_and_ready(empty_service: Service) -> None:
    assert empty_service.get("/healthz").json() == {"status": "ok"}
    status, body = _states(empty_service)
    assert (status, body["status"], body["waiting_loads"]) == (200, "ready", [])
    assert [state["engine"] for state in body["engines"]] == _EMBEDDED
    for state in body["engines"]:
        assert state["ready"] is True
        assert state["problem"] is None
        assert 0 <= state["milliseconds"] < 5000


def test_an_engine_that_hangs_is_named_with_when_to_ask_again(service: Service) -> None:
    answer = service.post("/img/upload", files={"image": ("a.jpg", encode(draw_photo(1)))})
    assert answer.status_code == 200
    engine = service.milvus_lite
    engine.suspend()
    try:
        answer = service.get("/readyz")
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        body = answer.json()
        assert body["status"] == "waiting"
        ready = {state["engine"]: state["ready"] for state in body["engines"]}
        assert ready == {"ONNX Runtime": True, "Milvus Lite": False, "SQLite": True}
        [problem] = [state["problem"] for state in body["engines"] if not state["ready"]]
        assert "Milvus Lite" in problem
        assert service.get("/healthz").status_code == 200
    finally:
        engine.resume()
    status, body = _states(service)
    assert (status, body["status"]) == (200, "ready")
