"""Loads of the resource API: begun, watched, ended, gone on with."""

from pathlib import Path

import pytest

from tests.api import Api, problem
from tests.photos import write_photos


def test_a_load_tells_how_it_goes_until_its_end(api: Api, tmp_path: Path) -> None:
    write_photos(tmp_path, 6, start=200)
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    answer = api.post("/loads", {"folder": str(tmp_path), "collection": "loads_one"})
    assert answer.status_code == 202, answer.text
    begun = answer.json()
    assert answer.headers["Location"] == f"/api/v1/loads/{begun['id']}"
    assert begun["folder"] == str(tmp_path)
    assert begun["counts"]["total"] == 7
    events = api.events(begun["id"])
    assert [name for name, _ in events[:-1]] == ["progress"] * (len(events) - 1)
    done = [load["counts"]["processed"] for _, load in events]
    assert done == sorted(done)
    name, last = events[-1]
    assert (name, last["state"]) == ("end", "done")
    assert last["counts"]["indexed"] == 6
    assert last["finished_at"] >= last["started_at"]
    [failure] = last["failures"]
    assert failure["path"] == str(tmp_path / "broken.jpg")
    assert failure["reason"]
    assert api.get(f"/loads/{begun['id']}") == last
    [failed] = api.get("/images", collection="loads_one", state="failed")["items"]
    assert (failed["path"], failed["error"]) == (failure["path"], failure["reason"])


def test_loads_are_listed_newest_first(api: Api, tmp_path: Path) -> None:
    ids = []
    for number in range(3):
        write_photos(tmp_path / str(number), 1, start=210 + number)
        body = {"folder": str(tmp_path / str(number)), "collection": "loads_list"}
        ids.append(api.post("/loads", body).json()["id"])
        api.events(ids[-1])
    whole = api.get("/loads", collection="loads_list")
    assert [each["id"] for each in whole["items"]] == ids[::-1]
    page = api.get("/loads", collection="loads_list", limit=2)
    assert [each["id"] for each in page["items"]] == ids[:0:-1]
    rest = api.get("/loads", collection="loads_list", limit=2, cursor=page["next_cursor"])
    assert [each["id"] for each in rest["items"]] == ids[:1]
    assert rest["next_cursor"] is None
    problem(api.call("GET", "/loads", params={"collection": "nowhere"}), 404, "not_found")


def test_a_cancelled_load_ends_and_can_be_gone_on_with(api: Api, tmp_path: Path) -> None:
    write_photos(tmp_path, 60, start=220)
    load = api.post("/loads", {"folder": str(tmp_path), "collection": "loads_cancel"}).json()
    ended = api.call("POST", f"/loads/{load['id']}/cancel")
    assert ended.status_code == 200, ended.text
    assert ended.json()["state"] == "cancelled"
    assert ended.json()["counts"]["processed"] < 60
    [(name, last)] = api.events(load["id"])
    assert (name, last["state"]) == ("end", "cancelled")
    again = api.call("POST", f"/loads/{load['id']}/cancel")
    assert again.json()["state"] == "cancelled"
    resumed = api.call("POST", f"/loads/{load['id']}/resume")
    assert resumed.status_code == 200, resumed.text
    assert (resumed.json()["id"], resumed.json()["state"]) == (load["id"], "running")
    _, last = api.events(load["id"])[-1]
    assert last["state"] == "done"
    assert last["counts"]["processed"] == 60
    assert api.get("/collections/loads_cancel")["images"] == 60


@pytest.mark.parametrize("path", ["", "/events"])
def test_a_load_that_is_not_there_is_not_found(api: Api, path: str) -> None:
    problem(api.call("GET", f"/loads/{10**9}{path}"), 404, "not_found")


@pytest.mark.parametrize("what", ["cancel", "resume"])
def test_a_load_that_is_not_there_is_neither_ended_nor_gone_on_with(api: Api, what: str) -> None:
    problem(api.call("POST", f"/loads/{10**9}/{what}"), 404, "not_found")


def test_a_folder_that_is_not_there_is_refused(api: Api, tmp_path: Path) -> None:
    answer = api.post("/loads", {"folder": str(tmp_path / "nowhere")})
    assert "nowhere" in problem(answer, 400, "invalid_input")["detail"]
