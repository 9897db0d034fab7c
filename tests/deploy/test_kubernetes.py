"""deploy/kubernetes: valid, closed, true to what it starts, of one mind with docker-compose.yml.

No cluster is there to start it on: what a cluster would find out is listed in its README.
"""

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import utils

from backend import app, readiness
from backend.http import health
from backend.metrics import Metrics
from backend.settings import Settings
from backend.stopping import FORCED_STOP_SECONDS
from tests.deploy.compose_file import PASSWORD, SERVICES
from tests.deploy.dockerfile import final_stage
from tests.deploy.kubectl import kustomize, try_kustomize
from tests.deploy.network_policies import Address, End, Pod, allows
from tests.deploy.test_monitoring import METRICS
from tests.service import REPOSITORY

DEPLOY: Final = REPOSITORY / "deploy" / "kubernetes"
FILES: Final = sorted(DEPLOY.rglob("*.yaml"))
OVERLAYS: Final = ("production", "mysql-in-cluster")
COMPONENTS: Final = sorted(path.name for path in (DEPLOY / "components").iterdir())
OLDEST, NEWEST = "1.32", kubernetes_validate.latest_version()
NAMESPACE: Final = "image-search"
CUSTOM: Final = yaml.safe_load((Path(__file__).parent / "custom_resources.yaml").read_text("utf-8"))

Resource = dict[str, Any]


class Built:
    """The resources of a kustomization."""

    def __init__(self, resources: list[Resource]) -> None:
        self.all = resources

    def of(self, kind: str) -> list[Resource]:
        return [each for each in self.all if each["kind"] == kind]

    def one(self, kind: str, name: str) -> Resource:
        """By its name, or that with a hash behind it."""
        hashed = re.compile(rf"{re.escape(name)}(-[a-z0-9]{{10}})?")
        [found] = [each for each in self.of(kind) if hashed.fullmatch(each["metadata"]["name"])]
        return found

    def pods(self) -> Iterator[tuple[Resource, dict[str, Any]]]:
        """The workloads of ours, each with what its pods are made by."""
        for workload in self.all:
            if workload["kind"] in ("Deployment", "StatefulSet", "Job"):
                yield workload, workload["spec"]["template"]

    def data(self, kind: str, name: str) -> dict[str, str]:
        found: dict[str, str] = self.one(kind, name)["data"]
        return found


def without_secrets(folder: Path) -> Path:
    """A copy as git has it, whatever somebody has put into this one."""
    ignored = shutil.ignore_patterns("secrets")
    return Path(shutil.copytree(DEPLOY, folder / "kubernetes", ignore=ignored))


def with_secrets(folder: Path) -> Path:
    """A copy whose passwords are filled in as its README says."""
    copied = without_secrets(folder)
    for example in copied.glob("overlays/*/secrets.example"):
        secrets = example.with_name("secrets")
        secrets.mkdir()
        for file in example.iterdir():
            text = re.sub(r"=$", f"={PASSWORD}", file.read_text("utf-8"), flags=re.MULTILINE)
            (secrets / file.name).write_text(text, "utf-8")
    return copied


@pytest.fixture(scope="module", autouse=True)
def _schemas_read_once() -> Iterator[None]:
    """Kubernetes' schemas are a megabyte, which would be parsed for each resource."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "schema_contents", cache(utils.schema_contents))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_secrets(tmp_path_factory.mktemp("deploy"))


@pytest.fixture(scope="module")
def production(folder: Path) -> Built:
    return Built(kustomize(folder / "overlays" / "production"))


@pytest.fixture(scope="module")
def everything(folder: Path) -> Built:
    """MySQL in the cluster as well."""
    return Built(kustomize(folder / "overlays" / "mysql-in-cluster"))


@pytest.fixture(scope="module")
def on_cpus(folder: Path) -> Built:
    return _composed(folder, "on-cpus", "cpu", on="production")


@pytest.fixture(scope="module")
def in_a_bucket(folder: Path) -> Built:
    return _composed(folder, "in-a-bucket", "photos-in-a-bucket", on="production")


def _composed(folder: Path, name: str, *components: str, on: str) -> Built:
    made = folder / "overlays" / name
    made.mkdir()
    content = {
        "namespace": NAMESPACE,
        "resources": [f"../{on}"],
        "components": [f"../../components/{component}" for component in components],
    }
    (made / "kustomization.yaml").write_text(yaml.safe_dump(content), "utf-8")
    return Built(kustomize(made))


def check(resource: Mapping[str, Any], version: str) -> None:
    """Raises ValidationError where a resource is not what Kubernetes, or its operator, takes."""
    kind = f"{resource['apiVersion']} {resource['kind']}"
    if kind in CUSTOM["kinds"]:
        schema = {
            "type": "object",
            "required": ["metadata", "spec"],
            "additionalProperties": False,
            "properties": {
                "apiVersion": {},
                "kind": {},
                "metadata": {"$ref": "#/definitions/metadata"},
                "spec": CUSTOM["kinds"][kind],
            },
            "definitions": CUSTOM["definitions"],
        }
        jsonschema.Draft7Validator(schema).validate(resource)
    else:
        kubernetes_validate.validate(dict(resource), version, strict=True)


# What it is made of


def test_every_file_is_part_of_what_is_checked(
    production: Built, everything: Built, on_cpus: Built, in_a_bucket: Built
) -> None:
    """Each overlay and component is in one of the four, each file in its kustomization."""
    overlays = {path.name for path in (DEPLOY / "overlays").iterdir()}
    assert overlays == set(OVERLAYS), "overlays of your own belong elsewhere"
    named = {"cpu", "photos-in-a-bucket"}
    for file in FILES:
        if file.name == "kustomization.yaml":
            content = yaml.safe_load(file.read_text("utf-8"))
            named |= {Path(each).name for each in content.get("components", ())}
            listed = {each for each in content.get("resources", ()) if each.endswith(".yaml")}
            assert listed == {each.name for each in file.parent.glob("*.yaml")} - {file.name}, file
    assert named == set(COMPONENTS)
    assert all(len(built.all) > 20 for built in (production, everything, on_cpus, in_a_bucket))


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_resource_is_one_that_kubernetes_takes(
    version: str, production: Built, everything: Built, on_cpus: Built, in_a_bucket: Built
) -> None:
    """No field is unknown, missing or of another type."""
    distinct = {
        json.dumps(resource): resource
        for built in (production, everything, on_cpus, in_a_bucket)
        for resource in built.all
    }
    for resource in distinct.values():
        check(resource, version)


def test_a_misspelt_field_is_found(everything: Built) -> None:
    """In each kind: the check above is one that can fail."""
    for kind in {each["kind"] for each in everything.all} - {"ConfigMap", "Secret"}:
        resource = copy.deepcopy(everything.of(kind)[0])
        check(resource, NEWEST)
        (resource.get("spec") or resource)["replicaz"] = 1
        with pytest.raises(jsonschema.ValidationError, match="replicaz"):
            check(resource, NEWEST)


def test_names_are_given_once_and_all_is_in_one_namespace(everything: Built) -> None:
    names = [
        (each["apiVersion"], each["kind"], each["metadata"]["name"]) for each in everything.all
    ]
    assert len(names) == len(set(names))
    for resource in everything.all:
        if resource["kind"] not in ("Namespace", "PersistentVolume"):
            assert resource["metadata"]["namespace"] == NAMESPACE, resource["metadata"]
    [namespace] = everything.of("Namespace")
    assert namespace["metadata"]["name"] == NAMESPACE


def references(value: Any) -> Iterator[tuple[str, str, str | None]]:
    """Kind, name and key of everything that is referred to."""
    match value:
        case list():
            for item in value:
                yield from references(item)
        case dict():
            for key, item in value.items():
                match key:
                    case "secretKeyRef":
                        yield "Secret", item["name"], item["key"]
                    case "configMapRef":
                        yield "ConfigMap", item["name"], None
                    case "claimName":
                        yield "PersistentVolumeClaim", item, None
                    case "serviceAccountName":
                        yield "ServiceAccount", item, None
                    case "secretName" | "existingSecret":
                        yield "Secret", item, None
                    case "secretRef":
                        yield "Secret", item if isinstance(item, str) else item["name"], None
                    case "scaleTargetRef":
                        yield item["kind"], item["name"], None
                    case "serviceName":
                        yield "Service", item, None
                    case _:
                        yield from references(item)


def test_whatever_is_referred_to_is_there(production: Built, everything: Built) -> None:
    for built in (production, everything):
        found = set(references(built.all))
        assert {kind for kind, _, _ in found} >= {"Secret", "ConfigMap", "PersistentVolumeClaim"}
        for kind, name, key in found:
            [resource] = [each for each in built.of(kind) if each["metadata"]["name"] == name]
            assert key is None or key in resource["data"], f"{kind} {name} has no {key}"


def test_operators_find_in_their_secrets_what_they_look_for(everything: Built) -> None:
    milvus = everything.one("Milvus", NAMESPACE)["spec"]["dependencies"]["storage"]
    assert milvus["secretRef"] == milvus["inCluster"]["values"]["existingSecret"]
    assert set(everything.data("Secret", milvus["secretRef"])) == {"accesskey", "secretkey"}
    mysql = everything.one("InnoDBCluster", "mysql")["spec"]
    assert set(everything.data("Secret", mysql["secretName"])) == {
        "rootUser",
        "rootHost",
        "rootPassword",
    }


# Secrets


def test_no_secret_is_in_git() -> None:
    for file in FILES:
        assert "kind: Secret" not in file.read_text("utf-8"), file
    for file in DEPLOY.glob("overlays/*/secrets.example/*.env"):
        for line in file.read_text("utf-8").splitlines():
            name, _, value = line.partition("=")
            if re.search(r"(?i)password|secret", name) and not line.startswith("#"):
                assert value == "", f"{file}: {name}"
        secrets = file.parent.with_name("secrets") / file.name
        ignored = subprocess.run(["git", "check-ignore", "-q", secrets], cwd=REPOSITORY)
        assert ignored.returncode == 0, f"git would take {secrets}"


def test_without_secrets_nothing_is_made(tmp_path: Path) -> None:
    for overlay in OVERLAYS:
        done = try_kustomize(without_secrets(tmp_path / overlay) / "overlays" / overlay)
        assert done.returncode != 0
        assert "secrets/mysql" in done.stderr


def test_what_is_secret_reaches_a_container_by_reference_alone(everything: Built) -> None:
    secret = re.compile(r"PASSWORD|_PWD|SECRET|TOKEN")
    for _, pod in everything.pods():
        for container in containers(pod):
            for variable in container.get("env", ()):
                if secret.search(variable["name"]) and "valueFrom" not in variable:
                    assert variable["value"] == "root:$(MILVUS_PASSWORD)"
    for resource in everything.all:
        if resource["kind"] != "Secret":
            assert PASSWORD not in yaml.safe_dump(resource)


# The service


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]


def backend(built: Built) -> dict[str, Any]:
    [container] = built.one("Deployment", "backend")["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = container
    return found


def environment(built: Built, container: dict[str, Any]) -> dict[str, str]:
    """As the kubelet puts it together."""
    values: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        values |= built.data("ConfigMap", source["configMapRef"]["name"])
    for variable in container.get("env", ()):
        text = PASSWORD if "valueFrom" in variable else variable["value"]
        values[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda name: values[name[1]], text)
    return values


@pytest.mark.parametrize("name", ["production", "everything", "on_cpus"])
def test_the_services_environment_is_of_settings_that_it_accepts(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: Built = request.getfixturevalue(name)
    values = environment(built, backend(built))
    assert {each.lower() for each in values} - {"milvus_password"} <= set(Settings.model_fields)
    for each, value in values.items():
        monkeypatch.setenv(each, value)

    settings = Settings.load()

    assert settings.milvus_token.get_secret_value() == f"root:{PASSWORD}"
    assert settings.mysql_pwd.get_secret_value() == PASSWORD
    assert settings.demands_keys
    assert not settings.url_fetch
    assert None not in (settings.milvus_host, settings.mysql_host, settings.triton_url)
    mounts = {each["mountPath"] for each in backend(built)["volumeMounts"]}
    assert {str(settings.data_dir), str(settings.data_path)} < mounts
    assert settings.photo_roots == (settings.data_path,)


def test_photos_may_be_in_a_bucket_alone(
    in_a_bucket: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = environment(in_a_bucket, backend(in_a_bucket))
    credentials = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    found = {name for _, name, key in references(backend(in_a_bucket)) if key in credentials}
    assert found == {"photos"}
    of_aws = {name for name in values if name.startswith("AWS_")}
    assert of_aws == credentials | {"AWS_REGION"}
    for each, value in values.items():
        monkeypatch.setenv(each, value)
    settings = Settings.load()
    assert settings.photo_roots == ()
    assert settings.photo_stores == (settings.data_path,)
    deployment = in_a_bucket.one("Deployment", "backend")
    claims = {each["persistentVolumeClaim"]["claimName"] for each in _claims(deployment)}
    mounts = {each["mountPath"] for each in backend(in_a_bucket)["volumeMounts"]}
    assert (claims, mounts) == ({"data"}, {"/data", "/tmp"})
    policies = in_a_bucket.of("NetworkPolicy")
    assert allows(policies, BACKEND, PUBLIC, 443)
    for target, port in ((PRIVATE, 443), (METADATA, 443), (METADATA, 80), (PUBLIC, 80)):
        assert not allows(policies, BACKEND, target, port)


def test_the_service_is_told_what_compose_tells_it(production: Built) -> None:
    """What both set has the same value, but for what depends on where it runs."""
    ours = environment(production, backend(production))
    theirs = {name: str(value) for name, value in SERVICES["backend"]["environment"].items()}
    places = {"ALLOWED_HOSTS", "DATA_PATH", "DRAIN_SECONDS", "MAX_QUEUED", "TRUSTED_PROXIES"}
    engines = {"TRITON_URL", "MILVUS_HOST", "MYSQL_HOST"}
    differing = {name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]}
    assert differing <= places | engines
    assert {"PORT", "MYSQL_USER", "MYSQL_DB", "DETECTOR_MODEL"} <= ours.keys() & theirs.keys()


def test_the_service_answers_to_its_names(production: Built) -> None:
    name = production.one("Service", "backend")["metadata"]["name"]
    space = f"{name}.{NAMESPACE}"
    names = {name, space, f"{space}.svc", f"{space}.svc.cluster.local"}
    hosts = environment(production, backend(production))["ALLOWED_HOSTS"].split(",")
    assert names < set(hosts), "the overlay adds a name to those, and leaves none out"


def test_probes_ask_what_the_service_answers(production: Built) -> None:
    container = backend(production)
    probed = {
        name: container[name]["httpGet"]["path"]
        for name in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert probed == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }
    assert set(probed.values()) == {operation.path for operation in health.OPERATIONS}
    assert container["readinessProbe"]["timeoutSeconds"] > readiness._PROBE_SECONDS
    starts = container["startupProbe"]
    assert starts["periodSeconds"] * starts["failureThreshold"] > 2 * app._SILENT_START_SECONDS


def test_ports_are_those_that_are_listened_on(production: Built) -> None:
    [port] = backend(production)["ports"]
    settings = environment(production, backend(production))
    exposed = [
        each.value
        for each in final_stage(REPOSITORY / "backend" / "Dockerfile")
        if each.name == "EXPOSE"
    ]
    assert [str(port["containerPort"]), settings["PORT"]] == exposed * 2
    for service in production.of("Service"):
        [pod] = [pod for _, pod in production.pods() if selected(service["spec"]["selector"], pod)]
        named = {each["name"] for each in pod["spec"]["containers"][0]["ports"]}
        assert {each["targetPort"] for each in service["spec"]["ports"]} <= named


def selected(labels: Mapping[str, str], pod: dict[str, Any]) -> bool:
    return bool(labels.items() <= pod["metadata"]["labels"].items())


def test_an_update_takes_no_pod_away_before_the_next_one_is_ready(production: Built) -> None:
    deployment = production.one("Deployment", "backend")
    update = deployment["spec"]["strategy"]["rollingUpdate"]
    assert update == {"maxUnavailable": 0, "maxSurge": 1}
    used = {each["persistentVolumeClaim"]["claimName"] for each in _claims(deployment)}
    for name in used:
        modes = production.one("PersistentVolumeClaim", name)["spec"]["accessModes"]
        assert modes in (["ReadWriteMany"], ["ReadOnlyMany"]), f"{name}: two nodes may need it"


def _claims(workload: Resource) -> list[dict[str, Any]]:
    volumes = workload["spec"]["template"]["spec"]["volumes"]
    return [each for each in volumes if "persistentVolumeClaim" in each]


def test_a_pod_that_stops_sends_its_clients_elsewhere_and_answers_them(production: Built) -> None:
    deployment = production.one("Deployment", "backend")["spec"]
    drain = float(environment(production, backend(production))["DRAIN_SECONDS"])
    longest = Settings.model_fields["request_timeout"].default
    assert drain >= longest + 10, "balancers need some seconds, and a request may take as long"
    grace = deployment["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace >= drain + FORCED_STOP_SECONDS + 5
    # It would take its time from the same, and clients would not be told anything.
    assert "lifecycle" not in backend(production)
    assert backend(production)["readinessProbe"]["httpGet"]["path"] == "/readyz"
    # That one is answered as ever, so that nobody ends a pod that drains.
    assert backend(production)["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_variables_of_services_cannot_be_taken_for_settings(everything: Built) -> None:
    """A Service `mysql` would bring MYSQL_PORT=tcp://… along."""
    for _, pod in everything.pods():
        assert pod["spec"]["enableServiceLinks"] is False


def test_backends_and_tritons_are_as_many_as_their_work_needs(production: Built) -> None:
    assert "replicas" not in production.one("Deployment", "backend")["spec"]
    scaled = {each["metadata"]["name"] for each in production.of("ScaledObject")}
    assert scaled == {"backend", "triton"}


# Engines


def triton(built: Built) -> dict[str, Any]:
    [container] = built.one("StatefulSet", "triton")["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = container
    return found


@pytest.mark.parametrize(("name", "service"), [("production", "triton"), ("on_cpus", "triton-cpu")])
def test_triton_is_started_as_compose_starts_it(
    name: str, service: str, request: pytest.FixtureRequest
) -> None:
    built: Built = request.getfixturevalue(name)
    container = triton(built)
    values = environment(built, container)
    started = [
        re.sub(r"\$\((\w+)\)", lambda match: values[match[1]], word) for word in container["args"]
    ]
    assert started == SERVICES[service]["command"]
    asks = container["readinessProbe"]["exec"]["command"][-1]
    probe = re.sub(r"\$(\w+)", lambda match: values[match[1]], asks).replace('"', "").split()
    assert probe == SERVICES[service]["healthcheck"]["test"][1:]
    gpus = container["resources"]["limits"].get("nvidia.com/gpu")
    assert gpus == (1 if service == "triton" else None)


def test_models_are_provided_as_compose_provides_them(production: Built) -> None:
    spec = production.one("StatefulSet", "triton")["spec"]["template"]["spec"]
    [models] = spec["initContainers"]
    values = environment(production, models)
    assert values == SERVICES["models"]["environment"]
    mounts = {(each["name"], each["mountPath"]) for each in models["volumeMounts"]}
    assert {("models", "/models"), ("weights", "/weights"), ("tmp", "/tmp")} == mounts
    [read] = [each for each in triton(production)["volumeMounts"] if each["name"] == "models"]
    assert read == {"name": "models", "mountPath": "/models", "readOnly": True}
    statefulset = production.one("StatefulSet", "triton")["spec"]
    assert statefulset["podManagementPolicy"] == "OrderedReady", "two must not fill it at once"
    assert production.one("PersistentVolumeClaim", "models")["spec"]["accessModes"] == [
        "ReadWriteMany"
    ]


def test_tensorrt_keeps_its_engines_on_a_volume(production: Built) -> None:
    config = (REPOSITORY / "model_repository" / "yolov3" / "config.pbtxt").read_text("utf-8")
    cache = re.search(r'key: "trt_engine_cache_path"\s+value: "(.+)"', config)
    assert cache
    [kept] = production.one("StatefulSet", "triton")["spec"]["volumeClaimTemplates"]
    assert {"name": kept["metadata"]["name"], "mountPath": cache[1]} in triton(production)[
        "volumeMounts"
    ]


def test_the_service_calls_each_triton_by_its_name(folder: Path, production: Built) -> None:
    """As many as there may be; a name without a server is passed over."""
    most = production.one("ScaledObject", "triton")["spec"]["maxReplicaCount"]
    for built, count in ((production, most), (Built(kustomize(folder / "base")), 1)):
        statefulset = built.one("StatefulSet", "triton")
        service = built.one("Service", statefulset["spec"]["serviceName"])
        assert service["spec"]["clusterIP"] == "None"
        [port] = [each["port"] for each in service["spec"]["ports"] if each["name"] == "grpc"]
        name = statefulset["metadata"]["name"]
        assert environment(built, backend(built))["TRITON_URL"].split(",") == [
            f"{name}-{number}.{service['metadata']['name']}:{port}" for number in range(count)
        ]
        assert statefulset["spec"].get("replicas", 1) == 1


def test_images_are_those_of_compose(everything: Built) -> None:
    used = {
        container["image"].removeprefix("registry.example.org/")
        for _, pod in everything.pods()
        for container in containers(pod)
    }
    used.add(everything.one("Milvus", NAMESPACE)["spec"]["components"]["image"])
    ours, version = SERVICES["backend"]["image"].split(":")[0], _version()
    assert used == {
        f"{ours}:{version}",
        *(SERVICES[name]["image"] for name in ("models", "triton", "milvus", "mysql")),
    }
    mysql = everything.one("InnoDBCluster", "mysql")["spec"]
    assert f"mysql:{mysql['version']}" == SERVICES["mysql"]["image"]
    options = [line for line in mysql["mycnf"].splitlines() if "=" in line]
    assert [f"--{line}" for line in options] == SERVICES["mysql"]["command"]


def _version() -> str:
    project = (REPOSITORY / "pyproject.toml").read_text("utf-8")
    [version] = re.findall(r'^version = "(.+)"$', project, re.MULTILINE)
    return str(version)


def test_engines_are_called_by_the_names_that_their_operators_give_them(everything: Built) -> None:
    settings = environment(everything, backend(everything))
    [milvus] = everything.of("Milvus")
    assert settings["MILVUS_HOST"] == f"{milvus['metadata']['name']}-milvus"
    [mysql] = everything.of("InnoDBCluster")
    assert settings["MYSQL_HOST"] == mysql["metadata"]["name"]
    [job] = everything.of("Job")
    [container] = job["spec"]["template"]["spec"]["containers"]
    statements = container["command"][-1]
    assert f"--host={settings['MYSQL_HOST']} " in statements
    assert f"CREATE DATABASE IF NOT EXISTS {settings['MYSQL_DB']};" in statements
    assert f"ON {settings['MYSQL_DB']}.* TO '{settings['MYSQL_USER']}'@'%'" in statements


def test_milvus_asks_for_the_password_that_the_service_has(production: Built) -> None:
    spec = production.one("Milvus", NAMESPACE)["spec"]
    assert spec["config"]["common"]["security"]["authorizationEnabled"] is True
    [variable] = spec["components"]["env"]
    assert variable["name"] in SERVICES["milvus"]["environment"]
    [ours] = [each for each in backend(production)["env"] if each["name"] == "MILVUS_PASSWORD"]
    assert variable["valueFrom"] == ours["valueFrom"]


# Autoscaling


@pytest.mark.parametrize("name", ["backend", "triton"])
def test_autoscalers_ask_for_figures_that_there_are(name: str, everything: Built) -> None:
    spec = everything.one("ScaledObject", name)["spec"]
    [trigger] = spec["triggers"]
    query = trigger["metadata"]["query"]
    asked = set(re.findall(r"\b(?:nv|image_search)_\w+", query))
    shown = set(re.findall(r"^# TYPE (\S+)", Metrics().exposition().decode(), re.MULTILINE))
    assert asked
    assert asked <= METRICS | shown
    assert query.count("(") == query.count(")")
    assert set(re.findall(r'namespace="([^"]*)"', query)) == {NAMESPACE}
    target = spec["scaleTargetRef"]
    assert "replicas" not in everything.one(target["kind"], target["name"])["spec"]
    assert 2 <= spec["minReplicaCount"] < spec["maxReplicaCount"]


def test_backends_are_added_before_requests_are_refused(everything: Built) -> None:
    [trigger] = everything.one("ScaledObject", "backend")["spec"]["triggers"]
    most = int(environment(everything, backend(everything))["MAX_QUEUED"])
    assert most == 20 * int(backend(everything)["resources"]["limits"]["cpu"]), "the default"
    assert int(trigger["metadata"]["threshold"]) <= most / 4
    assert trigger["metricType"] == "AverageValue"


def test_prometheus_finds_what_it_is_to_ask(production: Built) -> None:
    for monitor in production.of("ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"]
        [service] = [
            each
            for each in production.of("Service")
            if wanted.items() <= each["metadata"]["labels"].items()
        ]
        ports = {each["name"] for each in service["spec"]["ports"]}
        assert {each["port"] for each in monitor["spec"]["endpoints"]} <= ports


# Rights and limits


def test_containers_have_no_rights_that_they_do_not_need(everything: Built) -> None:
    for workload, pod in everything.pods():
        name = workload["metadata"]["name"]
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        shared = spec["securityContext"]
        assert shared["runAsNonRoot"] is True
        assert shared["seccompProfile"] == {"type": "RuntimeDefault"}
        for volume in spec["volumes"]:
            assert "hostPath" not in volume
        for container in containers(pod):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert own.get("runAsUser", shared["runAsUser"]) != 0
            # As in Compose: NVIDIA's image may write to places of its own.
            is_read_only = own.get("readOnlyRootFilesystem", False)
            assert is_read_only == (container["name"] != "triton"), name


def test_ours_run_as_the_images_user(production: Built) -> None:
    for workload, index in (("Deployment", 0), ("StatefulSet", 0)):
        name = {"Deployment": "backend", "StatefulSet": "triton"}[workload]
        spec = production.one(workload, name)["spec"]["template"]["spec"]
        container = (spec.get("initContainers") or spec["containers"])[index]
        context = spec["securityContext"] | container["securityContext"]
        assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (10001,) * 3


def test_memory_is_limited_as_in_compose(production: Built) -> None:
    def limit(container: dict[str, Any]) -> str:
        return str(container["resources"]["limits"]["memory"]).removesuffix("i").lower()

    spec = production.one("StatefulSet", "triton")["spec"]["template"]["spec"]
    [models] = spec["initContainers"]
    for container in (backend(production), triton(production), models):
        theirs = SERVICES[container["name"]]["deploy"]["resources"]["limits"]["memory"]
        assert limit(container) == theirs, container["name"]
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()


def test_every_workload_has_a_disruption_budget(production: Built) -> None:
    budgets = [
        each["spec"]["selector"]["matchLabels"] for each in production.of("PodDisruptionBudget")
    ]
    for workload, pod in production.pods():
        assert sum(selected(each, pod) for each in budgets) == 1, workload["metadata"]["name"]
    for engine in (MILVUS, PROXY, MINIO):
        assert sum(each.items() <= engine.labels.items() for each in budgets) == 1


# The network. The labels of pods that operators make are those that their sources give them.


def labelled(**labels: str) -> Pod:
    named = {name.replace("__", "/").replace("_", "."): value for name, value in labels.items()}
    return Pod(named, NAMESPACE, {"kubernetes.io/metadata.name": NAMESPACE})


def ours(name: str) -> Pod:
    return labelled(app_kubernetes_io__name=name)


def elsewhere(**labels: str) -> Pod:
    return Pod({}, "elsewhere", {name.replace("__", "/"): value for name, value in labels.items()})


BACKEND, TRITON, JOB, STRANGER = map(ours, ("backend", "triton", "mysql-user", "stranger"))
_MILVUS = {"app_kubernetes_io__name": "milvus", "app_kubernetes_io__instance": "image-search"}
MILVUS = labelled(**_MILVUS, app_kubernetes_io__component="querynode")
PROXY = labelled(**_MILVUS, app_kubernetes_io__component="proxy", milvus_io__service="true")
ETCD = labelled(app_kubernetes_io__name="etcd", app_kubernetes_io__instance="image-search-etcd")
MINIO = labelled(app="minio", release="image-search-minio")
_MYSQL = {"tier": "mysql", "mysql_oracle_com__cluster": "mysql"}
ROUTER = labelled(**_MYSQL, component="mysqlrouter")
MYSQL = labelled(**_MYSQL, component="mysqld")
CLIENT = elsewhere(**{"image-search__clients": "true"})
PROMETHEUS = elsewhere(**{"image-search__monitoring": "true"})
OPERATOR = elsewhere(**{"image-search__operators": "true"})
ANYBODY = elsewhere()
PRIVATE, PUBLIC, METADATA = (
    Address("10.1.2.3"),
    Address("93.184.215.14"),
    Address("169.254.169.254"),
)

PODS: Final[Mapping[str, End]] = {
    "backend": BACKEND,
    "Triton": TRITON,
    "Milvus": MILVUS,
    "Milvus' proxy": PROXY,
    "etcd": ETCD,
    "MinIO": MINIO,
    "MySQL's router": ROUTER,
    "MySQL": MYSQL,
    "MySQL's job": JOB,
    "a stranger here": STRANGER,
    "a client": CLIENT,
    "Prometheus": PROMETHEUS,
    "an operator": OPERATOR,
    "anybody": ANYBODY,
}
ENGINE_PORTS: Final = {
    "Triton": {8000, 8001, 8002},
    "Milvus' proxy": {19530, 19529, 9091},
    "Milvus": {19530, 21123, 9091},
    "etcd": {2379, 2380},
    "MinIO": {9000},
    "MySQL's router": {6446, 6447, 6448},
    "MySQL": {3306, 33060, 33061},
}
OPEN: Final = {
    ("backend", "Triton", 8001),
    ("Prometheus", "Triton", 8002),
    ("backend", "Milvus' proxy", 19530),
    ("backend", "MySQL's router", 6446),
    ("MySQL's job", "MySQL's router", 6446),
    *((source, "etcd", 2379) for source in ("Milvus", "Milvus' proxy", "an operator", "etcd")),
    ("etcd", "etcd", 2380),
    *((source, "MinIO", 9000) for source in ("Milvus", "Milvus' proxy", "an operator", "MinIO")),
    *(("Prometheus", engine, 9091) for engine in ("Milvus", "Milvus' proxy")),
}


def test_engines_are_reached_by_the_service_alone(everything: Built) -> None:
    """Whoever tries each port of an engine: what gets through is what is listed, and all of it."""
    policies = everything.of("NetworkPolicy")
    through = {
        (source, engine, port)
        for engine, ports in ENGINE_PORTS.items()
        for port in ports
        for source, end in PODS.items()
        if allows(policies, end, PODS[engine], port)
    }
    among_themselves = {
        *(
            (source, engine)
            for source in ("Milvus", "Milvus' proxy")
            for engine in ("Milvus", "Milvus' proxy")
        ),
        *(
            (source, engine)
            for source in ("MySQL", "MySQL's router")
            for engine in ("MySQL", "MySQL's router")
        ),
        *(
            ("an operator", engine)
            for engine in ("Milvus", "Milvus' proxy", "MySQL", "MySQL's router")
        ),
    }
    assert {each for each in through if each[:2] not in among_themselves} == OPEN
    assert among_themselves <= {each[:2] for each in through}


def test_the_service_is_reached_by_clients_and_prometheus(production: Built) -> None:
    policies = production.of("NetworkPolicy")
    port = int(environment(production, backend(production))["PORT"])
    reach = {name for name, end in PODS.items() if allows(policies, end, BACKEND, port)}
    assert reach == {"a client", "Prometheus"}
    assert not any(allows(policies, end, BACKEND, port + 1) for end in PODS.values())


def test_what_goes_out_is_what_has_to(production: Built, everything: Built) -> None:
    outside = production.of("NetworkPolicy")
    assert allows(outside, BACKEND, PRIVATE, 3306)
    for target, port in ((PRIVATE, 443), (PUBLIC, 443), (PUBLIC, 3306), (METADATA, 80)):
        assert not allows(outside, BACKEND, target, port)
    assert allows(outside, TRITON, PUBLIC, 443), "the official weights"
    for target, port in ((PRIVATE, 443), (METADATA, 443), (METADATA, 80), (PUBLIC, 80)):
        assert not allows(outside, TRITON, target, port)
    for engine in (MILVUS, PROXY, ETCD, MINIO):
        assert not allows(outside, engine, PUBLIC, 443)
    inside = everything.of("NetworkPolicy")
    assert not allows(inside, BACKEND, PRIVATE, 3306), "MySQL is in the cluster"


def test_a_pod_that_nobody_thought_of_is_shut_off(production: Built) -> None:
    policies = production.of("NetworkPolicy")
    names = Pod({}, "kube-system", {"kubernetes.io/metadata.name": "kube-system"})
    assert allows(policies, STRANGER, names, 53)
    assert not allows(policies, STRANGER, PUBLIC, 443)
    assert not allows(policies, ANYBODY, STRANGER, 80)
    assert allows(policies, ANYBODY, names, 80), "what is not ours is not our business"


# What is told of it


def test_the_readmes_name_what_there_is(production: Built) -> None:
    text = (DEPLOY / "README.md").read_text("utf-8")
    assert f"Kubernetes {OLDEST} or later" in text
    told = set(re.findall(r"image-search/(\w+)=true", text))
    policies = json.dumps(production.of("NetworkPolicy"))
    assert told == set(re.findall(r'"image-search/(\w+)": "true"', policies))
    for name in (*(f"components/{each}" for each in COMPONENTS), "overlays/production"):
        assert name in text, name
    for path in re.findall(r"\b(?:overlays|components|base)/[-\w./]+", text):
        folder = DEPLOY / path.rstrip("/.")
        if "secrets/" not in path and not path.endswith("/mine"):
            assert folder.exists() or folder.name == "secrets", path
    assert "deploy/kubernetes/README.md" in (REPOSITORY / "README.md").read_text("utf-8")
