"""deploy/kubernetes against Kubernetes' own schemas, and what the manifests say against each other."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "deploy/kubernetes"
#: The first Kubernetes in which the sysctls used are safe ones, and the newest whose schemas are at hand.
VERSIONS = ("1.32", "1.37")
#: Ports of one address to one server address and port: 65535 - 1024 + 1.
PORTS = 64_512


def validate(path: Path, version: str) -> subprocess.CompletedProcess[str]:
    tool = Path(sys.executable).with_name("kubernetes-validate")
    return subprocess.run(
        [tool, "--strict", "--kubernetes-version", version, path], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def objects() -> dict[tuple[str, str], dict[str, Any]]:
    """All manifests by kind and name."""
    found = [thing for path in FOLDER.glob("*.yaml") for thing in yaml.safe_load_all(path.read_text())]
    return {(thing["kind"], thing["metadata"]["name"]): thing for thing in found}


def container(thing: dict[str, Any]) -> dict[str, Any]:
    (only,) = thing["spec"]["template"]["spec"]["containers"]
    return dict(only)


def option(thing: dict[str, Any], name: str) -> str:
    arguments = container(thing)["args"]
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word.partition("=")[0] == name:
            return str(word.partition("=")[2] or following)
    raise AssertionError(f"no {name} in {arguments}")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.name)
def test_the_schemas_find_nothing_wrong(path: Path, version: str) -> None:
    done = validate(path, version)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schemas_would_find_a_misspelt_field(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((FOLDER / "server.yaml").read_text().replace("runAsNonRoot", "runAsNotRoot"))
    assert validate(wrong, VERSIONS[0]).returncode != 0


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")
def test_kubectl_reads_them_as_we_do(objects: dict[tuple[str, str], dict[str, Any]], tmp_path: Path) -> None:
    """Anchors and merge keys are where YAML readers differ."""
    for path in FOLDER.glob("*.yaml"):
        shutil.copy(path, tmp_path)
    names = "".join(f"- {path.name}\n" for path in sorted(FOLDER.glob("*.yaml")))
    (tmp_path / "kustomization.yaml").write_text(f"resources:\n{names}")
    done = subprocess.run(["kubectl", "kustomize", tmp_path], capture_output=True, text=True, check=True)
    read = {(it["kind"], it["metadata"]["name"]): it for it in yaml.safe_load_all(done.stdout)}
    assert json.loads(json.dumps(read[("Deployment", "parked-server")])) == json.loads(
        json.dumps(objects[("Deployment", "parked-server")])
    )
    assert read.keys() == objects.keys()


@pytest.mark.parametrize(
    ("service", "workload"),
    [
        ("parked-server", ("Deployment", "parked-server")),
        ("parked-loadtest", ("Job", "parked-loadtest")),
    ],
)
def test_a_service_finds_its_pods_and_their_ports(
    objects: dict[tuple[str, str], dict[str, Any]], service: str, workload: tuple[str, str]
) -> None:
    wanted = objects[("Service", service)]["spec"]
    template = objects[workload]["spec"]["template"]
    assert wanted["selector"].items() <= template["metadata"]["labels"].items()
    names = {port["name"] for port in container(objects[workload])["ports"]}
    assert {port["targetPort"] for port in wanted["ports"]} <= names


def test_the_sums_of_connections_ports_and_workers_agree(
    objects: dict[tuple[str, str], dict[str, Any]],
) -> None:
    server = objects[("Deployment", "parked-server")]
    master = objects[("Job", "parked-loadtest")]
    worker = objects[("Deployment", "parked-loadtest-worker")]
    users, pods = int(option(master, "--users")), worker["spec"]["replicas"]
    assert users / pods <= PORTS
    assert users <= server["spec"]["replicas"] * int(option(server, "--connections"))
    assert int(option(master, "--expect-workers")) == pods * int(option(worker, "--processes"))
    (service,) = objects[("Service", "parked-server")]["spec"]["ports"]
    assert option(master, "--host") == f"http://parked-server:{service['port']}"
    assert option(worker, "--master-host") == "parked-loadtest"
    assert re.fullmatch(r".*/site-packages/parked/demo/keepalive\.py", option(master, "--locustfile"))


def test_every_pod_runs_without_rights_and_with_bounds(
    objects: dict[tuple[str, str], dict[str, Any]],
) -> None:
    workloads = [thing for (kind, _), thing in objects.items() if kind in ("Deployment", "Job")]
    assert len(workloads) == 3
    for thing in workloads:
        pod = thing["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        rights = container(thing)["securityContext"]
        assert rights == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container(thing)["resources"]["limits"]["memory"]
        assert container(thing)["resources"]["requests"]["cpu"]


def test_each_port_is_open_to_those_whom_it_is_for_alone(
    objects: dict[tuple[str, str], dict[str, Any]],
) -> None:
    """Every pod is chosen by a policy, and each of its ports is in one rule, with the right peers."""
    policies = {name: thing["spec"] for (kind, name), thing in objects.items() if kind == "NetworkPolicy"}
    pods = [thing for (kind, _), thing in objects.items() if kind in ("Deployment", "Job")]
    assert len(pods) == len(policies) == 3
    for pod in pods:
        labels = pod["spec"]["template"]["metadata"]["labels"]
        (policy,) = [one for one in policies.values() if one["podSelector"]["matchLabels"] == labels]
        allowed = {
            port["port"]: rule.get("from") for rule in policy.get("ingress", []) for port in rule["ports"]
        }
        assert allowed.keys() == {port["name"] for port in container(pod).get("ports", [])}
        assert all((peers is None) == (port == "http") for port, peers in allowed.items())
    (peer,) = policies["parked-loadtest"]["ingress"][0]["from"]
    worker = objects["Deployment", "parked-loadtest-worker"]["spec"]["template"]["metadata"]["labels"]
    assert peer["podSelector"]["matchLabels"] == worker
