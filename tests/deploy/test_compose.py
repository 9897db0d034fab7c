"""docker-compose.yml: valid, complete, closed to the outside, and true to what it starts."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from backend.settings import Settings
from backend.stopping import FORCED_STOP_SECONDS
from tests.deploy.compose_file import (
    EXAMPLE,
    FILE,
    PASSWORD,
    SERVICES,
    TEXT,
    resolved,
    uses,
)
from tests.deploy.dockerfile import final_stage
from tests.service import REPOSITORY, SMALL_PAIR

EACH_SERVICE = pytest.mark.parametrize("name", SERVICES, ids="service {}".format)


def active(*profiles: str) -> set[str]:
    """The services that Compose starts under some profiles."""
    return {
        name
        for name, service in SERVICES.items()
        if not service.get("profiles") or set(service["profiles"]) & set(profiles)
    }


def mounts(service: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Source, target and whether it is read-only, of each mount."""
    for mount in service.get("volumes", ()):
        if isinstance(mount, str):
            source, target, *mode = mount.split(":")
            yield source, target, mode == ["ro"]
        else:
            yield mount["source"], mount["target"], mount.get("read_only", False)


def has_health_check(service: dict[str, Any]) -> bool:
    if "healthcheck" in service:
        return True
    if "build" not in service:
        return False
    dockerfile = REPOSITORY / service["build"]["dockerfile"]
    return any(each.name == "HEALTHCHECK" for each in final_stage(dockerfile))


def test_it_follows_the_compose_specification() -> None:
    command = ["-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    check = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=60)
    assert check.returncode == 0, check.stdout + check.stderr


def test_the_example_names_the_variables_that_are_used_and_no_others() -> None:
    assert set(EXAMPLE) == {use.name for use in uses()}


def test_a_variable_falls_back_on_what_the_example_sets_wherever_it_is_used() -> None:
    for use in uses():
        if use.default is not None:
            assert use.default == EXAMPLE[use.name], use.name


def test_passwords_must_be_set_and_have_no_default() -> None:
    passwords = [use for use in uses() if "PASSWORD" in use.name]
    assert {use.name for use in passwords} == {name for name in EXAMPLE if "PASSWORD" in name}
    for use in passwords:
        assert use.message is not None
        assert ".env.example" in use.message
        assert EXAMPLE[use.name] == ""


def test_no_secret_is_written_down() -> None:
    """Whatever a container gets as a password or a token comes from a variable."""
    unset = dict.fromkeys(EXAMPLE, "x") | {name: "" for name in EXAMPLE if "PASSWORD" in name}
    with pytest.raises(AssertionError, match="PASSWORD"):
        resolved(unset)
    secret = re.compile(r"PASSWORD|_PWD|SECRET|TOKEN")
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if secret.search(variable):
                assert PASSWORD in value, f"{name}: {variable}"


def test_files_and_folders_that_it_names_exist() -> None:
    for service in SERVICES.values():
        for source, _, _ in mounts(service):
            if source.startswith("."):
                assert (REPOSITORY / source).exists(), source
        if build := service.get("build"):
            assert (REPOSITORY / build["context"] / build["dockerfile"]).is_file()


def test_volumes_are_declared_and_used() -> None:
    named = {
        source
        for service in SERVICES.values()
        for source, _, _ in mounts(service)
        if not source.startswith((".", "/"))
    }
    assert named == set(yaml.safe_load(TEXT)["volumes"])


@EACH_SERVICE
def test_what_a_service_waits_for_can_be_waited_for(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        match how["condition"]:
            case "service_healthy":
                assert has_health_check(SERVICES[other]), other
            case "service_completed_successfully":
                assert SERVICES[other]["restart"] == "no", other
            case condition:
                pytest.fail(f"{other} {condition}: that says nothing of whether it answers")


@pytest.mark.parametrize("profile", ["gpu", "cpu"])
@pytest.mark.parametrize("monitoring", [False, True])
def test_every_profile_starts_one_triton_and_all_that_is_needed(
    profile: str, monitoring: bool
) -> None:
    started = active(profile, *(["monitoring"] if monitoring else []))
    assert len(started & {"triton", "triton-cpu"}) == 1
    assert {"backend", "client", "models", "milvus", "mysql"} <= started
    for name in started:
        for other, how in SERVICES[name].get("depends_on", {}).items():
            assert other in started or not how.get("required", True), f"{name} needs {other}"


def test_the_example_starts_the_system_on_a_gpu() -> None:
    assert EXAMPLE["COMPOSE_PROFILES"] == "gpu"
    [device] = SERVICES["triton"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "1", "capabilities": ["gpu"]}


def test_no_service_of_the_cpu_profile_asks_for_a_gpu() -> None:
    for name in active("cpu", "monitoring"):
        assert "reservations" not in SERVICES[name]["deploy"]["resources"]
        assert "runtime" not in SERVICES[name]
    assert "--model-config-name=cpu" in SERVICES["triton-cpu"]["command"]


def test_both_tritons_answer_to_the_name_that_the_service_calls() -> None:
    host, port = SERVICES["backend"]["environment"]["TRITON_URL"].split(":")
    assert (host, port) == ("triton", "8001")
    assert SERVICES["triton-cpu"]["networks"]["engines"]["aliases"] == [host]
    assert SERVICES["triton"]["networks"] == ["engines"]


def test_only_the_service_and_pages_are_published_and_only_on_loopback() -> None:
    published = {
        name: port for name, service in SERVICES.items() for port in service.get("ports", ())
    }
    assert published == {
        "backend": "127.0.0.1:5010:5010",
        "client": "127.0.0.1:8001:80",
        "prometheus": "127.0.0.1:9090:9090",
        "grafana": "127.0.0.1:3000:3000",
    }
    open_to_all = resolved(
        dict.fromkeys(EXAMPLE, PASSWORD) | {"PHOTOS": "/photos", "BIND": "0.0.0.0"}
    )["services"]
    for name in ("prometheus", "grafana"):
        assert open_to_all[name]["ports"][0].startswith("127.0.0.1:")


@EACH_SERVICE
def test_engines_are_on_a_network_without_a_way_out(name: str) -> None:
    networks = set(SERVICES[name]["networks"])
    outside = {"backend", "client", "models", "prometheus", "grafana"}
    assert ("front" in networks) == (name in outside)
    assert yaml.safe_load(TEXT)["networks"]["engines"] == {"internal": True}
    assert "network_mode" not in SERVICES[name]


@EACH_SERVICE
def test_images_are_pinned(name: str) -> None:
    image = SERVICES[name]["image"]
    _, _, tag = image.rpartition(":")
    if "build" in SERVICES[name]:
        assert image.startswith("image-search/"), "no registry's image may bear its name"
    else:
        assert re.search(r"\d+\.\d+|\d{4}-\d{2}-\d{2}T", tag), image


def test_both_tritons_are_the_same_release() -> None:
    assert SERVICES["triton"]["image"] == SERVICES["triton-cpu"]["image"]


def test_milvus_asks_for_a_password() -> None:
    assert SERVICES["milvus"]["environment"]["COMMON_SECURITY_AUTHORIZATIONENABLED"] == "true"


@EACH_SERVICE
def test_memory_processes_and_logs_are_limited(name: str) -> None:
    limits = SERVICES[name]["deploy"]["resources"]["limits"]
    assert re.fullmatch(r"\d+[gm]", limits["memory"])
    assert limits["pids"] > 0
    assert set(SERVICES[name]["logging"]["options"]) == {"max-size", "max-file"}


@EACH_SERVICE
def test_services_come_back_and_gain_no_privileges(name: str) -> None:
    assert SERVICES[name]["restart"] == ("no" if name == "models" else "unless-stopped")
    assert "no-new-privileges:true" in SERVICES[name]["security_opt"]
    assert not SERVICES[name].get("privileged")


CAPABLE = {"client": {"CHOWN", "DAC_OVERRIDE", "NET_BIND_SERVICE", "SETGID", "SETUID"}}
"""Who needs a right of root's, and which. The existing web client's nginx changes its user."""

WRITABLE = {"client", "triton", "triton-cpu", "milvus", "minio"}
"""Whose root filesystem is not read-only: images of others that write to places of their own."""


@EACH_SERVICE
def test_no_service_has_rights_that_it_does_not_need(name: str) -> None:
    assert SERVICES[name]["cap_drop"] == ["ALL"]
    assert {*SERVICES[name].get("cap_add", ())} == CAPABLE.get(name, set())
    assert not {"devices", "ipc", "pid", "userns_mode"} & SERVICES[name].keys()
    for source, _, _ in mounts(SERVICES[name]):
        assert "docker.sock" not in source


@EACH_SERVICE
def test_a_services_root_filesystem_is_read_only(name: str) -> None:
    assert SERVICES[name].get("read_only", False) == (name not in WRITABLE)


def test_ours_and_mysql_are_not_root_at_any_time() -> None:
    for name in ("backend", "models"):
        dockerfile = REPOSITORY / SERVICES[name]["build"]["dockerfile"]
        assert [each.value for each in final_stage(dockerfile) if each.name == "USER"] == [
            "10001:10001"
        ]
        assert "user" not in SERVICES[name]
        assert "/tmp" in SERVICES[name]["tmpfs"]
    assert SERVICES["mysql"]["user"] == "mysql"


def test_the_services_environment_is_of_settings_that_it_accepts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = SERVICES["backend"]["environment"]
    assert {name.lower() for name in environment} <= set(Settings.model_fields)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))

    settings = Settings.load()

    assert settings.milvus_token.get_secret_value() == f"root:{PASSWORD}"
    assert settings.mysql_pwd.get_secret_value() == PASSWORD
    assert settings.data_path == Path(EXAMPLE["PHOTOS"])
    assert not settings.url_fetch
    assert settings.load_concurrency == Settings.model_fields["load_concurrency"].default


def test_the_longest_drain_that_the_example_allows_comes_to_its_end() -> None:
    assert "At most 50." in (REPOSITORY / ".env.example").read_text("utf-8")
    assert SERVICES["backend"]["stop_grace_period"] == "1m"
    assert 50 + FORCED_STOP_SECONDS < 60


def test_the_service_and_mysql_agree() -> None:
    ours, theirs = SERVICES["backend"]["environment"], SERVICES["mysql"]["environment"]
    assert ours["MYSQL_USER"] == theirs["MYSQL_USER"] != "root"
    assert ours["MYSQL_PWD"] == theirs["MYSQL_PASSWORD"]
    assert ours["MYSQL_DB"] == theirs["MYSQL_DATABASE"]
    assert "--character-set-server=utf8mb4" in SERVICES["mysql"]["command"]


@pytest.mark.parametrize("triton", ["triton", "triton-cpu"], ids="service {}".format)
def test_the_pair_that_is_provided_is_the_one_that_is_loaded_probed_and_used(triton: str) -> None:
    example = dict.fromkeys(EXAMPLE, PASSWORD) | {"PHOTOS": "/photos"}
    services = resolved(example | SMALL_PAIR)["services"]

    for name in ("backend", "models"):
        assert SMALL_PAIR.items() <= services[name]["environment"].items()
    assert services["models"]["build"]["args"] == SMALL_PAIR
    loaded = [word for word in services[triton]["command"] if word.startswith("--load-model=")]
    assert loaded == [f"--load-model={model}" for model in SMALL_PAIR.values()]
    assert "--model-control-mode=explicit" in services[triton]["command"]
    probed = [word for word in services[triton]["healthcheck"]["test"] if "/v2/models/" in word]
    assert [url.split("/")[-2] for url in probed] == list(SMALL_PAIR.values())


def test_tensorrt_keeps_its_engines_on_a_volume() -> None:
    config = (REPOSITORY / "model_repository" / "yolov3" / "config.pbtxt").read_text("utf-8")
    cache = re.search(r'key: "trt_engine_cache_path"\s+value: "(.+)"', config)
    assert cache
    assert ("tensorrt", cache[1], False) in mounts(SERVICES["triton"])


def test_only_the_exporter_writes_models() -> None:
    readers = ["backend", "triton", "triton-cpu"]
    for name in readers:
        assert ("models", "/models", True) in mounts(SERVICES[name])
        [mount] = [
            mount
            for mount in SERVICES[name]["volumes"]
            if isinstance(mount, dict) and mount["source"] == "models"
        ]
        assert mount["volume"] == {"nocopy": True}
    assert ("models", "/models", False) in mounts(SERVICES["models"])


def test_the_service_reads_photos_where_the_host_has_them_and_cannot_change_them() -> None:
    assert (EXAMPLE["PHOTOS"], EXAMPLE["PHOTOS"], True) in mounts(SERVICES["backend"])
    assert SERVICES["backend"]["read_only"] is True
    assert ("data", "/data", False) in mounts(SERVICES["backend"])
