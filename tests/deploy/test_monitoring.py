"""Prometheus asks services that exist, and Grafana shows what they tell."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.compose_file import SERVICES
from tests.service import REPOSITORY, Service

DEPLOY = REPOSITORY / "scripts" / "deploy"
GRAFANA = DEPLOY / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))

METRICS = {
    # https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/metrics.html
    "nv_gpu_memory_total_bytes",
    "nv_gpu_memory_used_bytes",
    "nv_gpu_power_usage",
    "nv_gpu_utilization",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_compute_input_duration_us",
    "nv_inference_compute_output_duration_us",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_pending_request_count",
    "nv_inference_queue_duration_us",
    "nv_inference_request_duration_us",
    "nv_inference_request_failure",
    "nv_inference_request_success",
    # https://github.com/milvus-io/milvus/blob/v2.6.16/pkg/metrics/proxy_metrics.go
    "milvus_proxy_delete_vectors_count",
    "milvus_proxy_mutation_latency_bucket",
    "milvus_proxy_req_count",
    "milvus_proxy_search_vectors_count",
    "milvus_proxy_sq_latency_bucket",
    "milvus_proxy_upsert_vectors_count",
    # Prometheus' own, and those of every process that is written in Go.
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "up",
}

_FUNCTIONS = {"by", "histogram_quantile", "le", "rate", "sum"}
_LABELS = {"engine", "function_name", "limit", "model", "msg_type", "route", "stage", "status"}
_OUR_PREFIX = "image_search_"


def panels(dashboard: Path) -> Iterator[dict[str, Any]]:
    for panel in json.loads(dashboard.read_text("utf-8"))["panels"]:
        if panel["type"] != "row":
            yield panel


def queries() -> Iterator[str]:
    for dashboard in DASHBOARDS:
        for panel in panels(dashboard):
            for target in panel["targets"]:
                yield target["expr"]


def scraped() -> dict[str, str]:
    """Address of each job of Prometheus."""
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text("utf-8"))
    return {
        job["job_name"]: target
        for job in config["scrape_configs"]
        for static in job["static_configs"]
        for target in static["targets"]
    }


def test_prometheus_asks_services_on_a_network_that_it_is_on() -> None:
    for job, target in scraped().items():
        host = target.split(":")[0]
        if host == "127.0.0.1":
            assert job == "prometheus"
        else:
            assert set(SERVICES[host]["networks"]) & set(SERVICES["prometheus"]["networks"])


def metrics_in(query: str) -> set[str]:
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]", "", query)
    return set(re.findall(r"[a-z_]\w*", bare)) - _FUNCTIONS - _LABELS


def test_panels_show_metrics_that_engines_have() -> None:
    used = {name for query in queries() for name in metrics_in(query)}
    assert {name for name in used if not name.startswith(_OUR_PREFIX)} == METRICS


def test_panels_show_metrics_that_the_service_has(empty_service: Service) -> None:
    assert empty_service.get("/healthz").ok  # a request that is counted
    samples = [
        sample
        for family in text_string_to_metric_families(empty_service.get("/metrics").text)
        for sample in family.samples
    ]
    labels: dict[str, set[str]] = {}
    for sample in samples:
        labels.setdefault(sample.name, set()).update(sample.labels)
    used = set()
    for query in queries():
        ours = {name for name in metrics_in(query) if name.startswith(_OUR_PREFIX)}
        used |= ours
        if 'job="backend"' in query:
            ours |= metrics_in(query) - {"up"}
        assert ours <= set(labels), query
        for names in re.findall(r"by \(([^)]*)\)", query):
            for name in ours:
                assert set(names.split(", ")) <= labels[name], query
    # Each of ours is shown, too; a histogram's samples are parts of one.
    parts = re.compile(r"_(bucket|sum|count|created)$")
    shown = {parts.sub("", name) for name in used}
    there = {parts.sub("", name) for name in labels if name.startswith(_OUR_PREFIX)}
    assert {name.removesuffix("_total") for name in shown} == {
        name.removesuffix("_total") for name in there
    }


def test_panels_name_jobs_that_prometheus_has() -> None:
    for query in queries():
        for jobs in re.findall(r'job=~?"([^"]+)"', query):
            assert set(jobs.split("|")) <= set(scraped())


def test_panels_take_their_figures_from_the_source_that_is_provided() -> None:
    provisioned = yaml.safe_load(
        (GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text("utf-8")
    )
    [source] = provisioned["datasources"]
    assert source["url"] == "http://prometheus:9090"
    for dashboard in DASHBOARDS:
        for panel in panels(dashboard):
            sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
            assert all(each == {"type": source["type"], "uid": source["uid"]} for each in sources)


def test_panels_do_not_overlap() -> None:
    for dashboard in DASHBOARDS:
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(dashboard.read_text("utf-8"))["panels"]:
            place = panel["gridPos"]
            cells = {
                (place["x"] + column, place["y"] + row)
                for column in range(place["w"])
                for row in range(place["h"])
            }
            assert not cells & taken, panel["title"]
            assert place["x"] + place["w"] <= 24
            taken |= cells


def test_dashboards_lie_where_grafana_looks() -> None:
    provisioned = yaml.safe_load(
        (GRAFANA / "provisioning" / "dashboards" / "dashboards.yml").read_text("utf-8")
    )
    [provider] = provisioned["providers"]
    folder = provider["options"]["path"]
    volumes = [volume.split(":") for volume in SERVICES["grafana"]["volumes"]]
    assert ["./scripts/deploy/grafana/dashboards", folder, "ro"] in volumes
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in [f"{folder}/{dashboard.name}" for dashboard in DASHBOARDS]
