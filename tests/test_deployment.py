"""Files for containers, Kubernetes and SLURM: valid for their engines, and each command one that amcsearch takes."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from amcsearch.cli.parser import make_parser

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "configs/deploy"
MANIFESTS = sorted(DEPLOY.glob("*.yaml"))
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())


def tool(name: str, *arguments: object) -> None:
    program = Path(sys.executable).parent / name
    assert program.exists(), f"{name} is not installed; type: pip install '.[test]'"
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def documents() -> list[dict[str, Any]]:
    return [document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text())]


def pods(node: object) -> Iterator[dict[str, Any]]:
    """Every pod specification."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        for value in node.values():
            yield from pods(value)
    elif isinstance(node, list):
        for value in node:
            yield from pods(value)


def containers() -> list[dict[str, Any]]:
    return [container for pod in pods(documents()) for container in pod["containers"]]


def test_manifests_are_valid_for_kubernetes() -> None:
    tool("kubernetes-validate", "--strict", *MANIFESTS)


def test_compose_is_valid() -> None:
    tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", ROOT / "compose.yaml")


def test_the_user_of_the_image_may_write_a_new_volume() -> None:
    """A volume that is new takes the owner of the image's folder, which VOLUME alone gives to root."""
    text = (ROOT / "Dockerfile").read_text()
    made, declared, user = (
        text.index(part) for part in ("--owner 10001 --group 10001 /out", "VOLUME /out", "USER 10001")
    )
    assert made < declared < user


def test_the_script_for_slurm_is_bash_and_takes_what_it_is_given() -> None:
    script = DEPLOY / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    command = re.search(r"^amcsearch (.*) &$", script.read_text(), re.MULTILINE)
    assert command is not None
    make_parser().parse_args(command[1].replace('"', "").split())


@pytest.mark.parametrize("container", containers(), ids=lambda container: container["name"])
def test_every_container_runs_what_amcsearch_takes(container: dict[str, Any]) -> None:
    words = [*container.get("command", ["amcsearch"]), *container.get("args", [])]
    if words[0] == "amcsearch":
        make_parser().parse_args(words[1:])
    else:
        assert words[:2] in (["dask", "scheduler"], ["dask", "worker"])


@pytest.mark.parametrize("name", [name for name, service in COMPOSE["services"].items() if "entrypoint" not in service])
def test_every_service_of_compose_runs_what_amcsearch_takes(name: str) -> None:
    words = COMPOSE["services"][name].get("command", [])
    if words and words != ["--help"]:
        make_parser().parse_args(words)


@pytest.mark.parametrize("pod", list(pods(documents())), ids=lambda pod: pod["containers"][0]["name"])
def test_pods_may_do_as_little_as_they_need(pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]


def test_no_address_in_a_deployment_holds_a_password() -> None:
    for path in [*MANIFESTS, ROOT / "compose.yaml", DEPLOY / "slurm.sh"]:
        lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
        for found in re.findall(r"://[^/\s]*:([^@/\s]*)@", "\n".join(lines)):
            assert found.startswith("${POSTGRES_PASSWORD"), path


def test_the_image_is_small_by_its_stages_and_runs_as_nobody() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    stages = [line.split()[-1] for line in lines if line.startswith("FROM")]
    assert stages[-1] == "batch"  # what `docker build .` makes
    assert "FROM job AS batch" in lines
    for parent, stage, commands in (("base", "job", 0), ("job", "service", 1)):  # the packages of the extras
        begin = lines.index(f"FROM {parent} AS {stage}")
        body = lines[begin + 1 :]
        body = body[: next((i for i, line in enumerate(body) if line.startswith("FROM")), len(body))]
        assert [line for line in body if line.startswith("USER")][-1] == "USER 10001:10001"
        assert len([line for line in body if line.startswith("RUN")]) == commands
        assert any(line.startswith("HEALTHCHECK") for line in body) == (stage == "service")
