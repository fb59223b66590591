"""What preflight finds that no other test of a whole stage causes."""

from typing import Any

import pytest

from dmd_api import runtime
from dmd_api.errors import BadInputError
from dmd_api.loading import parse_manifest
from dmd_trainer.stages.checks import check_credentials


def test_a_secret_of_mlflow_that_gave_nothing_is_named(
    manifest_dict: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest_dict["spec"]["tracking"]["credentialsSecretRef"] = {"name": "mlflow"}
    spec = parse_manifest(manifest_dict).spec
    for variable in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv(runtime.COMPLETION_INDEX, raising=False)
    check_credentials(spec)  # on a laptop there are no Secrets
    monkeypatch.setenv(runtime.COMPLETION_INDEX, "0")
    with pytest.raises(BadInputError, match="the Secret mlflow is not there, or has none of"):
        check_credentials(spec)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t")
    check_credentials(spec)
