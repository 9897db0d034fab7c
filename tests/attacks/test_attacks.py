"""Every attack gets through to a careless server, and not to this one."""

from collections import Counter
from urllib.parse import quote

import pytest

from tests.attacks.cases import Case
from tests.attacks.catalog import CASES, with_list
from tests.attacks.slow import ATTACKS as SLOW
from tests.attacks.target import BUCKET, Target
from tests.service import REPOSITORY


def test_it_gets_through_to_a_careless_server_and_not_to_this_one(
    case: Case, request: pytest.FixtureRequest
) -> None:
    if case in SLOW.cases:
        at_the_careless_one, here = request.getfixturevalue("slow_outcomes")[case.name]
    else:
        careless: Target = request.getfixturevalue("careless")
        ours: Target = request.getfixturevalue("service_under_attack")
        at_the_careless_one = case.attack(careless)
        ours.statuses.clear()
        here = case.attack(ours)
        broken = [status for status in ours.statuses if status in (500, 501, 504)]
        assert not broken, f"the service broke: {broken}"
    assert at_the_careless_one, "it is no attack: even the careless server withstands it"
    assert not here, "it gets through"


def test_who_may_does_what_the_attacks_are_refused(service_under_attack: Target) -> None:
    target, keys = service_under_attack, service_under_attack.keys
    url = quote(f"http://127.0.0.5:{target.canary.port}/allowed.jpg", safe="")
    assert target.post(f"/img/upload?table_name=allowed&url={url}").status == 200
    assert target.get("/data?image_path=" + quote(str(target.world.photos / "photo 0000.jpg"))).done
    stored = f"s3://{BUCKET}/photos"
    assert target.json("/img/load", f'{{"File": "{stored}", "Table": "stored"}}'.encode()).done
    assert target.get(f"/data?image_path={stored}/a.jpg").done
    host = f"http://{target.address[0]}:8001"
    assert target.post("/img/count", headers={"Origin": host}).done
    for key, address in (
        (keys.read, "/img/count"),
        (keys.admin, "/img/drop?table_name=nothing"),
        (keys.other, "/img/count?table_name=other_only"),
    ):
        bearer = {"Authorization": f"Bearer {key}"}
        assert target.post(address, headers=bearer, to=target.guarded).status == 200, address


def test_every_attack_has_a_name_of_its_own() -> None:
    names = Counter((case.kind, case.name) for case in CASES)
    assert names.most_common(1)[0][1] == 1, names.most_common(3)
    assert len(CASES) >= 150


def test_security_md_lists_them() -> None:
    security = (REPOSITORY / "SECURITY.md").read_text("utf-8")
    assert with_list(security) == security, "run python -m tests.attacks"
