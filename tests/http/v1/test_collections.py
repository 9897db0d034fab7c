"""Collections of the resource API, and what it says of the service."""

import pytest

from tests.api import GALLERY, PHOTOS, Api, drawing, problem


def test_a_collection_is_made_once(api: Api) -> None:
    made = api.post("/collections", {"name": "made_once"})
    assert made.status_code == 201, made.text
    assert made.headers["Location"] == "/api/v1/collections/made_once"
    body = made.json()
    assert (body["images"], body["objects"], body["labels"]) == (0, 0, [])
    assert body["compatible"]
    again = api.post("/collections", {"name": "made_once"})
    assert (again.status_code, again.json()) == (200, body)
    assert api.get("/collections/made_once") == body


def test_a_collection_says_what_it_holds(api: Api) -> None:
    found = api.get(f"/collections/{GALLERY}")
    assert (found["images"], found["failed"]) == (PHOTOS, 0)
    details = [
        api.get(f"/images/{each['id']}") for each in api.get("/images", collection=GALLERY)["items"]
    ]
    labels = [each["label"] for detail in details for each in detail["objects"]]
    assert found["objects"] == len(labels)
    assert {each["label"]: each["objects"] for each in found["labels"]} == {
        label: labels.count(label) for label in labels
    }
    counts = [each["objects"] for each in found["labels"]]
    assert counts == sorted(counts, reverse=True)
    listed = {each["name"]: each for each in api.get("/collections")["items"]}
    assert listed[GALLERY].items() <= found.items()
    assert list(listed) == sorted(listed)


def test_a_dropped_collection_is_gone(api: Api) -> None:
    api.upload(drawing(300), collection="to_be_dropped")
    answer = api.call("DELETE", "/collections/to_be_dropped")
    assert (answer.status_code, answer.content) == (204, b"")
    problem(api.call("GET", "/collections/to_be_dropped"), 404, "not_found")
    problem(api.call("DELETE", "/collections/to_be_dropped"), 404, "not_found")
    assert "to_be_dropped" not in [each["name"] for each in api.get("/collections")["items"]]


@pytest.mark.parametrize("name", ["", "1st", "a-b", "é", "x" * 201, None, 5])
def test_a_name_that_is_none_is_refused(api: Api, name: object) -> None:
    [error] = problem(api.post("/collections", {"name": name}), 400, "invalid_input")["errors"]
    assert (error["where"], error["name"]) == ("body", "name")


def test_the_service_says_what_it_is_made_of(api: Api) -> None:
    found = api.get("/info")
    assert found["engine"] == "ONNX Runtime"
    assert found["detector"]["name"] == "yolov3-small"
    assert "dog" in found["labels"]
    assert found["embedder"]["name"] == "resnet50-small"
    assert found["dimension"] == 512
    assert found["fetches_urls"] is False
