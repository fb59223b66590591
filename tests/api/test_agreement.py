"""What `kubectl apply` takes, the operator takes: any value in any field, tried with the API server and with Python.

A seeded few for each field of two examples; `make fuzz` tries all of them on all examples.
"""

import copy
import json
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from kubernetes import client, config

from dmd_api.errors import BadInputError
from dmd_api.loading import parse_manifest
from dmd_api.manifest import API_VERSION
from tests.api.test_manifest import EXAMPLES
from tests.api.values import VALUES
from tests.cluster.control_plane import ControlPlane
from tests.operator.live import install_crd, make_namespace

pytestmark = pytest.mark.cluster

NAMESPACE = "agreement"
ALL = "DMD_DAMAGED" in os.environ
FEW = 12
TRIED = EXAMPLES if ALL else [p for p in EXAMPLES if p.stem in {"distill-digits", "distill-sd15-dmd2-phase2"}]
OPAQUE = {"podTemplate", "resources", "metadata"}
"""Fields whose contents the operator does not read."""


@pytest.fixture(scope="module")
def server(api: ControlPlane) -> Iterator[client.CustomObjectsApi]:
    install_crd(api.kubectl)
    make_namespace(api.kubectl, NAMESPACE)
    with config.new_client_from_config(str(api.kubeconfig)) as connection:
        yield client.CustomObjectsApi(connection)


@pytest.mark.parametrize("path", TRIED, ids=lambda path: path.stem)
def test_what_the_api_server_takes_python_takes(server: client.CustomObjectsApi, path: Any) -> None:
    manifest = yaml.safe_load(path.read_text())
    assert takes(server, manifest)
    wrong, chosen = [], random.Random(0)
    for where in fields(manifest["spec"]):
        for value in VALUES if ALL else chosen.sample(VALUES, FEW):
            tried = changed(manifest, where, value)
            if (refusal := python_refuses(tried)) is not None and takes(server, tried):
                wrong.append(f"{'.'.join(map(str, where))} = {json.dumps(value)[:60]}: {refusal[:200]}")
    assert not wrong, "\n".join(wrong)


def fields(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all texts, numbers and switches."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        if key not in OPAQUE:
            yield from fields(below, (*where, key))
    if not isinstance(value, dict | list):
        yield where


def changed(manifest: dict[str, Any], where: tuple[Any, ...], value: Any) -> dict[str, Any]:
    result = copy.deepcopy(manifest)
    target = result["spec"]
    for key in where[:-1]:
        target = target[key]
    target[where[-1]] = value
    return result


def python_refuses(manifest: dict[str, Any]) -> str | None:
    try:
        parse_manifest(manifest)
    except BadInputError as error:
        return error.message
    return None


def takes(server: client.CustomObjectsApi, manifest: dict[str, Any]) -> bool:
    group, version = API_VERSION.split("/")
    options = {"dry_run": "All", "field_validation": "Strict"}
    try:
        server.create_namespaced_custom_object(group, version, NAMESPACE, "dmddistillations", manifest, **options)
    except client.ApiException as error:
        if error.status in {400, 422}:
            return False
        raise
    return True
