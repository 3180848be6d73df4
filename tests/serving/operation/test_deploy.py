"""Manifests and the Dockerfile agree with the command line and the routes."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from anynest.cli.dispatch import parse
from anynest.cli.usage.serve import is_loopback

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted(DEPLOY.rglob("*.yaml"))
Container = dict[str, Any]


def documents(kind: str) -> list[Any]:
    found = [one for path in MANIFESTS for one in yaml.safe_load_all(path.read_text())]
    return [one for one in found if one["kind"] == kind]


def containers() -> list[Container]:
    (deployment,), (runtime,) = documents("Deployment"), documents("ServingRuntime")
    return [
        *deployment["spec"]["template"]["spec"]["containers"],
        *runtime["spec"]["containers"],
    ]


def arguments(container: Container) -> Namespace:
    """By the real parser; KServe replaces its templates before."""
    return parse([text.replace("{{.Name}}", "digits") for text in container["args"]])


def ports(container: Container) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container["ports"]}


def paths() -> set[str]:
    """The routes of the application that a server has."""
    pytest.importorskip("starlette")
    from anynest.serving import create_app
    from anynest.serving.repository import Repository
    from anynest.serving.telemetry.metrics import Metrics, metrics_route

    app = create_app(Repository(), extra_routes=[metrics_route(Metrics())])
    return {route.path for route in app.routes}


def test_every_manifest_is_there() -> None:
    kinds = {one["kind"] for path in MANIFESTS for one in yaml.safe_load_all(path.read_text())}
    assert kinds == {
        "Deployment",
        "Service",
        "HorizontalPodAutoscaler",
        "ServingRuntime",
        "InferenceService",
    }


@pytest.mark.parametrize("container", containers(), ids=lambda one: one["name"])
def test_arguments_are_the_command_line_s(container: Container) -> None:
    given = arguments(container)
    assert not is_loopback(given.host)
    assert given.port in ports(container).values()
    assert "*" in given.hosts  # probes and Prometheus come by the pod's address
    mounts = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
    if given.token_file:
        assert str(Path(given.token_file).parent) in mounts
    for source in given.sources:
        known = any(source.startswith(mount) for mount in mounts)
        assert known or source == "/mnt/models"  # where KServe puts a model


@pytest.mark.parametrize("container", containers(), ids=lambda one: one["name"])
def test_probes_ask_for_what_there_is(container: Container) -> None:
    probes = {key: value["httpGet"] for key, value in container.items() if key.endswith("Probe")}
    assert {"readinessProbe", "livenessProbe"} <= set(probes)
    for name, probe in probes.items():
        assert probe["path"] in paths()
        port = ports(container).get(probe["port"], probe["port"])
        assert port == arguments(container).port
        assert probe["path"].endswith("/live" if name == "livenessProbe" else "/ready")


def test_services_find_the_pods() -> None:
    (deployment,) = documents("Deployment")
    template = deployment["spec"]["template"]
    (container,) = template["spec"]["containers"]
    for service in documents("Service"):
        selector = service["spec"]["selector"].items()
        assert selector <= template["metadata"]["labels"].items()
        for port in service["spec"]["ports"]:
            assert ports(container)[port["targetPort"]] == port["port"]
    given = arguments(container)
    assert ports(container) == {"http": given.port, "grpc": given.grpc_port}


def test_a_pod_has_time_to_drain() -> None:
    (deployment,) = documents("Deployment")
    spec = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    (_, pause) = container["lifecycle"]["preStop"]["exec"]["command"]
    needed = int(pause) + arguments(container).drain
    assert spec["terminationGracePeriodSeconds"] > needed


def test_prometheus_reads_what_there_is() -> None:
    (deployment,), (runtime,) = documents("Deployment"), documents("ServingRuntime")
    own = deployment["spec"]["template"]["metadata"]["annotations"]
    assert own["prometheus.io/path"] in paths()
    assert own["prometheus.io/port"] == str(arguments(containers()[0]).port)
    kserve = runtime["spec"]["annotations"]
    assert kserve["prometheus.kserve.io/path"] in paths()
    assert kserve["prometheus.kserve.io/port"] == str(arguments(containers()[1]).port)


def test_the_autoscaler_follows_a_metric_that_there_is_and_no_latency() -> None:
    pytest.importorskip("prometheus_client")
    (scaler,), (deployment,) = documents("HorizontalPodAutoscaler"), documents("Deployment")
    target = scaler["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"]  # which an update would reset
    (metric,) = scaler["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    source = (ROOT / "src/anynest/serving/telemetry/metrics.py").read_text()
    assert f'"{name.removeprefix("anynest_")}"' in source
    assert name == "anynest_mandatory_utilisation"
    assert 0 < int(metric["pods"]["target"]["averageValue"].removesuffix("m")) < 850


def test_nothing_runs_as_root() -> None:
    (deployment,) = documents("Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    for container in containers():
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
    user = re.search(r"^USER (\d+):\d+$", dockerfile(), re.MULTILINE)
    assert user
    assert int(user[1]) == pod["securityContext"]["runAsUser"] != 0


def dockerfile() -> str:
    return (DEPLOY / "Dockerfile").read_text()


def test_the_dockerfile_copies_and_installs_what_there_is() -> None:
    text = dockerfile()
    for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists()
    (extras,) = re.findall(r'"\.\[(.*)\]"', text)
    project = (ROOT / "pyproject.toml").read_text()
    for extra in extras.split(","):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE)


def test_the_dockerfile_s_commands_are_understood() -> None:
    text = dockerfile()
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
    assert json.loads(entry) == ["anynest"]
    (example,) = re.findall(r"^#\s+(serve .*)$", text, re.MULTILINE)
    assert parse(example.split()).sources == ["/models/a"]
    (exposed,) = re.findall(r"^EXPOSE (.*)$", text, re.MULTILINE)
    defaults = parse(["serve", "r"])
    assert exposed.split() == [str(defaults.port), str(defaults.grpc_port)]
    (probe,) = re.findall(r"http://127.0.0.1:(\d+)(/\S+?)'", text)
    assert probe[0] == str(defaults.port)
    assert probe[1] in paths()
