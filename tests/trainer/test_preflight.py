"""What preflight finds that no other test of a whole stage causes."""

from pathlib import Path
from typing import Any

import pytest

from dmd_api import runtime
from dmd_api.errors import BadInputError
from dmd_api.exit_codes import ExitCode
from dmd_api.loading import parse_manifest
from dmd_api.runtime import Stage
from dmd_trainer.stages.checks import check_credentials
from tests.stages import run_stage_here


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": {"uri": "file:///no/such/teacher"}}, "there is nothing at /no/such/teacher"),
        ({"method": {"name": "DMD2", "generatorSteps": 4}}, "leave it at 1 for a pixel teacher"),
        (
            {
                "method": {"name": "DMD2", "gan": {"maxTimestep": 5000}},
                "data": {"classLabels": {"count": 10}, "images": {"uri": "builtin://digits"}},
            },
            "spec.method.gan.maxTimestep: 5000, but the schedule's last index is 999",
        ),
    ],
)
def test_what_only_a_look_can_tell_is_found(
    change: dict[str, Any], message: str, manifest_dict: dict[str, Any], tmp_path: Path
) -> None:
    manifest_dict["spec"] |= change
    error = run_stage_here(Stage.PREFLIGHT, manifest_dict, tmp_path).error
    assert error is not None
    assert (error.reason, error.exit_code) == ("BadInput", ExitCode.BAD_INPUT)
    assert message in error.message


def test_storage_that_cannot_be_written_is_found(manifest_dict: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "storage").write_text("a file in the way")
    error = run_stage_here(Stage.PREFLIGHT, manifest_dict, tmp_path).error
    assert error is not None
    assert error.exit_code == ExitCode.INFRASTRUCTURE
    assert "storage" in error.message


def test_what_was_found_is_said(
    manifest_dict: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest_dict["spec"]["data"]["images"] = {"uri": "builtin://digits"}
    manifest_dict["spec"]["method"] = {"name": "DMD2", "gan": {}}
    result = run_stage_here(Stage.PREFLIGHT, manifest_dict, tmp_path)
    assert result.error is None
    said = capsys.readouterr().out
    assert "spec.data.images: builtin://digits: 1,797 images; classes 0 to 9" in said
    assert "spec.evaluation.reference: builtin://digits: 1,797 images" in said
