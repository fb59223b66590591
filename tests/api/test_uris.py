"""No URI carries a password: no field takes one, and no message shows one."""

import re
from typing import Any

import pytest
from pydantic import ValidationError

from dmd_api.crd import spec_schema
from dmd_api.defaults import Defaults
from dmd_api.loading import ManifestError, parse_manifest
from dmd_api.uris import CREDENTIALS, READABLE_SCHEMES, TRACKING_SCHEMES, masked, parse_uri
from tests.api.test_crd import nodes
from tests.api.test_manifest import changed

SECRET = "hunter2"
SECRETIVE = [
    f"https://user:{SECRET}@host",
    f"https://user:a/{SECRET}@host/path",
    f"https://{SECRET}@host:5000",
    f"https://:{SECRET}@host",
    f"https:///user:{SECRET}@host",
    f"https://host/?token={SECRET}",
    f"HTTPS://user:{SECRET}@host",
    f"https://user\n:{SECRET}@host",
    f"s3://key:{SECRET}@bucket/prefix",
    f"s3://key:a/{SECRET}@bucket",
    f"s3://{SECRET}@bucket",
    f"hf://user:{SECRET}@owner/name",
    f"models://user:{SECRET}@host/name",
    f"postgresql://user:{SECRET}@host/mlflow",
    f"mysql+pymysql://user:a/{SECRET}@host/mlflow",
]
HARMLESS = [
    "https://mlflow.example.com:5000/path",
    "http://[::1]:5000",
    "s3://bucket/name@v1/a:b",
    "hf://owner/name@main",
    "hf://gpt2@refs/pr/1",
    "models:/name@champion",
    "models:/name/3",
    "pvc://claim/a@b:c",
    "file:///data/me@host/a:b",
    "file://relative/a@b",
    "sqlite:////home/me@corp/mlflow.db",
    "builtin://digits",
]


@pytest.mark.parametrize("uri", SECRETIVE)
def test_a_password_is_refused_and_not_shown(uri: str) -> None:
    with pytest.raises(ValueError, match="holds a user name, a password or a query") as caught:
        parse_uri(uri, (*READABLE_SCHEMES, *TRACKING_SCHEMES))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("uri", HARMLESS)
def test_what_only_looks_like_one_is_taken(uri: str) -> None:
    parse_uri(uri, (*READABLE_SCHEMES, *TRACKING_SCHEMES))


URI_FIELDS = {path.lstrip(".") for path, node in nodes(spec_schema()) if ":/" in node.get("pattern", "")}


def test_every_uri_is_known_as_one() -> None:
    """By their names: a new one that is plain text would be found here."""
    named = {
        path.lstrip(".")
        for path, node in nodes(spec_schema())
        if re.search(r"ur[il]$", path, re.IGNORECASE) and node["type"] == "string"
    }
    assert named == URI_FIELDS
    assert len(URI_FIELDS) >= 13


@pytest.mark.parametrize("field", sorted(URI_FIELDS))
def test_no_field_takes_one_in_python_or_in_the_api_server(field: str) -> None:
    schema: dict[str, Any] = dict(nodes(spec_schema()))[f".{field}"]
    rule, _ = schema["x-kubernetes-validations"]
    assert rule["rule"] == f"!self.matches('{CREDENTIALS}')"  # which CEL reads as Python does
    for uri in SECRETIVE:
        with pytest.raises(ManifestError) as caught:
            parse_manifest(changed(f"spec.{field}", uri))
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "content", [f"https://u:{SECRET}@h" + "x" * 2000, [f"https://u:{SECRET}@h"], {"a": f"s3://k:{SECRET}@b"}]
)
def test_no_other_problem_of_a_field_shows_it(content: object) -> None:
    for field in ("spec.tracking.uri", "spec.tracking", "spec.training.batchSize", "spec.method.name"):
        with pytest.raises(ManifestError) as caught:
            parse_manifest(changed(field, content))
        assert SECRET not in str(caught.value)


def test_defaults_take_none_either() -> None:
    for content in ({"tracking": {"uri": SECRETIVE[0]}}, {"storage": {"uri": "s3://a/b", "endpointUrl": SECRETIVE[0]}}):
        with pytest.raises(ValidationError, match="holds a user name"):
            Defaults.model_validate(content)


@pytest.mark.parametrize("uri", [uri for uri in SECRETIVE if "?" not in uri and "\n" not in uri])
def test_it_is_masked_where_the_environment_has_it(uri: str) -> None:
    shown = masked(f"{uri}: does not answer")
    if not uri.startswith(f"s3://{SECRET}"):
        assert SECRET not in shown
    assert shown.endswith(": does not answer")


@pytest.mark.parametrize("uri", [uri for uri in HARMLESS if not uri.startswith("file:///")])
def test_masking_leaves_others_alone(uri: str) -> None:
    assert masked(f"{uri}: x") == f"{uri}: x"
