"""Searches of the resource API: by upload, by what is indexed, filtered, joined, page by page."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.api import GALLERY, PHOTOS, Api, drawing, problem
from tests.photos import encode
from tests.service import Service


def _ids(answer: Any) -> list[int]:
    return [hit["image"]["id"] for hit in answer["hits"]]


def _image(api: Api, path: str) -> Any:
    [found] = [each for each in _gallery(api) if each["path"] == path]
    return api.get(f"/images/{found['id']}")


def _gallery(api: Api) -> Any:
    return api.get("/images", collection=GALLERY)["items"]


def _rich(api: Api) -> Any:
    """The photo of the gallery that has the most objects."""
    details = [api.get(f"/images/{each['id']}") for each in _gallery(api)]
    return max(details, key=lambda each: len(each["objects"]))


def test_a_photo_of_the_gallery_finds_itself_first_with_all_that_there_is_to_know(
    api: Api,
) -> None:
    path = api.photos[3]
    answer = api.search(path.read_bytes(), top_k=5)
    assert answer["collection"] == GALLERY
    first = answer["hits"][0]
    assert first["image"]["path"] == str(path)
    assert first["image"]["bytes"] == path.stat().st_size
    assert first["distance"] == pytest.approx(0, abs=1e-5)
    [match] = first["matches"]
    found = answer["query"]["objects"][match["query_object"]]
    assert match["object"]["label"] == found["label"]
    assert match["object"]["box"] == pytest.approx(found["box"], abs=0.01)
    assert match["object"]["id"] in [
        each["id"] for each in api.get(f"/images/{first['image']['id']}")["objects"]
    ]
    distances = [hit["distance"] for hit in answer["hits"]]
    assert distances == sorted(distances)
    assert len(set(_ids(answer))) == 5


def test_an_answers_query_goes_on_without_the_photo(api: Api) -> None:
    photo = api.photos[0].read_bytes()
    sent = api.search(photo, top_k=7)
    query_id = sent["query"]["id"]
    again = api.get("/search", query=query_id, collection=GALLERY, top_k=7)
    assert again == sent
    file = api.call("GET", f"/queries/{query_id}/file")
    assert file.content == photo
    assert file.headers["Content-Type"] == "image/jpeg"
    known = {"If-None-Match": file.headers["ETag"]}
    assert api.call("GET", f"/queries/{query_id}/file", headers=known).status_code == 304


@pytest.mark.parametrize("options", [{}, {"group_by": "object"}, {"match": "all"}])
def test_pages_together_are_all_hits_in_their_order(api: Api, options: dict[str, str]) -> None:
    photo = api.photos[1].read_bytes()
    whole = api.search(photo, top_k=1000, **options)
    assert whole["next_cursor"] is None
    assert len(whole["hits"]) > 7
    page = api.search(photo, top_k=7, **options)
    hits = page["hits"]
    query_id = page["query"]["id"]
    while page["next_cursor"]:
        page = api.get(
            "/search",
            query=query_id,
            collection=GALLERY,
            top_k=7,
            cursor=page["next_cursor"],
            **options,
        )
        assert 0 < len(page["hits"]) <= 7
        hits += page["hits"]
    assert [(hit["image"]["id"], hit["distance"]) for hit in hits] == [
        (hit["image"]["id"], hit["distance"]) for hit in whole["hits"]
    ]


def test_a_cursor_is_good_for_its_own_request_alone(api: Api) -> None:
    page = api.search(api.photos[1].read_bytes(), top_k=3)
    query_id, cursor = page["query"]["id"], page["next_cursor"]
    params: dict[str, Any] = {"query": query_id, "collection": GALLERY, "top_k": 3}
    for changed in ({"min_score": 0.9}, {"label": "dog"}, {"match": "all"}):
        answer = api.call("GET", "/search", params={**params, **changed, "cursor": cursor})
        [error] = problem(answer, 400, "invalid_input")["errors"]
        assert (error["where"], error["name"]) == ("query", "cursor")
    # Of the same photo, where one has two objects: drawn ones may have but one each.
    objects = [each["id"] for each in _rich(api)["objects"]]
    objects += [api.get(f"/images/{each['id']}")["objects"][0]["id"] for each in _gallery(api)[:2]]
    one, other, *_ = dict.fromkeys(objects)
    cursor = api.get("/search", object_id=one, top_k=1)["next_cursor"]
    answer = api.call("GET", "/search", params={"object_id": other, "top_k": 1, "cursor": cursor})
    problem(answer, 400, "invalid_input")
    for broken in (cursor[:-3], "%%", "bnVsbA", "e30"):
        answer = api.call("GET", "/search", params={**params, "cursor": broken})
        problem(answer, 400, "invalid_input")


def test_a_frame_around_an_object_finds_what_the_object_finds(api: Api) -> None:
    path = api.photos[2]
    answer = api.search(path.read_bytes())
    box = answer["query"]["objects"][0]["box"]
    framed = api.search(path.read_bytes(), region=",".join(map(str, box)))
    assert framed["query"]["searched"] == []
    assert framed["hits"][0]["image"]["path"] == str(path)
    assert framed["hits"][0]["distance"] == pytest.approx(0, abs=1e-5)
    assert framed["hits"][0]["matches"][0]["query_object"] is None
    image = _image(api, str(path))
    indexed = api.get(
        "/search",
        image_id=image["id"],
        region=",".join(map(str, box)),
        exclude_self="false",
    )
    assert _ids(indexed) == _ids(framed)


@pytest.mark.parametrize(
    "region",
    ["", "1,2,3", "1,2,3,x", "5,5,5,9", "9,0,1,5", "nan,0,5,5", "0,0,inf,5", "1e9,1e9,2e9,2e9"],
)
def test_a_frame_that_holds_nothing_is_refused(api: Api, region: str) -> None:
    answer = api.call(
        "POST",
        "/search",
        params={"collection": GALLERY, "region": region},
        files={"image": api.photos[0].read_bytes()},
    )
    problem(answer, 400, "invalid_input")


def test_chosen_objects_alone_are_searched_for(api: Api) -> None:
    image = _rich(api)
    last = len(image["objects"]) - 1
    answer = api.get("/search", image_id=image["id"], object=last)
    assert answer["query"]["searched"] == [last]
    assert {match["query_object"] for hit in answer["hits"] for match in hit["matches"]} == {last}
    like_it = api.get("/search", object_id=image["objects"][last]["id"])
    assert _ids(like_it) == _ids(answer)
    wrong = api.call("GET", "/search", params={"image_id": image["id"], "object": last + 1})
    [error] = problem(wrong, 400, "invalid_input")["errors"]
    assert error["name"] == "object"
    assert str(last + 1) in error["detail"]


def test_more_like_an_object_leaves_its_own_photo_out_unless_told_otherwise(api: Api) -> None:
    image = _gallery(api)[5]
    [first, *_] = api.get(f"/images/{image['id']}")["objects"]
    answer = api.get("/search", object_id=first["id"], top_k=1000)
    assert image["id"] not in _ids(answer)
    assert len(answer["hits"]) == PHOTOS - 1
    assert answer["query"]["image_id"] == image["id"]
    whole = api.get("/search", object_id=first["id"], top_k=1000, exclude_self="false")
    assert whole["hits"][0]["image"]["id"] == image["id"]
    assert whole["hits"][0]["distance"] == pytest.approx(0, abs=1e-5)
    assert _ids(whole)[1:] == _ids(answer)


def test_a_sent_photo_can_leave_itself_out(api: Api) -> None:
    path = api.photos[4]
    answer = api.search(path.read_bytes(), exclude_self="true", top_k=1000)
    assert str(path) not in [hit["image"]["path"] for hit in answer["hits"]]
    assert len(answer["hits"]) == PHOTOS - 1


def test_filters_leave_just_what_they_say(api: Api) -> None:
    photo = api.photos[6].read_bytes()
    everything = api.search(photo, top_k=1000, group_by="object")["hits"]
    label = everything[-1]["matches"][0]["object"]["label"]

    def kept(**params: Any) -> list[int]:
        answer = api.search(photo, top_k=1000, group_by="object", **params)
        return [hit["matches"][0]["object"]["id"] for hit in answer["hits"]]

    def expected(keep: Any) -> list[int]:
        return [hit["matches"][0]["object"]["id"] for hit in everything if keep(hit)]

    def area(hit: Any) -> float:
        x1, y1, x2, y2 = hit["matches"][0]["object"]["box"]
        part: float = (x2 - x1) * (y2 - y1) / (hit["image"]["width"] * hit["image"]["height"])
        return part

    assert kept(label=[label]) == expected(
        lambda hit: hit["matches"][0]["object"]["label"] == label
    )
    assert kept(label=[label, '" or id > 0 or "']) == kept(label=label)
    assert kept(label='" or id > 0 or "') == []
    middle = everything[len(everything) // 2]
    score = middle["matches"][0]["object"]["score"]
    assert kept(min_score=score) == expected(
        lambda hit: hit["matches"][0]["object"]["score"] >= score
    )
    assert kept(min_area=0.3) == expected(lambda hit: area(hit) >= 0.3)
    assert kept(max_distance=middle["distance"]) == expected(
        lambda hit: hit["distance"] <= middle["distance"]
    )


def test_all_ranks_photos_by_all_of_the_query(api: Api) -> None:
    image = _rich(api)
    answer = api.get("/search", image_id=image["id"], match="all", exclude_self="false")
    assert answer["hits"][0]["image"]["id"] == image["id"]
    searched = answer["query"]["searched"]
    for hit in answer["hits"]:
        assert [match["query_object"] for match in hit["matches"]] == searched
        mean = sum(match["distance"] for match in hit["matches"]) / len(searched)
        assert hit["distance"] == pytest.approx(mean, abs=1e-6)


def test_a_batch_answers_each_photo_for_itself(api: Api) -> None:
    first, second = (path.read_bytes() for path in api.photos[:2])
    answer = api.call(
        "POST",
        "/search/batch",
        params={"collection": GALLERY, "top_k": 3},
        files=[
            ("image", ("one.jpg", first)),
            ("image", ("bad.jpg", b"no photo at all")),
            ("image", ("two.jpg", second)),
        ],
    )
    assert answer.status_code == 200, answer.text
    one, bad, two = answer.json()["results"]
    assert one["filename"] == "one.jpg"
    assert one["answer"] == api.search(first, top_k=3)
    assert two["answer"] == api.search(second, top_k=3)
    assert bad["answer"] is None
    assert bad["problem"]["status"] == 400
    assert bad["problem"]["code"] == "invalid_image"


def test_a_batch_has_sixteen_photos_at_most(api: Api) -> None:
    files = [("image", ("a.jpg", b"x"))] * 17
    problem(api.call("POST", "/search/batch", files=files), 400, "invalid_input")


def test_a_photo_is_fetched_only_where_that_is_allowed(api: Api) -> None:
    problem(api.post("/search", {"url": "http://127.0.0.1:1/a.jpg"}), 403, "forbidden")


def test_detecting_keeps_nothing(api: Api) -> None:
    photo = drawing(1)
    answer = api.call("POST", "/detect", files={"image": photo})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["width"], found["height"]) == (320, 240)
    assert found["objects"]
    for each in found["objects"]:
        x1, y1, x2, y2 = each["box"]
        assert 0 <= x1 < x2 <= 320
        assert 0 <= y1 < y2 <= 240
        assert 0 <= each["score"] <= 1


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"query": "0" * 64, "image_id": 1},
        {"image_id": 1, "object_id": 1},
    ],
)
def test_exactly_one_thing_is_searched_with(api: Api, params: dict[str, Any]) -> None:
    answer = api.call("GET", "/search", params=params)
    assert "exactly one" in problem(answer, 400, "invalid_input")["detail"]


@pytest.mark.parametrize("params", [{"query": "0" * 64}, {"image_id": 10**9}, {"object_id": 10**9}])
def test_what_is_not_there_is_not_found(api: Api, params: dict[str, Any]) -> None:
    problem(api.call("GET", "/search", params=params), 404, "not_found")


def test_a_collection_that_is_not_there_is_not_found(api: Api) -> None:
    answer = api.call(
        "POST",
        "/search",
        params={"collection": "nowhere"},
        files={"image": api.photos[0].read_bytes()},
    )
    assert "nowhere" in problem(answer, 404, "not_found")["detail"]


def test_a_frame_of_a_file_that_has_changed_is_not_searched_for(api: Api, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(drawing(500))
    load = api.post("/loads", {"folder": str(tmp_path), "collection": "changing"}).json()
    api.events(load["id"])
    [image] = api.get("/images", collection="changing")["items"]
    params = {"image_id": image["id"], "region": "0,0,100,100"}
    assert api.call("GET", "/search", params=params).status_code == 200
    for content in (drawing(501), b"no photo"):
        path.write_bytes(content)
        answer = api.call("GET", "/search", params=params)
        assert "has changed" in problem(answer, 404, "not_found")["detail"]
    path.unlink()
    assert (
        "cannot be read"
        in problem(api.call("GET", "/search", params=params), 404, "not_found")["detail"]
    )


def test_photos_without_objects_are_like_nothing(start_service: Callable[..., Service]) -> None:
    service = start_service("--whole-image", "never", "--query-cache-bytes", "0")
    api = Api(service, [])
    blank = encode(np.full((64, 64, 3), 127, np.uint8))
    made = api.upload(blank, collection=GALLERY).json()["results"][0]["image"]
    assert made["objects"] == []
    assert api.get("/search", image_id=made["id"])["hits"] == []
    sent = api.search(blank)
    assert sent["hits"] == []
    assert sent["query"]["id"] is None  # nothing is kept that could be asked for again


def test_an_upload_that_the_disk_refuses_is_told_of_each_photo(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = start_service()
    api = Api(service, [])
    first = api.upload(drawing(510), collection="kept").json()["results"][0]["image"]
    folder = Path(first["path"]).parent
    shutil.rmtree(folder)
    folder.write_text("in the way")
    answer = api.upload(drawing(511), drawing(512), collection="kept")
    assert answer.status_code == 207
    for result in answer.json()["results"]:
        assert "UPLOAD_PATH" in result["problem"]["detail"]
    alone = problem(api.upload(drawing(513), collection="kept"), 500, "internal_error")
    assert "UPLOAD_PATH" in alone["detail"]
